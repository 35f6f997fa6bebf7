//! Ranges of records by id, after `PipeProc`: `:5`, `1518951480106-5`, `1518951480106`, `15189`.
//!
//! An id is `{append time in ms}-{offset}`. Within a partition append times never go back, so ids are ordered as
//! offsets are. A bound is one of
//!
//! - `:n`: the record at offset n, which has to exist;
//! - `ms-n`: that id, which need not exist;
//! - `ms` or its first digits: every record of that time; `exclusive` does not change it.

use std::fmt;
use std::str::FromStr;

use crate::core::record::{Offset, TimestampMs};

/// Digits of a time in milliseconds: 13 from 2001 to 2286. A time with fewer is taken for its first digits.
const TIME_DIGITS: u32 = 13;

/// Why a text is no bound or id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no place in a topic: write :OFFSET, TIME-OFFSET or TIME, like :5, 1518951480106-5 or 1518951480106"
)]
pub struct BadBound(pub String);

/// Names a record of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// When the log took it, in milliseconds since the epoch.
    pub append_ms: TimestampMs,
    /// Its offset.
    pub offset: Offset,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.append_ms, self.offset)
    }
}

impl FromStr for Id {
    type Err = BadBound;

    fn from_str(text: &str) -> Result<Self, BadBound> {
        let parse = || {
            let (append_ms, offset) = text.split_once('-')?;
            Some(Self { append_ms: digits(append_ms)?, offset: digits(offset)? })
        };
        parse().ok_or_else(|| BadBound(text.to_owned()))
    }
}

/// One end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The record at this offset, which has to exist.
    Offset(Offset),
    /// This id, which need not exist.
    Id(Id),
    /// Every record of these milliseconds, both included.
    Time {
        /// The first.
        from: TimestampMs,
        /// The last.
        to: TimestampMs,
    },
}

impl FromStr for Bound {
    type Err = BadBound;

    fn from_str(text: &str) -> Result<Self, BadBound> {
        let parse = || {
            if let Some(offset) = text.strip_prefix(':') {
                return Some(Self::Offset(digits(offset)?));
            }
            if text.contains('-') {
                return Some(Self::Id(text.parse().ok()?));
            }
            let time: TimestampMs = digits(text)?;
            let missing = TIME_DIGITS.saturating_sub(text.len() as u32);
            let factor = 10i64.pow(missing);
            Some(Self::Time { from: time.checked_mul(factor)?, to: time.checked_mul(factor)? + (factor - 1) })
        };
        parse().ok_or_else(|| BadBound(text.to_owned()))
    }
}

fn digits(text: &str) -> Option<i64> {
    // `parse` alone would take a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Bound {
    /// Whether `id` is at or after this bound; after it, where it is exclusive.
    pub fn admits_from(&self, id: Id, exclusive: bool) -> bool {
        match *self {
            Self::Offset(offset) => id.offset >= offset + i64::from(exclusive),
            Self::Id(bound) => id > bound || (id == bound && !exclusive),
            Self::Time { from, .. } => id.append_ms >= from,
        }
    }

    /// Whether `id` is at or before this bound; before it, where it is exclusive.
    pub fn admits_to(&self, id: Id, exclusive: bool) -> bool {
        match *self {
            Self::Offset(offset) => id.offset <= offset - i64::from(exclusive),
            Self::Id(bound) => id < bound || (id == bound && !exclusive),
            Self::Time { to, .. } => id.append_ms <= to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_pipeproc_reads() {
        let id = |append_ms, offset| Bound::Id(Id { append_ms, offset });
        let cases = [
            (":0", Bound::Offset(0)),
            (":15", Bound::Offset(15)),
            ("1518951480106-5", id(1_518_951_480_106, 5)),
            ("1518951480106", Bound::Time { from: 1_518_951_480_106, to: 1_518_951_480_106 }),
            ("15189514", Bound::Time { from: 1_518_951_400_000, to: 1_518_951_499_999 }),
        ];
        for (text, bound) in cases {
            assert_eq!(text.parse(), Ok(bound), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for bad in ["", "abc", ":", "5-", "-5", ":-5", "+5", "5-6-7", "::5", "1 2", "99999999999999999999"] {
            assert!(bad.parse::<Bound>().is_err(), "{bad:?}");
        }
    }

    fn arbitrary_bound() -> impl Strategy<Value = Bound> {
        prop_oneof![
            (0i64..50).prop_map(Bound::Offset),
            (0i64..20, 0i64..50).prop_map(|(append_ms, offset)| Bound::Id(Id { append_ms, offset })),
            (0i64..20, 0i64..5).prop_map(|(from, span)| Bound::Time { from, to: from + span }),
        ]
    }

    /// Ids as a partition has them: offsets rise by one, times do not fall.
    fn arbitrary_ids() -> impl Strategy<Value = Vec<Id>> {
        proptest::collection::vec(0i64..3, 0..50).prop_map(|steps| {
            let mut append_ms = 0;
            let ids = steps.into_iter().enumerate().map(|(offset, step)| {
                append_ms += step;
                Id { append_ms, offset: offset as Offset }
            });
            ids.collect()
        })
    }

    proptest! {
        #[test]
        fn ids_go_both_ways(append_ms in 0i64..i64::MAX, offset in 0i64..i64::MAX) {
            let id = Id { append_ms, offset };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().parse(), Ok(Bound::Id(id)));
        }

        /// So that a range can be found by bisection.
        #[test]
        fn what_a_bound_admits_lies_together(bound in arbitrary_bound(), ids in arbitrary_ids(), exclusive: bool) {
            let from: Vec<_> = ids.iter().map(|id| bound.admits_from(*id, exclusive)).collect();
            let to: Vec<_> = ids.iter().map(|id| bound.admits_to(*id, exclusive)).collect();
            prop_assert!(from.is_sorted());
            prop_assert!(to.iter().rev().is_sorted());
            if exclusive && !matches!(bound, Bound::Time { .. }) {
                prop_assert!(from.iter().zip(&to).all(|(from, to)| !(*from && *to)));
            }
        }
    }
}
