//! A lane's session with Kafka: the two halves, and the one way back when they fall out of step.
//!
//! Lives on the lane's thread from birth to death; every blocking call of librdkafka happens in here. Called
//! by the lane alone.

mod doubt;
mod extents;
mod held;
mod intake;
mod messages;
mod offsets;
mod outlet;
mod start;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use self::intake::Intake;
use self::outlet::Outlet;
use self::start::Memory;
use super::auth::Rotation;
use super::config::KafkaConfig;
use super::ends::Ends;
use crate::core::disposition::Disposition;
use crate::core::ledger::{Ledger, TopicPartition};
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset};
use crate::ports::{Emit, Event, Extent, History, LaneSession, LaneSpec, LogError, TopicConfig};

/// How a session commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    ExactlyOnce,
    AtLeastOnce,
}

/// One consumer, one producer.
pub(super) struct Session {
    // The producer goes first: an open transaction must not outlive the membership.
    outlet: Outlet,
    /// `None` after the clients of old certificates were dropped.
    intake: Option<Intake>,
    config: KafkaConfig,
    spec: LaneSpec,
    mode: Mode,
    rotation: Rotation,
    memory: Memory,
    /// When start offsets were committed last, or were tried to be.
    kept: Option<Instant>,
    /// Why only `rewind` is allowed.
    broken: Option<&'static str>,
    /// Knows where partitions end.
    ends: Arc<Ends>,
    /// The clients are to be made anew as soon as the lane has let go.
    stale: bool,
    lost: Vec<TopicPartition>,
}

/// How often start offsets are tried to be committed.
const KEEP_EVERY: Duration = Duration::from_millis(200);

impl Session {
    pub(super) fn open(
        config: &KafkaConfig,
        spec: &LaneSpec,
        mode: Mode,
        outputs: &[(TopicName, Option<TopicConfig>)],
        ends: Arc<Ends>,
    ) -> Result<Self, LogError> {
        let id = (mode == Mode::ExactlyOnce).then(|| spec.transactional_id.clone());
        let rotation = Rotation::new(config);
        // First the producer: it fences the slot's forerunner, whose open transaction would otherwise hold
        // back the committed offsets until it times out.
        let outlet = Outlet::open(config, outputs, id)?;
        Ok(Self {
            outlet,
            intake: Some(Intake::open(config, spec, Arc::clone(&ends))?),
            ends,
            config: config.clone(),
            spec: spec.clone(),
            mode,
            rotation,
            memory: Memory::default(),
            kept: None,
            broken: None,
            stale: false,
            lost: Vec::new(),
        })
    }

    /// Picks up credentials that changed on disk.
    fn look_at_credentials(&mut self) {
        let intake = self.intake.as_ref().map(Intake::client);
        let clients = intake.into_iter().chain(self.outlet.client());
        self.stale |= self.rotation.look_now_and_then(clients);
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        self.intake = None;
        self.rotation = Rotation::new(&self.config);
        self.outlet.renew()?;
        self.intake = Some(Intake::open(&self.config, &self.spec, Arc::clone(&self.ends))?);
        self.stale = false;
        Ok(())
    }

    /// Commits where partitions start that never committed, if possible before a record of them is handed out: whoever
    /// has them next starts there too, and not, say, at a later `Latest`. By the way of every other commit: one that
    /// went a way of its own could come late, after records were committed, and have them done again.
    fn keep_starts(&mut self) -> Result<(), LogError> {
        let Some(intake) = &self.intake else { return Ok(()) };
        // An open transaction takes them along when it is committed.
        let is_free = self.broken.is_none() && !self.outlet.is_open();
        if self.memory.is_settled() || !is_free || self.kept.is_some_and(|at| at.elapsed() < KEEP_EVERY) {
            return Ok(());
        }
        if self.memory.uncommitted(intake.owned()).next().is_none() {
            return Ok(());
        }
        self.kept = Some(Instant::now());
        match self.commit(&Ledger::default()) {
            // For instance a rebalance, which has to be served first. Nothing of the lane is in it.
            Err(error) if error.disposition() == Disposition::Transient => {
                debug!(%error, "the start offsets are not committed yet: tried again");
                self.outlet.abort()?;
                self.broken = None;
                Ok(())
            }
            done => done,
        }
    }

