//! A node in a process of its own, to be killed, stopped and woken: this test binary, run again for one test that is
//! such a node.

use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coproc::kafka::{Assignor, KafkaConfig, KafkaLog};
use coproc::ports::Log;
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::cluster::{Cluster, short};
use super::slow::hurried;
use super::support::{PATIENCE, start_node_of};

/// What a node is told.
#[derive(Clone)]
pub struct Role {
    pub brokers: String,
    pub pool: String,
    pub id: u32,
    /// A quick restart takes its partitions over at once.
    pub is_static: bool,
    pub assignor: Assignor,
    /// Its transactions end sooner than some of its records.
    pub is_hurried: bool,
    /// Where its log goes.
    pub log: PathBuf,
}

impl Role {
    pub fn new(cluster: &Cluster, pool: &str, id: u32) -> Self {
        let log = cluster.dir.join(format!("node-{pool}-{id}.log"));
        let (brokers, pool) = (cluster.bootstrap.clone(), pool.to_owned());
        Self { brokers, pool, id, is_static: false, assignor: Assignor::Eager, is_hurried: false, log }
    }
}

/// What is to happen to a node at a step of a transaction.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// `kill -9` at the nth pass of the step.
    KillAt(&'static str, u32),
    /// `kill -STOP` there.
    StopAt(&'static str, u32),
    /// The step fails so often, in percent.
    Fails(&'static str, u32),
}

pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Process {
    pub fn start(role: &Role, fault: Option<Fault>) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(&role.log).unwrap();
        let assignor = if role.assignor == Assignor::Eager { "eager" } else { "cooperative" };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "node_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env("NODE_BROKERS", &role.brokers)
            .env("NODE_POOL", &role.pool)
            .env("NODE_ID", role.id.to_string())
            .env("NODE_STATIC", role.is_static.to_string())
            .env("NODE_ASSIGNOR", assignor)
            .env("NODE_HURRIED", role.is_hurried.to_string())
            .env_remove("FAILPOINTS")
            .env_remove("NODE_FAULT");
        match fault {
            Some(Fault::KillAt(step, nth)) => drop(command.env("NODE_FAULT", format!("kill:{step}:{nth}"))),
            Some(Fault::StopAt(step, nth)) => drop(command.env("NODE_FAULT", format!("stop:{step}:{nth}"))),
            Some(Fault::Fails(step, percent)) => {
                command.env("FAILPOINTS", format!("{step}={percent}%return"));
            }
            None => {}
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn wake(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks for a clean end, and waits for it.
    pub fn stop(mut self) {
        self.stdin = None;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the node does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Whether it stands still.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arm(fault: &str) {
    let mut parts = fault.split(':');
    let (Some(how), Some(step), Some(nth)) = (parts.next(), parts.next(), parts.next_back()) else {
        panic!("not a fault: {fault}")
    };
    // Steps of the lane have a colon in their names.
    let step = fault
        .strip_prefix(how)
        .and_then(|rest| rest.strip_suffix(nth))
        .map_or(step, |rest| rest.trim_matches(':'));
    let signal = if how == "kill" { Signal::KILL } else { Signal::STOP };
    let (nth, passed) = (nth.parse::<u32>().unwrap(), AtomicU32::new(0));
    fail::cfg_callback(step, move || {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            let _ = kill_process(getpid(), signal);
            // The signal reaches some thread of the process; this one goes no further before it does.
            std::thread::sleep(Duration::from_millis(200));
        }
    })
    .unwrap();
}

/// The node itself: runs until its standard input ends.
pub fn be_a_node() {
    let Ok(brokers) = std::env::var("NODE_BROKERS") else { return };
    let var = |name: &str| std::env::var(name).unwrap();
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).with_ansi(false).init();
    let mut config = KafkaConfig::plain(brokers.split(','));
    config.timing = if var("NODE_HURRIED") == "true" { hurried() } else { short() };
    config.metadata_refresh = Duration::from_secs(1);
    config.static_membership = var("NODE_STATIC") == "true";
    config.assignor = if var("NODE_ASSIGNOR") == "eager" { Assignor::Eager } else { Assignor::Cooperative };
    let _scenario = fail::FailScenario::setup();
    if let Ok(fault) = std::env::var("NODE_FAULT") {
        arm(&fault);
    }
    let log: Arc<dyn Log> = connect(&config);
    let node = start_node_of(&log, var("NODE_POOL").parse().unwrap(), var("NODE_ID").parse().unwrap());
    let _ = std::io::read_to_string(std::io::stdin());
    node.stop();
}

/// Brokers may be down just now.
fn connect(config: &KafkaConfig) -> Arc<dyn Log> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match KafkaLog::connect(config.clone()) {
            Ok(log) => return log,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}
