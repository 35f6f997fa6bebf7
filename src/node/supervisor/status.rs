//! The node's status, from what its entries say.

use std::collections::BTreeMap;

use crate::core::deployment::SCHEMA;
use crate::core::record::TimestampMs;
use crate::core::status::{DeploymentStatus, NodeStatus, UpDown, rfc3339};
use crate::node::NodeConfig;
use crate::node::supervisor::entry::Entry;

/// The status of the node as it is now.
pub fn node_status<'a>(
    config: &NodeConfig,
    status: UpDown,
    now_ms: TimestampMs,
    log: &str,
    entries: impl Iterator<Item = &'a Entry>,
) -> NodeStatus {
    let coprocessors: BTreeMap<String, DeploymentStatus> =
        entries.map(|entry| (entry.identity().display_name(), entry.status())).collect();
    NodeStatus {
        node_id: config.node_id,
        status,
        time: rfc3339(now_ms),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schema: SCHEMA.to_string(),
        pool: config.pool.to_string(),
        incarnation: config.incarnation.clone(),
        log: log.to_owned(),
        coprocessors,
        truncated: false,
    }
}
