//! Consumer groups within the process: who owns which partition, and how it moves.
//!
//! A partition moves in three steps: its owner is told (`Revoking`), its owner releases it, the next one is told
//! (`Assigned`). Between the first two it stays owned, so that what was processed can still be committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, TopicName};
use crate::log::catalog::Topic;
use crate::log::group::assign::{MemberId, assign};
use crate::log::signal::Signal;

pub mod assign;

/// All groups of a store.
#[derive(Debug, Default)]
pub struct Coordinator {
    state: Mutex<State>,
    unreserved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    groups: HashMap<ConsumerGroup, Group>,
    /// Whose offsets are being changed: nobody joins until that is done.
    reserved: HashSet<ConsumerGroup>,
    last_member: MemberId,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<MemberId, Member>,
    partitions: BTreeSet<TopicPartition>,
    target: BTreeMap<TopicPartition, MemberId>,
    owners: BTreeMap<TopicPartition, MemberId>,
}

#[derive(Debug)]
struct Member {
    transactional_id: String,
    topics: BTreeSet<TopicName>,
    bell: Bell,
    revoking: Vec<TopicPartition>,
}

/// Tells a member that there is news, without a lock on its side.
#[derive(Debug, Clone)]
struct Bell {
    news: Arc<AtomicBool>,
    signal: Arc<Signal>,
}

impl Bell {
    fn ring(&self) {
        self.news.store(true, Ordering::Release);
        self.signal.raise();
    }
}

/// What changed for a member.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// It owns these now.
    Assigned(Vec<TopicPartition>),
    /// It is to release these.
    Revoking(Vec<TopicPartition>),
}

/// A group that has no members, and gets none while this lives.
#[derive(Debug)]
pub struct Reserved<'a> {
    coordinator: &'a Coordinator,
    group: ConsumerGroup,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.coordinator.state.lock().reserved.remove(&self.group);
        self.coordinator.unreserved.notify_all();
    }
}

/// A place in a group, given up when dropped.
#[derive(Debug)]
pub struct Membership {
    group: ConsumerGroup,
    id: MemberId,
    news: Arc<AtomicBool>,
}

impl Coordinator {
    /// Keeps everybody out of a group that has no members; with members, how many.
    pub fn reserve(&self, group: &ConsumerGroup) -> Result<Reserved<'_>, usize> {
        let mut state = self.state.lock();
        self.wait_unreserved(&mut state, group);
        match state.groups.get(group).map_or(0, |group| group.members.len()) {
            0 => {
                state.reserved.insert(group.clone());
                Ok(Reserved { coordinator: self, group: group.clone() })
            }
            members => Err(members),
        }
    }

    fn wait_unreserved(&self, state: &mut MutexGuard<'_, State>, group: &ConsumerGroup) {
        while state.reserved.contains(group) {
            self.unreserved.wait(state);
        }
    }

    /// Joins a group. Who was in it under the same transactional id is out at once. Waits while it is reserved, which
    /// takes as long as a commit.
    pub fn join(
        &self,
        group: &ConsumerGroup,
        transactional_id: &str,
        inputs: &[Arc<Topic>],
        signal: &Arc<Signal>,
    ) -> Membership {
        let mut state = self.state.lock();
        self.wait_unreserved(&mut state, group);
        state.last_member += 1;
        let id = state.last_member;
        let entry = state.groups.entry(group.clone()).or_default();
        let before = entry.members.iter().find(|(_, member)| member.transactional_id == transactional_id);
        if let Some(before) = before.map(|(id, _)| *id) {
            entry.remove(before);
        }
        for topic in inputs {
            let numbers = 0..topic.partitions.len() as u32;
            entry.partitions.extend(numbers.map(|number| TopicPartition::new(&topic.name, number)));
        }
        let bell = Bell { news: Arc::default(), signal: signal.clone() };
        let member = Member {
            transactional_id: transactional_id.to_owned(),
            topics: inputs.iter().map(|topic| topic.name.clone()).collect(),
            bell: bell.clone(),
            revoking: Vec::new(),
        };
        entry.members.insert(id, member);
        entry.balance();
        Membership { group: group.clone(), id, news: bell.news }
    }

    /// Leaves a group: what was owned is free at once.
    pub fn leave(&self, membership: &Membership) {
        let mut state = self.state.lock();
        if let Some(group) = state.groups.get_mut(&membership.group) {
            group.remove(membership.id);
            group.balance();
            if group.members.is_empty() {
                state.groups.remove(&membership.group);
            }
        }
    }

    /// What changed for a member since it last asked.
    pub fn news(&self, membership: &Membership) -> News {
        if !membership.news.swap(false, Ordering::AcqRel) {
            return News::None;
        }
        let mut state = self.state.lock();
        match state.groups.get_mut(&membership.group) {
            Some(group) => group.news(membership.id),
            None => News::None,
        }
    }

    /// Gives up what the last `Revoking` named.
    pub fn release(&self, membership: &Membership) {
        let mut state = self.state.lock();
        let Some(group) = state.groups.get_mut(&membership.group) else { return };
        let Some(member) = group.members.get_mut(&membership.id) else { return };
        for partition in std::mem::take(&mut member.revoking) {
            group.owners.remove(&partition);
        }
        group.ring();
    }

    /// How many members a group has.
    pub fn members(&self, group: &ConsumerGroup) -> usize {
        self.state.lock().groups.get(group).map_or(0, |group| group.members.len())
    }

    /// The groups that have members.
    pub fn names(&self) -> Vec<ConsumerGroup> {
        self.state.lock().groups.keys().cloned().collect()
    }
}

