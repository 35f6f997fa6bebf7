//! Who gets which partition. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ledger::TopicPartition;
use crate::core::names::TopicName;

/// A member's number: a later member has a larger one.
pub type MemberId = u64;

/// Gives every partition to one of the members that read its topic, evenly, and moves as few as that allows.
///
/// `before` says who had which; partitions that nobody reads are given to nobody.
pub fn assign(
    members: &BTreeMap<MemberId, BTreeSet<TopicName>>,
    partitions: &BTreeSet<TopicPartition>,
    before: &BTreeMap<TopicPartition, MemberId>,
) -> BTreeMap<TopicPartition, MemberId> {
    let mut load: BTreeMap<MemberId, usize> = members.keys().map(|member| (*member, 0)).collect();
    let mut target = BTreeMap::new();
    let (fair, mut extra) = match members.len() {
        0 => return target,
        count => (partitions.len() / count, partitions.len() % count),
    };
    // Everybody keeps what they had, up to their share; as many as there are left over keep one more.
    for partition in partitions {
        let Some(member) = before.get(partition) else { continue };
        let Some(load) = load.get_mut(member) else { continue };
        if !members[member].contains(&partition.topic) || *load > fair || (*load == fair && extra == 0) {
            continue;
        }
        if *load == fair {
            extra -= 1;
        }
        *load += 1;
        target.insert(partition.clone(), *member);
    }
    for partition in partitions {
        if target.contains_key(partition) {
            continue;
        }
        let readers = load.iter_mut().filter(|(member, _)| members[member].contains(&partition.topic));
        if let Some((member, load)) = readers.min_by_key(|(member, load)| (**load, **member)) {
            *load += 1;
            target.insert(partition.clone(), *member);
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(number: usize) -> TopicName {
        format!("t{number}").parse().unwrap()
    }

    fn partitions(counts: &[u32]) -> BTreeSet<TopicPartition> {
        let all = counts.iter().enumerate();
        all.flat_map(|(t, count)| (0..*count).map(move |p| TopicPartition::new(&topic(t), p))).collect()
    }

    fn loads(target: &BTreeMap<TopicPartition, MemberId>, members: usize) -> (usize, usize) {
        let load = |member| target.values().filter(|owner| **owner == member as MemberId).count();
        let loads: Vec<_> = (0..members).map(load).collect();
        (loads.iter().copied().min().unwrap_or(0), loads.iter().copied().max().unwrap_or(0))
    }

    proptest! {
        #[test]
        fn all_are_given_evenly_and_few_move(
            counts in proptest::collection::vec(0u32..6, 1..5),
            first in 1usize..6,
            second in 1usize..6,
        ) {
            let topics: BTreeSet<_> = (0..counts.len()).map(topic).collect();
            let partitions = partitions(&counts);
            let members = |count: usize| -> BTreeMap<MemberId, _> {
                (0..count as MemberId).map(|member| (member, topics.clone())).collect()
            };
            let one = assign(&members(first), &partitions, &BTreeMap::new());
            prop_assert_eq!(one.len(), partitions.len());
            let (least, most) = loads(&one, first);
            prop_assert!(most - least <= 1);
            prop_assert_eq!(&assign(&members(first), &partitions, &one), &one, "nobody came or went");

            let two = assign(&members(second), &partitions, &one);
            prop_assert_eq!(two.len(), partitions.len());
            let (least, most) = loads(&two, second);
            prop_assert!(most - least <= 1);
            let moved = partitions.iter().filter(|at| one[at] != two[at]).count();
            let unavoidable = if second >= first {
                partitions.len() - partitions.len() * first / second
            } else {
                one.values().filter(|owner| **owner >= second as MemberId).count()
            };
            prop_assert!(moved <= unavoidable + first.max(second), "{moved} moved");
        }

        #[test]
        fn only_readers_of_a_topic_get_its_partitions(
            counts in proptest::collection::vec(0u32..6, 3),
            reads in proptest::collection::vec(proptest::collection::btree_set(0usize..3, 0..3), 0..5),
        ) {
            let partitions = partitions(&counts);
            let members: BTreeMap<MemberId, BTreeSet<_>> = reads
                .iter()
                .enumerate()
                .map(|(member, topics)| (member as MemberId, topics.iter().copied().map(topic).collect()))
                .collect();
            let target = assign(&members, &partitions, &BTreeMap::new());
            for at in &partitions {
                let is_read = members.values().any(|topics| topics.contains(&at.topic));
                prop_assert_eq!(target.contains_key(at), is_read);
                if let Some(owner) = target.get(at) {
                    prop_assert!(members[owner].contains(&at.topic));
                }
            }
        }
    }
}
