//! The node on a real broker with real guests: what a user sees of it, judged by readers that are not ours.
#![cfg(all(feature = "kafka", feature = "wasm"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "tests start their own threads and read their own variables")]

#[path = "kafka/cluster.rs"]
mod cluster;
#[path = "kafka/oracle.rs"]
mod oracle;
#[path = "kafka/slow.rs"]
mod slow;
mod support;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coproc::control::topics::OwnTopic;
use coproc::control::{modules, observed};
use coproc::core::deployment::{Naming, Sink, Source, StartOffset};
use coproc::core::ledger::TopicPartition;
use coproc::core::names::TopicName;
use coproc::core::record::Record;
use coproc::core::status::{DeploymentStatus, State};
use coproc::core::units::Span;
use coproc::kafka::{Assignor, KafkaLog};
use coproc::ports::{Extent, Log, Produce, TopicConfig};

use self::cluster::{Cluster, plain};
use self::support::{
    Rig, deployment, fragile, guest, identity, identity_of, numbers, stamp, start_node_of, text, topic,
    wait_for,
};

/// A node of a pool of its own, on the broker that the tests share.
fn rig() -> Rig {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut rig = Rig::on(plain().log(), &format!("pool-{id}"), id);
    rig.start();
    rig
}

/// Waits until status says that every partition was read to its end.
fn wait_for_lag_0(rig: &Rig, name: &str, partitions: usize) -> DeploymentStatus {
    wait_for(&format!("lag 0 of {name}"), || {
        let status = rig.status(name)?;
        let is_there = status.partitions.len() == partitions
            && status.partitions.iter().all(|at| at.lag == 0 && at.offset > 0)
            && status.state == State::Running;
        is_there.then_some(status)
    })
}

fn values(contents: oracle::Contents) -> BTreeMap<u32, Vec<String>> {
    let values = |records: Vec<(String, String)>| records.into_iter().map(|(_, value)| value).collect();
    contents.into_iter().map(|(partition, records)| (partition, values(records))).collect()
}

#[test]
fn records_go_through_a_guest_and_lag_ends_at_zero_past_markers() {
    let rig = rig();
    for name in ["hop-1", "hop-2", "hop-3"] {
        rig.create(name, 2);
    }
    rig.deploy("hop-a", &[stamp('A')], "hop-1", &["hop-2"], "").unwrap();
    // Reads what transactions wrote: its input has markers between the records, and at its end.
    rig.deploy("hop-b", &[stamp('B')], "hop-2", &["hop-3"], "").unwrap();
    rig.produce_to("hop-1", 0, numbers("x", 0..500));
    rig.produce_to("hop-1", 1, numbers("y", 0..500));
    rig.values("hop-3", 1000);
    let status = wait_for_lag_0(&rig, "hop-b", 2);
    assert_eq!(status.delivery.as_deref(), Some("exactly_once"));
    let ends = rig.log.topics().extents(&topic("hop-2")).unwrap();
    for at in &status.partitions {
        let end = ends[at.partition as usize].end;
        assert!(end > 500, "markers are offsets too");
        assert_eq!(at.offset, end, "{at:?}");
    }
    let expected = BTreeMap::from([(0, numbers("B", 0..500)), (1, numbers("B", 0..500))]);
    assert_eq!(values(oracle::contents(plain(), &topic("hop-3"))), expected);
}

#[test]
fn a_stopped_node_goes_on_where_it_stopped() {
    let mut rig = rig();
    rig.create("stop-in", 1);
    rig.create("stop-out", 1);
    rig.deploy("stop", &[identity()], "stop-in", &["stop-out"], "").unwrap();
    rig.produce("stop-in", numbers("a", 0..200));
    rig.values("stop-out", 200);
    let began = Instant::now();
    assert!(rig.node.take().unwrap().stop(), "the node stops within its deadline");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let group = identity_of("stop").consumer_group();
    assert_eq!(rig.log.offsets().members(&group).unwrap(), 0, "it left the group");
    rig.produce("stop-in", numbers("b", 0..200));
    rig.start();
    rig.values("stop-out", 400);
    let expected = [numbers("a", 0..200), numbers("b", 0..200)].concat();
    assert_eq!(values(oracle::contents(plain(), &topic("stop-out")))[&0], expected);
}

