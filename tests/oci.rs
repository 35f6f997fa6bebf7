//! Modules from OCI registries: against a real registry, against another tool, against a malicious registry, and
//! with many threads and processes on one cache.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test says what is wrong by failing, and makes the threads, time and environment it needs"
)]

#[path = "oci/authorities.rs"]
mod authorities;
#[path = "oci/cosign.rs"]
mod cosign;
#[path = "oci/malicious.rs"]
mod malicious;
#[path = "oci/real.rs"]
mod real;
#[path = "oci/scripted.rs"]
mod scripted;
#[path = "oci/shared_cache.rs"]
mod shared_cache;
#[path = "oci/signed.rs"]
mod signed;
#[path = "oci/world.rs"]
mod world;
