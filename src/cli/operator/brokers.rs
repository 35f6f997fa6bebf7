//! The operator's way to Kafka: a pool's connection becomes a client.

use std::sync::Arc;

use crate::cli::operator::secret_files::SecretFiles;
use crate::kafka::{Credentials, KafkaConfig, KafkaLog, Mechanism, Tls};
use crate::operator::world::{Connection, Logs};
use crate::ports::{Log, LogError};

/// Opens logs on Kafka.
pub struct Brokers {
    files: Arc<SecretFiles>,
}

impl Brokers {
    /// With a place for certificates and passwords.
    pub fn new(files: Arc<SecretFiles>) -> Self {
        Self { files }
    }

    fn config(&self, connection: &Connection) -> Result<KafkaConfig, String> {
        let mut config = KafkaConfig::plain(connection.bootstrap_servers.iter().cloned());
        "coproc-operator".clone_into(&mut config.client_id);
        let file = |text: &str| self.files.file(text).map_err(|error| format!("keep a secret: {error}"));
        if let Some(tls) = &connection.tls {
            let identity = tls.client.as_ref();
            let identity = identity.map(|(chain, key)| Ok::<_, String>((file(chain)?, file(&key.0)?)));
            config.tls = Some(Tls {
                ca_file: tls.authorities.as_deref().map(file).transpose()?,
                identity: identity.transpose()?,
                key_password_file: None,
            });
        }
        if let Some(credentials) = &connection.credentials {
            let mechanism = mechanism(credentials.mechanism)?;
            let password = file(&credentials.password.0)?;
            config.sasl = Some(Credentials::user(mechanism, credentials.username.clone(), password));
        }
        let config = config.with_extra(connection.config.clone()).map_err(|bad| bad.to_string())?;
        config.check().map_err(|bad| bad.to_string())?;
        Ok(config)
    }
}

fn mechanism(name: &str) -> Result<Mechanism, String> {
    let known = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];
    let found = known.into_iter().find(|mechanism| mechanism.as_str() == name);
    found.ok_or_else(|| format!("there is no SASL mechanism {name}"))
}

impl Logs for Brokers {
    fn check(&self, connection: &Connection) -> Result<(), String> {
        self.config(connection).map(drop)
    }

    fn open(&self, connection: &Connection) -> Result<Arc<dyn Log>, LogError> {
        let config = self.config(connection).map_err(LogError::BadConfig)?;
        Ok(KafkaLog::connect(config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::crd::pool::SaslMechanism;
    use crate::operator::validate::CLIENT_SETTINGS;
    use crate::operator::world::{Credentials, Hidden, Tls};

    fn check(connection: &Connection) -> Result<(), String> {
        let parent = tempfile::tempdir().unwrap();
        Brokers::new(Arc::new(SecretFiles::below(parent.path()).unwrap())).check(connection)
    }

    /// A setting that a pool may name and that the client refuses would keep its pods from starting.
    #[test]
    fn the_client_takes_every_setting_that_a_pool_may_name() {
        let config = CLIENT_SETTINGS.map(|key| (key.to_owned(), "1".to_owned())).into();
        let connection =
            Connection { bootstrap_servers: vec!["k:9092".into()], config, ..Connection::default() };
        assert_eq!(check(&connection), Ok(()));
        assert!(check(&Connection::default()).unwrap_err().contains("bootstrapServers is empty"));
    }

    #[test]
    fn every_mechanism_of_a_pool_is_known_to_the_client() {
        for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
            let credentials = Some(Credentials::new(mechanism, "u".into(), "p".into()));
            let client = Some(("certificate".into(), Hidden("key".into())));
            let tls = Some(Tls { authorities: Some("ca".into()), client });
            let bootstrap_servers = vec!["k:9093".into()];
            let connection = Connection { bootstrap_servers, tls, credentials, ..Connection::default() };
            assert_eq!(check(&connection), Ok(()));
        }
    }
}