/// Under the eager assignor the group asks everybody for what they have, also a lane that has nothing.
#[test]
fn a_lane_without_partitions_takes_over_when_the_others_are_gone() {
    let mut config = plain().config();
    config.assignor = Assignor::Eager;
    let log: Arc<dyn Log> = KafkaLog::connect(config).unwrap();
    let rig = Rig::on(Arc::clone(&log), "pool-spare", 1);
    rig.create("spare-in", 1);
    rig.create("spare-out", 1);
    rig.put("spare", &deployment(&[rig.upload(&identity())], "spare-in", &["spare-out"], ""));
    let group = identity_of("spare").consumer_group();
    let members = |count: usize| {
        wait_for(&format!("{count} members"), || {
            (rig.log.offsets().members(&group).unwrap() == count).then_some(())
        });
    };
    let start = |id: u32, count: usize| {
        let node = start_node_of(&log, "pool-spare".parse().unwrap(), id);
        members(count);
        node
    };
    // Partitions are given out in the order of the members' names: the second and the third get none, and are asked for
    // it when the next one comes.
    let first = start(41, 1);
    rig.produce("spare-in", numbers("a", 0..100));
    rig.values("spare-out", 100);
    let second = start(42, 2);
    let third = start(43, 3);
    rig.produce("spare-in", numbers("b", 0..100));
    rig.values("spare-out", 200);
    for (node, left) in [(third, 2), (first, 1)] {
        assert!(node.stop(), "the node stops within its deadline");
        members(left);
    }
    rig.produce("spare-in", numbers("c", 0..100));
    rig.values("spare-out", 300);
    drop(second);
    let expected = [numbers("a", 0..100), numbers("b", 0..100), numbers("c", 0..100)].concat();
    assert_eq!(values(oracle::contents(plain(), &topic("spare-out")))[&0], expected);
}

#[test]
fn every_kind_of_poison_meets_every_policy() {
    let rig = rig();
    let records = ["a", "!trap", "b", "@loop", "c", "#memory", "d", "$error", "e"].map(str::to_owned);
    rig.create("poison-dead", 1);
    for policy in ["Fail", "Skip", "DeadLetter"] {
        let (from, to, name) = (
            format!("poison-{policy}"),
            format!("poison-{policy}-out"),
            format!("poison-{}", policy.to_lowercase()),
        );
        rig.create(&from, 1);
        rig.create(&to, 1);
        let more = format!(
            r#""policies":{{"errorPolicy":{{"maxRetries":1,"onExhausted":"{policy}","deadLetterTopic":"poison-dead",
               "initialBackoff":"10ms","maxBackoff":"20ms"}}}}"#
        );
        rig.deploy(&name, &[fragile()], &from, &[&to], &more).unwrap();
        rig.produce(&from, records.clone());
    }
    for policy in ["Skip", "DeadLetter"] {
        let to = format!("poison-{policy}-out");
        rig.values(&to, 5);
        assert_eq!(values(oracle::contents(plain(), &topic(&to)))[&0], ["a", "b", "c", "d", "e"], "{policy}");
    }
    let dead = wait_for("dead letters", || Some(rig.read("poison-dead")).filter(|dead| dead.len() >= 4));
    let said: Vec<_> = dead
        .into_iter()
        .map(|dead| {
            let header = |name: &str| {
                let found = dead.record.headers.iter().find(|(key, _)| key == name.as_bytes()).unwrap();
                text(found.1.clone())
            };
            (text(dead.record.value.clone()), header("coproc.error.class"), header("coproc.offset"))
        })
        .collect();
    let expected = [
        ("!trap", "trap", "1"),
        ("@loop", "timeout", "3"),
        ("#memory", "memory", "5"),
        ("$error", "exited", "7"),
    ];
    assert_eq!(said, expected.map(|(v, c, o)| (v.to_owned(), c.to_owned(), o.to_owned())));
    let status = rig.wait_for_state("poison-fail", State::Failed);
    assert_eq!(status.partitions[0].offset, 1, "it stands at the record that failed: {status:?}");
    assert_eq!(values(oracle::contents(plain(), &topic("poison-Fail-out")))[&0], ["a"]);
    // The two others were not held up by it, and are at their ends.
    wait_for_lag_0(&rig, "poison-skip", 1);
}

