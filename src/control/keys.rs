//! Keys of the control topic.
//!
//! `deployment/<installation>/<namespace>/<pool>/<kind>/<name>`, `nodes/<base>`,
//! `snapshot/<installation>/<namespace>/<pool>`.

use std::fmt;

use crate::core::names::{Identity, Installation, Namespace, PoolName};

/// A key of the control topic, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ControlKey {
    /// A deployment's desired state.
    Deployment(PoolName, Identity),
    /// Which pool owns the block of node ids that starts here.
    Nodes(u32),
    /// What a full write left of the deployments that a namespace has in a pool. Pools of different namespaces may
    /// have one name, and their operators different clusters.
    Snapshot(Installation, Namespace, PoolName),
}

impl ControlKey {
    /// Reads a key; `None` for what is not ours.
    pub fn parse(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            ["deployment", installation, namespace, pool, kind, name] => {
                let identity = Identity {
                    installation: installation.parse().ok()?,
                    namespace: namespace.parse().ok()?,
                    kind: kind.parse().ok()?,
                    name: name.parse().ok()?,
                };
                Some(Self::Deployment(pool.parse().ok()?, identity))
            }
            ["nodes", base] => Some(Self::Nodes(base.parse().ok()?)),
            ["snapshot", installation, namespace, pool] => {
                Some(Self::Snapshot(installation.parse().ok()?, namespace.parse().ok()?, pool.parse().ok()?))
            }
            _ => None,
        }
    }
}

impl fmt::Display for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deployment(pool, identity) => {
                let Identity { installation, namespace, kind, name } = identity;
                write!(f, "deployment/{installation}/{namespace}/{pool}/{}/{name}", kind.as_str())
            }
            Self::Nodes(base) => write!(f, "nodes/{base}"),
            Self::Snapshot(installation, namespace, pool) => {
                write!(f, "snapshot/{installation}/{namespace}/{pool}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_both_ways() {
        for text in [
            "deployment/default/_cli/default/coprocessor/redact",
            "nodes/1000",
            "snapshot/default/shop/default",
        ] {
            assert_eq!(ControlKey::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        for foreign in
            ["", "snapshot/default", "deployment/a", "deployment/a/b/c/thing/e", "nodes/x", "\u{0}12345678"]
        {
            assert_eq!(ControlKey::parse(foreign.as_bytes()), None, "{foreign:?}");
        }
    }
}
