//! The offset ledger of a lane: how far each partition has been processed, and how far that is committed.
//!
//! It moves only by what was processed, never by what was fetched: a client's own position moves when a
//! record is handed out, and a commit of that loses records.

use std::collections::BTreeMap;
use std::fmt;

use crate::core::names::TopicName;
use crate::core::record::Offset;

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// The partition `partition` of `topic`.
    pub fn new(topic: &TopicName, partition: u32) -> Self {
        Self { topic: topic.clone(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    next: Offset,
    committed: Option<Offset>,
}

/// Next offsets of the partitions that a lane owns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    positions: BTreeMap<TopicPartition, Position>,
}

impl Ledger {
    /// Says that everything before `next` has been processed. Never moves back: use `reset` for that.
    pub fn advance(&mut self, partition: &TopicPartition, next: Offset) {
        match self.positions.get_mut(partition) {
            Some(position) => position.next = position.next.max(next),
            None => {
                self.positions.insert(partition.clone(), Position { next, committed: None });
            }
        }
    }

    /// Whether something was processed that is not committed.
    pub fn is_dirty(&self) -> bool {
        self.positions.values().any(Position::is_dirty)
    }

    /// What an ack-commit has to write: the partitions with progress, and their next offsets.
    pub fn uncommitted(&self) -> impl Iterator<Item = (&TopicPartition, Offset)> {
        let dirty = self.positions.iter().filter(|(_, position)| position.is_dirty());
        dirty.map(|(partition, position)| (partition, position.next))
    }

    /// Says that an ack-commit of all that was uncommitted went through.
    pub fn mark_committed(&mut self) {
        for position in self.positions.values_mut() {
            position.committed = Some(position.next);
        }
    }

    /// The next offset to process, where it is known.
    pub fn next(&self, partition: &TopicPartition) -> Option<Offset> {
        self.positions.get(partition).map(|position| position.next)
    }

    /// The committed offset, where one is known.
    pub fn committed(&self, partition: &TopicPartition) -> Option<Offset> {
        self.positions.get(partition)?.committed
    }

    /// Forgets partitions that were revoked.
    pub fn forget<'a>(&mut self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for partition in partitions {
            self.positions.remove(partition);
        }
    }

    /// Goes back to what is committed: partitions that never committed are forgotten.
    pub fn rewind(&mut self) {
        self.positions.retain(|_, position| match position.committed {
            Some(committed) => {
                position.next = committed;
                true
            }
            None => false,
        });
    }

    /// The partitions in it, with their next offsets.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicPartition, Offset)> {
        self.positions.iter().map(|(partition, position)| (partition, position.next))
    }
}

impl Position {
    fn is_dirty(&self) -> bool {
        self.committed != Some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partition(number: u32) -> TopicPartition {
        TopicPartition::new(&"t".parse().unwrap(), number)
    }

    #[test]
    fn commits_what_moved_and_nothing_else() {
        let mut ledger = Ledger::default();
        assert!(!ledger.is_dirty());
        ledger.advance(&partition(0), 5);
        ledger.advance(&partition(1), 7);
        ledger.mark_committed();
        assert!(!ledger.is_dirty());
        ledger.advance(&partition(1), 9);
        assert_eq!(ledger.uncommitted().collect::<Vec<_>>(), [(&partition(1), 9)]);
        ledger.rewind();
        assert_eq!(ledger.next(&partition(1)), Some(7));
    }

    #[test]
    fn a_rewind_forgets_what_never_committed() {
        let mut ledger = Ledger::default();
        ledger.advance(&partition(0), 5);
        ledger.rewind();
        assert_eq!(ledger.next(&partition(0)), None);
        ledger.advance(&partition(0), 3);
        ledger.forget([&partition(0)]);
        assert!(!ledger.is_dirty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Advance(u32, Offset),
        Commit,
        Rewind,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..3, 0i64..100).prop_map(|(partition, next)| Step::Advance(partition, next)),
            1 => Just(Step::Commit),
            1 => Just(Step::Rewind),
        ]
    }

    proptest! {
        /// Whatever happens, a partition never stands before its committed offset, and a commit cleans.
        #[test]
        fn never_behind_the_commit(steps in proptest::collection::vec(step(), 0..60)) {
            let mut ledger = Ledger::default();
            for step in steps {
                match step {
                    Step::Advance(number, next) => ledger.advance(&partition(number), next),
                    Step::Commit => { ledger.mark_committed(); prop_assert!(!ledger.is_dirty()); }
                    Step::Rewind => { ledger.rewind(); prop_assert!(!ledger.is_dirty()); }
                }
                for number in 0..3 {
                    if let Some(committed) = ledger.committed(&partition(number)) {
                        prop_assert!(ledger.next(&partition(number)).unwrap() >= committed);
                    }
                }
            }
        }
    }
}
