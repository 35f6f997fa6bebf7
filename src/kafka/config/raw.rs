//! The connection as a user writes it, and how it becomes what is meant. Called by whoever reads configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Assignor, BadKafkaConfig, KafkaConfig, Mechanism, Tls, disallowed};
use crate::kafka::auth::Credentials;

/// The cluster connection as a user writes it. Secrets are named by file, never given.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawKafkaConfig {
    /// `host:port` of some brokers.
    #[serde(default)]
    pub bootstrap_servers: Vec<String>,
    /// Present: TLS.
    pub tls: Option<RawTls>,
    /// Present: SASL.
    pub sasl: Option<RawSasl>,
    /// The assignment protocol.
    #[serde(default)]
    pub assignor: Assignor,
    /// Whether lanes are static members: a quick restart then moves no partition.
    #[serde(default)]
    pub static_membership: bool,
    /// Further librdkafka settings, from the allow list.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
}

/// TLS as a user writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawTls {
    /// PEM of the authorities to trust; the system's without it.
    pub ca_file: Option<PathBuf>,
    /// PEM of the client's certificate chain: mutual TLS.
    pub certificate_file: Option<PathBuf>,
    /// PEM of the client's key.
    pub key_file: Option<PathBuf>,
    /// The key's password.
    pub key_password_file: Option<PathBuf>,
}

/// SASL as a user writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawSasl {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// The user name, for PLAIN and SCRAM.
    pub username: Option<String>,
    /// Or a file with it.
    pub username_file: Option<PathBuf>,
    /// A file with the password, for PLAIN and SCRAM.
    pub password_file: Option<PathBuf>,
    /// A file with the token, a JWT, for OAUTHBEARER.
    pub token_file: Option<PathBuf>,
}

impl RawKafkaConfig {
    /// Turns what was written into what is meant, or says everything that is wrong with it.
    pub fn validate(self) -> Result<KafkaConfig, BadKafkaConfig> {
        let mut problems: Vec<String> = self.config.keys().filter_map(|key| disallowed(key)).collect();
        let tls = self.tls.map(|raw| raw.validate(&mut problems));
        let sasl = self.sasl.and_then(|raw| raw.validate(&mut problems));
        let mut config = KafkaConfig::plain(self.bootstrap_servers);
        config.tls = tls;
        config.sasl = sasl;
        config.assignor = self.assignor;
        config.static_membership = self.static_membership;
        config.extra = self.config;
        if let Err(bad) = config.check() {
            problems.extend(bad.problems);
        }
        if problems.is_empty() { Ok(config) } else { Err(BadKafkaConfig { problems }) }
    }
}

impl RawTls {
    fn validate(self, problems: &mut Vec<String>) -> Tls {
        if self.key_file.is_none() && self.key_password_file.is_some() {
            problems
                .push("tls has keyPasswordFile without keyFile: give the key, or leave it out".to_owned());
        }
        let identity = match (self.certificate_file, self.key_file) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                problems.push("tls has only one of certificateFile and keyFile: give both".to_owned());
                None
            }
        };
        if identity.is_none() && self.key_password_file.is_some() {
            problems
                .push("tls has keyPasswordFile without keyFile: give the key, or leave it out".to_owned());
        }
        Tls { ca_file: self.ca_file, identity, key_password_file: self.key_password_file }
    }
}

impl RawSasl {
    fn validate(self, problems: &mut Vec<String>) -> Option<Credentials> {
        if self.mechanism == Mechanism::OauthBearer {
            let Some(token_file) = self.token_file else {
                problems.push("sasl OAUTHBEARER wants tokenFile".to_owned());
                return None;
            };
            if self.username.is_some() || self.username_file.is_some() || self.password_file.is_some() {
                problems.push("sasl OAUTHBEARER takes a tokenFile alone, no user and no password".to_owned());
            }
            return Some(Credentials::token(token_file));
        }
        if self.token_file.is_some() {
            problems.push(format!("sasl {} takes no tokenFile", self.mechanism.as_str()));
        }
        match (self.username, self.username_file, self.password_file) {
            (Some(user), None, Some(file)) => Some(Credentials::user(self.mechanism, user, file)),
            (None, Some(user), Some(file)) => Some(Credentials::user_file(self.mechanism, user, file)),
            _ => {
                let mechanism = self.mechanism.as_str();
                problems.push(format!(
                    "sasl {mechanism} wants passwordFile, and one of username and usernameFile"
                ));
                None
            }
        }
    }
}
