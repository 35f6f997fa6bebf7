//! Thin I/O: looks up what a resource refers to, and says what is missing in words that a condition can carry.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, Client};

use crate::core::secret;
use crate::operator::build::pods_secret_names;
use crate::operator::crd::RuntimePoolSpec;
use crate::operator::crd::pool::SecretKey;
use crate::operator::world::{Connection, Credentials, Hidden, PublicKeys, Registry, Tls};

/// Reason: a Secret, or a key in it, is not there.
pub const SECRET_NOT_FOUND: &str = "SecretNotFound";

/// Why something that is referred to is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Secret, or a key in it, is missing.
    #[error("{field}: {message}")]
    Missing {
        /// The field that refers to it.
        field: String,
        /// What is missing and what to do.
        message: String,
    },
    /// The API server did not answer.
    #[error("read a Secret: {}", crate::operator::apply::brief(.0))]
    Api(#[from] kube::Error),
}

/// The Secrets of a pool, read.
#[derive(Debug, Default)]
pub struct Secrets(BTreeMap<String, Secret>);

/// Reads every Secret that a pool refers to: each has to be there, since pods mount them.
pub async fn secrets(client: &Client, namespace: &str, spec: &RuntimePoolSpec) -> Result<Secrets, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut found = BTreeMap::new();
    for name in pods_secret_names(spec) {
        let Some(secret) = api.get_opt(&name).await? else {
            let message = format!(
                "Secret {name} does not exist in namespace {namespace}: create it, or change the spec"
            );
            return Err(Error::Missing { field: "spec".into(), message });
        };
        found.insert(name, secret);
    }
    Ok(Secrets(found))
}

/// Whether a namespace is being deleted.
pub async fn namespace_ends(client: &Client, name: &str) -> bool {
    let api: Api<Namespace> = Api::all(client.clone());
    match api.get_opt(name).await {
        Ok(Some(namespace)) => namespace.metadata.deletion_timestamp.is_some(),
        Ok(None) => true,
        Err(error) => {
            tracing::warn!(%error, name, "it is not known whether the namespace is being deleted");
            false
        }
    }
}

impl Secrets {
    fn text(&self, field: &str, name: &str, key: &str) -> Result<String, Error> {
        let missing = |message| Error::Missing { field: field.to_owned(), message };
        let data = self.0.get(name).and_then(|secret| secret.data.as_ref());
        let bytes = data
            .and_then(|data| data.get(key))
            .ok_or_else(|| missing(format!("Secret {name} has no key {key}: add it, or name another key")))?;
        String::from_utf8(bytes.0.clone())
            .map_err(|_| missing(format!("key {key} of Secret {name} is not text in UTF-8")))
    }

    fn of(&self, field: &str, at: &SecretKey) -> Result<String, Error> {
        self.text(field, &at.name, &at.key)
    }

    /// What stands there for somebody to log in with, as pods read it from the file.
    fn login(&self, field: &str, at: &SecretKey) -> Result<String, Error> {
        let text = self.of(field, at)?;
        let SecretKey { name, key } = at;
        let bad = |problem| Error::Missing {
            field: field.to_owned(),
            message: format!("key {key} of Secret {name} {problem}"),
        };
        secret::in_text(&text).map(str::to_owned).map_err(bad)
    }
}

/// How the pool's cluster is reached.
pub fn connection(spec: &RuntimePoolSpec, secrets: &Secrets) -> Result<Connection, Error> {
    let kafka = &spec.kafka;
    let tls = kafka.tls.as_ref().map(|tls| {
        let authorities =
            tls.ca_secret.as_ref().map(|at| secrets.of("spec.kafka.tls.caSecret", at)).transpose()?;
        let field = "spec.kafka.tls.clientCertificateSecret";
        let client = tls.client_certificate_secret.as_ref().map(|name| {
            let key = Hidden(secrets.text(field, name, "tls.key")?);
            Ok::<_, Error>((secrets.text(field, name, "tls.crt")?, key))
        });
        Ok::<_, Error>(Tls { authorities, client: client.transpose()? })
    });
    let credentials = kafka.sasl.as_ref().map(|sasl| {
        let username = secrets.login("spec.kafka.sasl.usernameSecret", &sasl.username_secret)?;
        let password = secrets.login("spec.kafka.sasl.passwordSecret", &sasl.password_secret)?;
        Ok::<_, Error>(Credentials::new(sasl.mechanism, username, password))
    });
    Ok(Connection {
        bootstrap_servers: kafka.bootstrap_servers.clone(),
        tls: tls.transpose()?,
        credentials: credentials.transpose()?,
        config: kafka.config.clone(),
    })
}

/// What is needed to ask the pool's registries.
pub fn registry(spec: &RuntimePoolSpec, secrets: &Secrets) -> Result<Registry, Error> {
    let auth = spec
        .registry
        .pull_secrets
        .iter()
        .map(|name| secrets.text("spec.registry.pullSecrets", name, ".dockerconfigjson").map(Hidden));
    let public_keys = spec.verification.as_ref().map(|verification| {
        let at = &verification.public_key_secret;
        let pem = secrets.of("spec.verification.publicKeySecret", at)?;
        Ok::<_, Error>(PublicKeys { name: at.key.clone(), pem })
    });
    let authorities = spec.registry.ca_secrets.iter().map(|at| secrets.of("spec.registry.caSecrets", at));
    Ok(Registry {
        auth: auth.collect::<Result<_, _>>()?,
        mirrors: spec.registry.mirrors.clone(),
        insecure: spec.registry.insecure.clone(),
        authorities: authorities.collect::<Result<_, _>>()?,
        private_hosts: spec.registry.private_hosts.clone(),
        token_hosts: spec.registry.token_hosts.clone(),
        redirect_hosts: spec.registry.redirect_hosts.clone(),
        public_keys: public_keys.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;

    fn connect(username: &str, password: &str) -> Result<Credentials, String> {
        let at = |key: &str| json!({"name": "kafka", "key": key});
        let sasl = json!({"mechanism": "SCRAM-SHA-512", "usernameSecret": at("user"), "passwordSecret": at("password")});
        let spec = json!({"kafka": {"bootstrapServers": ["k:9093"], "sasl": sasl}});
        let data = [("user", username), ("password", password)];
        let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        let secrets = Secrets([("kafka".to_owned(), secret)].into());
        let found = connection(&serde_json::from_value(spec).unwrap(), &secrets);
        found.map(|found| found.credentials.unwrap()).map_err(|error| error.to_string())
    }

    /// Pods read them from files, and what is part of them there is part of them here.
    #[test]
    fn a_login_is_what_pods_make_of_it() {
        let found = connect("alice\n", "hunter2\r\n").unwrap();
        assert_eq!((found.username.as_str(), found.password.0.as_str()), ("alice", "hunter2"));
        let said = connect("alice", " hunter2").unwrap_err();
        assert!(said.contains("key password of Secret kafka begins with a blank"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
