//! From resources to control records: what has to be written so that the topic says what Kubernetes says. Pure.

use std::collections::BTreeSet;

use crate::control::desired::{Desired, DesiredState, Snapshot};
use crate::control::keys::ControlKey;
use crate::core::deployment::Deployment;
use crate::core::names::{Identity, Installation, Namespace, PoolName, TopicName};
use crate::operator::observe::BY_HAND;
use crate::ports::Keyed;

/// Which pool, in the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// The installation.
    pub installation: Installation,
    /// The namespace.
    pub namespace: Namespace,
    /// The name.
    pub name: PoolName,
}

impl PoolKey {
    /// Id of the writer of this pool's control records: a later operator fences an earlier one by it.
    pub fn writer_id(&self) -> String {
        format!("coproc.operator.{}.{}.{}", self.installation, self.namespace, self.name)
    }

    /// Whose block of node ids it is, in the control topic.
    pub fn owner(&self) -> String {
        format!("{}/{}/{}", self.installation, self.namespace, self.name)
    }

    /// Whether its operator is the only one to write this deployment.
    pub fn owns(&self, identity: &Identity) -> bool {
        identity.installation == self.installation && identity.namespace == self.namespace
    }
}

/// The record that makes a deployment desired; `None` when the topic says so already.
pub fn put(
    state: &DesiredState,
    pool: &PoolName,
    identity: &Identity,
    deployment: &Deployment,
) -> Option<Keyed> {
    let is_there =
        matches!(state.confirmed(pool, identity), Some(Desired::Deployment(there)) if **there == *deployment);
    (!is_there).then(|| Keyed {
        key: key(pool, identity),
        // Every type in a deployment has a JSON form with text keys.
        value: Some(serde_json::to_vec(deployment).unwrap_or_default()),
    })
}

/// The record that removes a deployment; `None` when the topic does not have it.
pub fn remove(state: &DesiredState, pool: &PoolName, identity: &Identity) -> Option<Keyed> {
    let is_there = state.of_pool(pool).any(|(at, _)| at == identity);
    is_there.then(|| Keyed { key: key(pool, identity), value: None })
}

/// What is left of resources that are gone: deployments of this pool that no resource stands for.
pub fn orphans(state: &DesiredState, pool: &PoolKey, resources: &BTreeSet<Identity>) -> Vec<Keyed> {
    let known = state.of_pool(&pool.name).map(|(identity, _)| identity);
    let orphaned = known.filter(|identity| pool.owns(identity) && !resources.contains(*identity));
    orphaned.map(|identity| Keyed { key: key(&pool.name, identity), value: None }).collect()
}

/// The snapshot of a full write; `None` when the topic has the same one. It speaks for the keys of this pool's
/// namespace alone, so that what others deployed is left alone.
pub fn snapshot(state: &DesiredState, pool: &PoolKey, resources: &BTreeSet<Identity>) -> Option<Keyed> {
    let key_of =
        |identity: &Identity| ControlKey::Deployment(pool.name.clone(), identity.clone()).to_string();
    let keys: BTreeSet<String> = resources.iter().map(key_of).collect();
    let before = state.snapshot(&pool.installation, &pool.namespace, &pool.name);
    if before.is_some_and(|before| before.keys == keys) {
        return None;
    }
    let generation = before.map_or(1, |before| before.generation + 1);
    let snapshot = Snapshot { generation, keys };
    let at = ControlKey::Snapshot(pool.installation.clone(), pool.namespace.clone(), pool.name.clone());
    Some(Keyed {
        key: at.to_string().into_bytes(),
        value: Some(serde_json::to_vec(&snapshot).unwrap_or_default()),
    })
}

/// What is left of a pool that is gone: its snapshot and its claims of node ids.
pub fn retired(state: &DesiredState, pool: &PoolKey) -> Vec<Keyed> {
    let snapshot = state
        .snapshot(&pool.installation, &pool.namespace, &pool.name)
        .map(|_| ControlKey::Snapshot(pool.installation.clone(), pool.namespace.clone(), pool.name.clone()));
    let owner = pool.owner();
    let blocks = state.blocks_of(&owner).map(ControlKey::Nodes);
    let keys: Vec<ControlKey> = snapshot.into_iter().chain(blocks).collect();
    keys.into_iter().map(|key| Keyed { key: key.to_string().into_bytes(), value: None }).collect()
}

