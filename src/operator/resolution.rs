//! Which images have to be asked for, and when again. Pure: what is known, the policy and the time are parameters.
//!
//! An image is asked for once for each change of its field. With `resolve.policy: Interval` its tag is looked up
//! again; what does not come to anything then leaves the module that was resolved before. Nothing is asked because
//! an operator has started: what is in force stands in the status.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::operator::crd::DeploymentResourceStatus;
use crate::operator::crd::status::ModuleStatus;
use crate::operator::validate::{Resolved, Verified, Wanted};

/// A tag is looked up again no later than this after a registry that did not answer.
const SOON: Duration = Duration::from_mins(1);

/// What is known of one step's image.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Where it led to.
    pub resolved: Resolved,
    /// When its tag is looked up again, by this process's clock; `None` while that has not been decided.
    pub due: Option<Duration>,
    /// Why the last look-up came to nothing.
    pub failure: Option<Failure>,
}

/// Why a tag was looked up in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A stable CamelCase word.
    pub reason: String,
    /// What happened and what to do.
    pub message: String,
}

/// The modules in force, one for each step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Modules {
    /// Where the images led to.
    pub resolved: Vec<Resolved>,
    /// Why a tag was looked up in vain; what was resolved before is in force.
    pub failure: Option<Failure>,
    /// When a tag is due.
    pub again: Option<Duration>,
}

/// What to do about one step's image.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Nothing: this is in force.
    Keep(Known),
    /// Ask the registry: nothing is known.
    Ask,
    /// Look up the tag again.
    AskAgain(Known),
    /// Check the signatures of what is in force: the pool demands others than those that were found.
    Verify(Known),
}

/// Decides about one step's image. `policy` names the pool's keys, where it demands signatures.
pub fn next(wanted: &Wanted, known: Option<Known>, policy: Option<&str>, now: Duration) -> Next {
    let Some(mut known) = known else { return Next::Ask };
    let found = known.resolved.verified.as_ref().map(|verified| verified.policy.as_str());
    match policy {
        Some(_) if policy != found => return Next::Verify(known),
        Some(_) => {}
        None => known.resolved.verified = None,
    }
    match (wanted.every, known.due) {
        (None, _) => Next::Keep(Known { due: None, failure: None, ..known }),
        (Some(_), Some(due)) if due <= now => Next::AskAgain(known),
        (Some(every), due) => {
            // Decided anew where the interval became shorter.
            let latest = now + every;
            let due = due.map_or_else(|| now + spread(&known.resolved.image, every), |due| due.min(latest));
            Next::Keep(Known { due: Some(due), ..known })
        }
    }
}

/// A part of the interval that depends on the image: an operator that starts does not look up all tags at once.
fn spread(image: &str, every: Duration) -> Duration {
    let hash = Sha256::digest(image);
    every.mul_f64(f64::from(hash[0]) / 255.0)
}

impl Known {
    /// An image that was asked for just now.
    pub fn new(resolved: Resolved, wanted: &Wanted, now: Duration) -> Self {
        Self { resolved, due: wanted.every.map(|every| now + every), failure: None }
    }

    /// The same, after a look-up that came to nothing.
    #[must_use]
    pub fn after(self, failure: Failure, is_passing: bool, wanted: &Wanted, now: Duration) -> Self {
        let every = wanted.every.unwrap_or(SOON);
        let wait = if is_passing { every.min(SOON) } else { every };
        Self { due: Some(now + wait), failure: Some(failure), ..self }
    }

    /// The same, looked up a little later.
    #[must_use]
    pub fn postponed(self, now: Duration) -> Self {
        Self { due: Some(now + Duration::from_secs(1)), ..self }
    }
}

/// What is known of the image of step `i`: what this process found, else what the status says. Steps may have been
/// moved, and two steps may have one image under different policies.
pub fn known_of(
    i: usize,
    image: &str,
    found: &[Known],
    status: Option<&DeploymentResourceStatus>,
) -> Option<Known> {
    let of_image = |known: &&Known| known.resolved.image == image;
    if let Some(known) = found.get(i).filter(of_image).or_else(|| found.iter().find(of_image)) {
        return Some(known.clone());
    }
    let recorded: Vec<Known> = status.into_iter().flat_map(modules).filter_map(recorded).collect();
    recorded.get(i).filter(of_image).or_else(|| recorded.iter().find(of_image)).cloned()
}

fn modules(status: &DeploymentResourceStatus) -> Vec<&ModuleStatus> {
    if status.modules.is_empty() { status.module.iter().collect() } else { status.modules.iter().collect() }
}

