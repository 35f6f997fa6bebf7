//! The Kubernetes objects of a pool. Pure, and it cannot fail: what could be wrong was refused by `validate`.
//!
//! Nothing here depends on the operator's version, so that a new operator does not restart pods: what it would
//! build differently waits until the pool's own specification changes, see `rollout`.

mod network;
mod node_config;
mod pods;
pub mod rollout;

pub use pods::secret_names as pods_secret_names;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest as _, Sha256};

use crate::core::names::{Installation, Namespace, PoolName};
use crate::operator::crd::RuntimePoolSpec;

/// Port of metrics and probes.
pub const HTTP_PORT: i32 = 9644;
/// Annotation of every object: hash of what was applied.
pub const HASH: &str = "coproc.dev/applied-hash";
/// Annotation of the StatefulSet: the pool's specification that its pods were built from.
pub const SPEC_HASH: &str = "coproc.dev/pool-spec-hash";
/// Annotation of the StatefulSet: the version of the operator that built its pods.
pub const VERSION: &str = "coproc.dev/operator-version";
/// Annotation of the pods: the node configuration that they read at their start.
pub const CONFIG_HASH: &str = "coproc.dev/node-config-hash";
/// Annotation of a pool: a new value restarts its pods, one after another.
pub const RESTART: &str = "coproc.dev/restart";
/// Label: name of the pool.
pub const POOL: &str = "coproc.dev/pool";

/// A pool, ready to be built: nothing about it can be wrong any more.
#[derive(Debug, Clone)]
pub struct ValidPool {
    /// The installation.
    pub installation: Installation,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: PoolName,
    /// What owns its objects.
    pub owner: OwnerReference,
    /// What it is to be.
    pub spec: RuntimePoolSpec,
    /// The first id of its nodes.
    pub node_id_base: u32,
    /// The image of its pods.
    pub image: String,
    /// How long a node may take to stop, in seconds.
    pub drain_seconds: i64,
    /// The operator's version: noted, and nothing else depends on it.
    pub operator_version: String,
    /// The value of its restart annotation.
    pub restart: Option<String>,
}

/// The objects of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Objects {
    /// The identity of the pods; it has no rights and no token.
    pub service_account: ServiceAccount,
    /// What the nodes read at their start.
    pub config_map: ConfigMap,
    /// Gives the pods names.
    pub service: Service,
    /// Who may talk to the pods; `None` where the pool wants none.
    pub network_policy: Option<NetworkPolicy>,
    /// Keeps most nodes up while machines are drained.
    pub disruption_budget: PodDisruptionBudget,
    /// The pods.
    pub stateful_set: StatefulSet,
}

/// Builds the objects of a pool.
pub fn objects(pool: &ValidPool) -> Objects {
    let config = node_config::yaml(pool);
    Objects {
        service_account: ServiceAccount {
            metadata: metadata(pool),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
        service: service(pool),
        network_policy: pool.spec.network_policy.enabled.then(|| network::policy(pool)),
        disruption_budget: disruption_budget(pool),
        stateful_set: pods::stateful_set(pool, &config),
        config_map: ConfigMap {
            metadata: metadata(pool),
            data: Some(BTreeMap::from([("node.yaml".to_owned(), config)])),
            ..ConfigMap::default()
        },
    }
}

/// Name of every object of a pool.
pub fn object_name(pool: &PoolName) -> String {
    format!("{pool}-runtime")
}

/// Name of the pod of a node.
pub fn pod_name(pool: &PoolName, index: u32) -> String {
    format!("{}-{index}", object_name(pool))
}

/// Labels by which the pods of a pool are selected; they never change.
pub fn selector_labels(pool: &PoolName) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "coproc"), ("app.kubernetes.io/component", "runtime"), (POOL, pool.as_str())]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The selector as text, for the scale subresource.
pub fn selector(pool: &PoolName) -> String {
    let labels = selector_labels(pool);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Hash of a value in its JSON form, short enough for an annotation.
pub fn hash(value: &impl serde::Serialize) -> String {
    // Maps are ordered in every type that is built here, so equal values have equal bytes.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    hex::encode(&Sha256::digest(bytes)[..12])
}

fn metadata(pool: &ValidPool) -> ObjectMeta {
    let mut labels = selector_labels(&pool.name);
    labels.insert("app.kubernetes.io/part-of".into(), "coproc".into());
    labels.insert("app.kubernetes.io/instance".into(), pool.name.to_string());
    labels.insert("app.kubernetes.io/managed-by".into(), "coproc-operator".into());
    ObjectMeta {
        name: Some(object_name(&pool.name)),
        namespace: Some(pool.namespace.to_string()),
        labels: Some(labels),
        owner_references: Some(vec![pool.owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn label_selector(pool: &ValidPool) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(&pool.name)), ..LabelSelector::default() }
}

fn service(pool: &ValidPool) -> Service {
    Service {
        metadata: metadata(pool),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(selector_labels(&pool.name)),
            // Nodes are found while they start, too: metrics of a node that is not ready matter most.
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: HTTP_PORT,
                target_port: Some(IntOrString::String("http".into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn disruption_budget(pool: &ValidPool) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(pool),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(label_selector(pool)),
            // A pod that does not get ready must not keep a machine from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

#[cfg(test)]
#[path = "build/tests.rs"]
mod tests;
