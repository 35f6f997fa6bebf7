//! The ground floor: what records, names, deployments and offsets *are*.
//!
//! Pure: `std`, `serde` and `thiserror`. No async, no clock, no I/O, nothing of ours above it.
//! Everything else in the crate may use this module; it uses nothing of theirs.

pub mod deployment;
pub mod digest;
pub mod disposition;
pub mod ledger;
pub mod machine;
pub mod names;
pub mod partitioner;
pub mod range;
pub mod record;
pub mod retry;
pub mod secret;
pub mod status;
pub mod units;
