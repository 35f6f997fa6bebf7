//! Modules in OCI registries: push, resolve, fetch, verify, inspect.
//!
//! An adapter: it knows `core` and `ports`, and nobody below `cli` knows it. The API is synchronous, like every
//! port; callers bring the threads, the HTTP client keeps a small runtime of its own. Registries, and whoever
//! answers in their name, are not trusted: see `docs/adr/0006-registry-client.md` for what is refused and why.

mod access;
mod addresses;
pub mod binary;
mod body;
mod cache;
pub mod config;
mod credentials;
pub mod error;
mod flight;
pub mod inspect;
mod manifest;
mod push;
pub mod reference;
mod registry;
pub mod signature;
mod store;
mod token;
mod transport;

pub use config::{OciConfig, RawOciConfig};
pub use error::OciError;
pub use inspect::{Inspection, Subject};
pub use push::{PushOptions, Pushed};
pub use reference::Reference;
pub use store::OciStore;

use sha2::{Digest as _, Sha256};

use crate::core::digest::Digest;

/// The digest of these bytes.
fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}
