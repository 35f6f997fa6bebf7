//! How to reach a cluster: as written by a user (`RawKafkaConfig`), as meant (`KafkaConfig`), as librdkafka
//! wants it. Pure but for the credential files, which `auth` reads. Knows no client and opens none.

mod raw;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use serde::Deserialize;

pub use self::raw::{RawKafkaConfig, RawSasl, RawTls};
use super::auth::Credentials;
use crate::ports::LogError;

/// How group members agree on who owns which partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignor {
    /// `range`, eager: everybody lets go of everything, so nobody writes while the generation changes.
    #[default]
    Eager,
    /// `cooperative-sticky`: partitions that stay keep running, at the price of spurious fences. A running
    /// group cannot be switched: stop all of its members first.
    Cooperative,
}

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    /// User and password, as they are: only over TLS.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Challenge and response.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Challenge and response.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A bearer token.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    /// Its registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Time-outs: each is longer than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Longest wait for a broker's answer. Just below the transaction's, so that the client seldom asks twice
    /// to end a transaction: a delayed first request could hit the next one.
    pub socket: Duration,
    /// After which the broker aborts an open transaction.
    pub transaction: Duration,
    /// After which a silent member loses its partitions.
    pub session: Duration,
    /// After which a member that does not poll loses its partitions.
    pub max_poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { socket: seconds(14), transaction: seconds(15), session: seconds(20), max_poll: seconds(60) }
    }
}

impl Timing {
    /// The time within which a commit has to be through.
    pub fn commit_budget(&self) -> Duration {
        self.transaction * 2 / 3
    }

    fn problem(&self) -> Option<String> {
        // librdkafka wants 100 ms between the first two.
        let rises = self.socket + Duration::from_millis(100) <= self.transaction
            && self.transaction < self.session
            && self.session < self.max_poll;
        (!rises).then(|| {
            format!(
                "time-outs do not rise: socket < transaction < session < max poll is wanted, not {self:?}"
            )
        })
    }
}

/// TLS files.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain and key of the client.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The key's password.
    pub key_password_file: Option<PathBuf>,
}

/// The cluster connection as it is meant: checked, every default filled in.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port` of some brokers.
    pub bootstrap_servers: Vec<String>,
    /// How this process calls itself towards the brokers.
    pub client_id: String,
    /// TLS, if wanted.
    pub tls: Option<Tls>,
    /// SASL, if wanted.
    pub sasl: Option<Credentials>,
    /// The assignment protocol.
    pub assignor: Assignor,
    /// Whether lanes are static members.
    pub static_membership: bool,
    /// How often topics are looked at for new partitions, a new id, a new configuration.
    pub metadata_refresh: Duration,
    /// Time-outs.
    pub timing: Timing,
    extra: BTreeMap<String, String>,
}

/// What is wrong with a written configuration: everything, not the first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct BadKafkaConfig {
    /// A sentence each.
    pub problems: Vec<String>,
}

/// What librdkafka puts into a batch at most, unless it is told another size.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// When a producer's batches leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batching {
    /// Soon: somebody waits for each record.
    Prompt,
    /// Once they are full: nobody sees a record before the commit, which sends what is left. A batch that may leave and
    /// cannot, because the one before it is under way, has librdkafka's thread spin; half a megabyte is large enough to
    /// be cheap for the broker, and small enough for most of a transaction to be on its way before its end.
    Transaction,
}

/// How long a producer waits before it repeats a request.
const RETRY_BACKOFF: Duration = Duration::from_millis(250);

/// Whether the request to end a transaction may have been sent more than once, from the time that the call
/// took. librdkafka repeats it in silence, and it reports a lost connection neither always (the same error
/// within 30 s is told once) nor in time; but it never repeats before the back-off, jitter of 20 % included.
pub(super) fn was_asked_twice(elapsed: Duration) -> bool {
    elapsed >= RETRY_BACKOFF * 4 / 5
}

/// How long librdkafka waits before it sends the offsets of a transaction again.
const OFFSETS_BACKOFF: Duration = Duration::from_millis(500);

/// The same for offsets that are added to a transaction, from the time that both requests for it took.
pub(super) fn were_offsets_sent_twice(elapsed: Duration) -> bool {
    elapsed >= OFFSETS_BACKOFF * 4 / 5
}

/// Settings that a user may pass on: none of them bears on correctness, none is a secret.
const ALLOWED: [&str; 28] = [
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "client.dns.lookup",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "linger.ms",
    "max.partition.fetch.bytes",
    "message.max.bytes",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "socket.keepalive.enable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "ssl.endpoint.identification.algorithm",
];