#[test]
fn an_output_that_the_topic_does_not_take_is_a_failure_of_its_record() {
    let rig = rig();
    rig.create("large-in", 1);
    rig.create("large-dead", 1);
    let small = TopicConfig { max_record_bytes: 2_000, ..TopicConfig::default() };
    rig.log.topics().create(&topic("large-out"), &small).unwrap();
    let policy = r#""policies":{"errorPolicy":{"maxRetries":0,"onExhausted":"DeadLetter",
        "deadLetterTopic":"large-dead"}}"#;
    rig.deploy("large", &[identity()], "large-in", &["large-out"], policy).unwrap();
    let large = |n: usize| if n.is_multiple_of(50) { "L".repeat(1_990) } else { format!("v{n}") };
    rig.produce("large-in", (0..200).map(large));
    let dead = wait_for("dead letters", || Some(rig.read("large-dead")).filter(|dead| dead.len() >= 4));
    assert_eq!(dead.len(), 4);
    wait_for_lag_0(&rig, "large", 1);
    let expected: Vec<String> = (0..200).filter(|n| n % 50 != 0).map(large).collect();
    assert_eq!(values(oracle::contents(plain(), &topic("large-out")))[&0], expected);
}

/// An output topic may have limits on timestamps: a record that is too old for it is that record's failure.
#[test]
fn a_record_that_is_too_old_for_its_output_is_left_out() {
    let rig = rig();
    rig.create("old-in", 1);
    rig.create("old-out", 1);
    let alter = ["--alter", "--entity-type", "topics", "--entity-name", "old-out", "--add-config"];
    let limit = ["message.timestamp.before.max.ms=3600000"];
    plain().tool("kafka.admin.ConfigCommand", &[&alter[..], &limit].concat());
    let skip = r#""policies":{"errorPolicy":{"maxRetries":0,"onExhausted":"Skip"}}"#;
    rig.deploy("old", &[identity()], "old-in", &["old-out"], skip).unwrap();
    let record = |value: &str, timestamp| {
        let record = Record { timestamp, ..Record::new(None, Some(value.as_bytes())) };
        Produce { topic: topic("old-in"), partition: Some(0), record }
    };
    let records = [record("a", None), record("b", Some(1_000_000)), record("c", None)];
    rig.log.produce(&records).unwrap();
    assert_eq!(rig.values("old-out", 2), ["a", "c"]);
    wait_for_lag_0(&rig, "old", 1);
}

#[test]
fn a_materialized_topic_follows_its_source_as_it_grows() {
    let rig = rig();
    let source = TopicConfig {
        retention_ms: Some(7_200_000),
        retention_bytes: Some(1 << 30),
        max_record_bytes: 500_000,
        ..TopicConfig::default()
    };
    rig.log.topics().create(&topic("grown"), &source).unwrap();
    // What coproc has no word for.
    let alter = ["--alter", "--entity-type", "topics", "--entity-name", "grown", "--add-config"];
    let own = "compression.type=lz4,segment.ms=3600000,min.insync.replicas=1,message.timestamp.before.max.ms=3600000";
    plain().tool("kafka.admin.ConfigCommand", &[&alter[..], &[own]].concat());
    let mut wanted = deployment(&[rig.upload(&identity())], "grown", &["view"], "");
    if let Sink::Kafka { kafka } = &mut wanted.sinks[0] {
        kafka.naming = Naming::Materialized;
    }
    rig.put("grown", &wanted);
    rig.produce_to("grown", 0, numbers("a", 0..100));
    let to: TopicName = TopicName::materialized(&topic("grown"), &topic("view")).unwrap();
    wait_for("the view", || rig.log.topics().describe(&to).unwrap());
    rig.values(to.as_str(), 100);
    let made = rig.log.topics().describe(&to).unwrap().unwrap().config;
    assert_eq!(made, TopicConfig { materialized: true, ..source }, "like its source");
    let described =
        plain().tool("org.apache.kafka.tools.TopicCommand", &["--describe", "--topic", to.as_str()]);
    for setting in [
        "cleanup.policy=delete",
        "retention.ms=7200000",
        "retention.bytes=1073741824",
        "max.message.bytes=500000",
        "compression.type=lz4",
        "segment.ms=3600000",
        "min.insync.replicas=1",
    ] {
        assert!(described.contains(setting), "{described}");
    }
    assert!(
        !described.contains("message.timestamp"),
        "an old record of the source is a new one there: {described}"
    );
    // What is set later is the business of who sets it.
    plain().tool("kafka.admin.ConfigCommand", &[&alter[..], &["retention.ms=3600000"]].concat());
    rig.log.topics().grow(&topic("grown"), 3).unwrap();
    for partition in 0..3 {
        rig.produce_to("grown", partition, numbers("b", 0..100));
    }
    let began = Instant::now();
    rig.values(to.as_str(), 400);
    println!("records of new partitions came out after {:?}", began.elapsed());
    let grown = rig.log.topics().describe(&to).unwrap().unwrap().config;
    assert_eq!(
        grown,
        TopicConfig { partitions: 3, ..made },
        "it follows in its partitions, and in nothing else"
    );
    oracle::assert_copied(plain(), &topic("grown"), &to);
}

