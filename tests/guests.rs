//! Guests: real modules built with the published SDK, and hand-written ones for every edge of the contract.

#![cfg(feature = "wasm")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "guests/abi.rs"]
mod abi;
#[path = "guests/admission.rs"]
mod admission;
#[path = "guests/harness.rs"]
mod harness;
#[cfg(feature = "connect")]
#[path = "guests/registry.rs"]
mod registry;
#[path = "guests/sdk.rs"]
mod sdk;
