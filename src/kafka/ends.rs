//! Where the partitions of lanes start and end, asked on a thread of its own: a lane must not wait for a broker, and
//! librdkafka's question that needs no waiting is not safe to ask while a partition has no leader (its answer may be
//! served twice).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, warn};

use super::admin::Admin;
use crate::core::ledger::TopicPartition;
use crate::ports::Extent;

/// How often is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long somebody who wants to know is taken to go on wanting.
const INTEREST: Duration = Duration::from_secs(10);
/// How long a partition is left alone that was not answered for: each such question takes its full time.
const REST: Duration = Duration::from_secs(30);

/// What was told of partitions that somebody wants to know of.
pub(super) struct Ends {
    admin: Arc<Admin>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    of: BTreeMap<TopicPartition, Told>,
    is_asking: bool,
}

struct Told {
    wanted: Instant,
    answer: Option<(Extent, Instant)>,
    silent: Option<Instant>,
}

impl Ends {
    pub(super) fn new(admin: Arc<Admin>) -> Arc<Self> {
        Arc::new(Self { admin, state: Mutex::default() })
    }

    /// Where a partition starts and ends, and when that was so; asks from now on.
    pub(super) fn of(self: &Arc<Self>, at: &TopicPartition) -> Option<(Extent, Instant)> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let told = state.of.entry(at.clone()).or_insert(Told { wanted: now, answer: None, silent: None });
        told.wanted = now;
        let answer = told.answer;
        if !state.is_asking {
            let ends = Arc::clone(self);
            match thread::Builder::new().name("ends".to_owned()).spawn(move || ends.run()) {
                Ok(_) => state.is_asking = true,
                Err(error) => warn!(%error, "no thread to ask where partitions end"),
            }
        }
        answer
    }

    /// Asks as long as somebody wants to know.
    fn run(&self) {
        while let Some(due) = self.due() {
            for at in due {
                let found = self.admin.extent(&at);
                let mut state = self.state.lock();
                let Some(told) = state.of.get_mut(&at) else { continue };
                match found {
                    Ok(extent) => (told.answer, told.silent) = (Some((extent, Instant::now())), None),
                    Err(error) => {
                        debug!(%at, %error, "where the partition ends is not known");
                        told.silent = Some(Instant::now());
                    }
                }
            }
            thread::sleep(EVERY);
        }
    }

    /// The partitions to ask for; `None` when nobody wants to know of any.
    fn due(&self) -> Option<Vec<TopicPartition>> {
        let mut state = self.state.lock();
        state.of.retain(|_, told| told.wanted.elapsed() < INTEREST);
        if state.of.is_empty() {
            state.is_asking = false;
            return None;
        }
        let rests = |told: &Told| told.silent.is_some_and(|since| since.elapsed() < REST);
        Some(state.of.iter().filter(|(_, told)| !rests(told)).map(|(at, _)| at.clone()).collect())
    }
}
