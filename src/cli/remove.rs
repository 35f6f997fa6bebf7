//! `coproc remove`: a deployment goes, and its committed offsets with it; topics and their records stay.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::cli::describe::on_nodes;
use crate::cli::exit::{self, Exit, coded};
use crate::cli::offsets;
use crate::cli::open::{Target, now_ms};
use crate::cli::output::{note, say};
use crate::control::desired;
use crate::control::observed;
use crate::control::writer::DesiredWriter;
use crate::core::names::{ConsumerGroup, Identity};
use crate::core::units::Span;
use crate::ports::{Log, LogError};

/// How often is looked whether the nodes have stopped it.
const EVERY: Duration = Duration::from_millis(50);

/// The deployments that are meant.
#[derive(Debug, Args)]
pub struct Command {
    /// Names; kind/name or installation/namespace/kind/name where that is not enough
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Succeed when there is no such deployment
    #[arg(long)]
    if_exists: bool,
    /// Keep the committed offsets: a deployment of the same name goes on there
    #[arg(long)]
    keep_offsets: bool,
    /// The longest time to wait for the nodes to stop it; one that died counts as gone after 30s
    #[arg(long, value_name = "DURATION", default_value = "35s", conflicts_with = "keep_offsets")]
    timeout: Span,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        for name in &self.names {
            match target.deployment(log.as_ref(), name).and_then(|at| self.remove(target, log.as_ref(), &at))
            {
                Ok(text) => say(&text)?,
                Err(error) if self.if_exists && exit::of(&error) == Exit::NotFound => {
                    say(&format!("{name} was not there"))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes one: what there is to say about it.
    fn remove(&self, target: &Target, log: &dyn Log, identity: &Identity) -> anyhow::Result<String> {
        let group = offsets::group_of(&desired::read(log)?, identity);
        DesiredWriter::new(log, target.installation.clone()).remove(identity)?;
        let name = &identity.name;
        if self.keep_offsets {
            return Ok(format!(
                "{name} removed, its offsets stay: `coproc offsets delete --group {group}` removes them"
            ));
        }
        let forgotten = self.forget(log, identity, &group);
        let context = || {
            format!(
                "{name} is removed, but its offsets are still there; `coproc offsets delete --group {group}` removes \
                 them when no node runs it any more"
            )
        };
        match forgotten.with_context(context)? {
            None => Ok(format!("{name} removed")),
            Some(user) => Ok(format!("{name} removed, its offsets stay: {user} uses them too")),
        }
    }

    /// Deletes the group once nobody is in it; `Some` when another deployment uses it.
    fn forget(
        &self,
        log: &dyn Log,
        identity: &Identity,
        group: &ConsumerGroup,
    ) -> anyhow::Result<Option<Identity>> {
        let deadline = Instant::now() + self.timeout.duration();
        let mut told = String::new();
        while let Some(holder) = holder(log, identity, group)? {
            if Instant::now() >= deadline {
                let message = format!("{holder}, after {} of waiting", self.timeout);
                return Err(coded(Exit::Unavailable, message));
            }
            if holder != told {
                note(&format!("waiting: {holder}"));
                told = holder;
            }
            std::thread::sleep(EVERY);
        }
        // Somebody may have deployed it again in the meantime.
        if let Some(user) = offsets::user_of(&desired::read(log)?, group) {
            return Ok(Some(user));
        }
        log.offsets().delete(group)?;
        Ok(None)
    }
}

/// Who may still commit to the group.
fn holder(log: &dyn Log, identity: &Identity, group: &ConsumerGroup) -> Result<Option<String>, LogError> {
    let nodes = observed::read(log)?.map(|state| state.nodes()).unwrap_or_default();
    let on = on_nodes(&nodes, identity, now_ms());
    if let Some(on) = on.iter().find(|on| on.responsive) {
        return Ok(Some(format!("node {} has not stopped it yet", on.node_id)));
    }
    let members = log.offsets().members(group)?;
    Ok((members > 0).then(|| format!("group {group} is in use")))
}
