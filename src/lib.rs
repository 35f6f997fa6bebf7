//! `coproc` runs WebAssembly functions next to a Kafka-compatible log, each record exactly once.
//!
//! The floors, from the ground up; arrows point down only, and a test checks it (`tests/layering.rs`):
//! `core` ← `ports` ← adapters (`log`, `wasm`, …) and `control`, `node` ← `cli`. See `docs/architecture.md`.

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "connect")]
pub mod connect;
pub mod control;
pub mod core;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "log")]
pub mod log;
pub mod node;
#[cfg(feature = "oci")]
pub mod oci;
#[cfg(feature = "operator")]
pub mod operator;
pub mod ports;
pub mod telemetry;
#[cfg(feature = "wasm")]
pub mod wasm;
