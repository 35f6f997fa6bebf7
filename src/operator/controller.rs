//! The reconciliations: dereference → validate → build → apply → status, once for pools and once for deployments.

pub mod deployment;
mod finish;
mod modules;
pub mod pool;
mod retire;

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::core::disposition::Disposition;
use crate::operator::apply::{self, MANAGER};
use crate::operator::context::{Context, object_key};
use crate::operator::dereference;
use crate::operator::lifecycle::FINALIZER;
use crate::ports::LogError;

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("API server: {}", apply::brief(.0))]
    Api(#[from] kube::Error),
    /// An object of a pool.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// Something that is referred to.
    #[error(transparent)]
    Dereference(#[from] dereference::Error),
    /// The log.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// A thread could not be started.
    #[error("start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A thread of ours panicked.
    #[error("a blocking call ended badly: {0}")]
    Blocking(#[from] tokio::task::JoinError),
}

impl Error {
    /// The label of the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api(_) | Self::Apply(_) => "api",
            Self::Dereference(_) => "dereference",
            Self::Log(error) => match error.disposition() {
                Disposition::Fenced => "fenced",
                _ => "log",
            },
            Self::Thread(_) | Self::Blocking(_) => "internal",
        }
    }
}

/// What happens after a failure: the object waits by itself, longer each time.
#[expect(clippy::needless_pass_by_value, reason = "the signature is the controller's")]
pub fn on_error<K: Resource<DynamicType = ()>>(
    object: Arc<K>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let key = object_key(object.as_ref());
    let kind = K::kind(&());
    context.metrics.reconcile_errors.with_label_values(&[kind.as_ref(), error.reason()]).inc();
    // Two writers of one object meet now and then: the next attempt reads anew.
    let is_conflict = matches!(error, Error::Api(kube::Error::Api(status)) if status.code == 409);
    if is_conflict {
        return Action::requeue(Duration::from_millis(200));
    }
    let wait = context.backoff.failed(key.clone());
    tracing::warn!(object = key, %error, wait = ?wait, "reconciliation failed; it is tried again");
    Action::requeue(wait)
}

/// Adds or removes the finalizer; others of the object stay. A conflict comes back as an error.
pub(super) async fn set_finalizer<K>(context: &Context, object: &K, wanted: bool) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let mut finalizers: Vec<String> = object.finalizers().to_vec();
    finalizers.retain(|name| name != FINALIZER);
    if wanted {
        finalizers.push(FINALIZER.into());
    }
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let body = json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
    context.metrics.api_writes.with_label_values(&[K::kind(&()).as_ref(), "finalizer"]).inc();
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(error)) if error.code == 404 && !wanted => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes a status by server-side apply.
pub async fn write_status<K, S>(context: &Context, object: &K, status: &S) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
    S: Serialize,
{
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let api: Api<K> = Api::namespaced(context.client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let body = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()),
        // An object that was deleted and made anew must not get the status of the old one.
        "metadata": {"name": name, "uid": meta.uid},
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    let status = body["status"].clone();
    let written = match api.patch_status(name, &params, &Patch::Apply(body)).await {
        Ok(written) => written,
        // It is gone, or another of its name is there: nothing to tell.
        Err(kube::Error::Api(error)) if error.code == 404 => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    context.note_write(object_key(object), written.meta().resource_version.as_deref(), status);
    context.metrics.api_writes.with_label_values(&[K::kind(&()).as_ref(), "status"]).inc();
    Ok(())
}
