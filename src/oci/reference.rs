//! The name of an image: `registry/name[:tag][@sha256:…]`, parsed once.
//!
//! Stricter than Docker: the registry must be written. `redact:1.2` as a short name for something on one
//! company's registry is how images get confused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::core::digest::Digest;

/// A registry's name as people write it, with its port: `registry.example:5000`. Lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryName(String);

/// An image's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: RegistryName,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image {text:?} is not of the form registry/name:tag or registry/name@sha256:…: {reason}")]
pub struct BadReference {
    text: String,
    reason: &'static str,
}

impl RegistryName {
    /// Host and port.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host alone, without brackets around an IPv6 address.
    pub fn host(&self) -> &str {
        host_of(&self.0)
    }

    /// The registry as a list of hosts names it: the host, under any port.
    pub fn host_pattern(&self) -> String {
        if self.0.starts_with('[') { format!("[{}]", self.host()) } else { self.host().to_owned() }
    }

    /// Whether a port is written.
    pub(super) fn has_port(&self) -> bool {
        match self.0.strip_prefix('[') {
            Some(address) => !address.ends_with(']'),
            None => self.0.contains(':'),
        }
    }
}

/// The host of `host[:port]`, without brackets around an IPv6 address.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RegistryName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => {
                address.parse::<std::net::Ipv6Addr>().map_err(|_| "the registry is no IPv6 address")?;
                ("v6", port.strip_prefix(':').or((!port.is_empty()).then_some("?")))
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if host.len() > 253 || !host.split('.').all(is_label) {
            return Err("the registry is no host name");
        }
        let is_port = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
        };
        if port.is_some_and(|port| !is_port(port)) {
            return Err("the registry's port is no number from 1 to 65535");
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl Reference {
    /// The registry.
    pub fn registry(&self) -> &RegistryName {
        &self.registry
    }

    /// The name within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one is written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, if one is written.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What to ask the registry for: the digest, else the tag, else `latest`.
    pub(super) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same image, pinned to this manifest. The tag stays, for people.
    #[must_use]
    pub fn pinned(&self, manifest: Digest) -> Self {
        Self { digest: Some(manifest), ..self.clone() }
    }

    /// The same repository, another tag.
    pub(super) fn with_tag(&self, tag: String) -> Self {
        Self { tag: Some(tag), digest: None, ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        parse(text).map_err(|reason| BadReference { text: text.chars().take(300).collect(), reason })
    }
}

impl TryFrom<String> for Reference {
    type Error = BadReference;

    fn try_from(text: String) -> Result<Self, BadReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            (name, Some(digest.parse().map_err(|_| "after the @ stands no sha256 digest in lower case")?))
        }
        None => (text, None),
    };
    let (registry, rest) = name.split_once('/').ok_or("there is no registry in front of the name")?;
    if !(registry.contains(['.', ':']) || registry == "localhost") {
        return Err("the registry in front of the name needs a dot or a port");
    }
    let registry: RegistryName = registry.parse()?;
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if repository.len() > 255 || !repository.split('/').all(is_path_component) {
        return Err(
            "the name has parts of lower-case letters, digits and single separators, like team/redact",
        );
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag has at most 128 letters, digits, dots, dashes and underscores");
    }
    let is_official = registry.as_str() == "docker.io" && !repository.contains('/');
    let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
    Ok(Reference { registry, repository, tag: tag.map(str::to_owned), digest })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, as the distribution specification has it.
fn is_path_component(part: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_plain =
        bytes.first().copied().is_some_and(is_plain) && bytes.last().copied().is_some_and(is_plain);
    let runs = part.split(|c: char| c.is_ascii() && is_plain(c as u8)).filter(|run| !run.is_empty());
    let is_separator = |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    ends_plain && runs.into_iter().all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest() -> String {
        format!("sha256:{}", "ab".repeat(32))
    }

    #[test]
    fn images_go_both_ways() {
        let pinned = format!("127.0.0.1:5000/team/redact:1.2.0@{}", digest());
        for text in [
            "registry.example/redact:1.2.0",
            "localhost/redact",
            "registry.example:5000/a/b_c/d--e:latest",
            "[::1]:5000/a:1",
            &pinned,
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
        let reference: Reference = pinned.parse().unwrap();
        assert_eq!(reference.registry().host(), "127.0.0.1");
        assert_eq!((reference.repository(), reference.tag()), ("team/redact", Some("1.2.0")));
        assert_eq!(reference.wanted(), digest());
        let official: Reference = "docker.io/redact".parse().unwrap();
        assert_eq!((official.repository(), official.wanted().as_str()), ("library/redact", "latest"));
    }

    #[test]
    fn other_texts_are_refused() {
        let upper = format!("r.example/a@{}", digest().to_uppercase());
        for bad in [
            "",
            "redact",
            "redact:1",
            "team/redact:1",
            "r.example/",
            "r.example/A",
            "r.example/a//b",
            "r.example/../b",
            "r.example/a:",
            "r.example/a:-x",
            "r.example/a@sha256:00",
            "r.example:0/a",
            "r.example:99999/a",
            "r.example:5000:1/a",
            "user@r.example/a",
            "https://r.example/a",
            "r.exa mple/a",
            "r.example/a?b",
            "r.example/a\u{0}",
            "[::1/a",
            "[::1]x/a",
            &upper,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_to_itself(text in "\\PC{0,40}|[a-z.:/@_-]{0,30}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }
    }
}
