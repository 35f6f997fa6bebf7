//! `coproc pool`: what the chart needs of pools.
//!
//! Helm deletes the operator before it deletes the chart's pool, whose finalizer only an operator takes off. So the
//! chart's hook runs `pool delete` first.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::cli::crds::client;
use crate::cli::output::say;
use crate::core::units::Span;
use crate::operator::crd::RuntimePool;

/// How often it is looked whether the pool is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Delete a pool before its operator goes
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Delete a pool, and wait until its nodes have stopped and its operator has cleaned up
    ///
    /// When that takes too long, because no operator runs or Kafka is gone, the pool is let go without it. Resources
    /// that name the pool stay.
    Delete(Delete),
}

/// Which pool, and for how long.
#[derive(Debug, Args)]
pub struct Delete {
    /// Name of the pool
    name: String,
    /// Its namespace; by default the one of the current context
    #[arg(short, long)]
    namespace: Option<String>,
    /// How long to wait before it is let go
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    timeout: Span,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let Self::Delete(delete) = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(delete.run())
    }
}

impl Delete {
    async fn run(&self) -> anyhow::Result<()> {
        let client = client().await?;
        let api: Api<RuntimePool> = match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        };
        let name = self.name.as_str();
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(error)) if error.code == 404 => {
                return say(&format!("there is no pool {name}"));
            }
            deleted => drop(deleted.with_context(|| format!("delete the pool {name}: may you?"))?),
        }
        let timeout = Duration::from_millis(self.timeout.0);
        if let Ok(gone) = tokio::time::timeout(timeout, gone(&api, name)).await {
            gone.with_context(|| format!("look whether the pool {name} is gone"))?;
            return say(&format!("pool {name} is gone"));
        }
        let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        match api.patch(name, &PatchParams::default(), &none).await {
            Err(kube::Error::Api(error)) if error.code == 404 => {}
            patched => drop(patched.with_context(|| format!("let the pool {name} go: may you patch it?"))?),
        }
        say(&format!("pool {name} is let go: records about it and its nodes may be left in Kafka"))
    }
}

async fn gone(api: &Api<RuntimePool>, name: &str) -> Result<(), kube::Error> {
    while api.get_opt(name).await?.is_some() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