fn recorded(module: &ModuleStatus) -> Option<Known> {
    let verified = module.verification.as_ref();
    let verified = verified.map(|at| Verified { key: at.key.clone(), policy: at.policy.clone() });
    let resolved = Resolved {
        image: module.image.clone(),
        pinned: module.pinned_image.clone(),
        digest: module.digest.parse().ok()?,
        verified,
    };
    Some(Known { resolved, due: None, failure: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::digest::Digest;
    use crate::operator::crd::status::VerificationStatus;

    const NOW: Duration = Duration::from_secs(1_000);
    const MINUTE: Duration = Duration::from_mins(1);

    fn wanted(every: Option<Duration>) -> Wanted {
        Wanted { image: "r/m:1".into(), every }
    }

    fn known(due: Option<Duration>, policy: Option<&str>) -> Known {
        let resolved = Resolved {
            image: "r/m:1".into(),
            pinned: "r/m:1@sha256:0".into(),
            digest: Digest::from_bytes([1; 32]),
            verified: policy.map(|policy| Verified { key: "k".into(), policy: policy.into() }),
        };
        Known { resolved, due, failure: None }
    }

    #[test]
    fn without_an_interval_an_image_is_asked_for_once() {
        assert_eq!(next(&wanted(None), None, None, NOW), Next::Ask);
        assert_eq!(next(&wanted(None), Some(known(None, None)), None, NOW), Next::Keep(known(None, None)));
        // It had an interval before.
        let kept = next(&wanted(None), Some(known(Some(NOW), None)), None, NOW);
        assert_eq!(kept, Next::Keep(known(None, None)));
    }

    #[test]
    fn with_an_interval_it_is_asked_for_when_it_is_due() {
        let at = |due| next(&wanted(Some(MINUTE)), Some(known(due, None)), None, NOW);
        assert_eq!(at(Some(NOW)), Next::AskAgain(known(Some(NOW), None)));
        let soon = NOW + Duration::from_secs(5);
        assert_eq!(at(Some(soon)), Next::Keep(known(Some(soon), None)));
        // The interval was longer.
        assert_eq!(at(Some(NOW + 10 * MINUTE)), Next::Keep(known(Some(NOW + MINUTE), None)));
        let Next::Keep(Known { due: Some(first), .. }) = at(None) else { panic!("a start asks nothing") };
        assert!((NOW..=NOW + MINUTE).contains(&first), "{first:?}");
    }

    #[test]
    fn a_failure_keeps_what_is_in_force() {
        let failure = Failure { reason: "x".into(), message: "y".into() };
        let hour = wanted(Some(60 * MINUTE));
        let passing = known(Some(NOW), None).after(failure.clone(), true, &hour, NOW);
        assert_eq!((passing.due, passing.failure.as_ref()), (Some(NOW + SOON), Some(&failure)));
        let lasting = known(Some(NOW), None).after(failure, false, &hour, NOW);
        assert_eq!((lasting.due, lasting.resolved), (Some(NOW + 60 * MINUTE), known(None, None).resolved));
    }

    #[test]
    fn another_policy_means_another_check() {
        let at = |found, policy| next(&wanted(None), Some(known(None, found)), policy, NOW);
        for (found, policy) in [(None, "a"), (Some("b"), "a")] {
            assert_eq!(at(found, Some(policy)), Next::Verify(known(None, found)));
        }
        assert_eq!(at(Some("a"), Some("a")), Next::Keep(known(None, Some("a"))));
        assert_eq!(at(Some("a"), None), Next::Keep(known(None, None)), "nobody demands it any more");
    }

    #[test]
    fn each_step_has_its_own_entry() {
        let mut second = known(None, None);
        second.resolved.digest = Digest::from_bytes([2; 32]);
        let found = [known(None, None), second.clone()];
        assert_eq!(known_of(1, "r/m:1", &found, None), Some(second));
        assert_eq!(known_of(2, "r/m:1", &found, None), Some(known(None, None)), "a step was added");
        assert_eq!(known_of(0, "r/m:2", &found, None), None);
    }

    #[test]
    fn the_status_remembers_for_the_next_operator() {
        let module = ModuleStatus {
            image: "r/m:1".into(),
            pinned_image: "r/m:1@sha256:0".into(),
            digest: Digest::from_bytes([1; 32]).to_string(),
            short_digest: String::new(),
            verification: Some(VerificationStatus { key: "k".into(), policy: "a".into() }),
        };
        let status = DeploymentResourceStatus { module: Some(module), ..DeploymentResourceStatus::default() };
        assert_eq!(known_of(0, "r/m:1", &[], Some(&status)), Some(known(None, Some("a"))));
    }
}
