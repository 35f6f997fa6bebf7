//! The truth table: what nodes say, and what the resource may say because of it.

use std::time::Duration;

use super::*;
use crate::core::digest::Digest;
use crate::core::names::NodeId;
use crate::core::status::{DeploymentStatus, LastError, PartitionStatus};
use crate::operator::conditions::READY;
use crate::operator::crd::status::{MAX_NODES, NodeState};
use crate::operator::resolution::Failure;
use crate::operator::validate::Verified;

fn deployment(paused: bool) -> Deployment {
    let json = serde_json::json!({"schema": "1.0", "generation": 4, "owner": "kubernetes", "paused": paused,
        "source": {"type": "Kafka", "kafka": {"topics": ["in"]}},
        "steps": [{"name": "main", "module": {"digest": format!("sha256:{}", "0".repeat(64))}}],
        "sinks": [{"type": "Kafka", "kafka": {"topic": "out"}}]});
    serde_json::from_value(json).unwrap()
}

fn on_node(node: u32, state: State, generation: u64, partitions: &[(u32, u64)]) -> OnNode {
    let at = |(partition, lag): &(u32, u64)| PartitionStatus {
        topic: "in".parse().unwrap(),
        partition: *partition,
        offset: 0,
        lag: *lag,
        error: None,
    };
    OnNode {
        node: NodeId(node),
        is_fresh: true,
        status: DeploymentStatus {
            identity: "default/shop/coprocessor/a".parse().unwrap(),
            input_topics: Vec::new(),
            description: String::new(),
            state,
            reason: None,
            generation,
            digest: None,
            digests: Vec::new(),
            delivery: None,
            partitions: partitions.iter().map(at).collect(),
            last_error: None,
            truncated: false,
        },
    }
}

fn stale(mut node: OnNode) -> OnNode {
    node.is_fresh = false;
    node
}

fn complaining(mut node: OnNode, reason: &str) -> OnNode {
    node.status.reason = Some(reason.into());
    node.status.last_error =
        Some(LastError { time: 0, reason: reason.into(), message: "it says why".into() });
    node
}

fn deployed(paused: bool, nodes: Vec<OnNode>, count: Option<u32>) -> Progress {
    Progress::Deployed {
        deployment: Box::new(deployment(paused)),
        modules: Box::default(),
        fresh_nodes: nodes.iter().filter(|node| node.is_fresh).count(),
        nodes,
        partitions: HashMap::from([("in".parse().unwrap(), count)]),
    }
}

fn computed(progress: &Progress, before: &DeploymentResourceStatus) -> DeploymentResourceStatus {
    let pool = PoolName::default_name();
    let about = About { generation: 4, before, pool: &pool, node_id_base: Some(1000), now_ms: 1_000_000 };
    compute(&about, progress).0
}

fn kstatus(status: &DeploymentResourceStatus) -> &'static str {
    let is = |kind: &str, value: &str| {
        status.conditions.iter().any(|condition| condition.type_ == kind && condition.status == value)
    };
    match () {
        () if is("Reconciling", "True") => "InProgress",
        () if is("Stalled", "True") => "Failed",
        () if is("Ready", "True") => "Current",
        () => "InProgress",
    }
}