impl Group {
    fn remove(&mut self, id: MemberId) {
        if let Some(member) = self.members.remove(&id) {
            self.owners.retain(|_, owner| *owner != id);
            member.bell.ring();
        }
    }

    fn balance(&mut self) {
        let members = self.members.iter().map(|(id, member)| (*id, member.topics.clone())).collect();
        self.target = assign(&members, &self.partitions, &self.target);
        self.ring();
    }

    fn ring(&self) {
        for member in self.members.values() {
            member.bell.ring();
        }
    }

    fn news(&mut self, id: MemberId) -> News {
        let Some(member) = self.members.get_mut(&id) else { return News::None };
        let is_to_go = |at: &TopicPartition| self.target.get(at) != Some(&id);
        let mine = self.owners.iter().filter(|(_, owner)| **owner == id).map(|(at, _)| at);
        let revoking: Vec<_> =
            mine.filter(|at| is_to_go(at) && !member.revoking.contains(at)).cloned().collect();
        let assigned: Vec<_> = self
            .target
            .iter()
            .filter(|(at, owner)| **owner == id && !self.owners.contains_key(at))
            .map(|(at, _)| at.clone())
            .collect();
        if !revoking.is_empty() {
            member.revoking.extend(revoking.iter().cloned());
            // There may be something to take over as well: asked for next time.
            member.bell.news.store(true, Ordering::Release);
            return News::Revoking(revoking);
        }
        if assigned.is_empty() {
            return News::None;
        }
        for at in &assigned {
            self.owners.insert(at.clone(), id);
        }
        News::Assigned(assigned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::catalog::{Partition, Span};
    use crate::ports::TopicConfig;

    fn topic(partitions: u64) -> Arc<Topic> {
        let partitions = (0..partitions).map(|id| Partition::new(id, Span::NEW)).collect();
        Arc::new(Topic::new("t".parse().unwrap(), 1, TopicConfig::default(), partitions))
    }

    fn numbers(news: News) -> (char, Vec<u32>) {
        let of = |partitions: Vec<TopicPartition>| partitions.iter().map(|at| at.partition).collect();
        match news {
            News::None => ('-', vec![]),
            News::Assigned(partitions) => ('a', of(partitions)),
            News::Revoking(partitions) => ('r', of(partitions)),
        }
    }

    #[test]
    fn a_partition_moves_only_after_its_release() {
        let coordinator = Coordinator::default();
        let (group, topics) = ("g".parse().unwrap(), [topic(3)]);
        let signal = Arc::<Signal>::default();
        let one = coordinator.join(&group, "one", &topics, &signal);
        assert_eq!(numbers(coordinator.news(&one)), ('a', vec![0, 1, 2]));
        let two = coordinator.join(&group, "two", &topics, &signal);
        assert_eq!(numbers(coordinator.news(&two)), ('-', vec![]));
        assert_eq!(numbers(coordinator.news(&one)), ('r', vec![2]));
        assert_eq!(numbers(coordinator.news(&one)), ('-', vec![]));
        coordinator.release(&one);
        assert_eq!(numbers(coordinator.news(&two)), ('a', vec![2]));
        coordinator.leave(&one);
        assert_eq!(numbers(coordinator.news(&two)), ('a', vec![0, 1]));
        coordinator.leave(&two);
        assert_eq!(coordinator.members(&group), 0);
    }

    #[test]
    fn the_same_slot_again_takes_the_place_at_once() {
        let coordinator = Coordinator::default();
        let (group, topics) = ("g".parse().unwrap(), [topic(2)]);
        let signal = Arc::<Signal>::default();
        let one = coordinator.join(&group, "slot", &topics, &signal);
        coordinator.news(&one);
        let again = coordinator.join(&group, "slot", &topics, &signal);
        assert_eq!(numbers(coordinator.news(&again)), ('a', vec![0, 1]));
        assert_eq!(numbers(coordinator.news(&one)), ('-', vec![]));
        coordinator.leave(&one);
        assert_eq!(coordinator.members(&group), 1, "who is out cannot take the other along");
    }

    #[test]
    fn nobody_joins_while_the_group_is_reserved() {
        let coordinator = Coordinator::default();
        let (group, topics) = ("g".parse().unwrap(), [topic(1)]);
        let signal = Arc::<Signal>::default();
        let reserved = coordinator.reserve(&group).unwrap();
        let (joined, has_joined) = crossbeam_channel::bounded(1);
        std::thread::scope(|scope| {
            scope.spawn(|| joined.send(coordinator.join(&group, "one", &topics, &signal)).unwrap());
            let other = "other".parse().unwrap();
            coordinator.leave(&coordinator.join(&other, "one", &topics, &signal));
            assert!(has_joined.recv_timeout(std::time::Duration::from_millis(50)).is_err());
            assert_eq!(coordinator.members(&group), 0);
            drop(reserved);
            let member = has_joined.recv().unwrap();
            assert_eq!(coordinator.reserve(&group).err(), Some(1));
            coordinator.leave(&member);
            coordinator.reserve(&group).unwrap();
        });
    }
}
