//! The command line on Kafka: a node as a service runs it, and every command beside it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

#[path = "kafka/cluster.rs"]
mod cluster;
#[path = "kafka/offsets.rs"]
mod offsets;
#[allow(dead_code, reason = "not every test binary that shares this file needs all of it")]
#[path = "cli/place.rs"]
mod place;
#[path = "kafka/secrets.rs"]
mod secrets;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use self::cluster::{Cluster, fresh, plain};
use self::place::{PROGRAM, Place, Ran};

/// `coproc node --config`, as a service.
struct Service {
    child: Child,
    log: std::path::PathBuf,
}

impl Service {
    fn start(place: &Place, name: &str, yaml: &str) -> Self {
        let (config, log) = (place.write(&format!("{name}.yaml"), yaml), place.path(&format!("{name}.log")));
        let mut command = Command::new(PROGRAM);
        command.args(["node", "--config"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        Self { child, log }
    }

    /// Asks for its end, and waits for it: what it logged.
    fn stop(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(15);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the node does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = std::fs::read_to_string(&self.log).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn well(ran: Ran) -> String {
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    ran.out
}

#[test]
fn everything_works_as_on_the_embedded_log() {
    let place = Place::new();
    let brokers = plain().bootstrap.as_str();
    let pool = fresh("pool");
    let coproc = |args: &[&str]| place.coproc(&[&["--brokers", brokers, "--pool", &pool], args].concat());
    let until = |args: &[&str], part: &str| {
        place.wait_for(&[&["--brokers", brokers, "--pool", &pool], args].concat(), |ran| {
            ran.out.contains(part)
        })
    };
    well(coproc(&["topic", "create", "said", "shouted", "--partitions", "2"]));
    let module = place.uppercase();
    let module = module.to_str().unwrap();
    let dir = place.path("node").display().to_string();
    let yaml = format!(
        "{{nodeId: 7, http: 'off', dir: {dir}, pool: {pool}, kafka: {{bootstrapServers: ['{brokers}'], \
         staticMembership: true}}}}"
    );
    let node = Service::start(&place, "node", &yaml);
    well(coproc(&["deploy", module, "--name", "shout", "-i", "said", "-o", "shouted", "--wait"]));
    let produced = place.coproc_with(
        &["--brokers", brokers, "produce", "said", "--key-separator", ":"],
        b"a:one\nb:two\nc:three\n",
    );
    well(produced);
    let lines = |count: usize| {
        let ran = place
            .wait_for(&["--brokers", brokers, "consume", "shouted"], |ran| ran.out.lines().count() >= count);
        let mut lines: Vec<String> = well(ran).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(3), ["ONE", "THREE", "TWO"]);
    until(&["list", "-o", "wide"], "running");
    let described = until(&["describe", "shout"], "exactly_once, lag 0").out;
    assert!(described.contains("node 7: running"), "{described}");
    well(coproc(&["logs", "shout"]));
    assert!(well(coproc(&["topic", "list"])).contains("shouted"));
    let doctor = well(coproc(&["doctor"]));
    assert!(doctor.contains("the protocol of Kafka 4.1"), "{doctor}");
    for found in ["transactions: exactly-once", "compaction: "] {
        let is_found = |line: &str| line.contains(found) && line.split_whitespace().nth(1) == Some("ok");
        assert!(doctor.lines().any(is_found), "{found:?} is missing: {doctor}");
    }
    let raw = well(coproc(&["list", "--raw"]));
    assert!(raw.contains("the protocol of Kafka 4.1; transactions, compaction"), "{raw}");
    assert!(well(coproc(&["offsets", "list", "shout"])).contains("said"));

    // Kafka's own tool sees a static member.
    let group = "coproc.default._cli.coprocessor.shout";
    let groups = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let members = plain().tool(groups, &["--describe", "--members", "--verbose", "--group", group]);
    assert!(members.contains(&format!("{group}.7.0")), "{members}");

    assert_eq!(coproc(&["offsets", "reset", "shout", "--to", "earliest"]).code, Some(4), "it is not paused");
    well(coproc(&["pause", "shout"]));
    until(&["list", "-o", "wide"], "paused");
    // Waits for the static member's session to end.
    well(coproc(&["offsets", "reset", "shout", "--to", "earliest"]));
    well(coproc(&["resume", "shout"]));
    assert_eq!(lines(6), ["ONE", "ONE", "THREE", "THREE", "TWO", "TWO"]);
    // Kafka takes record by record, so that a failure says nothing of the others.
    let mixed = [b"small\n".as_slice(), &vec![b'x'; 2 << 20], b"\nsmall\n"].concat();
    let mixed = place.coproc_with(&["--brokers", brokers, "produce", "shouted"], &mixed);
    assert_ne!(mixed.code, Some(0), "{mixed:?}");
    assert!(
        mixed.err.contains("of the 3 records after that some may be: look before you send them"),
        "{mixed:?}"
    );
    well(coproc(&["remove", "shout"]));
    place.wait_for(&["--brokers", brokers, "list"], |ran| !ran.out.contains("shout"));
    let said = node.stop();
    assert!(!said.contains("\"level\":\"ERROR\""), "{said}");

    // The other protocol, from the same kind of file.
    let pool = fresh("pool");
    let yaml = format!(
        "{{nodeId: 8, http: 'off', dir: {dir}, pool: {pool}, kafka: {{bootstrapServers: ['{brokers}'], \
         assignor: cooperative}}}}"
    );
    let node = Service::start(&place, "node2", &yaml);
    let deploy = ["deploy", module, "--name", "calm", "-i", "said", "-o", "shouted", "--wait"];
    well(place.coproc(&[&["--brokers", brokers, "--pool", &pool][..], &deploy].concat()));
    lines(9);
    let group = "coproc.default._cli.coprocessor.calm";
    let state = plain().tool(groups, &["--describe", "--state", "--group", group]);
    assert!(state.contains("cooperative-sticky"), "{state}");
    let said = node.stop();
    assert!(!said.contains("\"level\":\"ERROR\""), "{said}");
}

/// As of a single broker with the settings of a larger cluster: its log of transactions cannot be made.
#[test]
fn doctor_says_that_transactions_could_not_be_found_out() {
    let place = Place::new();
    let cluster = Cluster::start("doubt", &[]);
    let file = cluster.dir.join("1/server.properties");
    let settings = std::fs::read_to_string(&file).unwrap();
    let setting = "transaction.state.log.replication.factor";
    let changed = settings.replace(&format!("{setting}=1"), &format!("{setting}=3"));
    assert_ne!(settings, changed);
    std::fs::write(&file, changed).unwrap();
    cluster.restart(1);
    let said = well(place.coproc(&["--brokers", &cluster.bootstrap, "doctor"]));
    let wanted = "whether there are transactions could not be found out: ";
    let line = said.lines().find(|line| line.contains(wanted)).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("warn") && line.contains(setting), "{line}");
    assert!(!said.contains("exactly-once is to be had"), "{said}");
}

#[test]
fn brokers_that_cannot_be_reached_are_named() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    // As one that wants TLS may do to a client without.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs_up = deaf.local_addr().unwrap().to_string();
    let hanging_up = move || deaf.incoming().for_each(drop);
    std::thread::Builder::new().name("hangs-up".to_owned()).spawn(hanging_up).unwrap();
    for (brokers, why) in [(nobody, "Connection refused"), (hangs_up, "TLS and SASL")] {
        let ran = place.coproc(&["--brokers", &brokers, "list"]);
        assert_eq!(ran.code, Some(5), "{ran:?}");
        let cannot = format!("cannot reach Kafka at {brokers}: ");
        for part in [cannot.as_str(), why, "check that a broker listens there"] {
            assert!(ran.err.contains(part), "{part:?} is missing: {ran:?}");
        }
    }
}

/// Custom section that makes a module larger than several parts: writing it takes a while.
fn padded(mut module: Vec<u8>, size: usize) -> Vec<u8> {
    let mut section = vec![3];
    section.extend_from_slice(b"pad");
    section.resize(size, 7);
    module.push(0);
    let mut length = section.len();
    while length >= 0x80 {
        module.push(length as u8 | 0x80);
        length >>= 7;
    }
    module.push(length as u8);
    module.extend(section);
    module
}

#[test]
fn the_same_module_can_be_deployed_by_several_at_once() {
    let place = Place::new();
    let module = padded(std::fs::read(place.uppercase()).unwrap(), 1_300_000);
    let module = place.write("large.wasm", module);
    let pool = fresh("pool");
    let deploy = |name: &str| {
        let target = ["--brokers", &plain().bootstrap, "--pool", &pool];
        let mut command = Command::new(PROGRAM);
        command.args(target).args([
            "deploy",
            "--no-topic-check",
            "-i",
            "busy",
            "-o",
            "busy-out",
            "--name",
            name,
        ]);
        command.arg(&module).env("COPROC_DIR", place.path("log")).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let names = ["busy-1", "busy-2", "busy-3", "busy-4"];
    let children: Vec<Child> = names.iter().map(|name| deploy(name)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let listed = well(place.coproc(&["--brokers", &plain().bootstrap, "list"]));
    assert!(names.iter().all(|name| listed.contains(name)), "{listed}");
}