/// The loop that a deployment would close with the others of its pool.
pub fn cycle_with(
    state: &DesiredState,
    pool: &PoolName,
    identity: &Identity,
    deployment: &Deployment,
) -> Option<Vec<TopicName>> {
    let others = || {
        state.of_pool(pool).filter_map(|(at, desired)| match desired {
            Desired::Deployment(other) if at != identity => Some(other.as_ref()),
            _ => None,
        })
    };
    // A loop leaves it by an output that somebody reads. Mostly nobody does, and a pool may have thousands.
    let outputs = deployment.all_outputs();
    let mut readers = others().chain([deployment]);
    if !readers.any(|reader| reader.inputs().iter().any(|input| outputs.contains(input))) {
        return None;
    }
    // A loop among others only is theirs to report.
    let cycle = crate::core::deployment::find_cycle(others().chain([deployment]))?;
    cycle.iter().any(|topic| deployment.inputs().contains(topic)).then_some(cycle)
}

fn key(pool: &PoolName, identity: &Identity) -> Vec<u8> {
    ControlKey::Deployment(pool.clone(), identity.clone()).to_string().into_bytes()
}

/// How a pool gets its block of node ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It has it.
    Ours(u32),
    /// It has to write this claim, and look whether it was the first.
    Write(u32, Keyed),
    /// Another pool was faster: its claim is written again, so that compaction keeps the winner's record.
    Restore(Keyed),
    /// The block that was asked for belongs to somebody else.
    Taken {
        /// The block.
        base: u32,
        /// Whose it is.
        owner: String,
    },
    /// Every block is taken.
    Exhausted,
}

/// Node ids of a block.
pub const BLOCK: u32 = 1000;
const LAST_BLOCK: u32 = 4_000_000;

