//! `coproc test`: runs golden files through the real guest host.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use crate::cli::exit::{Exit, coded};
use crate::cli::golden::{self, Case};
use crate::cli::manifest::{self, Manifest};
use crate::cli::modules::{self, Lines};
use crate::cli::output::{clean, count, say};
use crate::cli::{engine, harness};
use crate::core::names::TopicName;
use crate::node::plan::ChainPlan;
use crate::ports::GuestLines;

/// Run a project's golden files
///
/// Each file in tests/ holds input records and the outputs that the module is to give: YAML documents with
/// `input` and `output` lists, or lines of JSON like {"input": {"value": "a"}} and {"output": {"value": "A"}}.
/// Fields that an output does not name are not compared. Differences are shown like a diff: what is missing
/// after -, what is too much after +.
#[derive(Debug, Args)]
pub struct Command {
    /// Files; all of tests/ beside the manifest unless given
    files: Vec<PathBuf>,
    /// The manifest
    #[arg(short = 'f', long = "file", value_name = "coproc.yaml", default_value = manifest::FILE)]
    manifest: PathBuf,
    /// Show what the module prints, also where the test passes
    #[arg(long)]
    show_output: bool,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let manifest = manifest::read(&self.manifest)?;
        let files = if self.files.is_empty() { self.find()? } else { self.files.clone() };
        let cases = files.iter().map(|file| Ok((file, read(file)?))).collect::<anyhow::Result<Vec<_>>>()?;
        let engine = engine::new(None, None)?;
        let plan = modules::chain(&manifest, engine.as_ref())?;
        let (mut passed, mut failed) = (0, 0);
        for (file, cases) in cases {
            for case in cases {
                let lines = Arc::new(Lines::default());
                let verdict = judge(&manifest, &plan, &case, &lines);
                let word = if verdict.is_none() { "ok  " } else { "FAIL" };
                say(&format!("{word} {}: {}", file.display(), clean(&case.name)))?;
                if let Some(why) = &verdict {
                    say(why.trim_end())?;
                    failed += 1;
                } else {
                    passed += 1;
                }
                if self.show_output || verdict.is_some() {
                    for line in lines.take() {
                        say(&format!("  printed: {}", clean(&line)))?;
                    }
                }
            }
        }
        if failed > 0 {
            return Err(coded(
                Exit::Failed,
                format!("{failed} of {} failed", count(passed + failed, "test")),
            ));
        }
        say(&format!("{} passed", count(passed, "test")))
    }

    fn find(&self) -> anyhow::Result<Vec<PathBuf>> {
        let directory = self.manifest.parent().unwrap_or(Path::new("")).join("tests");
        let entries = std::fs::read_dir(&directory).map_err(|error| {
            coded(Exit::NotFound, format!("cannot read {}: {error}", directory.display()))
        })?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let extension = path.extension().and_then(OsStr::to_str);
            if matches!(extension, Some("yaml" | "yml" | "jsonl")) {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() {
            let message = format!("there is no .yaml or .jsonl file in {}", directory.display());
            return Err(coded(Exit::NotFound, message));
        }
        Ok(files)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Case>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| coded(Exit::NotFound, format!("cannot read {}: {error}", path.display())))?;
    let is_lines = path.extension().is_some_and(|extension| extension == "jsonl");
    let cases = if is_lines { golden::from_json_lines(&text) } else { golden::from_yaml(&text) };
    cases.map_err(|error| coded(Exit::Usage, error)).with_context(|| format!("{}", path.display()))
}

/// Runs a case: what is wrong, if anything.
fn judge(manifest: &Manifest, plan: &ChainPlan, case: &Case, lines: &Arc<Lines>) -> Option<String> {
    let fallback = || "input".parse::<TopicName>().ok();
    let input = case.topic.clone().or_else(|| manifest.inputs.first().cloned()).or_else(fallback)?;
    let mut plan = plan.clone();
    for step in &mut plan.steps {
        step.env.extend(case.env.clone());
    }
    let lines: Arc<dyn GuestLines> = lines.clone();
    let outcome = match harness::run(&plan, &input, &case.input, &lines) {
        Ok(outcome) => outcome,
        Err(failure) => return Some(format!("  the module does not start: {failure}")),
    };
    let mut wrong = String::new();
    match (&outcome.failure, &case.error) {
        (None, None) => {}
        (Some(failure), Some(class)) if failure.failure.class.as_str() == class => {}
        (Some(failure), _) => {
            wrong = format!("  input {} failed: {}\n", outcome.finished + 1, clean(&failure.to_string()));
        }
        (None, Some(class)) => wrong = format!("  no input failed, one was to fail with {class}\n"),
    }
    if let Some(difference) = golden::difference(&case.output, &outcome.written) {
        for line in difference.lines() {
            let _ = writeln!(wrong, "  {line}");
        }
    }
    (!wrong.is_empty()).then_some(wrong)
}