impl KafkaConfig {
    /// A plain connection to these brokers.
    pub fn plain(bootstrap_servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into_iter().map(Into::into).collect(),
            client_id: "coproc".to_owned(),
            tls: None,
            sasl: None,
            assignor: Assignor::default(),
            static_membership: false,
            metadata_refresh: Duration::from_secs(30),
            timing: Timing::default(),
            extra: BTreeMap::new(),
        }
    }

    /// Adds librdkafka settings from the allow list.
    pub fn with_extra(mut self, extra: BTreeMap<String, String>) -> Result<Self, BadKafkaConfig> {
        let problems: Vec<_> = extra.keys().filter_map(|key| disallowed(key)).collect();
        if !problems.is_empty() {
            return Err(BadKafkaConfig { problems });
        }
        self.extra = extra;
        Ok(self)
    }

    /// Checks what can be wrong once every field is there.
    pub fn check(&self) -> Result<(), BadKafkaConfig> {
        let mut problems: Vec<String> = self.timing.problem().into_iter().collect();
        if self.bootstrap_servers.iter().all(|server| server.trim().is_empty()) {
            problems.push("bootstrapServers is empty: name at least one broker as host:port".to_owned());
        }
        if problems.is_empty() { Ok(()) } else { Err(BadKafkaConfig { problems }) }
    }

    /// What every client has in common.
    pub(super) fn client(&self) -> Result<ClientConfig, LogError> {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.bootstrap_servers.join(","));
        client.set("client.id", &self.client_id);
        client.set("socket.timeout.ms", millis(self.timing.socket));
        client.set("socket.nagle.disable", "true");
        client.set("topic.metadata.refresh.interval.ms", millis(self.metadata_refresh));
        client.set("metadata.max.age.ms", millis(self.metadata_refresh * 3));
        client.set("reconnect.backoff.max.ms", "2000");
        // Topics come into being with the right configuration or not at all.
        client.set("allow.auto.create.topics", "false");
        self.secure(&mut client)?;
        Ok(client)
    }

    /// The client for administration. What librdkafka knows of consumers and producers only it leaves out by itself.
    pub(super) fn administrator(&self) -> Result<ClientConfig, LogError> {
        let mut client = self.client()?;
        self.pass_on(&mut client);
        Ok(client)
    }

    /// A consumer of any kind: committed records only, offsets in our own hands.
    pub(super) fn consumer(&self) -> Result<ClientConfig, LogError> {
        let mut client = self.client()?;
        client.set("isolation.level", "read_committed");
        client.set("enable.auto.commit", "false");
        client.set("enable.auto.offset.store", "false");
        client.set("auto.offset.reset", "error");
        client.set("enable.partition.eof", "true");
        client.set("check.crcs", "true");
        // The default of 1000 ms stops a fast reader for a second whenever its queue was full: it cost 5 x.
        client.set("fetch.queue.backoff.ms", "5");
        client.set("queued.min.messages", "200000");
        self.pass_on(&mut client);
        Ok(client)
    }

    /// An idempotent producer, the base of the transactional one.
    pub(super) fn producer(&self, batching: Batching) -> Result<ClientConfig, LogError> {
        let mut client = self.client()?;
        client.set("enable.idempotence", "true");
        match batching {
            Batching::Prompt => client.set("linger.ms", "5"),
            Batching::Transaction => client.set("linger.ms", "100").set("batch.size", "524288"),
        };
        // A request is never repeated sooner than 80 % of this: see `was_asked_twice`.
        client.set("retry.backoff.ms", millis(RETRY_BACKOFF));
        client.set("message.max.bytes", "67108864");
        client.set("queue.buffering.max.messages", "1000000");
        client.set("queue.buffering.max.kbytes", "131072");
        client.set("message.timeout.ms", millis(self.timing.transaction));
        self.pass_on(&mut client);
        Ok(client)
    }

    /// Why the way that clients log in is not safe, if it is not.
    pub fn exposure(&self) -> Option<String> {
        let mechanism = self.sasl.as_ref().filter(|_| self.tls.is_none())?.mechanism();
        let sends = matches!(mechanism, Mechanism::Plain | Mechanism::OauthBearer);
        sends.then(|| {
            let (mechanism, servers) = (mechanism.as_str(), self.bootstrap_servers.join(","));
            format!("SASL {mechanism} without TLS: the secret goes to {servers} as it is; configure tls")
        })
    }

    fn pass_on(&self, client: &mut ClientConfig) {
        for (key, value) in &self.extra {
            client.set(key, value);
        }
    }

    fn secure(&self, client: &mut ClientConfig) -> Result<(), LogError> {
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            if let Some(file) = &tls.ca_file {
                client.set("ssl.ca.location", file.to_string_lossy());
            }
            if let Some((certificate, key)) = &tls.identity {
                client.set("ssl.certificate.location", certificate.to_string_lossy());
                client.set("ssl.key.location", key.to_string_lossy());
            }
            if let Some(file) = &tls.key_password_file {
                client.set("ssl.key.password", super::auth::read_secret(file)?.expose());
            }
        }
        if let Some(sasl) = &self.sasl {
            client.set("sasl.mechanism", sasl.mechanism().as_str());
            if let Some((user, password)) = sasl.login()? {
                client.set("sasl.username", user.expose());
                client.set("sasl.password", password.expose());
            }
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

fn disallowed(key: &str) -> Option<String> {
    (!ALLOWED.contains(&key))
        .then(|| format!("config {key:?} cannot be set here; allowed are {}", ALLOWED.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<KafkaConfig, String> {
        let raw: RawKafkaConfig = serde_json::from_str(text).map_err(|e| e.to_string())?;
        raw.validate().map_err(|e| e.to_string())
    }

    #[test]
    fn says_everything_that_is_wrong() {
        let cases = [
            (r#"{"bootstrapServers": []}"#, vec!["bootstrapServers is empty"]),
            (
                r#"{"bootstrapServers": ["a:1"], "config": {"enable.idempotence": "false"}, "tls": {"keyFile": "k"}}"#,
                vec!["enable.idempotence", "only one of certificateFile"],
            ),
            (
                r#"{"bootstrapServers": ["a:1"], "sasl": {"mechanism": "PLAIN", "username": "u"}}"#,
                vec!["passwordFile"],
            ),
            (
                r#"{"bootstrapServers": ["a:1"], "tls": {"keyPasswordFile": "p"},
                    "sasl": {"mechanism": "PLAIN", "username": "u", "passwordFile": "p", "tokenFile": "t"}}"#,
                vec!["keyPasswordFile without keyFile", "sasl PLAIN takes no tokenFile"],
            ),
            (
                r#"{"bootstrapServers": ["a:1"], "sasl": {"mechanism": "OAUTHBEARER", "username": "u", "tokenFile": "t"}}"#,
                vec!["sasl OAUTHBEARER takes a tokenFile alone"],
            ),
            (r#"{"bootstrapServers": ["a:1"], "passwd": 1}"#, vec!["unknown field"]),
        ];
        for (text, says) in cases {
            let error = check(text).expect_err(text);
            for part in says {
                assert!(error.contains(part), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_secret_that_anybody_could_read_on_its_way_is_said() {
        let exposure = |tls: &str, mechanism: &str| {
            let secret = if mechanism == "OAUTHBEARER" {
                r#""tokenFile":"t""#
            } else {
                r#""username":"u","passwordFile":"p""#
            };
            let text = format!(
                r#"{{"bootstrapServers":["a:1"],{tls}"sasl":{{"mechanism":"{mechanism}",{secret}}}}}"#
            );
            check(&text).unwrap().exposure()
        };
        assert!(exposure("", "PLAIN").unwrap().contains("PLAIN without TLS"));
        assert!(exposure("", "OAUTHBEARER").is_some());
        assert_eq!((exposure("", "SCRAM-SHA-256"), exposure(r#""tls":{},"#, "PLAIN")), (None, None));
    }

    #[test]
    fn every_client_has_what_was_passed_on() {
        let extra = [("ssl.endpoint.identification.algorithm".to_owned(), "none".to_owned())];
        let config = KafkaConfig::plain(["a:1"]).with_extra(extra.clone().into()).unwrap();
        let clients = [config.administrator(), config.consumer(), config.producer(Batching::Prompt)];
        for client in clients {
            assert_eq!(client.unwrap().get(&extra[0].0), Some("none"));
        }
    }

    #[test]
    fn time_outs_have_to_rise() {
        let mut config = KafkaConfig::plain(["a:1"]);
        assert_eq!(config.check(), Ok(()));
        config.timing.session = Duration::from_secs(10);
        assert!(config.check().is_err());
    }

    #[test]
    fn nothing_secret_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let mut config = KafkaConfig::plain(["a:1"]);
        config.sasl = Some(Credentials::user(Mechanism::Plain, "u".to_owned(), file));
        assert_eq!(config.client().unwrap().get("sasl.password"), Some("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