/// Decides on a pool's block. `wanted` is what the specification says or the status remembers; `written` is the
/// claim that this process has written.
pub fn claim(state: &DesiredState, pool: &PoolKey, wanted: Option<u32>, written: Option<u32>) -> Claim {
    let owner = pool.owner();
    let record = |base: u32, owner: &str| Keyed {
        key: ControlKey::Nodes(base).to_string().into_bytes(),
        value: Some(owner.as_bytes().to_vec()),
    };
    if let Some(base) = written
        && let Some(winner) = state.owner_of_block(base).filter(|winner| *winner != owner)
    {
        return Claim::Restore(record(base, winner));
    }
    let blocks = || (BY_HAND..=LAST_BLOCK).step_by(BLOCK as usize);
    let base = wanted
        .or_else(|| blocks().find(|base| state.owner_of_block(*base) == Some(owner.as_str())))
        .or_else(|| blocks().find(|base| state.owner_of_block(*base).is_none()));
    match base {
        None => Claim::Exhausted,
        Some(base) => match state.owner_of_block(base) {
            None => Claim::Write(base, record(base, &owner)),
            Some(found) if found == owner => Claim::Ours(base),
            Some(other) => Claim::Taken { base, owner: other.to_owned() },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::FoldEvent;

    fn pool() -> PoolKey {
        PoolKey {
            installation: Installation::default_name(),
            namespace: "shop".parse().unwrap(),
            name: PoolName::default_name(),
        }
    }

    fn identity(text: &str) -> Identity {
        text.parse().unwrap()
    }

    fn deployment(input: &str, output: &str) -> Deployment {
        let json = serde_json::json!({"schema": "1.0", "generation": 1, "owner": "kubernetes",
            "source": {"type": "Kafka", "kafka": {"topics": [input]}},
            "steps": [{"name": "main", "module": {"digest": format!("sha256:{}", "0".repeat(64))}}],
            "sinks": [{"type": "Kafka", "kafka": {"topic": output}}]});
        serde_json::from_value(json).unwrap()
    }

    fn written(state: &mut DesiredState, keyed: Keyed) {
        state.apply(FoldEvent::Record { key: keyed.key, value: keyed.value, offset: 0, appended_ms: 0 });
    }

    #[test]
    fn what_the_topic_says_already_is_not_written_again() {
        let (mut state, at) = (DesiredState::default(), identity("default/shop/coprocessor/a"));
        let wanted = deployment("in", "out");
        let record = put(&state, &pool().name, &at, &wanted).expect("it is new");
        written(&mut state, record);
        assert_eq!(put(&state, &pool().name, &at, &wanted), None);
        state.apply(FoldEvent::CaughtUp);
        // The topic was made anew: what is known from before has to be written again.
        state.apply(FoldEvent::Reset);
        assert!(put(&state, &pool().name, &at, &wanted).is_some());
    }

    #[test]
    fn orphans_go_and_what_others_deployed_stays() {
        let mut state = DesiredState::default();
        for at in [
            "default/shop/coprocessor/gone",
            "default/shop/coprocessor/here",
            "default/_cli/coprocessor/c",
            "default/other/coprocessor/d",
            "second/shop/coprocessor/e",
        ] {
            let record = put(&state, &pool().name, &identity(at), &deployment("in", "out")).unwrap();
            written(&mut state, record);
        }
        let resources = BTreeSet::from([identity("default/shop/coprocessor/here")]);
        let keys: Vec<_> = orphans(&state, &pool(), &resources)
            .into_iter()
            .map(|keyed| String::from_utf8(keyed.key).unwrap())
            .collect();
        assert_eq!(keys, ["deployment/default/shop/default/coprocessor/gone"]);
        let record = snapshot(&state, &pool(), &resources).expect("there was none");
        written(&mut state, record);
        assert_eq!(snapshot(&state, &pool(), &resources), None);
        // A pool of the same name in another namespace has one of its own, and each leaves the other's alone.
        let other = PoolKey { namespace: "other".parse().unwrap(), ..pool() };
        let record = snapshot(&state, &other, &BTreeSet::new()).expect("it has none");
        written(&mut state, record);
        assert_eq!(snapshot(&state, &pool(), &resources), None);
        assert_eq!(snapshot(&state, &other, &BTreeSet::new()), None);
    }

    #[test]
    fn blocks_of_node_ids_have_one_owner() {
        let mut state = DesiredState::default();
        written(&mut state, Keyed { key: b"nodes/1000".to_vec(), value: Some(b"default/a/x".to_vec()) });
        let Claim::Write(2000, record) = claim(&state, &pool(), None, None) else {
            panic!("the lowest free block is 2000");
        };
        written(&mut state, record);
        assert_eq!(claim(&state, &pool(), None, Some(2000)), Claim::Ours(2000));
        assert_eq!(
            claim(&state, &pool(), Some(1000), None),
            Claim::Taken { base: 1000, owner: "default/a/x".into() }
        );
        let keys = |pool: &PoolKey| -> Vec<_> {
            let records = retired(&state, pool).into_iter();
            records.map(|keyed| (String::from_utf8(keyed.key).unwrap(), keyed.value)).collect()
        };
        assert_eq!(keys(&pool()), [("nodes/2000".into(), None)]);
        assert_eq!(keys(&PoolKey { namespace: "other".parse().unwrap(), ..pool() }), []);
        let Claim::Restore(record) = claim(&state, &pool(), None, Some(1000)) else {
            panic!("the winner's claim has to be restored");
        };
        assert_eq!(record.value.as_deref(), Some(&b"default/a/x"[..]));
    }

    #[test]
    fn loops_over_several_resources_are_found() {
        let mut state = DesiredState::default();
        let other = identity("default/shop/coprocessor/b");
        let record = put(&state, &pool().name, &other, &deployment("out", "in")).unwrap();
        written(&mut state, record);
        let own = identity("default/shop/coprocessor/a");
        assert!(cycle_with(&state, &pool().name, &own, &deployment("in", "out")).is_some());
        assert!(cycle_with(&state, &pool().name, &own, &deployment("x", "y")).is_none());
    }
}
