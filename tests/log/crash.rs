//! Killed in the middle of commits, again and again: each batch is there whole or not at all, and every one that was
//! acknowledged is there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coproc::log::{Durability, EmbeddedLog, Options};
use coproc::ports::{Log, Offsets, Produce, ReadFrom, TopicConfig};

use crate::support::{create, options, read_all, record, topic, values};

const CHILD: &str = "COPROC_TEST_CRASH_DIR";
const DURABILITY: &str = "COPROC_TEST_CRASH_DURABILITY";
#[cfg(feature = "failpoints")]
const POINT: &str = "COPROC_TEST_CRASH_POINT";
const BATCH: usize = 7;

/// Not a test of its own: what the child process does until it is killed.
#[test]
fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the parent tells the child what to do")]
    let Ok(dir) = std::env::var(CHILD) else { return };
    #[expect(clippy::disallowed_methods, reason = "how the parent tells the child what to do")]
    let durability = match std::env::var(DURABILITY).as_deref() {
        Ok("Flush") => Durability::Flush,
        _ => Durability::Fsync,
    };
    let options = Options { durability, ..Options::default() };
    let log = EmbeddedLog::open(Path::new(&dir), options).unwrap();
    let names = ["left", "right"].map(topic);
    #[cfg(feature = "failpoints")]
    die_at_the_point();
    for name in &names {
        if log.topics().describe(name).unwrap().is_none() {
            create(&*log, name.as_str(), TopicConfig::default());
        }
    }
    let next = log.topics().extents(&names[0]).unwrap()[0].end as usize / BATCH;
    for number in next.. {
        let one = |index: usize| Produce {
            topic: names[index % 2].clone(),
            partition: None,
            record: record(None, Some(&number.to_string())),
        };
        let batch: Vec<_> = (0..2 * BATCH).map(one).collect();
        log.produce(&batch).unwrap();
        println!("acknowledged {number}");
    }
}

/// Dies, as by a kill, when a commit passes the point for the tenth time.
#[cfg(feature = "failpoints")]
fn die_at_the_point() {
    #[expect(clippy::disallowed_methods, reason = "how the parent tells the child what to do")]
    let Ok(point) = std::env::var(POINT) else { return };
    let passed = std::sync::atomic::AtomicUsize::new(0);
    fail::cfg_callback(point, move || {
        if passed.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 9 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    })
    .unwrap();
}

/// Runs the child until it acknowledged `wanted` commits or died by itself; then kills it. The last acknowledged.
fn run_and_kill(dir: &Path, wanted: usize, point: Option<&str>) -> Option<usize> {
    // SIGKILL; the child may be anywhere in its next commit.
    run_and(dir, wanted, point, Durability::Fsync, |child| {
        child.kill().unwrap();
        Later::Counts
    })
}

/// Whether what the child says after its end has begun is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    /// It said so before it died; only the reader is late.
    Counts,
    /// It may have been told a lie.
    Ignored,
}

/// The same with another end.
pub fn run_and(
    dir: &Path,
    wanted: usize,
    point: Option<&str>,
    durability: Durability,
    mut end: impl FnMut(&mut Child) -> Later,
) -> Option<usize> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--nocapture"]).env(CHILD, dir);
    command.env(DURABILITY, format!("{durability:?}"));
    if let Some(point) = point {
        command.env("COPROC_TEST_CRASH_POINT", point);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut last = None;
    let mut seen = 0;
    let mut later = Later::Counts;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, number)) = line.split_once("acknowledged ") else { continue };
        if seen < wanted || later == Later::Counts {
            last = number.parse().ok();
        }
        seen += 1;
        if seen == wanted {
            later = end(&mut child);
        }
    }
    child.wait().unwrap();
    last
}

/// Looks at what the child left: how many batches there are.
pub fn check(dir: &Path, acknowledged: Option<usize>) -> usize {
    let log = EmbeddedLog::open(dir, options()).unwrap();
    let both = ["left", "right"].map(|name| match log.topics().describe(&topic(name)).unwrap() {
        Some(_) => values(&read_all(&*log, &topic(name))),
        None => Vec::new(),
    });
    assert_eq!(both[0], both[1], "a batch is in both topics or in none");
    let wanted: Vec<_> =
        (0..both[0].len() / BATCH).flat_map(|number| vec![number.to_string(); BATCH]).collect();
    assert_eq!(both[0], wanted, "every batch whole, in order");
    if let Some(acknowledged) = acknowledged {
        let there = both[0].len() / BATCH;
        assert!(there > acknowledged, "batch {acknowledged} was acknowledged, and {there} are there");
    }
    drop(log.reader(&topic("left"), None, ReadFrom::Start));
    assert!(log.groups().unwrap().is_empty());
    both[0].len() / BATCH
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let acknowledged = run_and_kill(dir.path(), 1 + round % 5, None);
        check(dir.path(), acknowledged);
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn killed_at_every_step_of_a_commit() {
    let steps =
        ["before_write", "after_write_before_sync", "after_sync_before_publish", "after_sync_before_reply"];
    for step in steps {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let acknowledged = run_and_kill(dir.path(), usize::MAX, Some(&format!("log::commit::{step}")));
            check(dir.path(), acknowledged);
        }
    }
}