#[test]
fn the_truth_table() {
    let run = |node, partitions: &[(u32, u64)]| on_node(node, State::Running, 4, partitions);
    for (progress, reason, waits_as) in [
        (deployed(false, vec![run(1000, &[(0, 0), (1, 5)])], Some(2)), "Running", "Current"),
        (deployed(false, vec![run(1000, &[(0, 0)])], Some(2)), "PartitionsUnserved", "InProgress"),
        (deployed(false, vec![run(1000, &[(0, 0)]), run(1001, &[(1, 0)])], Some(2)), "Running", "Current"),
        // A node that fell silent serves nothing.
        (
            deployed(false, vec![run(1000, &[(0, 0)]), stale(run(1001, &[(1, 0)]))], Some(2)),
            "PartitionsUnserved",
            "InProgress",
        ),
        (deployed(false, vec![stale(run(1000, &[(0, 0)]))], Some(1)), "NoNodes", "InProgress"),
        (
            deployed(false, vec![on_node(1000, State::Running, 3, &[(0, 0)])], Some(1)),
            "RollingOut",
            "InProgress",
        ),
        (deployed(false, vec![run(1000, &[])], None), "TopicNotFound", "InProgress"),
        // The new module does not start; the old one runs on.
        (
            deployed(
                false,
                vec![complaining(on_node(1000, State::Running, 3, &[(0, 0)]), "InvalidModule")],
                Some(1),
            ),
            "InvalidModule",
            "Failed",
        ),
        (
            deployed(false, vec![complaining(on_node(1000, State::Pending, 4, &[]), "PoolFull")], Some(1)),
            "PoolFull",
            "InProgress",
        ),
        (
            deployed(
                false,
                vec![complaining(on_node(1000, State::Failed, 4, &[(0, 9)]), "GuestFailed")],
                Some(1),
            ),
            "GuestFailed",
            "Failed",
        ),
        (deployed(true, vec![on_node(1000, State::Paused, 4, &[])], Some(1)), "Paused", "Current"),
        (deployed(true, vec![on_node(1000, State::Stopping, 4, &[])], Some(1)), "Pausing", "InProgress"),
        (deployed(true, vec![], Some(1)), "Paused", "Current"),
        (
            Progress::Invalid(vec![Problem {
                reason: "InvalidEnv",
                field: "spec.env".into(),
                message: "x".into(),
            }]),
            "InvalidEnv",
            "Failed",
        ),
        (
            Progress::Waiting {
                reason: "KafkaUnavailable".into(),
                message: String::new(),
                is_final: false,
                is_resolved: true,
            },
            "KafkaUnavailable",
            "InProgress",
        ),
    ] {
        let status = computed(&progress, &DeploymentResourceStatus::default());
        let ready = status.conditions.iter().find(|condition| condition.type_ == READY).unwrap();
        assert_eq!((ready.reason.as_str(), kstatus(&status)), (reason, waits_as), "{progress:?}");
    }
}

/// A tag that moved changes the modules of a generation: who runs the ones from before is not up to date.
#[test]
fn readiness_goes_by_modules_too() {
    let digest = |byte| Digest::from_bytes([byte; 32]);
    let at = |first: Option<Digest>, all: Vec<Digest>, steps: usize| {
        let mut node = on_node(1000, State::Running, 4, &[(0, 0)]);
        (node.status.digest, node.status.digests) = (first, all);
        let mut deployment = deployment(false);
        deployment.steps = vec![deployment.steps[0].clone(); steps];
        verdict(&Progress::Deployed {
            deployment: Box::new(deployment),
            modules: Box::default(),
            fresh_nodes: 1,
            nodes: vec![node],
            partitions: HashMap::from([("in".parse().unwrap(), Some(1))]),
        })
        .reason()
        .to_owned()
    };
    assert_eq!(at(Some(digest(0)), vec![], 1), "Running");
    assert_eq!(at(Some(digest(1)), vec![], 1), "RollingOut");
    assert_eq!(at(None, vec![], 1), "Running", "it does not say");
    assert_eq!(at(Some(digest(0)), vec![digest(0), digest(0)], 2), "Running");
    assert_eq!(at(Some(digest(0)), vec![digest(0), digest(1)], 2), "RollingOut");
    assert_eq!(at(Some(digest(0)), vec![], 2), "Running", "an earlier version names the first one only");
}

#[test]
fn a_tag_that_leads_nowhere_is_told_and_changes_nothing() {
    let node = on_node(1000, State::Running, 4, &[(0, 0)]);
    let mut progress = deployed(false, vec![node], Some(1));
    let Progress::Deployed { modules, .. } = &mut progress else { return };
    modules.failure = Some(Failure { reason: "ImageNotFound".into(), message: "there is none".into() });
    let status = computed(&progress, &DeploymentResourceStatus::default());
    let of = |kind: &str| status.conditions.iter().find(|at| at.type_ == kind).unwrap();
    let resolved = of(MODULE_RESOLVED);
    assert_eq!((resolved.status.as_str(), resolved.reason.as_str()), ("False", "ImageNotFound"));
    assert_eq!((of(READY).status.as_str(), kstatus(&status)), ("True", "Current"));
}

