//! `coproc crds`: the definitions of the Kubernetes resources, printed or applied.
//!
//! The chart's hook runs `crds apply` before an upgrade, because Helm never upgrades what is in `crds/`.

use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::wait::Condition as _;
use serde_json::Value;

use crate::cli::exit::{Exit, coded};
use crate::cli::output::say;
use crate::operator::crd;

/// How long the API server may take to serve a definition.
const ESTABLISHED: Duration = Duration::from_mins(1);
/// How often it is looked whether it does.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Print or apply the definitions of the Kubernetes resources
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print them as YAML
    Print,
    /// Apply them to the cluster of the current context, and wait until they are served
    Apply,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Print => print(),
            Self::Apply => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(apply())
            }
        }
    }
}

fn print() -> anyhow::Result<()> {
    for (_, definition) in crd::definitions() {
        say(&format!("---\n{}", serde_yaml::to_string(&definition)?.trim_end()))?;
    }
    Ok(())
}

async fn apply() -> anyhow::Result<()> {
    let client = client().await?;
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let params = PatchParams::apply("coproc-crds").force();
    for (_, definition) in crd::definitions() {
        let name = definition.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let applied = api.patch(name, &params, &Patch::Apply(&definition)).await;
        applied.with_context(|| format!("apply the definition {name}: may you patch it?"))?;
        let in_time = tokio::time::timeout(ESTABLISHED, served(&api, name)).await;
        in_time
            .map_err(|_| coded(Exit::Unavailable, format!("{name} is not served after {ESTABLISHED:?}")))??;
        say(&format!("{name} is served"))?;
    }
    Ok(())
}

/// Waits until a definition is served. By reading it again and again: a watch would want one more right.
async fn served(api: &Api<CustomResourceDefinition>, name: &str) -> Result<(), kube::Error> {
    let is_served = kube::runtime::wait::conditions::is_crd_established();
    loop {
        if is_served.matches_object(Some(&api.get(name).await?)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The cluster of the current context, or the one that this pod runs in.
pub(super) async fn client() -> anyhow::Result<kube::Client> {
    // Two TLS libraries may be compiled in: the choice is made once, here, and a second attempt changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    kube::Client::try_default()
        .await
        .context("find the cluster: is KUBECONFIG set, or does this run in a pod?")
}
