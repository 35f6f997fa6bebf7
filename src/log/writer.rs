//! The one thread that writes: takes what waits, commits it as one group, then answers everybody.
//!
//! A group is one batch of the engine and one sync. A request is staged whole or answered with an error; nothing is
//! visible before the group is as durable as the options say.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::record::{Offset, TimestampMs};
use crate::log::answer::Answer;
use crate::log::catalog::{CLOCK_KEY, COMMIT_KEY, Span, Topic, span_key};
use crate::log::engine::{Space, Write, chunk_key};
use crate::log::frame::{Body, HEADER_BYTES, PartitionId, Place};
use crate::log::queue::Taken;
use crate::log::request::{Appended, Commit, Edit, Request};
use crate::log::store::Store;
use crate::ports::LogError;

/// Chunks are closed when they are this long.
const CHUNK_BYTES: usize = 256 << 10;
/// Longest time that the writer waits for the callers of the last group to come back.
const MAX_LINGER: Duration = Duration::from_millis(2);
/// The wait is halved at most so often.
const MAX_DOUBT: u32 = 6;
/// After so many groups the wait is tried in full.
const TRY_AGAIN: u32 = 128;

/// Runs until the queue is closed and empty.
pub fn run(store: &Store) {
    let _ended = Ended(store);
    let mut pace = Pace { callers: 1, took: Duration::ZERO, doubt: 0, groups: 0 };
    while let Some(taken) = store.queue.take(pace.callers, pace.linger()) {
        let (callers, came_back) = (taken.items.len(), taken.came_back);
        let start = Instant::now();
        work_off(store, taken);
        pace.learn(callers, came_back, start.elapsed());
    }
}

/// How long to wait for callers. Who was answered together comes back together, in a moment: waiting for them makes one
/// full group of two half ones. Where they do not come back the wait gets shorter, and now and then it is tried again.
struct Pace {
    callers: usize,
    took: Duration,
    /// How often the wait is halved.
    doubt: u32,
    groups: u32,
}

impl Pace {
    fn linger(&self) -> Duration {
        (self.took / 4).min(MAX_LINGER) / (1 << self.doubt)
    }

    fn learn(&mut self, callers: usize, came_back: bool, took: Duration) {
        self.groups = self.groups.wrapping_add(1);
        self.doubt = match came_back {
            _ if self.groups.is_multiple_of(TRY_AGAIN) => 0,
            true => self.doubt.saturating_sub(1),
            false => (self.doubt + 1).min(MAX_DOUBT),
        };
        (self.callers, self.took) = (callers, took);
    }
}

/// Whatever ends the writer: who waits for it is told, and nobody waits any more.
struct Ended<'a>(&'a Store);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.queue.close();
        while let Some(taken) = self.0.queue.take(1, Duration::ZERO) {
            for request in taken.items {
                request.refuse(LogError::Unavailable("its writer ended".into()));
            }
        }
        // Also those whose answers were dropped with what it was at.
        wake(self.0, [true; 2]);
    }
}

fn wake(store: &Store, doors: [bool; 2]) {
    for (door, _) in doors.iter().enumerate().filter(|(_, is_used)| **is_used) {
        store.doors.open(door);
    }
}

fn work_off(store: &Store, taken: Taken<Request>) {
    let mut group = Group::new(store);
    for request in taken.items {
        match request {
            Request::Commit(commit) => group.stage_commit(commit),
            Request::Edit(edit) => {
                // An edit of the catalog sees what was before it and is seen by what comes after: it goes alone.
                group.finish(taken.doors);
                group = Group::new(store);
                group.stage_edit(edit);
                group.finish(taken.doors);
                group = Group::new(store);
            }
        }
    }
    group.finish(taken.doors);
}

/// A chunk that grows while the group is staged.
struct Open {
    topic: Arc<Topic>,
    partition: u32,
    base: Offset,
    next: Offset,
    max_timestamp: TimestampMs,
    bytes: Vec<u8>,
}

/// What happens once the group is durable.
type Effect<'a> = Box<dyn FnOnce(&Store) + 'a>;

struct Group<'a> {
    store: &'a Store,
    append_ms: TimestampMs,
    writes: Vec<Write>,
    chunks: BTreeMap<PartitionId, Open>,
    offsets: HashMap<Vec<u8>, Offset>,
    effects: Vec<Effect<'a>>,
    answers: Vec<Owed>,
}

/// An answer, and what it says when all goes well.
enum Owed {
    Commit(Answer<Vec<Appended>>, Vec<Appended>),
    Edit(Answer<()>),
}

impl Owed {
    fn give(self, result: Result<(), LogError>) {
        match self {
            Self::Commit(answer, appended) => answer.give(result.map(|()| appended)),
            Self::Edit(answer) => answer.give(result),
        }
    }
}

