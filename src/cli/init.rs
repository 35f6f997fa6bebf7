//! `coproc init`: a project that builds, has a test, and can be deployed. The templates are in the binary.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::cli::exit::{Exit, coded};
use crate::cli::manifest;
use crate::cli::output::{note, say};
use crate::core::names::DeploymentName;

/// Create a project for a coprocessor
#[derive(Debug, Args)]
pub struct Command {
    /// Where; made if it is not there
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// The language
    #[arg(short, long, default_value = "rust")]
    language: Template,
    /// Name of the coprocessor; the directory's unless given
    #[arg(long)]
    name: Option<DeploymentName>,
}

/// What a project can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Template {
    /// Rust, with the redpanda-transform-sdk crate
    Rust,
    /// WebAssembly's text format
    Wat,
}

/// A file's path and text; `{{name}}` stands for the name in both.
type File = (&'static str, &'static str);

const SHARED: [File; 4] = [
    (manifest::FILE, include_str!("templates/coproc.yaml.template")),
    ("README.md", include_str!("templates/README.md.template")),
    (".gitignore", include_str!("templates/gitignore.template")),
    ("tests/uppercase.yaml", include_str!("templates/golden.yaml.template")),
];
const RUST: [File; 2] = [
    ("Cargo.toml", include_str!("templates/rust/Cargo.toml.template")),
    ("src/main.rs", include_str!("templates/rust/src/main.rs.template")),
];
const WAT: [File; 1] = [("{{name}}.wat", WAT_MODULE)];

/// A whole module, in text form: writes values in upper case.
pub const WAT_MODULE: &str = include_str!("templates/wat/module.wat.template");

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let name = self.name()?;
        let files = self.files(&name);
        for (path, _) in &files {
            if path.exists() {
                let message = format!("{} is there already: choose another directory", path.display());
                return Err(coded(Exit::Refused, message));
            }
        }
        for (path, text) in &files {
            write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        say(&format!("{name} created in {}", self.directory.display()))?;
        let enter = if self.directory == Path::new(".") {
            String::new()
        } else {
            format!("cd {} && ", self.directory.display())
        };
        note(&format!("Next: {enter}coproc build && coproc test"));
        Ok(())
    }

    fn name(&self) -> anyhow::Result<DeploymentName> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let absolute = std::path::absolute(&self.directory)?;
        let last = absolute.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        last.parse().map_err(|error| {
            coded(
                Exit::Usage,
                format!("the directory's name cannot be the coprocessor's ({error}): use --name"),
            )
        })
    }

    fn files(&self, name: &DeploymentName) -> Vec<(PathBuf, String)> {
        let (own, language, source): (&[File], _, _) = match self.language {
            Template::Rust => (&RUST, "rust", "src/main.rs"),
            Template::Wat => (&WAT, "wat", "{{name}}.wat"),
        };
        let fill = |text: &str| {
            let text = text.replace("{{language}}", language).replace("{{source}}", source);
            text.replace("{{name}}", name.as_str())
        };
        let file = |(path, text): &File| (self.directory.join(fill(path)), fill(text));
        own.iter().chain(&SHARED).map(file).collect()
    }
}

/// Writes a new file; one that appeared in the meantime is not overwritten.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = std::fs::File::create_new(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| match error.kind() {
        ErrorKind::StorageFull => std::io::Error::new(ErrorKind::StorageFull, "the disk is full"),
        _ => error,
    })
}
