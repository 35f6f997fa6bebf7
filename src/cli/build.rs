//! `coproc build`: makes a project's module, and checks it as a node would.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use anyhow::Context;
use clap::Args;

use crate::cli::exit::{Exit, coded};
use crate::cli::manifest::{self, Language, Manifest};
use crate::cli::modules;
use crate::cli::output::say;
use crate::wasm::section;

/// The target that transforms are built for.
const TARGET: &str = "wasm32-wasip1";

/// Build the module of a project
///
/// Reads coproc.yaml. Rust is built with cargo for wasm32-wasip1, WebAssembly text is assembled; the result
/// is <name>.wasm beside the manifest, checked as a node checks it.
#[derive(Debug, Args)]
pub struct Command {
    /// The manifest
    #[arg(short, long, value_name = "coproc.yaml", default_value = manifest::FILE)]
    file: PathBuf,
    /// More arguments for cargo
    #[arg(last = true, value_name = "CARGO ARGUMENTS")]
    extra: Vec<String>,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let manifest = manifest::read(&self.file)?;
        let directory = self.file.parent().filter(|path| *path != Path::new("")).unwrap_or(Path::new("."));
        let [step] = &manifest.steps[..] else {
            let message = "a project builds one module: build each step in its own project";
            return Err(coded(Exit::Usage, message));
        };
        let bytes = match manifest.language {
            Language::Rust => self.cargo(directory, &manifest)?,
            Language::Wat => assemble(&directory.join(format!("{}.wat", manifest.name)))?,
        };
        // A module that says itself what it reads and writes can just be dropped into a folder.
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let bytes = section::with_manifest(&bytes, &text);
        let module = modules::Module::new(step.module.clone(), bytes);
        modules::check(&module, &step.limits, &step.env)?;
        // Renamed into place, so that nobody ever deploys half a module.
        let part = step.module.with_extension("wasm.part");
        std::fs::write(&part, &module.bytes)
            .and_then(|()| std::fs::rename(&part, &step.module))
            .with_context(|| format!("cannot write {}", step.module.display()))?;
        say(&format!("{} built, {} bytes, {}", step.module.display(), module.bytes.len(), module.digest))
    }

    fn cargo(&self, directory: &Path, manifest: &Manifest) -> anyhow::Result<Vec<u8>> {
        check_target(directory)?;
        let mut cargo = Process::new("cargo");
        cargo.args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"]);
        let built = cargo.args(&self.extra).current_dir(directory).stderr(Stdio::inherit()).output();
        let built = built.map_err(|error| {
            coded(
                Exit::NotFound,
                format!("cargo cannot be started ({error}): install Rust from https://rustup.rs"),
            )
        })?;
        if !built.status.success() {
            return Err(coded(Exit::Failed, format!("cargo build failed in {}", directory.display())));
        }
        let module = executable(&built.stdout).ok_or_else(|| {
            let name = &manifest.name;
            coded(Exit::Failed, format!("cargo built no program: does {name} have a src/main.rs?"))
        })?;
        std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))
    }
}

/// The program that cargo says it built: the last one.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    let messages = messages.split(|byte| *byte == b'\n');
    let mut programs = messages.filter_map(|line| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    programs.next_back()
}

/// Says what to do when the target is not installed: cargo's own error is long and says less.
fn check_target(directory: &Path) -> anyhow::Result<()> {
    let mut rustc = Process::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]).current_dir(directory);
    let Ok(printed) = rustc.output() else { return Ok(()) };
    let path = String::from_utf8_lossy(&printed.stdout);
    if printed.status.success() && !Path::new(path.trim()).exists() {
        let message = format!("Rust cannot build for {TARGET} yet: run `rustup target add {TARGET}`");
        return Err(coded(Exit::NotFound, message));
    }
    Ok(())
}

fn assemble(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| coded(Exit::NotFound, format!("cannot read {}: {error}", path.display())))?;
    wat::parse_str(&text).map_err(|mut error| {
        error.set_path(path);
        coded(Exit::Failed, format!("cannot assemble: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_program_is_the_one() {
        let messages = br#"{"reason":"compiler-artifact","executable":null}
{"reason":"compiler-artifact","executable":"/t/build-script"}
not json
{"reason":"compiler-artifact","executable":"/t/a.wasm"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/a.wasm")));
        assert_eq!(executable(b""), None);
    }
}
