//! What the operator needs from outside Kubernetes: a log for a pool, and digests for images. `cli` plugs them in.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::core::disposition::Disposition;
use crate::operator::build::hash;
use crate::operator::crd::pool::{MirrorSpec, SaslMechanism};
use crate::operator::validate::Resolved;
use crate::ports::{Log, LogError};

/// A text that is not shown: a password, a key.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// TLS towards the brokers: PEM texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Tls {
    /// The authorities that are trusted; the system's when there are none.
    pub authorities: Option<String>,
    /// The client's certificate and key.
    pub client: Option<(String, Hidden)>,
}

/// Who the operator is towards the brokers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: &'static str,
    /// The name.
    pub username: String,
    /// The password.
    pub password: Hidden,
}

impl Credentials {
    /// Credentials for a mechanism.
    pub fn new(mechanism: SaslMechanism, username: String, password: String) -> Self {
        Self { mechanism: mechanism.as_str(), username, password: Hidden(password) }
    }
}

/// How a pool's cluster is reached, with every Secret looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Connection {
    /// `host:port`s.
    pub bootstrap_servers: Vec<String>,
    /// TLS, where it is used.
    pub tls: Option<Tls>,
    /// Credentials, where they are needed.
    pub credentials: Option<Credentials>,
    /// Settings of the client that are allowed.
    pub config: BTreeMap<String, String>,
}

/// Opens the log of a pool.
pub trait Logs: Send + Sync {
    /// Whether a connection makes sense, without trying it; the message says what does not.
    fn check(&self, connection: &Connection) -> Result<(), String>;

    /// Blocks until the cluster answers, within a time-out of the implementation.
    fn open(&self, connection: &Connection) -> Result<Arc<dyn Log>, LogError>;
}

/// What is needed to ask a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Registry {
    /// Texts of `.dockerconfigjson`.
    pub auth: Vec<Hidden>,
    /// Mirrors.
    pub mirrors: Vec<MirrorSpec>,
    /// Registries without TLS.
    pub insecure: Vec<String>,
    /// Authorities that are trusted besides the system's, PEM.
    pub authorities: Vec<String>,
    /// Hosts that may be at private addresses.
    pub private_hosts: Vec<String>,
    /// Other hosts that may hand out tokens.
    pub token_hosts: Vec<String>,
    /// Hosts that downloads may be redirected to.
    pub redirect_hosts: Vec<String>,
    /// The public keys that modules must be signed with.
    pub public_keys: Option<PublicKeys>,
}

/// Public keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PublicKeys {
    /// What people call them: the key of their Secret.
    pub name: String,
    /// PEM.
    pub pem: String,
}

impl Registry {
    /// Names the keys that modules must be signed with: other keys, another name.
    pub fn policy(&self) -> Option<String> {
        self.public_keys.as_ref().map(|keys| hash(&keys.pem))
    }
}

/// Why an image did not lead to a module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    /// A stable CamelCase word: `ImageNotFound`, `RegistryUnavailable`, `SignatureInvalid`, `NotAModule`, ….
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
    /// Whose fault it is.
    pub disposition: Disposition,
}

/// Turns images into digests.
pub trait Modules: Send + Sync {
    /// Whether a pool's words about registries make sense, without asking any; the message says what does not.
    fn check(&self, registry: &Registry) -> Result<(), String>;

    /// Asks the registry, and checks the signature where one is demanded. Blocks, within a time-out.
    fn resolve(&self, image: &str, registry: &Registry) -> Result<Resolved, ResolveError>;
}
