//! `coproc doctor`: looks at everything that a node needs, and says what to do about what is wrong.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::modules::{Lines, Module};
use crate::cli::open::{Place, Target, now_ms};
use crate::cli::output::{FormatArgs, Table, count};
use crate::cli::{engine, harness};
use crate::control::desired::{self, Desired};
use crate::control::observed::{self, ObservedNode};
use crate::control::topics::OwnTopic;
use crate::core::deployment::Limits;
use crate::core::names::CONTROL_TOPIC;
use crate::core::record::Record;
use crate::core::status::{DeploymentStatus, NodeStatus, State, UpDown};
use crate::node::plan::{ChainPlan, StepPlan, guest_limits};
use crate::ports::{Ability, Capabilities, GuestLines, Log, Replicas};

/// A disk that takes longer for one sync is slow, and so is every commit.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// Syncs that are measured.
const SYNCS: u32 = 10;

/// Check the directory, the log, the topics, the nodes, the engine and the disk
///
/// Each line says ok, warn or fail, and what to do. Exit code 1 when something fails.
#[derive(Debug, Args)]
pub struct Command {
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    message: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, verdict: Verdict, message: impl Into<String>) {
        self.0.push(Finding { check, verdict, message: message.into() });
    }
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let mut findings = Findings::default();
        let has_log = match target.place() {
            Ok(Place::Directory(dir)) => {
                let exists = crate::log::is_there(&dir);
                look_at_directory(&dir, exists, &mut findings);
                exists
            }
            #[cfg(feature = "kafka")]
            Ok(Place::Cluster(config)) => {
                if let Some(exposure) = config.exposure() {
                    findings.add("login", Verdict::Warn, exposure);
                }
                true
            }
            Err(_) => true,
        };
        if has_log {
            match target.log() {
                Ok(log) => look_at_log(log.as_ref(), &mut findings),
                Err(error) => findings.add("log", Verdict::Fail, error.to_string()),
            }
        }
        look_at_engine(&mut findings);
        let findings = findings.0;
        self.output.print(&findings, |_| {
            let mut table = Table::new(&["CHECK", "VERDICT", "WHAT"]);
            for finding in &findings {
                let verdict = match finding.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warn => "warn",
                    Verdict::Fail => "fail",
                };
                table.push([finding.check.to_owned(), verdict.into(), finding.message.clone()]);
            }
            table
        })?;
        let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
        if failed > 0 {
            return Err(coded(Exit::Failed, format!("{} failed", count(failed, "check"))));
        }
        Ok(())
    }
}

fn look_at_directory(dir: &Path, exists: bool, findings: &mut Findings) {
    let shown = dir.display();
    if !exists {
        let message =
            format!("there is no log in {shown} yet: `coproc dev` makes one; --dir names another directory");
        findings.add("directory", Verdict::Warn, message);
        return;
    }
    match sync_time(dir) {
        Ok(time) => {
            findings.add("directory", Verdict::Ok, format!("{shown} can be written"));
            let each = format!("{:.1} ms for a write that is synced", time.as_secs_f64() * 1e3);
            let (verdict, hint) = if time > SLOW_SYNC {
                (Verdict::Warn, ": every commit waits so long; use a disk of this machine")
            } else {
                (Verdict::Ok, "")
            };
            findings.add("disk", verdict, format!("{each}{hint}"));
        }
        Err(error) => {
            let message = format!("{shown} cannot be written ({error}): give it to this user, or free space");
            findings.add("directory", Verdict::Fail, message);
        }
    }
}

/// How long an appended page takes to be on the disk, on average.
fn sync_time(dir: &Path) -> std::io::Result<Duration> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let measured = (|| {
        let mut file = std::fs::File::create(&path)?;
        let started = Instant::now();
        for _ in 0..SYNCS {
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
        }
        Ok(started.elapsed() / SYNCS)
    })();
    let removed = std::fs::remove_file(&path);
    measured.and_then(|time| removed.map(|()| time))
}

fn look_at_log(log: &dyn Log, findings: &mut Findings) {
    let Capabilities { description, transactions, compaction } = log.capabilities();
    findings.add("log", Verdict::Ok, description);
    let (verdict, message) = about_transactions(&transactions);
    findings.add("log", verdict, message);
    let mut is_compacted = false;
    for topic in OwnTopic::ALL {
        let (verdict, message) = look_at_topic(log, topic);
        // What control and status need, seen where it counts.
        is_compacted |= topic == OwnTopic::Control && verdict == Verdict::Ok;
        findings.add("topic", verdict, message);
    }
    let (verdict, message) = about_compaction(&compaction, is_compacted);
    findings.add("log", verdict, message);
    look_at_nodes(log, findings);
    look_at_deployments(log, findings);
}