#[test]
fn a_deleted_output_topic_is_said_and_waited_for() {
    let rig = rig();
    rig.create("lost-in", 1);
    rig.create("lost-out", 1);
    rig.deploy("lost", &[identity()], "lost-in", &["lost-out"], "").unwrap();
    rig.produce("lost-in", numbers("a", 0..100));
    rig.values("lost-out", 100);
    rig.log.topics().delete(&topic("lost-out")).unwrap();
    rig.produce("lost-in", numbers("b", 0..100));
    let status = wait_for("the missing topic in the status", || {
        rig.status("lost").filter(|status| status.reason.as_deref() == Some("TopicNotFound"))
    });
    assert!(status.last_error.unwrap().message.contains("lost-out"));
    rig.produce("lost-in", numbers("c", 0..100));
    wait_for("what waits while no lane does", || {
        rig.status("lost").filter(|status| status.partitions.iter().map(|at| at.lag).eq([200]))
    });
    rig.create("lost-out", 1);
    let began = Instant::now();
    rig.values("lost-out", 200);
    println!("went on {:?} after the topic was back", began.elapsed());
    wait_for_lag_0(&rig, "lost", 1);
    // What was committed before is gone with the topic; what came after is there, all of it, once.
    let expected = [numbers("b", 0..100), numbers("c", 0..100)].concat();
    assert_eq!(values(oracle::contents(plain(), &topic("lost-out")))[&0], expected);
}

#[test]
fn a_committed_offset_that_is_gone_is_a_condition_until_somebody_decides() {
    let rig = rig();
    rig.create("gone-in", 1);
    rig.create("gone-out", 1);
    rig.produce("gone-in", numbers("v", 0..100));
    let group = identity_of("gone").consumer_group();
    let at = |offset| BTreeMap::from([(TopicPartition::new(&topic("gone-in"), 0), offset)]);
    rig.log.offsets().alter(&group, &at(10)).unwrap();
    plain().delete_records(&topic("gone-in"), 0, 50);
    assert_eq!(rig.log.topics().extents(&topic("gone-in")).unwrap(), [Extent { first: 50, end: 100 }]);
    rig.deploy("gone", &[identity()], "gone-in", &["gone-out"], "").unwrap();
    let status = wait_for("the condition", || {
        rig.status("gone").filter(|status| status.reason.as_deref() == Some("OffsetOutOfRange"))
    });
    assert_eq!(status.state, State::Failed);
    let stands = &status.partitions[0];
    assert_eq!((stands.offset, stands.lag), (10, 50), "what is gone is not behind");
    assert!(stands.error.is_some(), "{stands:?}");
    let message = status.last_error.unwrap().message;
    assert!(message.contains("10") && message.contains("50"), "{message}");
    assert_eq!(rig.log.offsets().committed(&group).unwrap(), at(10), "nobody jumped");
    assert!(rig.read("gone-out").is_empty());
    rig.set_paused("gone", true);
    rig.wait_for_state("gone", State::Paused);
    rig.log.offsets().alter(&group, &at(50)).unwrap();
    rig.set_paused("gone", false);
    rig.values("gone-out", 50);
    assert_eq!(values(oracle::contents(plain(), &topic("gone-out")))[&0], numbers("v", 50..100));
}

