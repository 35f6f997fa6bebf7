//! A small loop that stands for the node's lane: copies records, commits now and then, rewinds on failures.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use coproc::core::deployment::{Delivery, StartOffset};
use coproc::core::disposition::Disposition;
use coproc::core::ledger::{Ledger, TopicPartition};
use coproc::core::names::TopicName;
use coproc::core::record::Batch;
use coproc::ports::{Emit, Event, LaneSession, LaneSpec, Log, LogError, Placement};

pub fn spec(group: &str, id: &str, from: &TopicName, to: &TopicName) -> LaneSpec {
    LaneSpec {
        group: group.parse().unwrap(),
        // Lanes of one deployment, as the group takes them, differ in the last two parts.
        transactional_id: format!("{group}.{id}.0"),
        inputs: vec![from.clone()],
        outputs: vec![to.clone()],
        start: StartOffset::Earliest,
        delivery: Delivery::ExactlyOnce,
        max_records: 500,
        max_bytes: 1 << 20,
    }
}

pub struct Lane {
    pub session: Box<dyn LaneSession>,
    pub ledger: Ledger,
    pub assigned: Vec<TopicPartition>,
    pub at_end: BTreeSet<TopicPartition>,
    pub copied: usize,
    pub rewinds: usize,
    pub commit_interval: Duration,
    to: TopicName,
    batch: Batch,
    committed: Instant,
}

impl Lane {
    pub fn open(log: &dyn Log, spec: &LaneSpec) -> Result<Self, LogError> {
        Ok(Self {
            session: log.lane(spec)?,
            ledger: Ledger::default(),
            assigned: Vec::new(),
            at_end: BTreeSet::new(),
            copied: 0,
            rewinds: 0,
            commit_interval: Duration::from_millis(50),
            to: spec.outputs[0].clone(),
            batch: Batch::default(),
            committed: Instant::now(),
        })
    }

    /// One round. Only errors that end a lane come out.
    pub fn step(&mut self) -> Result<(), LogError> {
        let done = match self.session.poll(&mut self.batch, Duration::from_millis(50)) {
            Event::Records => {
                let from = TopicPartition::new(self.batch.topic().unwrap(), self.batch.partition());
                self.at_end.remove(&from);
                self.copy()
            }
            Event::Idle => self.commit(),
            Event::CaughtUp { partition, next_offset } => {
                self.ledger.advance(&partition, next_offset);
                self.at_end.insert(partition);
                self.commit()
            }
            Event::Assigned(partitions) => {
                self.assigned.extend(partitions);
                Ok(())
            }
            Event::Revoking { partitions, lost } => self.revoke(&partitions, lost),
            Event::Stuck { error, .. } | Event::Failed(error) => Err(error),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) if error.disposition() == Disposition::Transient => self.rewind(&error),
            Err(error) => Err(error),
        }
    }

    fn copy(&mut self) -> Result<(), LogError> {
        let from = TopicPartition::new(self.batch.topic().unwrap(), self.batch.partition());
        for record in self.batch.iter() {
            self.session.emit(&Emit {
                topic: &self.to,
                placement: Placement::Exactly(from.partition),
                timestamp: record.timestamp,
                payload: record.payload,
            })?;
            self.ledger.advance(&from, record.offset + 1);
            self.copied += 1;
        }
        if self.committed.elapsed() >= self.commit_interval { self.commit() } else { Ok(()) }
    }

    pub fn commit(&mut self) -> Result<(), LogError> {
        self.session.ack_commit(&self.ledger)?;
        self.ledger.mark_committed();
        self.committed = Instant::now();
        Ok(())
    }

    fn revoke(&mut self, partitions: &[TopicPartition], lost: bool) -> Result<(), LogError> {
        let committed = if lost { self.session.rewind() } else { self.commit() };
        if !lost && committed.is_err() {
            self.session.rewind()?;
        }
        self.session.release();
        self.ledger.forget(partitions);
        self.assigned.retain(|partition| !partitions.contains(partition));
        self.at_end.retain(|partition| !partitions.contains(partition));
        if lost {
            self.ledger.rewind();
        }
        Ok(())
    }

    pub fn rewind(&mut self, error: &LogError) -> Result<(), LogError> {
        eprintln!("rewinding: {error}");
        self.rewinds += 1;
        self.ledger.rewind();
        self.at_end.clear();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.session.rewind() {
                Ok(()) => return Ok(()),
                Err(error) if error.disposition() == Disposition::Transient && Instant::now() < deadline => {
                    eprintln!("rewinding again: {error}");
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes on until `done` says so.
    pub fn run(&mut self, within: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<(), LogError> {
        let deadline = Instant::now() + within;
        while !done(self) {
            assert!(Instant::now() < deadline, "not done within {within:?}: {} copied", self.copied);
            self.step()?;
        }
        Ok(())
    }
}
