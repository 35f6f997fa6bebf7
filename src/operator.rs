//! The operator: turns `RuntimePool`, `Coprocessor` and `Pipeline` into pods and control records, and tells the
//! truth about them in their status.
//!
//! Every reconciliation is the same five steps: dereference → validate → build → apply → status. Only the first
//! and the fourth talk to anybody; the others are pure. It never imports `node`: the two meet in the topics of
//! `control`. Called by `cli`, which plugs in the log and the registry.

pub mod apply;
pub mod backoff;
pub mod bridge;
pub mod build;
pub mod conditions;
pub mod crd;
pub mod draft;
pub mod lease;
pub mod lifecycle;
pub mod link;
pub mod metrics;
pub mod observe;
pub mod status;
pub mod validate;
pub mod world;