    /// What the ledger has, and the starts of partitions that are not in it, committed.
    fn commit(&mut self, ledger: &Ledger) -> Result<(), LogError> {
        let Some(intake) = &self.intake else {
            return Err(LogError::Unavailable("the lane has no consumer: rewind".to_owned()));
        };
        let mut offsets: BTreeMap<&TopicPartition, Offset> =
            self.memory.uncommitted(intake.owned()).collect();
        offsets.extend(ledger.uncommitted());
        let list = start::list(offsets.iter().map(|(partition, offset)| (*partition, *offset)));
        let partitions: Vec<TopicPartition> = offsets.into_keys().cloned().collect();
        let done = match self.mode {
            Mode::ExactlyOnce => {
                // Fresh for every commit: it carries the generation, by which the broker fences a zombie.
                let group = intake.group_metadata().ok_or_else(|| {
                    LogError::Unavailable("the lane is in no group, or the group has moved on".to_owned())
                })?;
                self.outlet.commit(list, group)
            }
            Mode::AtLeastOnce => self
                .outlet
                .flush()
                .and_then(|()| if list.count() > 0 { intake.commit(&list) } else { Ok(()) }),
        };
        match &done {
            Ok(()) => self.memory.committed(&partitions),
            Err(_) => self.broken = Some("the last commit failed"),
        }
        done
    }

    fn check_usable(&self) -> Result<(), LogError> {
        match self.broken {
            Some(reason) => Err(LogError::Unavailable(format!("{reason}: rewind first"))),
            None => Ok(()),
        }
    }
}

impl LaneSession for Session {
    fn poll(&mut self, batch: &mut Batch, wait: Duration) -> Event {
        self.outlet.serve();
        self.look_at_credentials();
        self.stale |= self.intake.as_ref().is_some_and(Intake::is_confused);
        if self.stale && self.lost.is_empty() {
            self.lost = self.intake.iter().flat_map(Intake::owned).cloned().collect();
            if !self.lost.is_empty() {
                // What another may own by now must not be committed.
                let lost = self.intake.as_ref().is_some_and(Intake::is_confused);
                return Event::Revoking { partitions: self.lost.clone(), lost };
            }
            if let Err(error) = self.reopen() {
                return Event::Failed(error);
            }
        }
        if let Err(error) = self.keep_starts().and_then(|()| self.outlet.begin_if_settled()) {
            return Event::Failed(error);
        }
        match &mut self.intake {
            Some(intake) => intake.poll(batch, wait, &self.spec, &mut self.memory),
            None => Event::Failed(LogError::Unavailable("the lane has no consumer: rewind".to_owned())),
        }
    }

    fn emit(&mut self, output: &Emit<'_>) -> Result<(), LogError> {
        self.check_usable()?;
        self.outlet.emit(output)
    }

    fn ack_commit(&mut self, ledger: &Ledger) -> Result<(), LogError> {
        self.check_usable()?;
        if !self.outlet.is_open() && !ledger.is_dirty() {
            return Ok(());
        }
        self.commit(ledger)
    }

    fn rewind(&mut self) -> Result<(), LogError> {
        if self.intake.is_none() {
            self.reopen()?;
            self.broken = None;
            return Ok(());
        }
        self.broken = Some("a rewind did not go through");
        self.outlet.abort()?;
        if let Some(intake) = &mut self.intake
            && !intake.rewind(&self.spec, &mut self.memory)?
        {
            // Nothing is handed out before the lane has let go of its partitions.
            info!("the consumer cannot be set back: the lane's clients are made anew");
            self.stale = true;
        }
        self.broken = None;
        Ok(())
    }

    fn abandon(&mut self) {
        if self.outlet.is_open() {
            self.outlet.abandon();
            self.broken = Some("what was emitted was dropped");
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        if let Some(intake) = &mut self.intake {
            intake.pause(partitions);
        }
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        if let Some(intake) = &mut self.intake {
            intake.resume(partitions);
        }
    }

    fn release(&mut self) {
        // What is still open belongs to partitions that are not ours any more: it must not be committed with
        // what comes later.
        let was_open = self.outlet.is_open();
        if was_open && let Err(error) = self.outlet.abort() {
            info!(%error, "could not abort what was open when partitions left");
            self.outlet.taint();
            self.broken = Some("an abort did not go through");
        }
        if !std::mem::take(&mut self.lost).is_empty() {
            if let Err(error) = self.reopen() {
                info!(%error, "could not make the clients anew");
                self.broken = Some("the clients could not be made anew");
            }
            return;
        }
        let Some(intake) = &mut self.intake else { return };
        intake.release();
        if was_open && intake.owned().next().is_some() {
            self.broken = Some("records of partitions that stay were dropped with those that left");
        }
    }

    fn recall(&mut self, history: Box<dyn History>) {
        self.memory.recall(history);
    }

    fn settled(&self) -> Vec<TopicPartition> {
        self.memory.settled(self.intake.iter().flat_map(Intake::owned)).cloned().collect()
    }

    fn starts(&mut self) -> Vec<(TopicPartition, Offset)> {
        self.intake.as_ref().map(Intake::starts).unwrap_or_default()
    }

    fn extents(&mut self) -> Vec<(TopicPartition, Extent)> {
        self.intake.as_mut().map(Intake::extents).unwrap_or_default()
    }
}
