//! The Lease against the API server: reads, writes with the version that was read, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use super::{Observed, Record, Step, decide, has_lost};
use crate::ports::Clock;

/// Who stands for election, for what, and how patiently.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the Lease.
    pub name: String,
    /// Name of the candidate: unique among processes.
    pub me: String,
    /// How long others wait without a renewal.
    pub duration: Duration,
    /// How long a leader goes on without a renewal; shorter than `duration`.
    pub deadline: Duration,
    /// Time between attempts.
    pub retry: Duration,
}

impl Settings {
    /// The times that Kubernetes' own components use.
    pub fn new(name: impl Into<String>, me: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            me: me.into(),
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Where a candidate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Somebody else leads, or nobody yet.
    Waiting,
    /// This process leads.
    Leading,
    /// It led, and must not any more.
    Lost,
}

/// A candidate.
pub struct Election {
    api: Api<Lease>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    state: watch::Sender<Leadership>,
}

impl Election {
    /// A candidate, and where its standing is told.
    pub fn new(
        api: Api<Lease>,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> (Self, watch::Receiver<Leadership>) {
        let (state, told) = watch::channel(Leadership::Waiting);
        (Self { api, settings, clock, state }, told)
    }

    /// Stands for election until it has led and lost, or `stop` ends. A leader that is stopped releases the Lease.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut observed: Option<Observed> = None;
        let mut renewed: Option<Duration> = None;
        loop {
            // An attempt that hangs must not outlast the deadline.
            let attempt = tokio::time::timeout(self.settings.deadline / 2, self.attempt(&mut observed));
            let wait = match attempt.await {
                Ok(Ok(Outcome::Holding)) => {
                    renewed = Some(self.clock.monotonic());
                    self.state.send_replace(Leadership::Leading);
                    self.settings.retry
                }
                Ok(Ok(Outcome::Waiting(wait))) => {
                    if renewed.is_some() {
                        tracing::warn!("another operator holds the lease: this one gives up");
                        self.state.send_replace(Leadership::Lost);
                        return;
                    }
                    wait
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease cannot be read or written; trying again");
                    self.settings.retry
                }
                Err(_) => Duration::ZERO,
            };
            if renewed.is_some_and(|at| has_lost(at, self.clock.monotonic(), self.settings.deadline)) {
                tracing::error!("the lease was not renewed in time: giving up");
                self.state.send_replace(Leadership::Lost);
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = &mut stop => break,
            }
        }
        if renewed.is_some()
            && let Some(observed) = observed
        {
            self.release(&observed.record).await;
        }
    }

    async fn attempt(&self, observed: &mut Option<Observed>) -> Result<Outcome, kube::Error> {
        let found = self.api.get_opt(&self.settings.name).await?;
        let record = found.as_ref().map(read);
        *observed = record.map(|record| Observed::update(observed.take(), record, self.clock.monotonic()));
        let now = self.clock.monotonic();
        let params = PostParams::default();
        let written = match decide(&self.settings.me, observed.as_ref(), now, self.settings.retry) {
            Step::Wait(wait) => return Ok(Outcome::Waiting(wait)),
            Step::Create => self.api.create(&params, &self.lease(None, 0)).await,
            Step::Take { transitions } => {
                self.api.replace(&self.settings.name, &params, &self.lease(found.as_ref(), transitions)).await
            }
            Step::Renew => {
                let transitions = observed.as_ref().map_or(0, |observed| observed.record.transitions);
                self.api.replace(&self.settings.name, &params, &self.lease(found.as_ref(), transitions)).await
            }
        };
        match written {
            Ok(lease) => {
                let record = read(&lease);
                *observed = Some(Observed::update(observed.take(), record, self.clock.monotonic()));
                Ok(Outcome::Holding)
            }
            // Somebody was faster; who, the next attempt will see.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(Outcome::Waiting(self.settings.retry / 4))
            }
            Err(error) => Err(error),
        }
    }

    async fn release(&self, record: &Record) {
        let mut lease = self.lease(None, record.transitions);
        lease.metadata.resource_version = Some(record.version.clone());
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        if let Err(error) = self.api.replace(&self.settings.name, &PostParams::default(), &lease).await {
            tracing::warn!(%error, "the lease was not released: the next leader waits until it expires");
        }
    }

    /// The Lease with own name in it; the version of `found` makes the API server check that nobody was faster.
    fn lease(&self, found: Option<&Lease>, transitions: i32) -> Lease {
        let now = Timestamp::from_millisecond(self.clock.wall_ms()).unwrap_or_default();
        let is_own = found.and_then(|found| found.spec.as_ref()?.holder_identity.as_deref())
            == Some(self.settings.me.as_str());
        let acquired = found.and_then(|found| found.spec.as_ref()?.acquire_time.clone()).filter(|_| is_own);
        let metadata = found.map_or_else(
            || ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() },
            |found| found.metadata.clone(),
        );
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.settings.me.clone()),
                lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
                acquire_time: acquired.or(Some(MicroTime(now))),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

enum Outcome {
    Holding,
    Waiting(Duration),
}

fn read(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(seconds.unwrap_or(15)),
        transitions: spec.lease_transitions.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
