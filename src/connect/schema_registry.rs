//! A client of schema registries that speak Confluent's HTTP interface (Confluent, Redpanda, Karapace, Apicurio).
//!
//! The port is synchronous: a guest asks in the middle of a record, and its lane waits. So the client has a small
//! runtime of its own that is driven by whoever asks, with a time-out for the whole exchange; it starts no thread
//! that would have to be stopped. Connections are not kept, because answers are: a schema with an id never changes,
//! nor does a numbered version of a subject. What is latest is asked every time.
//!
//! Interface: <https://docs.confluent.io/platform/current/schema-registry/develop/api.html>.

use std::collections::HashMap;
use std::error::Error as _;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Certificate, Client, RequestBuilder, Url};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::ports::{
    SchemaDefinition, SchemaError, SchemaKind, SchemaReference, SchemaRegistry, SubjectSchema,
};

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// How a registry is reached.
#[derive(Clone)]
pub struct RegistryOptions {
    /// `http://…` or `https://…`, without credentials; a path in front of the interface is kept.
    pub url: String,
    /// User and password, for basic authentication.
    pub credentials: Option<(String, String)>,
    /// Certificates in PEM to trust besides the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Longest time for a question and its answer.
    pub timeout: Duration,
    /// Largest answer, in bytes.
    pub max_bytes: usize,
    /// Most answers that are kept, of each kind.
    pub cache_entries: usize,
}

impl RegistryOptions {
    /// The usual bounds, for the registry at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            ca_pem: None,
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            max_bytes: 1 << 20,
            cache_entries: 1000,
        }
    }
}

/// The client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum RegistryOptionsError {
    /// The address makes no sense.
    #[error("the schema registry's URL {url:?} cannot be used: {reason}")]
    Url {
        /// What was given, without credentials.
        url: String,
        /// Why.
        reason: String,
    },
    /// The certificates cannot be read.
    #[error("the certificates for the schema registry cannot be read: {0}")]
    Certificates(reqwest::Error),
    /// TLS or the runtime cannot be set up.
    #[error("cannot set up the client of the schema registry: {0}")]
    Client(String),
}

/// A client of one registry.
pub struct HttpSchemaRegistry {
    base: Url,
    client: Client,
    credentials: Option<(String, String)>,
    timeout: Duration,
    max_bytes: usize,
    definitions: Mutex<Kept<i32, SchemaDefinition>>,
    versions: Mutex<Kept<(String, i32), SubjectSchema>>,
    runtime: Option<Runtime>,
}

