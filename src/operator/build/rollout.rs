//! Whether the pods of a pool change: only when its own specification does, never because the operator did.

use k8s_openapi::api::apps::v1::StatefulSet;

use super::{SPEC_HASH, VERSION};
use crate::operator::crd::RuntimePoolSpec;
use crate::operator::crd::pool::UpgradePolicy;

/// What happens to the StatefulSet.
#[derive(Debug, Clone, PartialEq)]
pub enum Rollout {
    /// It is applied as built.
    Apply(Box<StatefulSet>),
    /// Its pods stay as they are; only the number of nodes is set.
    KeepPods(Box<StatefulSet>),
}

impl Rollout {
    /// The StatefulSet to apply.
    pub fn stateful_set(&self) -> &StatefulSet {
        match self {
            Self::Apply(set) | Self::KeepPods(set) => set,
        }
    }
}

/// The image of a pool's pods: the one that its specification names; otherwise the one that they have, unless the
/// pool follows the operator; otherwise the operator's own.
pub fn image(spec: &RuntimePoolSpec, existing: Option<&StatefulSet>, default_image: &str) -> String {
    let current = existing.and_then(image_of).filter(|_| spec.upgrade_policy == UpgradePolicy::Manual);
    spec.image.clone().or(current).unwrap_or_else(|| default_image.to_owned())
}

/// The image that the pods of a StatefulSet have.
pub fn image_of(set: &StatefulSet) -> Option<String> {
    set.spec.as_ref()?.template.spec.as_ref()?.containers.first()?.image.clone()
}

/// Decides between the StatefulSet as built and the one that there is.
///
/// The same operator version always applies what it builds, so that changes by hand are undone. Another version keeps
/// the pods, and the note of the version that made them, until the pool's own specification changes.
pub fn decide(built: StatefulSet, existing: Option<&StatefulSet>, policy: UpgradePolicy) -> Rollout {
    let Some(existing) = existing.filter(|existing| keeps_pods(&built, existing, policy)) else {
        return Rollout::Apply(Box::new(built));
    };
    // What was applied before is applied again, with the fields that the API server filled in: server-side apply
    // would remove what is left out.
    let mut kept = built;
    if let Some(version) = annotation(existing, VERSION) {
        kept.metadata.annotations.get_or_insert_default().insert(VERSION.into(), version.to_owned());
    }
    if let (Some(kept), Some(existing)) = (kept.spec.as_mut(), existing.spec.as_ref()) {
        kept.template = existing.template.clone();
        kept.volume_claim_templates.clone_from(&existing.volume_claim_templates);
    }
    Rollout::KeepPods(Box::new(kept))
}

fn annotation<'a>(set: &'a StatefulSet, key: &str) -> Option<&'a str> {
    set.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn keeps_pods(built: &StatefulSet, existing: &StatefulSet, policy: UpgradePolicy) -> bool {
    policy == UpgradePolicy::Manual
        && annotation(existing, SPEC_HASH).is_some()
        && annotation(built, SPEC_HASH) == annotation(existing, SPEC_HASH)
        && annotation(built, VERSION) != annotation(existing, VERSION)
        && image_of(built) == image_of(existing)
}