/// While no node runs, Kafka's own tool removes offsets. No node that starts then, not even one that never had the
/// partitions, takes that for a first start; a partition that is new, and a deployment that is made anew, are one.
#[test]
fn a_committed_offset_that_was_removed_while_nobody_ran_is_a_condition_too() {
    let mut rig = rig();
    rig.create("void-in", 2);
    rig.create("void-out", 3);
    rig.deploy("void", &[identity()], "void-in", &["void-out"], "").unwrap();
    rig.produce_to("void-in", 0, numbers("a", 0..50));
    rig.produce_to("void-in", 1, numbers("b", 0..50));
    rig.values("void-out", 100);
    let group = identity_of("void").consumer_group();
    let at = |partition| TopicPartition::new(&topic("void-in"), partition);
    let life = rig.writer().find(&identity_of("void")).unwrap().1.life;
    assert!(life.is_some());
    wait_for("the nodes' memory", || {
        let state = observed::read(rig.log.as_ref()).unwrap()?;
        let knows = |partition| state.had_committed(&identity_of("void"), life.as_deref(), &at(partition));
        (knows(0) && knows(1)).then_some(())
    });
    assert!(rig.node.take().unwrap().stop());
    let delete = ["--delete-offsets", "--group", group.as_str(), "--topic", "void-in:1"];
    plain().tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &delete);
    assert_eq!(rig.log.offsets().committed(&group).unwrap().keys().collect::<Vec<_>>(), [&at(0)]);
    rig.log.topics().grow(&topic("void-in"), 3).unwrap();
    for (partition, name) in [(0, "a"), (1, "b"), (2, "c")] {
        rig.produce_to("void-in", partition, numbers(name, 50..100));
    }
    // Another node of the pool: it never had a partition of it.
    let mut other = Rig::on(plain().log(), rig.pool.as_str(), rig.node_id + 500);
    other.start();
    let status = wait_for("the condition", || {
        rig.status_on(other.node_id, "void").filter(|s| s.reason.as_deref() == Some("OffsetMissing"))
    });
    assert_eq!(status.state, State::Failed);
    assert!(status.last_error.unwrap().message.contains("coproc offsets reset"));
    // The others go on, the new one from its start.
    rig.values("void-out", 200);
    let found = values(oracle::contents(plain(), &topic("void-out")));
    let all: Vec<String> = found.into_values().flatten().collect();
    assert_eq!(all.len(), 200, "nothing of the partition that stands: {all:?}");
    assert!(!rig.log.offsets().committed(&group).unwrap().contains_key(&at(1)), "nobody jumped");
    rig.set_paused("void", true);
    wait_for("the pause", || {
        rig.status_on(other.node_id, "void").filter(|status| status.state == State::Paused)
    });
    wait_for("the lanes to leave", || (rig.log.offsets().members(&group).unwrap() == 0).then_some(()));
    rig.log.offsets().alter(&group, &BTreeMap::from([(at(1), 50)])).unwrap();
    rig.set_paused("void", false);
    rig.values("void-out", 250);

    // Made anew while what the first node knew is still there.
    assert!(other.node.take().unwrap().stop());
    rig.writer().remove(&identity_of("void")).unwrap();
    rig.log.offsets().delete(&group).unwrap();
    rig.deploy("void", &[identity()], "void-in", &["void-out"], "").unwrap();
    let mut third = Rig::on(plain().log(), rig.pool.as_str(), rig.node_id + 600);
    third.start();
    rig.values("void-out", 500);
}

