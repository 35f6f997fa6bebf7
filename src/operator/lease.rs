//! Leader election by a `Lease`. The decision is pure: it is given what was read, when that last changed by the
//! candidate's own clock, and says what to do. Clocks of candidates are never compared.
//!
//! The Lease keeps two operators from doing the same work; it is not the fence. A leader that does not know yet
//! that it lost is fenced by the transactional id of its writers.

mod holder;

use std::time::Duration;

pub use holder::{Election, Leadership, Settings};

/// The part of a Lease that elections go by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Who holds it; `None` after a release.
    pub holder: Option<String>,
    /// How long it is held without a renewal.
    pub duration: Duration,
    /// How often it changed hands.
    pub transitions: i32,
    /// Its version in the API server: what an update is checked against.
    pub version: String,
}

/// A record as this candidate saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What was read.
    pub record: Record,
    /// When, by this candidate's monotonic clock, it was first seen at this version.
    pub since: Duration,
}

impl Observed {
    /// Takes in what was read now: a version that is known keeps its time.
    pub fn update(before: Option<Self>, record: Record, now: Duration) -> Self {
        match before {
            Some(before) if before.record.version == record.version => Self { record, since: before.since },
            _ => Self { record, since: now },
        }
    }
}

/// What a candidate does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// There is no Lease: make it.
    Create,
    /// Write own name, checked against the version that was read; a conflict means that somebody was faster.
    Take {
        /// How often it changed hands, this time included.
        transitions: i32,
    },
    /// It is held by this candidate: renew it.
    Renew,
    /// Somebody else holds it; look again after this time.
    Wait(Duration),
}

/// Decides.
pub fn decide(me: &str, observed: Option<&Observed>, now: Duration, retry: Duration) -> Step {
    let Some(Observed { record, since }) = observed else { return Step::Create };
    match record.holder.as_deref() {
        Some(holder) if holder == me => Step::Renew,
        None | Some("") => Step::Take { transitions: record.transitions + 1 },
        Some(_) => {
            let expires = *since + record.duration;
            if now >= expires {
                Step::Take { transitions: record.transitions + 1 }
            } else {
                Step::Wait(retry.min(expires.saturating_sub(now)))
            }
        }
    }
}

/// Whether a leader has to stop: it could not renew for so long that another may be about to take over. The
/// deadline is shorter than the duration that others wait, by the same amount on every clock.
pub fn has_lost(last_renewal: Duration, now: Duration, deadline: Duration) -> bool {
    now.saturating_sub(last_renewal) >= deadline
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);
    const DEADLINE: Duration = Duration::from_secs(10);
    const RETRY: Duration = Duration::from_secs(2);

    fn seconds(at: u64) -> Duration {
        Duration::from_secs(at)
    }

    fn record(holder: Option<&str>, version: &str) -> Record {
        Record {
            holder: holder.map(str::to_owned),
            duration: DURATION,
            transitions: 3,
            version: version.into(),
        }
    }

    #[test]
    fn expiry_is_measured_from_the_last_change_that_was_observed() {
        let seen = Observed::update(None, record(Some("b"), "1"), seconds(100));
        assert_eq!(decide("a", Some(&seen), seconds(101), RETRY), Step::Wait(RETRY));
        assert_eq!(decide("a", Some(&seen), seconds(114), RETRY), Step::Wait(seconds(1)));
        assert_eq!(decide("a", Some(&seen), seconds(115), RETRY), Step::Take { transitions: 4 });
        // A renewal begins it anew.
        let renewed = Observed::update(Some(seen), record(Some("b"), "2"), seconds(114));
        assert_eq!(decide("a", Some(&renewed), seconds(128), RETRY), Step::Wait(seconds(1)));
        let same = Observed::update(Some(renewed), record(Some("b"), "2"), seconds(120));
        assert_eq!(same.since, seconds(114));
    }

    #[test]
    fn own_free_and_absent_leases() {
        let own = Observed::update(None, record(Some("a"), "1"), seconds(0));
        assert_eq!(decide("a", Some(&own), seconds(99), RETRY), Step::Renew);
        let free = Observed::update(None, record(None, "1"), seconds(0));
        assert_eq!(decide("a", Some(&free), seconds(0), RETRY), Step::Take { transitions: 4 });
        assert_eq!(decide("a", None, seconds(0), RETRY), Step::Create);
    }

    /// An API server with optimistic concurrency, and candidates whose clocks differ by hours and run at different
    /// speeds: at no real time do two of them believe that they lead.
    #[test]
    fn two_candidates_with_skewed_clocks_never_lead_together() {
        for partition in 0..40u64 {
            let mut server: Option<Record> = None;
            let mut version = 0;
            let mut candidates = [("a", 0u64, 100u64), ("b", 36_000, 104)]
                .map(|(name, offset, speed)| Candidate { name, offset, speed, seen: None, renewed: None });
            for tenth in 0..3_000u64 {
                for (i, candidate) in candidates.iter_mut().enumerate() {
                    let cut_off = i == 0 && (partition * 20..partition * 20 + 400).contains(&tenth);
                    if tenth % 20 == i as u64 * 7 && !cut_off {
                        candidate.act(tenth, &mut server, &mut version);
                    }
                }
                let leading = candidates.iter().filter(|candidate| candidate.leads(tenth)).count();
                assert!(leading <= 1, "two leaders at {tenth} with a partition from {}", partition * 20);
            }
            assert!(candidates.iter().any(|candidate| candidate.renewed.is_some()));
        }
    }

    struct Candidate {
        name: &'static str,
        offset: u64,
        /// Per cent of real time.
        speed: u64,
        seen: Option<Observed>,
        renewed: Option<Duration>,
    }

    impl Candidate {
        fn clock(&self, tenth: u64) -> Duration {
            Duration::from_millis(self.offset * 1_000 + tenth * self.speed)
        }

        fn leads(&self, tenth: u64) -> bool {
            self.renewed.is_some_and(|renewed| !has_lost(renewed, self.clock(tenth), DEADLINE))
        }

        fn act(&mut self, tenth: u64, server: &mut Option<Record>, version: &mut u64) {
            let now = self.clock(tenth);
            self.seen = server.clone().map(|record| Observed::update(self.seen.take(), record, now));
            let transitions = match decide(self.name, self.seen.as_ref(), now, RETRY) {
                Step::Wait(_) => return self.renewed = None,
                Step::Create => 0,
                Step::Take { transitions } => transitions,
                Step::Renew => self.seen.as_ref().map_or(0, |seen| seen.record.transitions),
            };
            *version += 1;
            let holder = Some(self.name.to_owned());
            *server = Some(Record { holder, duration: DURATION, transitions, version: version.to_string() });
            self.renewed = Some(now);
        }
    }
}
