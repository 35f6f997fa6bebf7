//! The status of coprocessors and pipelines: what is true, bounded, and written only when it changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most nodes that are listed; of more, the counts tell.
pub const MAX_NODES: usize = 50;
/// Longest message of a condition or an error.
pub const MAX_MESSAGE: usize = 1024;

/// One word for people; automation goes by conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not looked at yet, or waiting for something.
    #[default]
    Pending,
    /// On its way to the nodes.
    Deploying,
    /// Every input partition is served.
    Running,
    /// Some partitions are not served, or an old version runs on.
    Degraded,
    /// Standing still by its owner's wish.
    Paused,
    /// It cannot run until somebody changes something.
    Failed,
    /// Being deleted.
    Terminating,
}

/// The code in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleStatus {
    /// The image that the digest was resolved from.
    #[serde(default)]
    pub image: String,
    /// The same image by the digest of its manifest.
    #[serde(default)]
    pub pinned_image: String,
    /// The digest of the module that is deployed.
    #[serde(default)]
    pub digest: String,
    /// Its first twelve digits.
    #[serde(default)]
    pub short_digest: String,
    /// Its signature, where the pool demands one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
}

/// A signature that was found good.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// The key that vouches for the module: its name, and the start of its fingerprint.
    pub key: String,
    /// Names the pool's keys at that time: with others it is checked again.
    pub policy: String,
}

/// What a resource does on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// The node has not been heard of for too long.
    #[default]
    Unknown,
    /// It waits for something.
    Pending,
    /// It starts.
    Starting,
    /// It runs.
    Running,
    /// A record failed and is about to be tried again.
    Retrying,
    /// At least one partition stopped.
    Failed,
    /// It stands still.
    Paused,
    /// The node cannot run it.
    Unsupported,
    /// It ends.
    Stopping,
}

/// A resource on one node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// The node.
    pub node_id: i64,
    /// Its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What it does there.
    pub state: NodeState,
    /// The digest of the module that runs there, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Partitions that it serves.
    #[serde(default)]
    pub partition_count: i64,
    /// Records that wait on its partitions.
    #[serde(default)]
    pub lag: i64,
    /// The last thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the state changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// How many nodes do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that know of it.
    pub total: i64,
    /// Of these, nodes where it runs.
    pub running: i64,
    /// Nodes where it failed.
    pub failed: i64,
    /// Nodes that have not been heard of for too long.
    pub unknown: i64,
}

/// What was seen of a coprocessor or pipeline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentResourceStatus {
    /// The generation that the conditions speak of.
    #[serde(default)]
    pub observed_generation: i64,
    /// One word for people.
    #[serde(default)]
    pub phase: Phase,
    /// `Ready`, `Reconciling`, `Stalled`, `ModuleResolved`, `SignatureVerified`, `Deployed`, `Paused`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The first step's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<ModuleStatus>,
    /// The code of every step of a pipeline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<ModuleStatus>,
    /// Records that wait, about; metrics have the exact figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Where it runs, at most 50 nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeEntry>,
    /// How many nodes do what.
    #[serde(default)]
    pub node_counts: NodeCounts,
}
