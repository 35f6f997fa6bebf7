//! Module files: read, named by their digest, and checked as a node would.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;

use crate::cli::engine;
use crate::cli::exit::{Exit, coded};
use crate::cli::manifest::{Manifest, StepFile};
use crate::control::modules::digest_of;
use crate::core::deployment::Limits;
use crate::core::digest::Digest;
use crate::core::names::TopicName;
use crate::node::plan::{ChainPlan, StepPlan, guest_limits};
use crate::ports::{Engine, GuestLines, GuestSpec, LineLevel};

/// A module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Where it is: a file, or an image as it was named.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// The image that it came from, by the digest of its manifest; nodes fetch it from there.
    pub image: Option<String>,
}

impl Module {
    /// A module with these bytes.
    pub fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, digest: digest_of(&bytes), bytes, image: None }
    }

    /// Reads a module file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| {
            let hint =
                if error.kind() == ErrorKind::NotFound { ": `coproc build` makes a project's" } else { "" };
            coded(Exit::NotFound, format!("cannot read module {}: {error}{hint}", path.display()))
        })?;
        Ok(Self::new(path.to_owned(), bytes))
    }
}

/// What people call a module: its file without the ending, or the last part of its image's name.
pub fn stem(path: &Path) -> String {
    #[cfg(feature = "oci")]
    if let crate::oci::Subject::Image(image) = crate::oci::Subject::from_path(path) {
        return image.repository().rsplit('/').next().unwrap_or_default().to_owned();
    }
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned()
}

/// Reads the modules of a chain.
pub fn read_all(steps: &[StepFile]) -> anyhow::Result<Vec<Module>> {
    steps.iter().map(|step| Module::read(&step.module)).collect()
}

/// Checks a module, compiles it, and starts it once, as a node would before a lane gets it.
pub fn check(
    module: &Module,
    limits: &Limits,
    env: &std::collections::BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let engine = engine::new(None, None)?;
    let program = engine
        .compile(&module.bytes, module.digest)
        .with_context(|| format!("{} cannot be used", module.path.display()))?;
    let spec = GuestSpec {
        name: "check".into(),
        step: "main".into(),
        input: "input".parse()?,
        outputs: (0..8).map(|i| format!("output-{i}").parse()).collect::<Result<Vec<TopicName>, _>>()?,
        env: env.clone(),
        limits: guest_limits(limits),
    };
    let lines = Arc::new(Lines::default());
    if let Err(failure) = program.start(&spec, lines.clone()) {
        let printed = lines.take().join("\n");
        let printed = if printed.is_empty() { String::new() } else { format!("; it printed: {printed}") };
        let message = format!(
            "{} does not start ({}): {failure}{printed}",
            module.path.display(),
            failure.class.as_str()
        );
        return Err(coded(Exit::Refused, message));
    }
    Ok(())
}

/// The chain of a manifest, compiled here.
pub fn chain(manifest: &Manifest, engine: &dyn Engine) -> anyhow::Result<ChainPlan> {
    let step = |step: &StepFile| -> anyhow::Result<StepPlan> {
        let module = Module::read(&step.module)?;
        let program = engine
            .compile(&module.bytes, module.digest)
            .with_context(|| format!("{} cannot be used", module.path.display()))?;
        Ok(StepPlan {
            name: step.name.clone(),
            program,
            env: step.env.clone(),
            limits: guest_limits(&step.limits),
        })
    };
    Ok(ChainPlan {
        name: manifest.name.to_string(),
        steps: manifest.steps.iter().map(step).collect::<Result<_, _>>()?,
        outputs: manifest.outputs.clone(),
    })
}

/// Collects what guests print.
#[derive(Debug, Default)]
pub struct Lines(Mutex<Vec<String>>);

impl Lines {
    /// The lines so far, taken away.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl GuestLines for Lines {
    fn line(&self, _: LineLevel, text: &str) {
        let mut lines = self.0.lock();
        if lines.len() < 1_000 {
            lines.push(text.to_owned());
        }
    }
}
