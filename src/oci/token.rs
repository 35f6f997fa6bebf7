//! Tokens: what a registry's challenge asks for, and the tokens that were given, for as long as they are good.
//!
//! The scope is made here from the repository and what is about to be done. What the challenge asks for is
//! ignored: it is the registry's wish, and a wish for more than this request needs is not ours to grant.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use crate::oci::access::Endpoint;

/// What a request does to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Pull,
    Push,
}

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The first challenge that is understood; of both kinds, the token.
    pub(super) fn first<'a>(headers: impl Iterator<Item = &'a HeaderValue>) -> Option<Self> {
        let found: Vec<_> = headers.filter_map(|value| parse_challenge(value.to_str().ok()?)).collect();
        let is_bearer = |challenge: &&Self| matches!(challenge, Self::Bearer { .. });
        found.iter().find(is_bearer).or(found.first()).cloned()
    }
}

fn parse_challenge(text: &str) -> Option<Challenge> {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    for (name, value) in parameters(rest) {
        match name.to_ascii_lowercase().as_str() {
            "realm" if realm.is_none() => realm = Some(value),
            "service" if service.is_none() => service = Some(value),
            _ => {}
        }
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

/// `name=value` pairs, values plain or quoted, as far as they are well formed.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_owned();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((value, rest)) => (value, rest),
                None => break,
            },
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((name, value.trim().to_owned()));
        text = rest;
    }
    found
}

/// The URL to ask for a token.
pub(super) fn token_url(realm: &Url, service: Option<&str>, at: &Endpoint, action: Action) -> Url {
    let actions = match action {
        Action::Pull => "pull",
        Action::Push => "pull,push",
    };
    let mut url = realm.clone();
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    query.append_pair("scope", &format!("repository:{}:{actions}", at.repository));
    drop(query);
    url
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The `Authorization` header of a token answer, and how long it is good.
pub(super) fn read_token(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty())?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    // 60 s is what the specification says when nothing is said.
    let seconds = answer.expires_in.unwrap_or(60).clamp(10, 3_600);
    Some((value, Duration::from_secs(seconds - seconds / 10)))
}

/// Headers that worked, by place, repository and action.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<TokenKey, (HeaderValue, Instant)>>);

/// Authority, repository, action.
type TokenKey = (String, String, Action);

/// More places than this are not remembered: names come from users.
const MAX_TOKENS: usize = 1_000;

impl Tokens {
    fn key(at: &Endpoint, action: Action) -> TokenKey {
        (at.authority.clone(), at.repository.clone(), action)
    }

    pub(super) fn get(&self, at: &Endpoint, action: Action) -> Option<HeaderValue> {
        let tokens = self.0.lock();
        let (value, until) = tokens.get(&Self::key(at, action))?;
        (*until > Instant::now()).then(|| value.clone())
    }

    pub(super) fn put(&self, at: &Endpoint, action: Action, value: HeaderValue, good_for: Duration) {
        let mut tokens = self.0.lock();
        let now = Instant::now();
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, (_, until)| *until > now);
        }
        if tokens.len() < MAX_TOKENS {
            tokens.insert(Self::key(at, action), (value, now + good_for));
        }
    }

    pub(super) fn forget(&self, at: &Endpoint, action: Action) {
        self.0.lock().remove(&Self::key(at, action));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::access::Access;

    fn first(values: &[&'static str]) -> Option<Challenge> {
        let values: Vec<_> = values.iter().map(|value| HeaderValue::from_static(value)).collect();
        Challenge::first(values.iter())
    }

    #[test]
    fn challenges_are_understood() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        assert_eq!(first(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        let both =
            first(&["Basic", "Bearer realm=\"https://a/t?x=1,2\",service=\"s\",scope=\"repository:all:*\""]);
        assert_eq!(both, bearer("https://a/t?x=1,2", Some("s")));
        assert_eq!(first(&["bearer service=s, realm=https://a"]), bearer("https://a", Some("s")));
        assert_eq!(first(&["Bearer realm=\"https://a\", realm=\"https://b\""]), bearer("https://a", None));
        assert_eq!(first(&["Bearer service=\"s\""]), None);
        assert_eq!(first(&["Negotiate", "Bearer realm=\"x"]), None);
    }

    #[test]
    fn the_scope_is_our_own() {
        let at = Access::default().origin(&"r.example/team/a".parse().unwrap());
        let realm = Url::parse("https://r.example/token?account=x").unwrap();
        let url = token_url(&realm, Some("r & co"), &at, Action::Pull);
        assert_eq!(
            url.as_str(),
            "https://r.example/token?account=x&service=r+%26+co&scope=repository%3Ateam%2Fa%3Apull"
        );
    }

    #[test]
    fn tokens_are_read_and_marked_as_secret() {
        let (value, good_for) = read_token(br#"{"access_token": "abc", "expires_in": 300}"#).unwrap();
        assert!(value.is_sensitive() && value == "Bearer abc");
        assert_eq!(good_for, Duration::from_secs(270));
        assert!(read_token(br#"{"token": "a\nb"}"#).is_none());
        assert!(read_token(b"{}").is_none());
    }
}