impl HttpSchemaRegistry {
    /// Sets up the client; does not connect.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryOptionsError> {
        let base = base_url(&options.url)?;
        // Whoever installed a provider first decides; without one reqwest panics.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .connect_timeout(options.connect_timeout)
            .timeout(options.timeout)
            // A redirect could take the credentials elsewhere; proxies of the environment are not for us to read.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(0);
        if let Some(pem) = &options.ca_pem {
            let all = Certificate::from_pem_bundle(pem).map_err(RegistryOptionsError::Certificates)?;
            builder = builder.tls_certs_merge(all);
        }
        let client = builder.build().map_err(|error| RegistryOptionsError::Client(with_causes(&error)))?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RegistryOptionsError::Client(error.to_string()))?;
        Ok(Self {
            base,
            client,
            credentials: options.credentials,
            timeout: options.timeout,
            max_bytes: options.max_bytes,
            definitions: Mutex::new(Kept::new(options.cache_entries)),
            versions: Mutex::new(Kept::new(options.cache_entries)),
            runtime: Some(runtime),
        })
    }

    /// The address of something, each part escaped.
    fn url(&self, parts: &[&str]) -> Result<Url, SchemaError> {
        let mut url = self.base.clone();
        // A URL library takes these for steps, not names.
        if let Some(part) = parts.iter().find(|part| matches!(**part, "" | "." | "..")) {
            return Err(SchemaError(format!("{part:?} is no name of a subject")));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(parts),
            Err(()) => return Err(SchemaError(format!("{} has no path", self.base))),
        };
        Ok(url)
    }

    fn ask<T: for<'a> Deserialize<'a>>(&self, request: RequestBuilder) -> Result<T, SchemaError> {
        let runtime = self.runtime.as_ref().filter(|_| Handle::try_current().is_err()).ok_or_else(|| {
            SchemaError(
                "asked from within an asynchronous task, where nothing may wait: please report it".to_owned(),
            )
        })?;
        let request = match &self.credentials {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        let bytes = runtime.block_on(self.exchange(request.header("Accept", CONTENT_TYPE)))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| SchemaError(format!("the answer of {} makes no sense: {error}", self.base)))
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<Vec<u8>, SchemaError> {
        let failed = |error: reqwest::Error| {
            if error.is_timeout() {
                return SchemaError(format!("{} did not answer within {:?}", self.base, self.timeout));
            }
            SchemaError(format!("{} cannot be asked: {}", self.base, with_causes(&error.without_url())))
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > self.max_bytes {
                return Err(SchemaError(format!("the answer is larger than {} bytes", self.max_bytes)));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(bytes);
        }
        let reason =
            serde_json::from_slice::<Refusal>(&bytes).map(|refusal| refusal.message).unwrap_or_default();
        Err(SchemaError(format!("{} answered {status}: {}", self.base, shortened(&reason))))
    }
}

impl SchemaRegistry for HttpSchemaRegistry {
    fn definition(&self, id: i32) -> Result<SchemaDefinition, SchemaError> {
        if let Some(known) = self.definitions.lock().get(&id) {
            return Ok(known);
        }
        let url = self.url(&["schemas", "ids", &id.to_string()])?;
        let definition = self.ask::<Schema>(self.client.get(url))?.definition()?;
        self.definitions.lock().put(id, definition.clone());
        Ok(definition)
    }

    fn subject(&self, subject: &str, version: Option<i32>) -> Result<SubjectSchema, SchemaError> {
        let key = version.map(|version| (subject.to_owned(), version));
        if let Some(known) = key.as_ref().and_then(|key| self.versions.lock().get(key)) {
            return Ok(known);
        }
        let version = version.map_or("latest".to_owned(), |version| version.to_string());
        let url = self.url(&["subjects", subject, "versions", &version])?;
        let found: Version = self.ask(self.client.get(url))?;
        let found =
            SubjectSchema { id: found.id, version: found.number, definition: found.schema.definition()? };
        if let Some(key) = key {
            self.versions.lock().put(key, found.clone());
        }
        Ok(found)
    }

    fn register(&self, subject: &str, definition: &SchemaDefinition) -> Result<i32, SchemaError> {
        let url = self.url(&["subjects", subject, "versions"])?;
        let body = serde_json::to_vec(&Schema::from(definition))
            .map_err(|error| SchemaError(format!("the schema cannot be written as JSON: {error}")))?;
        let request = self.client.post(url).header("Content-Type", CONTENT_TYPE).body(body);
        Ok(self.ask::<Registered>(request)?.id)
    }
}

impl Drop for HttpSchemaRegistry {
    fn drop(&mut self) {
        // Dropping a runtime waits, which is not allowed where this may be dropped: in an asynchronous task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A schema as the interface writes it.
#[derive(Debug, Serialize, Deserialize)]
struct Schema {
    #[serde(rename = "schema")]
    text: String,
    /// Absent means Avro.
    #[serde(rename = "schemaType", default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    references: Vec<Reference>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: i32,
}

#[derive(Deserialize)]
struct Version {
    id: i32,
    #[serde(rename = "version")]
    number: i32,
    #[serde(flatten)]
    schema: Schema,
}

#[derive(Deserialize)]
struct Registered {
    id: i32,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Schema {
    fn definition(self) -> Result<SchemaDefinition, SchemaError> {
        let kind = match self.kind.as_deref() {
            None | Some("AVRO") => SchemaKind::Avro,
            Some("PROTOBUF") => SchemaKind::Protobuf,
            Some("JSON") => SchemaKind::Json,
            Some(other) => return Err(SchemaError(format!("schema type {other:?} is not known"))),
        };
        let references = self.references.into_iter().map(|reference| SchemaReference {
            name: reference.name,
            subject: reference.subject,
            version: reference.version,
        });
        Ok(SchemaDefinition { kind, schema: self.text, references: references.collect() })
    }
}

impl From<&SchemaDefinition> for Schema {
    fn from(definition: &SchemaDefinition) -> Self {
        let references = definition.references.iter().map(|reference| Reference {
            name: reference.name.clone(),
            subject: reference.subject.clone(),
            version: reference.version,
        });
        Self {
            text: definition.schema.clone(),
            // Old registries do not know the field, and they know Avro only.
            kind: match definition.kind {
                SchemaKind::Avro => None,
                SchemaKind::Protobuf => Some("PROTOBUF".to_owned()),
                SchemaKind::Json => Some("JSON".to_owned()),
            },
            references: references.collect(),
        }
    }
}

/// Answers that never change, as many as there is room for.
struct Kept<K, V> {
    entries: HashMap<K, V>,
    most: usize,
}

impl<K: Hash + Eq, V: Clone> Kept<K, V> {
    fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), most }
    }

    fn get(&self, key: &K) -> Option<V> {
        self.entries.get(key).cloned()
    }

    fn put(&mut self, key: K, value: V) {
        // A topic has few schemas: when there are this many, something goes through them all and keeps nothing long.
        if self.entries.len() >= self.most {
            self.entries.clear();
        }
        if self.most > 0 {
            self.entries.insert(key, value);
        }
    }
}

fn base_url(text: &str) -> Result<Url, RegistryOptionsError> {
    let bad = |url: String, reason: &str| RegistryOptionsError::Url { url, reason: reason.to_owned() };
    // What cannot be parsed may still hold a password: it is not repeated.
    let mut url = Url::parse(text).map_err(|error| bad("…".to_owned(), &error.to_string()))?;
    let has_credentials = !url.username().is_empty() || url.password().is_some();
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    if has_credentials {
        return Err(bad(url.to_string(), "it has credentials in it: give them in their own fields"));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad(url.to_string(), "it has to begin with http:// or https:// and name a host"));
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// What a registry says may be a page of HTML.
fn shortened(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(300).collect()
}

/// reqwest says little itself; what happened is in the causes.
fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for (url, says) in [
            ("registry", "relative URL"),
            ("ftp://host", "http://"),
            ("http://user:secret@host", "own fields"),
        ] {
            let error = HttpSchemaRegistry::new(RegistryOptions::new(url)).err().unwrap().to_string();
            assert!(error.contains(says) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn names_are_escaped() {
        let registry = HttpSchemaRegistry::new(RegistryOptions::new("https://host/base/")).unwrap();
        let url = registry.url(&["subjects", "a/b c?", "versions"]).unwrap();
        assert_eq!(url.as_str(), "https://host/base/subjects/a%2Fb%20c%3F/versions");
        assert!(registry.url(&["subjects", "..", "versions"]).is_err());
    }

    #[test]
    fn the_cache_stays_small() {
        let mut kept = Kept::new(2);
        for n in 0..5 {
            kept.put(n, n);
            assert!(kept.entries.len() <= 2);
            assert_eq!(kept.get(&n), Some(n));
        }
    }
}
