//! The embedded log, on real files.
#![cfg(feature = "log")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "tests, and what they share"
)]

#[path = "log/support.rs"]
mod support;

#[path = "log/compaction.rs"]
mod compaction;
#[path = "log/crash.rs"]
mod crash;
#[path = "log/damage.rs"]
mod damage;
#[path = "log/full_disk.rs"]
mod full_disk;
#[path = "log/giving_back.rs"]
mod giving_back;
#[path = "log/lanes.rs"]
mod lanes;
#[path = "log/power.rs"]
mod power;
#[path = "log/ranges.rs"]
mod ranges;
#[path = "log/socket.rs"]
mod socket;
#[path = "log/topics.rs"]
mod topics;
#[path = "log/uncertain.rs"]
mod uncertain;
