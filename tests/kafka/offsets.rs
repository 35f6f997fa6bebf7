//! `coproc offsets` on a cluster: what it sets is what Kafka's own tool shows, and what a resumed deployment does.

use std::collections::BTreeMap;

use coproc::core::names::TopicName;
use coproc::core::record::Record;
use coproc::ports::{Log, Produce};

use super::cluster::{fresh, plain, topic};
use super::place::{Place, Ran};
use super::{Service, well};

const PARTITIONS: u32 = 2;
const EACH: i64 = 10;
/// Timestamp of the records at offset 0; each further one is a second later.
const FIRST_MS: i64 = 1_700_000_000_000;

/// Ten records in each partition: `<partition>-<offset>`.
fn fill(log: &dyn Log, topic: &TopicName) {
    let record = |partition: u32, offset: i64| Produce {
        topic: topic.clone(),
        partition: Some(partition),
        record: Record {
            timestamp: Some(FIRST_MS + 1_000 * offset),
            ..Record::new(None, Some(format!("p{partition}-{offset}").as_bytes()))
        },
    };
    let all: Vec<_> = (0..PARTITIONS).flat_map(|n| (0..EACH).map(move |offset| record(n, offset))).collect();
    log.produce(&all).unwrap();
}

/// The committed offsets of a topic, as Kafka's own tool shows them.
fn shown(group: &str, topic: &TopicName) -> BTreeMap<u32, i64> {
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let said = plain().tool(class, &["--describe", "--offsets", "--group", group]);
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&topic.as_str()))
            .then(|| (words[2].parse().unwrap(), words[3].parse().unwrap()))
    };
    said.lines().filter_map(row).collect()
}

fn both(first: i64, second: i64) -> BTreeMap<u32, i64> {
    BTreeMap::from([(0, first), (1, second)])
}

