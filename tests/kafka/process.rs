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
    /// The same so long afterwards, wherever it is by then: for what happens within a call of librdkafka.
    KillAfter(&'static str, u32, Duration),
    /// `kill -STOP` there.
    StopAt(&'static str, u32),
    /// The step fails so often, in percent.
    Fails(&'static str, u32),
}

impl Fault {
    /// As `arm` reads it; nothing for what `FAILPOINTS` can say.
    fn written(self) -> Option<String> {
        match self {
            Self::KillAt(step, nth) => Some(format!("kill:{nth}:0:{step}")),
            Self::KillAfter(step, nth, later) => Some(format!("kill:{nth}:{}:{step}", later.as_micros())),
            Self::StopAt(step, nth) => Some(format!("stop:{nth}:0:{step}")),
            Self::Fails(..) => None,
        }
    }
}

/// Within which lanes have to end: what `support` gives every node.
const DRAIN: Duration = Duration::from_secs(8);
/// What a node gets beyond that: two seconds are `Node::stop`'s own, for the last status; the rest is for clients that are
/// closed, and for a node that is asked to stop while it still starts.
const BEYOND_DRAIN: Duration = Duration::from_secs(5);

pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Process {
    /// With no fault, one, or several.
    pub fn start(role: &Role, faults: impl IntoIterator<Item = Fault>) -> Self {
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
            .env_remove("NODE_FAULTS");
        let faults: Vec<Fault> = faults.into_iter().collect();
        let written: Vec<String> = faults.iter().filter_map(|fault| fault.written()).collect();
        if !written.is_empty() {
            command.env("NODE_FAULTS", written.join(","));
        }
        let failing = faults.iter().filter_map(|fault| match fault {
            Fault::Fails(step, percent) => Some(format!("{step}={percent}%return")),
            _ => None,
        });
        let failing: Vec<String> = failing.collect();
        if !failing.is_empty() {
            command.env("FAILPOINTS", failing.join(";"));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin, log: role.log.clone() }
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

    /// Asks for a clean end, and waits for it: lanes commit what is done and leave within the drain deadline, or the node
    /// says that they did not. How long that took.
    pub fn stop(mut self) -> Duration {
        self.stdin = None;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "no clean end: {status}, see {}", self.log.display());
                return began.elapsed();
            }
            let within = DRAIN + BEYOND_DRAIN;
            assert!(began.elapsed() < within, "no end within {within:?}, see {}", self.log.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it died of its fault.
    pub fn await_death(mut self, of: &impl std::fmt::Debug) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_over() {
            assert!(Instant::now() < deadline, "{of:?} did not happen, see {}", self.log.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until its log has this.
    pub fn await_line(&mut self, with: &str, within: Duration) -> Duration {
        let began = Instant::now();
        while !std::fs::read_to_string(&self.log).unwrap().contains(with) {
            assert!(!self.is_over(), "it ended, see {}", self.log.display());
            assert!(began.elapsed() < within, "no {with} within {within:?}, see {}", self.log.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        began.elapsed()
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
    // The step comes last: steps of the lane have colons in their names.
    let mut parts = fault.splitn(4, ':');
    let (Some(how), Some(nth), Some(later), Some(step)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        panic!("not a fault: {fault}")
    };
    let signal = if how == "kill" { Signal::KILL } else { Signal::STOP };
    let (nth, passed) = (nth.parse::<u32>().unwrap(), AtomicU32::new(0));
    let later = Duration::from_micros(later.parse().unwrap());
    let send = move || {
        let _ = kill_process(getpid(), signal);
    };
    fail::cfg_callback(step, move || {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 != nth {
            return;
        }
        if later.is_zero() {
            send();
            // The signal reaches some thread of the process; this one goes no further before it does.
            std::thread::sleep(Duration::from_millis(200));
        } else {
            std::thread::spawn(move || {
                std::thread::sleep(later);
                send();
            });
        }
    })
    .unwrap();
}

/// The node itself: runs until its standard input ends; fails if its lanes do not end in time then.
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
    if let Ok(faults) = std::env::var("NODE_FAULTS") {
        faults.split(',').for_each(arm);
    }
    let log: Arc<dyn Log> = connect(&config);
    let node = start_node_of(&log, var("NODE_POOL").parse().unwrap(), var("NODE_ID").parse().unwrap());
    let _ = std::io::read_to_string(std::io::stdin());
    assert!(node.stop(), "some lanes did not end in time");
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
