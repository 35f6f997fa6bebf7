//! `coproc remove`: a deployment goes; topics and their records stay.

use clap::Args;

use crate::cli::exit::{self, Exit};
use crate::cli::open::Target;
use crate::cli::output::say;
use crate::control::writer::DesiredWriter;

/// The deployments that are meant.
#[derive(Debug, Args)]
pub struct Command {
    /// Names; kind/name or installation/namespace/kind/name where that is not enough
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Succeed when there is no such deployment
    #[arg(long)]
    if_exists: bool,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        let writer = DesiredWriter::new(log.as_ref(), target.installation.clone());
        for name in &self.names {
            let removed = target
                .deployment(log.as_ref(), name)
                .and_then(|identity| Ok(writer.remove(&identity).map(|()| identity)?));
            match removed {
                Ok(identity) => say(&format!("{} removed", identity.name))?,
                Err(error) if self.if_exists && exit::of(&error) == Exit::NotFound => {
                    say(&format!("{name} was not there"))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
