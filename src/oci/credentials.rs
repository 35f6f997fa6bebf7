//! Pull secrets: files of the form `kubernetes.io/dockerconfigjson`, as kubelet reads them.
//!
//! They are read anew each time credentials are needed, which is when a registry asks: a rotated secret is in
//! use at once, and nothing is kept in memory. Values never appear in errors or logs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::oci::access::Endpoint;
use crate::oci::error::OciError;

const MAX_FILE_BYTES: u64 = 1 << 20;

/// User name and password. Has no `Debug`: nobody prints it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    user: String,
    password: String,
}

impl Login {
    /// The value of an `Authorization` header.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The login for a place: of all entries in all files whose host and path are in front of the repository, the
/// one with the longest path; among equals the first.
pub(super) fn login_for(files: &[PathBuf], at: &Endpoint) -> Result<Option<Login>, OciError> {
    let mut best: Option<(usize, Login)> = None;
    for path in files {
        let config: DockerConfig = serde_json::from_slice(&read(path)?)
            .map_err(|_| fault(path, "it is not of the form kubernetes.io/dockerconfigjson"))?;
        for (key, entry) in &config.auths {
            // What `docker login` leaves behind when it keeps the words in a helper program.
            let is_empty = entry.auth.is_empty() && entry.username.is_empty();
            if let Some(length) = match_length(key, at)
                && !is_empty
                && best.as_ref().is_none_or(|(longest, _)| length > *longest)
            {
                let login =
                    login(entry).ok_or_else(|| fault(path, "an entry has no user name and password"))?;
                best = Some((length, login));
            }
        }
    }
    Ok(best.map(|(_, login)| login))
}

fn fault(path: &Path, reason: &str) -> OciError {
    OciError::ReadFile { path: path.to_owned(), reason: reason.to_owned() }
}

fn read(path: &Path) -> Result<Vec<u8>, OciError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| fault(path, &error.to_string()))?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| fault(path, &error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(fault(path, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn login(entry: &Entry) -> Option<Login> {
    if !entry.username.is_empty() {
        return Some(Login { user: entry.username.clone(), password: entry.password.clone() });
    }
    let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login { user: user.to_owned(), password: password.to_owned() })
}

/// How much of the place's name an entry covers; `None` when it is for something else.
fn match_length(key: &str, at: &Endpoint) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // What `docker login` writes for Docker's own registry.
    let (host, path) = match (host, path) {
        ("index.docker.io", "v1" | "v2" | "") => ("docker.io", ""),
        other => other,
    };
    let is_path = path.is_empty()
        || at.repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_host = matches_host(host, &at.login) || matches_host(host, &at.authority);
    (is_host && is_path).then_some(host.len() * usize::from(!host.contains('*')) + path.len() * 1_000 + 1)
}

/// Hosts may have `*` for a whole or a part of a label, as in Kubernetes: `*.example.com`. Ports must be equal.
fn matches_host(pattern: &str, authority: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        (host.to_ascii_lowercase(), port.to_owned())
    };
    let ((pattern, port), (host, actual)) = (split(pattern), split(authority));
    let (labels, parts): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    port == actual
        && labels.len() == parts.len()
        && labels.iter().zip(parts).all(|(label, part)| glob(label, part))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => {
            !end.contains('*')
                && text.len() >= start.len() + end.len()
                && text.starts_with(start)
                && text.ends_with(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::access::Access;

    fn found(config: &str, image: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let at = Access::default().origin(&image.parse().unwrap());
        login_for(&[path], &at).unwrap().map(|login| format!("{}:{}", login.user, login.password))
    }

    const CONFIG: &str = r#"{"auths": {
        "r.example": {"username": "whole", "password": "1"},
        "https://r.example/team": {"auth": "dGVhbTpwOnc="},
        "r.example/team/redact": {"username": "one", "password": "3"},
        "r.example:5000": {"username": "port", "password": "4"},
        "*.wild.example": {"username": "wild", "password": "5"},
        "https://index.docker.io/v1/": {"username": "hub", "password": "6"}}}"#;

    #[test]
    fn the_longest_prefix_wins() {
        for (image, login) in [
            ("r.example/other", Some("whole:1")),
            ("r.example/teams", Some("whole:1")),
            ("r.example/team/other", Some("team:p:w")),
            ("r.example/team/redact", Some("one:3")),
            ("r.example/team/redact/more", Some("one:3")),
            ("r.example:5000/team/redact", Some("port:4")),
            ("eu.wild.example/a", Some("wild:5")),
            ("wild.example/a", None),
            ("a.b.wild.example/a", None),
            ("docker.io/a", Some("hub:6")),
            ("r.example.evil.example/a", None),
        ] {
            assert_eq!(found(CONFIG, image).as_deref(), login, "{image}");
        }
    }

    #[test]
    fn secrets_do_not_stand_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"r.example": {"auth": "c2VjcmV0"}}}"#).unwrap();
        let at = Access::default().origin(&"r.example/a".parse().unwrap());
        let Err(error) = login_for(&[path], &at) else { panic!("an entry without a colon is no login") };
        assert!(!error.to_string().contains("c2VjcmV0"));
    }
}