#[test]
fn a_group_that_others_use_is_left_alone() {
    let rig = rig();
    rig.create("used-in", 1);
    rig.create("used-out", 1);
    let mut stranger = Command::new("kcat")
        .args(["-b", &plain().bootstrap, "-X", "session.timeout.ms=6000", "-G", "strangers", "used-in"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let group = "strangers".parse().unwrap();
    wait_for("the stranger", || (rig.log.offsets().members(&group).unwrap() == 1).then_some(()));
    let mut wanted = deployment(&[rig.upload(&identity())], "used-in", &["used-out"], "");
    if let Source::Kafka { kafka } = &mut wanted.source {
        kafka.consumer_group = Some("strangers".parse().unwrap());
    }
    rig.put("used", &wanted);
    let status = wait_for("the condition", || {
        rig.status("used").filter(|status| status.reason.as_deref() == Some("GroupInUse"))
    });
    assert!(status.last_error.unwrap().message.contains("strangers"));
    assert_eq!(rig.log.offsets().members(&group).unwrap(), 1, "the stranger keeps what it has");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    rig.produce("used-in", numbers("v", 0..10));
    // Once its session is over.
    let began = Instant::now();
    while rig.read("used-out").len() < 10 {
        assert!(began.elapsed() < Duration::from_secs(90), "it does not start by itself");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_first_start_is_where_the_policy_says() {
    let rig = rig();
    rig.create("late-in", 1);
    rig.create("late-out", 1);
    rig.produce("late-in", numbers("old", 0..100));
    let digest = rig.upload(&identity());
    let mut wanted = deployment(&[digest], "late-in", &["late-out"], "");
    if let Source::Kafka { kafka } = &mut wanted.source {
        kafka.start_offset = StartOffset::FromEnd { records: 5 };
    }
    rig.put("late", &wanted);
    rig.values("late-out", 5);
    rig.produce("late-in", numbers("new", 0..5));
    rig.values("late-out", 10);
    let expected = [numbers("old", 95..100), numbers("new", 0..5)].concat();
    assert_eq!(values(oracle::contents(plain(), &topic("late-out")))[&0], expected);
}

/// With one record in a batch and a commit interval above its time, the transaction of the record before is open
/// while the slow one runs, for longer than the broker allows. Without the careful replay that goes on for ever.
#[test]
fn a_guest_slower_than_the_transaction_gets_one_of_its_own() {
    let mut config = plain().config();
    config.timing = slow::hurried();
    let log: Arc<dyn Log> = KafkaLog::connect(config).unwrap();
    let mut rig = Rig::on(log, "slow", 900);
    rig.start();
    rig.create("slow-in", 1);
    rig.create("slow-out", 1);
    let digest = rig.upload(&slow::slow());
    let more = r#""policies":{"batch":{"maxRecords":1,"commitInterval":"1s"}}"#;
    let mut wanted = deployment(&[digest], "slow-in", &["slow-out"], more);
    wanted.steps[0].limits.time_per_record = Span::from_ms(9_900);
    let records = ["a", "b", "slow", "c", "d"].map(str::to_owned);
    rig.produce("slow-in", records.clone());
    rig.put("slow", &wanted);
    assert_eq!(rig.values("slow-out", 5), records);
    wait_for_lag_0(&rig, "slow", 1);
    assert_eq!(values(oracle::contents(plain(), &topic("slow-out")))[&0], records);
}

/// Everybody's topics can be read with Kafka's own tools.
#[test]
fn the_topics_of_coproc_are_readable_with_other_tools() {
    let rig = rig();
    rig.create("seen-in", 1);
    rig.create("seen-out", 1);
    let prints = guest("(call $say (i32.const 4098) (i32.const 4))");
    rig.deploy("seen", &[prints], "seen-in", &["seen-out"], "").unwrap();
    rig.wait_for_state("seen", State::Running);
    rig.produce("seen-in", ["word".to_owned()]);
    let has = |cluster: &Cluster, name: &str, part: &str| {
        let contents = oracle::kcat(cluster, &topic(name));
        contents.values().flatten().any(|(key, value)| key.contains("seen") || value.contains(part))
    };
    assert!(has(plain(), "coprocessor_internal_topic", "seen-in"));
    assert!(has(plain(), "coprocessor_status_topic", "\"seen\""));
    wait_for("the printed line", || has(plain(), "coprocessor_logs", "word").then_some(()));
    // Not kcat alone, which is librdkafka as well.
    for own in OwnTopic::ALL {
        assert!(!oracle::keys(plain(), &own.name()).is_empty(), "{own:?}");
    }
    let described = plain().tool(
        "org.apache.kafka.tools.TopicCommand",
        &["--describe", "--topic", "coprocessor_internal_topic"],
    );
    assert!(
        described.contains("PartitionCount: 1") && described.contains("cleanup.policy=compact"),
        "{described}"
    );
}

/// A module can be taken out of its topic with nothing but a Kafka client: keys are `<digest>/<part>`, parts in their order.
#[test]
fn a_module_can_be_put_together_with_other_tools() {
    let bytes: Vec<u8> = (0..2_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let digest = Rig::on(plain().log(), "parts", 901).upload(&bytes);
    let output = Command::new("kcat")
        .args(["-C", "-q", "-e", "-b", &plain().bootstrap, "-t", "coprocessor_modules"])
        .args(["-X", "isolation.level=read_committed", "-f", "%k %S\n%s"])
        .output()
        .expect("kcat is installed");
    let (mut rest, mut found, mut parts) = (output.stdout.as_slice(), Vec::new(), 0);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let head = std::str::from_utf8(&rest[..end]).unwrap();
        let (key, size) = head.split_once(' ').unwrap();
        let size: i64 = size.parse().unwrap();
        // A tombstone's size is -1.
        let (value, after) = rest[end + 1..].split_at(size.max(0) as usize);
        rest = after;
        if key == format!("{}/{parts}", digest.hex()) {
            found.extend_from_slice(value);
            parts += 1;
        }
    }
    assert!(parts > 1, "{parts} parts");
    assert_eq!(modules::digest_of(&found), digest);
    assert!(found == bytes, "a digest is of the bytes");
}
