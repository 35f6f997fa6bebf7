//! When a status is worth a write. Lag moves all the time; etcd is not for that.

use std::time::Duration;

use crate::operator::crd::DeploymentResourceStatus;
use crate::operator::observe::lag_matters;

/// Lag alone is written at most this often.
const LAG_EVERY: Duration = Duration::from_secs(30);

/// What to do about a status.
#[derive(Debug, Clone, PartialEq)]
pub enum Writing {
    /// Nothing: it says already what is true.
    Nothing,
    /// Write this.
    Now(Box<DeploymentResourceStatus>),
    /// Look again after this time.
    Later(Duration),
}

/// Compares the status that is there with the one that is true. `since_write` is the time since this process wrote
/// it last, where it did.
pub fn coalesce(
    before: &DeploymentResourceStatus,
    computed: DeploymentResourceStatus,
    since_write: Option<Duration>,
) -> Writing {
    if without_lag(before) != without_lag(&computed) {
        return Writing::Now(Box::new(computed));
    }
    let lag = |status: &DeploymentResourceStatus| status.lag.unwrap_or_default().unsigned_abs();
    let is_known = before.lag.is_some() == computed.lag.is_some();
    if is_known && !lag_matters(lag(before), lag(&computed)) {
        return Writing::Nothing;
    }
    match since_write {
        Some(since) if since < LAG_EVERY => Writing::Later(LAG_EVERY.saturating_sub(since)),
        _ => Writing::Now(Box::new(computed)),
    }
}

fn without_lag(status: &DeploymentResourceStatus) -> DeploymentResourceStatus {
    let mut status = status.clone();
    status.lag = None;
    for node in &mut status.nodes {
        node.lag = 0;
    }
    status
}
