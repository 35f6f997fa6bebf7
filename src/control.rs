//! The two topics, once, for node, operator and command line: desired state and observed state.
//!
//! Written against `ports` alone. Nothing here runs by itself: callers own the threads.

pub mod desired;
pub mod keys;
pub mod modules;
pub mod observed;
pub mod read;
pub mod topics;
pub mod writer;
