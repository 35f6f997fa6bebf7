//! Module files: read, named by their digest, and checked as a node would.

use std::path::PathBuf;

use crate::cli::exit::{Exit, coded};
use crate::cli::manifest::StepFile;
use crate::control::modules::digest_of;
use crate::core::digest::Digest;

/// A module file.
#[derive(Debug, Clone)]
pub struct Module {
    /// Where it was found.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

/// Reads a module file.
pub fn read(path: &std::path::Path) -> anyhow::Result<Module> {
    let bytes = std::fs::read(path).map_err(|error| {
        let hint =
            if error.kind() == std::io::ErrorKind::NotFound { ": `coproc build` makes it" } else { "" };
        coded(Exit::NotFound, format!("cannot read module {}: {error}{hint}", path.display()))
    })?;
    Ok(Module { path: path.to_owned(), digest: digest_of(&bytes), bytes })
}

/// Reads the modules of a chain.
pub fn read_all(steps: &[StepFile]) -> anyhow::Result<Vec<Module>> {
    steps.iter().map(|step| read(&step.module)).collect()
}
