//! What can go wrong with a registry, its answers, and the cache, and whose fault it is.

use std::path::PathBuf;
use std::time::Duration;

use crate::core::digest::Digest;
use crate::core::disposition::Disposition;
use crate::oci::reference::BadReference;
use crate::ports::ModuleError;

/// Why a module could not be pushed, resolved, fetched or verified.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OciError {
    /// The image's name is none.
    #[error(transparent)]
    ParseReference(#[from] BadReference),
    /// The configuration, or a file that it names, is not usable.
    #[error("registry configuration: {what}: {reason}")]
    ReadConfig {
        /// Which part.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A registry pointed at a host that nobody allowed. Nothing was sent there.
    #[error("{from} points to {target:?} for {purpose}, which is not allowed: if that is meant, {remedy}")]
    RefuseHost {
        /// Who pointed there.
        from: String,
        /// Where to.
        target: String,
        /// What it would have been asked for.
        purpose: &'static str,
        /// What to configure.
        remedy: &'static str,
    },
    /// There is nothing that a certificate could be checked with.
    #[error(
        "{host} is spoken to with TLS, and this system has no certificates of authorities: name the registry's in \
         `caFiles`, or install the system's (package ca-certificates)"
    )]
    NoAuthorities {
        /// The host.
        host: String,
    },
    /// A host's address is one that registries from outside do not have.
    #[error(
        "{host} is at {address}, an address of this machine or network: list it in `privateHosts` if meant"
    )]
    RefuseAddress {
        /// The host.
        host: String,
        /// Its address.
        address: String,
    },
    /// No connection, or it broke.
    #[error("{host} cannot be reached: {reason}")]
    Connect {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// No answer, or none to its end, in the time allowed.
    #[error("{host} did not deliver {what} within {after:?}")]
    TimeOut {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The time allowed.
        after: Duration,
    },
    /// It delivers, but more slowly than is allowed.
    #[error("{host} delivers {what} at less than {least} bytes per second")]
    TooSlow {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The least speed.
        least: u64,
    },
    /// More bytes than allowed.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What is.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// An answer that means failure.
    #[error("{host} answered {status} for {what}{detail}")]
    Status {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, quoted, or nothing.
        detail: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// Credentials are missing, or not good enough.
    #[error("{host} denies access to {what}: {credentials}")]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Which credentials were used.
        credentials: &'static str,
    },
    /// There is no such thing.
    #[error("{host} has no {what}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The bytes are not the ones that the digest names.
    #[error("{what} has other bytes than its digest {wanted} says: they are {found}")]
    WrongDigest {
        /// What was fetched.
        what: String,
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The registry's answer breaks the specification.
    #[error("{host} answered {what} in a way that makes no sense: {reason}")]
    BadAnswer {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The artefact is not one module in a layout that is understood.
    #[error("{image} is no WebAssembly artefact: {reason}")]
    NotAModule {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// The bytes are not WebAssembly.
    #[error("{what} is not WebAssembly: {reason}")]
    NotWasm {
        /// What is.
        what: String,
        /// What it is instead.
        reason: String,
    },
    /// The signature policy does not let it through.
    #[error("{image} is not accepted by the signature policy: {reason}")]
    Unverified {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// A module without an image, or with one that does not say enough.
    #[error("module {digest} cannot be fetched: {reason}")]
    NoSource {
        /// The module.
        digest: Digest,
        /// What is missing.
        reason: String,
    },
    /// The thread that fetched it for others ended in the middle.
    #[error("the fetch was abandoned: this is a bug, please report it")]
    AbandonedFetch,
    /// The cache cannot be used.
    #[error("module cache at {path:?}: {reason}")]
    UseCache {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path:?}: {reason}")]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl OciError {
    /// Whose fault it is.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Connect { .. } | Self::TimeOut { .. } | Self::TooSlow { .. } | Self::UseCache { .. } => {
                Disposition::Transient
            }
            Self::AbandonedFetch => Disposition::Bug,
            Self::Status { status, .. } if is_passing(*status) => Disposition::Transient,
            _ => Disposition::User,
        }
    }

    /// Whether asking again at once, or after the wait that the registry names, may help.
    pub(super) fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Status { status, .. } => is_passing(*status),
            _ => false,
        }
    }

    /// The wait that the registry asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

impl From<OciError> for ModuleError {
    fn from(error: OciError) -> Self {
        let text = error.to_string();
        match error {
            OciError::TooLarge { .. } => Self::TooLarge(text),
            OciError::NotAModule { .. }
            | OciError::NotWasm { .. }
            | OciError::BadAnswer { .. }
            | OciError::ParseReference(_) => Self::Invalid(text),
            OciError::WrongDigest { wanted, found, .. } => Self::WrongDigest { wanted, found },
            OciError::NoSource { digest, reason } => Self::NotFound { digest, reason },
            OciError::Unverified { .. } => Self::Unverified(text),
            error if error.disposition() != Disposition::User => Self::Unavailable(text),
            _ => Self::Refused(text),
        }
    }
}