fn about_transactions(ability: &Ability) -> (Verdict, String) {
    match ability {
        Ability::Present => (Verdict::Ok, "transactions: exactly-once is to be had".to_owned()),
        Ability::Absent(why) => (Verdict::Warn, format!("no transactions, at least once only: {why}")),
        Ability::Unknown(why) => {
            let message = format!(
                "whether there are transactions could not be found out: {why}; check \
                 transaction.state.log.replication.factor and the ACL on the transactional id"
            );
            (Verdict::Warn, message)
        }
    }
}

fn about_compaction(ability: &Ability, is_seen: bool) -> (Verdict, String) {
    let is_there = || (Verdict::Ok, "compaction: the last record of each key is kept".to_owned());
    match ability {
        Ability::Present => is_there(),
        Ability::Absent(why) => (Verdict::Fail, format!("no compaction, control and status need it: {why}")),
        Ability::Unknown(_) if is_seen => is_there(),
        Ability::Unknown(why) => {
            let message = format!(
                "whether there is compaction, which control and status need, could not be found out: {why}; make \
                 {CONTROL_TOPIC} with cleanup.policy=compact, and look again"
            );
            (Verdict::Warn, message)
        }
    }
}

fn look_at_topic(log: &dyn Log, topic: OwnTopic) -> (Verdict, String) {
    let name = topic.name();
    let info = match log.topics().describe(&name) {
        Err(error) => return (Verdict::Fail, error.to_string()),
        Ok(None) => return (Verdict::Warn, format!("{name} is not there yet: the first node makes it")),
        Ok(Some(info)) => info,
    };
    match topic.check(&info).and_then(|()| log.topics().replicas(&name)) {
        Err(error) => (Verdict::Fail, error.to_string()),
        Ok(replicas) => match replicas.and_then(too_few) {
            Some(few) => (Verdict::Warn, format!("{name} {few}")),
            None => (Verdict::Ok, format!("{name} is as it has to be")),
        },
    }
}

/// The number stays as it was when the topic was made, perhaps when not all brokers were up yet.
fn too_few(Replicas { fewest, wanted }: Replicas) -> Option<String> {
    (fewest < wanted).then(|| {
        format!(
            "has {}, and there are brokers for {wanted}: give it more with kafka-reassign-partitions, before one \
             is lost",
            count(fewest, "replica")
        )
    })
}

fn look_at_nodes(log: &dyn Log, findings: &mut Findings) {
    let nodes = match observed::read(log) {
        Err(error) => return findings.add("nodes", Verdict::Fail, error.to_string()),
        Ok(state) => state.map(|state| state.nodes()).unwrap_or_default(),
    };
    let now = now_ms();
    if !nodes.iter().any(|node| node.status.status == UpDown::Up) {
        findings.add("nodes", Verdict::Warn, "no node is up: start one with `coproc dev`");
    }
    for node in nodes.iter().filter(|node| node.status.status == UpDown::Up) {
        let (id, age) = (node.status.node_id, (now - node.heartbeat_ms) / 1_000);
        if node.is_unresponsive(now) {
            let message = format!("node {id} was heard {age} s ago last: look at its process and its log");
            findings.add("nodes", Verdict::Fail, message);
        } else {
            findings.add("nodes", Verdict::Ok, format!("node {id} was heard {age} s ago"));
        }
        for (name, status) in &node.status.coprocessors {
            if let Some(trouble) = trouble(status) {
                let message = format!("{name} on node {id} {trouble}; `coproc describe {name}` says more");
                findings.add("coprocessor", Verdict::Warn, message);
            }
        }
    }
    look_for_orphans(log, &nodes, findings);
}

/// Why a deployment does not do what is desired, where it does not.
fn trouble(status: &DeploymentStatus) -> Option<String> {
    let why = match (&status.reason, &status.last_error) {
        (Some(reason), Some(error)) if error.reason == *reason => format!(" ({reason}): {}", error.message),
        (Some(reason), _) => format!(" ({reason})"),
        (None, Some(error)) => format!(": {}", error.message),
        (None, None) => String::new(),
    };
    match status.state {
        State::Pending | State::Failed | State::Retrying | State::Unsupported => {
            Some(format!("is {}{why}", status.state.as_str()))
        }
        // What runs is not what was deployed last.
        State::Running if status.reason.is_some() => {
            Some(format!("still runs generation {}{why}", status.generation))
        }
        State::Running | State::Starting | State::Paused | State::Stopping => None,
    }
}

/// Deployments that no node of their pool has taken up, though there is one.
fn look_for_orphans(log: &dyn Log, nodes: &[ObservedNode], findings: &mut Findings) {
    // That the control topic cannot be read is said elsewhere.
    let Ok(state) = desired::read(log) else { return };
    let now = now_ms();
    let live = || nodes.iter().filter(|node| !node.is_unresponsive(now)).map(|node| &node.status);
    for (pool, identity, _) in state.iter() {
        let mut of_pool = live().filter(|node| node.pool == pool.as_str()).peekable();
        let is_known = |node: &NodeStatus| {
            node.truncated || node.coprocessors.values().any(|status| status.identity == *identity)
        };
        if of_pool.peek().is_some() && !of_pool.any(is_known) {
            let message =
                format!("{identity} is taken up by no node of pool {pool}: look at the nodes' logs");
            findings.add("coprocessor", Verdict::Warn, message);
        }
    }
}

