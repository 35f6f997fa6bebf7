//! `coproc pause` and `coproc resume`.

use clap::Args;

use crate::cli::open::Target;
use crate::cli::output::say;
use crate::control::writer::DesiredWriter;

/// The deployment that is meant.
#[derive(Debug, Args)]
pub struct Command {
    /// Its name; kind/name or installation/namespace/kind/name where that is not enough
    name: String,
}

impl Command {
    /// Pauses it, or lets it go on.
    pub fn run(&self, target: &Target, paused: bool) -> anyhow::Result<()> {
        let log = target.log()?;
        let identity = target.deployment(log.as_ref(), &self.name)?;
        let writer = DesiredWriter::new(log.as_ref(), target.installation.clone());
        let changed = writer.set_paused(&identity, paused)?;
        let name = &identity.name;
        say(&match (changed, paused) {
            (true, true) => format!("{name} paused"),
            (true, false) => format!("{name} resumed"),
            (false, true) => format!("{name} was paused already"),
            (false, false) => format!("{name} was not paused"),
        })
    }
}
