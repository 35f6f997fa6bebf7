//! Name resolution that leaves out addresses which registries from outside do not have.
//!
//! The check is made on the addresses that the connection then uses, so a name that resolves to something else
//! the second time gains nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::oci::access::Access;

/// All addresses of the host were left out.
#[derive(Debug, thiserror::Error)]
#[error("{host} is at {address}")]
pub(super) struct AddressRefused {
    pub(super) host: String,
    pub(super) address: String,
}

pub(super) struct GuardedResolver(pub(super) Arc<Access>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let access = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str().trim_end_matches('.').to_ascii_lowercase();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let refused = found.first().map(|first| first.ip().to_string());
            let allowed: Vec<_> =
                found.into_iter().filter(|address| access.may_connect(&host, address.ip())).collect();
            match refused {
                Some(address) if allowed.is_empty() => Err(AddressRefused { host, address }.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}