fn look_at_deployments(log: &dyn Log, findings: &mut Findings) {
    let state = match desired::read(log) {
        Err(error) => return findings.add("deployments", Verdict::Fail, error.to_string()),
        Ok(state) => state,
    };
    let count = state.iter().count();
    findings.add("deployments", Verdict::Ok, format!("{count} in the control topic"));
    for (_, identity, desired) in state.iter() {
        match desired {
            Desired::Deployment(deployment) => {
                for problem in deployment.problems() {
                    findings.add("deployments", Verdict::Fail, format!("{identity}: {problem}"));
                }
            }
            Desired::Unsupported { schema, .. } => {
                let message = format!("{identity} has schema {schema}: update coproc to read it");
                findings.add("deployments", Verdict::Warn, message);
            }
        }
    }
}

fn look_at_engine(findings: &mut Findings) {
    match run_tiny_module() {
        Ok(()) => findings.add("engine", Verdict::Ok, "a module was compiled and ran"),
        Err(error) => findings.add("engine", Verdict::Fail, format!("{error:#}")),
    }
}

/// The module of the `wat` template, on one record.
fn run_tiny_module() -> anyhow::Result<()> {
    let module = Module::new("tiny.wasm".into(), wat::parse_str(super::init::WAT_MODULE)?);
    let program = engine::new(None, None)?.compile(&module.bytes, module.digest)?;
    let limits = guest_limits(&Limits::default());
    let step = StepPlan { name: "main".into(), program, env: std::collections::BTreeMap::new(), limits };
    let plan = ChainPlan { name: "doctor".into(), steps: vec![step], outputs: vec!["output".parse()?] };
    let lines: Arc<dyn GuestLines> = Arc::new(Lines::default());
    let outcome = harness::run(&plan, &"input".parse()?, &[Record::new(None, Some(b"well"))], &lines)?;
    match outcome.written.first().and_then(|written| written.record.value.as_deref()) {
        Some(b"WELL") => Ok(()),
        other => Err(coded(Exit::Failed, format!("the module wrote {other:?} where it was to write WELL"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, reason: Option<&str>, error: Option<&str>) -> DeploymentStatus {
        let error = error.map(|reason| serde_json::json!({"time": 0, "reason": reason, "message": "why"}));
        serde_json::from_value(serde_json::json!({
            "identity": "default/_cli/coprocessor/a", "input_topics": [], "description": "", "state": state,
            "reason": reason, "generation": 3, "last_error": error,
        }))
        .unwrap()
    }

    #[test]
    fn what_could_not_be_found_out_is_no_good_news() {
        let why = || "timed out".to_owned();
        let (verdict, said) = about_transactions(&Ability::Unknown(why()));
        assert_eq!(verdict, Verdict::Warn);
        let parts = ["timed out", "transaction.state.log.replication.factor", "ACL"];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(about_transactions(&Ability::Present).0, Verdict::Ok);
        assert_eq!(about_transactions(&Ability::Absent(why())).0, Verdict::Warn);
        let compaction = |ability, is_seen| about_compaction(&ability, is_seen).0;
        assert_eq!(compaction(Ability::Present, false), Verdict::Ok);
        assert_eq!(compaction(Ability::Absent(why()), true), Verdict::Fail);
        assert_eq!(compaction(Ability::Unknown(why()), true), Verdict::Ok);
        assert_eq!(compaction(Ability::Unknown(why()), false), Verdict::Warn);
    }

    #[test]
    fn a_topic_with_fewer_replicas_than_there_could_be_is_a_finding() {
        assert_eq!(too_few(Replicas { fewest: 3, wanted: 2 }), None);
        let said = too_few(Replicas { fewest: 1, wanted: 3 }).unwrap();
        assert!(said.starts_with("has 1 replica, and there are brokers for 3: "), "{said}");
    }

    #[test]
    fn whatever_does_not_do_what_is_desired_is_a_finding() {
        let cases = [
            (status("running", None, None), None),
            // It is over: what runs is what is desired.
            (status("running", None, Some("LogFailed")), None),
            (status("paused", Some("Paused"), Some("GuestFailed")), None),
            (
                status("pending", Some("TopicNotFound"), Some("TopicNotFound")),
                Some("is pending (TopicNotFound): why"),
            ),
            (status("failed", None, Some("GuestFailed")), Some("is failed: why")),
            (status("retrying", None, None), Some("is retrying")),
            (
                status("running", Some("GuestStartFailed"), Some("GuestStartFailed")),
                Some("still runs generation 3 (GuestStartFailed): why"),
            ),
            (status("unsupported", Some("NewerSchema"), None), Some("is unsupported (NewerSchema)")),
        ];
        for (status, expected) in cases {
            assert_eq!(trouble(&status).as_deref(), expected, "{status:?}");
        }
    }
}