impl<'a> Group<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            append_ms: store.next_append_ms(),
            writes: Vec::new(),
            chunks: BTreeMap::new(),
            offsets: HashMap::new(),
            effects: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn stage_commit(&mut self, commit: Commit) {
        if let Err(error) = commit.check() {
            return commit.answer.give(Err(error));
        }
        let append_ms = self.append_ms;
        let mut appended = Vec::with_capacity(commit.appends.len());
        for append in commit.appends {
            let base = self.append(&append.topic, append.partition, &append.body, append.hash);
            appended.push(Appended { base, append_ms });
        }
        for change in commit.offsets {
            self.offsets.insert(change.key(), change.to);
            self.effects.push(Box::new(move |store| store.set_committed(change)));
        }
        self.answers.push(Owed::Commit(commit.answer, appended));
    }

    fn append(&mut self, topic: &Arc<Topic>, number: u32, body: &Body, hash: u64) -> Offset {
        // `Commit::check` has seen that the partition is there.
        let Ok(partition) = topic.partition(number) else { return 0 };
        let open = self.chunks.entry(partition.id).or_insert_with(|| {
            let end = partition.extent().end;
            Open {
                topic: topic.clone(),
                partition: number,
                base: end,
                next: end,
                max_timestamp: partition.max_timestamp(),
                bytes: Vec::new(),
            }
        });
        if !open.bytes.is_empty() && open.bytes.len() + body.len() + HEADER_BYTES > CHUNK_BYTES {
            let key = chunk_key(partition.id, open.base).to_vec();
            self.writes.push(Write::Put(Space::Records, key, std::mem::take(&mut open.bytes)));
            open.base = open.next;
        }
        let base = open.next;
        open.next += body.span();
        open.max_timestamp = open.max_timestamp.max(body.max_timestamp());
        let place = Place {
            partition: partition.id,
            base,
            next: open.next,
            append_ms: self.append_ms,
            max_timestamp: open.max_timestamp,
        };
        open.bytes.reserve(HEADER_BYTES + body.len());
        body.put_frame(&place, hash, &mut open.bytes);
        base
    }

    fn stage_edit(&mut self, edit: Edit) {
        match (edit.plan)(self.store) {
            Ok((writes, effect)) => {
                self.writes.extend(writes);
                self.effects.push(effect);
                self.answers.push(Owed::Edit(edit.answer));
            }
            Err(error) => edit.answer.give(Err(error)),
        }
    }

    /// Commits, answers, and wakes who sleeps at these doors.
    fn finish(mut self, doors: [bool; 2]) {
        if self.answers.is_empty() {
            return wake(self.store, doors);
        }
        // Whoever asked for nothing waited only for what was before.
        let is_empty = self.writes.is_empty() && self.chunks.is_empty() && self.offsets.is_empty();
        let result = if is_empty { Ok(()) } else { self.commit() };
        fail::fail_point!("log::commit::after_sync_before_publish");
        if result.is_ok() {
            self.publish();
        }
        fail::fail_point!("log::commit::after_sync_before_reply");
        for answer in self.answers {
            answer.give(result.clone());
        }
        wake(self.store, doors);
    }

    fn commit(&mut self) -> Result<(), LogError> {
        let mut writes = std::mem::take(&mut self.writes);
        for (id, open) in &mut self.chunks {
            let bytes = std::mem::take(&mut open.bytes);
            writes.push(Write::Put(Space::Records, chunk_key(*id, open.base).to_vec(), bytes));
            let first = open.topic.partition(open.partition)?.extent().first;
            let span = Span { first, end: open.next, max_timestamp: open.max_timestamp };
            // In the other half of the engine, so that a lost half is noticed.
            writes.push(span_write(*id, span));
        }
        for (key, offset) in self.offsets.drain() {
            writes.push(Write::Put(Space::Meta, key, offset.to_be_bytes().to_vec()));
        }
        let number = self.store.last_commit() + 1;
        writes.push(Write::Put(Space::Meta, COMMIT_KEY.to_vec(), number.to_be_bytes().to_vec()));
        writes.push(Write::Put(Space::Meta, CLOCK_KEY.to_vec(), self.append_ms.to_be_bytes().to_vec()));
        self.store.commit(number, self.append_ms, &writes)
    }

    fn publish(&mut self) {
        let chunks = std::mem::take(&mut self.chunks);
        for open in chunks.values() {
            if let Ok(partition) = open.topic.partition(open.partition) {
                partition.publish(open.next, open.max_timestamp);
            }
        }
        for effect in self.effects.drain(..) {
            effect(self.store);
        }
        let mut woken: Option<&Arc<Topic>> = None;
        for open in chunks.values() {
            // Partitions of one topic lie side by side: their ids do.
            if woken.is_none_or(|topic| !Arc::ptr_eq(topic, &open.topic)) {
                open.topic.watchers.raise();
                woken = Some(&open.topic);
            }
        }
    }
}

/// The writes that move the start of a partition, for housekeeping.
pub fn span_write(id: PartitionId, start: Span) -> Write {
    Write::Put(Space::Meta, span_key(id), start.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_that_do_not_come_back_are_waited_for_less() {
        let took = Duration::from_millis(4);
        let mut pace = Pace { callers: 1, took, doubt: 0, groups: 0 };
        let full = pace.linger();
        assert_eq!(full, took / 4);
        for _ in 0..20 {
            pace.learn(2, false, took);
        }
        assert_eq!(pace.linger(), full / 64);
        pace.learn(2, true, took);
        assert_eq!(pace.linger(), full / 32, "they do: with growing confidence");
        for _ in 21..TRY_AGAIN {
            pace.learn(2, false, took);
        }
        assert_eq!(pace.linger(), full, "tried again");
        pace.learn(2, true, Duration::from_mins(1));
        assert_eq!(pace.linger(), MAX_LINGER);
    }
}
