//! Metrics and time: what tells people, and the runtime, what is going on.

pub mod clock;
pub mod metrics;