#[test]
fn who_vouches_for_the_modules_is_told() {
    let module = |key: Option<&str>| Resolved {
        image: "r/m:1".into(),
        pinned: "r/m:1@sha256:0".into(),
        digest: Digest::from_bytes([0; 32]),
        verified: key.map(|key| Verified { key: key.into(), policy: "p".into() }),
    };
    let at = |keys: &[Option<&str>]| {
        let mut progress = deployed(false, Vec::new(), Some(1));
        if let Progress::Deployed { modules, .. } = &mut progress {
            modules.resolved = keys.iter().copied().map(module).collect();
        }
        let status = computed(&progress, &DeploymentResourceStatus::default());
        let found = status.conditions.iter().find(|at| at.type_ == SIGNATURE_VERIFIED);
        (found.map(|at| at.message.clone()), status.module.unwrap().verification.map(|by| by.key))
    };
    assert_eq!(at(&[None]), (None, None));
    assert_eq!(at(&[Some("a")]), (Some("signed by a".into()), Some("a".into())));
    assert_eq!(at(&[Some("b"), Some("a")]), (Some("signed by a, b".into()), Some("b".into())));
    assert_eq!(at(&[Some("a"), None]).0, None, "one that nobody vouches for");
    let refused = Progress::Waiting {
        reason: "SignatureInvalid".into(),
        message: "no".into(),
        is_final: true,
        is_resolved: false,
    };
    let status = computed(&refused, &DeploymentResourceStatus::default());
    let found = status.conditions.iter().find(|at| at.type_ == SIGNATURE_VERIFIED).unwrap();
    assert_eq!((found.status.as_str(), kstatus(&status)), ("False", "Failed"));
}

#[test]
fn the_list_of_nodes_is_bounded_and_keeps_the_ones_with_trouble() {
    let mut nodes: Vec<OnNode> = (0..200).map(|i| on_node(1000 + i, State::Running, 4, &[(i, 1)])).collect();
    nodes[150] = stale(nodes[150].clone());
    let status = computed(&deployed(false, nodes, Some(200)), &DeploymentResourceStatus::default());
    assert_eq!((status.nodes.len(), status.node_counts.total), (MAX_NODES, 200));
    assert_eq!((status.node_counts.unknown, status.lag), (1, Some(199)));
    let unknown = status.nodes.iter().find(|node| node.state == NodeState::Unknown).unwrap();
    assert_eq!(unknown.pod.as_deref(), Some("default-runtime-150"));
}

#[test]
fn a_lag_that_no_node_knows_is_not_zero() {
    let lag = |nodes| computed(&deployed(false, nodes, Some(2)), &DeploymentResourceStatus::default()).lag;
    let waiting = || on_node(1000, State::Pending, 4, &[]);
    assert_eq!(lag(vec![waiting()]), None);
    assert_eq!(lag(vec![waiting(), on_node(1001, State::Running, 4, &[(0, 0)])]), Some(0));
    let both =
        [on_node(1000, State::Paused, 4, &[(0, 5)]), on_node(1001, State::Paused, 4, &[(0, 7), (1, 1)])];
    assert_eq!(lag(both.to_vec()), Some(8), "two that had a partition say the same of it, or nearly");
}

#[test]
fn lag_is_written_seldom_and_everything_else_at_once() {
    let at = |lag| {
        computed(
            &deployed(false, vec![on_node(1000, State::Running, 4, &[(0, lag)])], Some(1)),
            &DeploymentResourceStatus::default(),
        )
    };
    let before = at(100);
    let seconds = |at| Some(Duration::from_secs(at));
    assert_eq!(coalesce(&before, at(100), None), Writing::Nothing);
    assert_eq!(coalesce(&before, at(150), seconds(60)), Writing::Nothing);
    assert!(matches!(coalesce(&before, at(300), seconds(60)), Writing::Now(_)));
    assert_eq!(coalesce(&before, at(0), seconds(10)), Writing::Later(Duration::from_secs(20)));
    let failed =
        computed(&deployed(false, vec![on_node(1000, State::Failed, 4, &[(0, 100)])], Some(1)), &before);
    assert!(matches!(coalesce(&before, failed, seconds(0)), Writing::Now(_)));
}