#[test]
fn offsets_of_a_paused_deployment_go_where_they_are_set() {
    let (place, log) = (Place::new(), plain().log());
    let (from, to) = (topic(&*log, "set", PARTITIONS), topic(&*log, "set-out", PARTITIONS));
    let other = topic(&*log, "set-other", 1);
    fill(&*log, &from);
    let (brokers, pool, name) = (plain().bootstrap.as_str(), fresh("pool"), fresh("set"));
    let coproc =
        |args: &[&str]| -> Ran { place.coproc(&[&["--brokers", brokers, "--pool", &pool], args].concat()) };
    let until = |args: &[&str], part: &str| {
        let args = [&["--brokers", brokers, "--pool", &pool], args].concat();
        well(place.wait_for(&args, |ran| ran.out.contains(part)))
    };
    let dir = place.path("node").display().to_string();
    let node = format!(
        "{{nodeId: 71, http: 'off', dir: {dir}, pool: {pool}, kafka: {{bootstrapServers: ['{brokers}']}}}}"
    );
    let node = Service::start(&place, "node", &node);
    let module = place.uppercase();
    let (module, input, output) = (module.to_str().unwrap(), from.as_str(), to.as_str());
    let start = ["--from-offset", "+2", "--wait"];
    well(coproc(&[&["deploy", module, "--name", &name, "-i", input, "-o", output][..], &start].concat()));
    until(&["describe", &name], "lag 0");
    let group = format!("coproc.default._cli.coprocessor.{name}");
    assert_eq!(shown(&group, &from), both(EACH, EACH));

    // Only while it stands still.
    let at = |partition: u32, offset: i64| format!("{input}:{partition}={offset}");
    for args in [vec!["alter", &name, &at(0, 3)], vec!["reset", &name], vec!["reset", &name, "--dry-run"]] {
        coproc(&[&["offsets"], &args[..]].concat()).exits(4).complains("is not paused");
    }
    coproc(&["offsets", "delete", "--group", &group]).exits(4).complains("belongs to default/_cli");
    assert_eq!(shown(&group, &from), both(EACH, EACH), "a refusal changes nothing");
    well(coproc(&["pause", &name]));
    until(&["list", "-o", "wide"], "paused");

    // What is not there, is not its input, or makes no sense.
    let refused = |args: &[&str], code: i32, complaint: &str| {
        coproc(&[&["offsets"], args].concat()).exits(code).complains(complaint);
    };
    refused(&["alter", "nobody", &at(0, 3)], 3, "nobody");
    refused(&["reset", "nobody"], 3, "nobody");
    refused(&["alter", &name, "nowhere:0=1"], 2, "is no input of");
    refused(&["alter", &name, &format!("{other}:0=0")], 2, "is no input of");
    refused(&["reset", &name, "--topic", other.as_str()], 2, "is no input of");
    refused(&["alter", &name, &at(PARTITIONS, 0)], 3, "there is no partition");
    refused(&["alter", &name, &at(0, EACH + 1)], 2, "is not between its first, 0, and its end, 10");
    refused(&["alter", &name, &at(0, 1), &at(0, 2)], 2, "given twice");
    refused(&["alter", &name, "x"], 2, "TOPIC:PARTITION=OFFSET");
    refused(&["reset", &name, "--to", "yesterday"], 2, "earliest, latest");
    assert_eq!(shown(&group, &from), both(EACH, EACH), "a refusal changes nothing");

    let set = |args: &[&str]| well(coproc(&[&["offsets"], args].concat()));
    let said = set(&["alter", &name, &at(0, 3), "--dry-run", "-o", "json"]);
    assert!(said.contains("\"from\": 10") && said.contains("\"to\": 3"), "{said}");
    assert_eq!(shown(&group, &from), both(EACH, EACH), "a dry run changes nothing");
    set(&["alter", &name, &at(0, 3)]);
    assert_eq!(shown(&group, &from), both(3, EACH), "one partition alone");
    set(&["alter", &name, &at(0, 4), &at(1, 0)]);
    assert_eq!(shown(&group, &from), both(4, 0));
    let second = format!("@{}", FIRST_MS + 6_500);
    let late = format!("@{}", FIRST_MS + 1_000_000);
    let forms = [
        ("latest", EACH),
        ("earliest", 0),
        ("+4", 4),
        ("+400", EACH),
        ("-3", EACH - 3),
        ("-300", 0),
        // The first record that is not older.
        (&second, 7),
        (&late, EACH),
    ];
    for (position, offset) in forms {
        set(&["reset", &name, "--to", position]);
        assert_eq!(shown(&group, &from), both(offset, offset), "{position}");
    }
    // Without a position: where it starts the first time.
    set(&["reset", &name]);
    assert_eq!(shown(&group, &from), both(2, 2));
    set(&["reset", &name, "--topic", input, "--to", "-1"]);
    set(&["alter", &name, &at(1, 8)]);
    assert_eq!(shown(&group, &from), both(9, 8));
    let listed = set(&["list", &name, "-o", "json"]);
    assert!(listed.contains("\"committed\": 8") && listed.contains("\"lag\": 2"), "{listed}");

    // It goes on there, and nowhere else.
    well(coproc(&["resume", &name]));
    until(&["describe", &name], "running");
    until(&["describe", &name], "lag 0");
    assert_eq!(shown(&group, &from), both(EACH, EACH));
    let mut lines: Vec<String> = well(coproc(&["consume", output])).lines().map(str::to_owned).collect();
    lines.sort();
    let first_time = (0..PARTITIONS).flat_map(|n| (2..EACH).map(move |offset| format!("P{n}-{offset}")));
    let again = ["P0-9", "P1-8", "P1-9"].map(str::to_owned);
    let mut wanted: Vec<String> = first_time.chain(again).collect();
    wanted.sort();
    assert_eq!(lines, wanted);
    well(coproc(&["remove", &name]));
    assert!(shown_groups(&group).is_none(), "the offsets went with it");
    for args in [["list", "--group", &group], ["delete", "--group", &group]] {
        refused(&args, 3, "has committed nothing");
    }
    node.stop();
}

fn shown_groups(group: &str) -> Option<String> {
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    plain().tool(class, &["--list"]).lines().find(|line| *line == group).map(str::to_owned)
}
