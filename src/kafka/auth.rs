//! Credentials: read from files each time they are used, so that they may rotate without a restart.
//!
//! Nothing here shows a secret: `Secret` has neither `Display` nor a telling `Debug`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rdkafka::producer::BaseProducer;
use tracing::{info, warn};

use super::config::{KafkaConfig, Mechanism};
use super::context::Context;
use super::{error, ffi};
use crate::core::record::TimestampMs;
use crate::core::secret;
use crate::core::status::rfc3339;
use crate::ports::LogError;

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the client that needs it.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads a secret from a file.
pub(super) fn read_secret(file: &Path) -> Result<Secret, LogError> {
    let at = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| LogError::BadConfig(format!("cannot read the credential file {at}: {error}")))?;
    let secret = secret::in_text(&text)
        .map_err(|problem| LogError::BadConfig(format!("the credential file {at} {problem}")))?;
    Ok(Secret(secret.to_owned()))
}

#[derive(Debug, Clone)]
enum Login {
    User {
        name: String,
        password_file: PathBuf,
    },
    Files {
        name_file: PathBuf,
        password_file: PathBuf,
    },
    Token {
        file: PathBuf,
        /// What was last good in it, for all clients of the configuration: a file is missing or half written for a moment.
        last: Arc<Mutex<Option<Token>>>,
    },
}

/// How to log in.
#[derive(Debug, Clone)]
pub struct Credentials {
    mechanism: Mechanism,
    login: Login,
}

/// A bearer token.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) text: Secret,
    pub(super) principal: String,
    pub(super) expires_ms: TimestampMs,
}

impl Credentials {
    /// A user whose password stands in a file.
    pub fn user(mechanism: Mechanism, name: String, password_file: PathBuf) -> Self {
        Self { mechanism, login: Login::User { name, password_file } }
    }

    /// A user whose name and password stand in files.
    pub fn user_file(mechanism: Mechanism, name_file: PathBuf, password_file: PathBuf) -> Self {
        Self { mechanism, login: Login::Files { name_file, password_file } }
    }

    /// A bearer token in a file.
    pub fn token(file: PathBuf) -> Self {
        Self { mechanism: Mechanism::OauthBearer, login: Login::Token { file, last: Arc::default() } }
    }

    /// The mechanism.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// User and password, now; `None` with a token.
    pub(super) fn login(&self) -> Result<Option<(Secret, Secret)>, LogError> {
        match &self.login {
            Login::User { name, password_file } => {
                Ok(Some((Secret(name.clone()), read_secret(password_file)?)))
            }
            Login::Files { name_file, password_file } => {
                Ok(Some((read_secret(name_file)?, read_secret(password_file)?)))
            }
            Login::Token { .. } => Ok(None),
        }
    }

    /// The token of now, `None` with a user. The last good one as long as it lasts, where the file has none.
    pub(super) fn bearer(&self) -> Result<Option<Token>, LogError> {
        let Login::Token { file, last } = &self.login else { return Ok(None) };
        let error = match read_token(file) {
            Ok(token) => return Ok(Some(last.lock().insert(token).clone())),
            Err(error) => error,
        };
        let last = last.lock().clone().filter(|token| !is_over(token.expires_ms));
        let Some(token) = last else { return Err(error) };
        let until = rfc3339(token.expires_ms);
        warn!(%error, until, "there is no good token: the one from before is used for as long as it lasts");
        Ok(Some(token))
    }

    /// Gives a client that nobody polls the token of now; nothing to do for a user.
    pub(super) fn hand_token(&self, client: ffi::Client) -> Result<(), LogError> {
        self.bearer()?.map_or(Ok(()), |token| token.hand_to(client))
    }

    fn files(&self) -> Vec<&Path> {
        match &self.login {
            Login::User { password_file, .. } => vec![password_file],
            Login::Files { name_file, password_file } => vec![name_file, password_file],
            Login::Token { file, .. } => vec![file],
        }
    }
}

impl Token {
    fn hand_to(&self, client: ffi::Client) -> Result<(), LogError> {
        ffi::set_token(client, self.text.expose(), &self.principal, self.expires_ms)
            .map_err(|code| error::from_code(code, "cannot use the bearer token"))
    }
}

fn read_token(file: &Path) -> Result<Token, LogError> {
    let text = read_secret(file)?;
    let bad = |what: String| LogError::BadConfig(format!("the token in {} {what}", file.display()));
    // librdkafka would say so as well, and quote the token.
    if !text.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = "has a character that is no printable ASCII, for instance a byte order mark or a blank";
        return Err(bad(format!("{what}: write the token as it was issued")));
    }
    let (principal, expires_ms) =
        claims(text.expose()).ok_or_else(|| bad("is no JWT with the claims sub and exp".to_owned()))?;
    if is_over(expires_ms) {
        // librdkafka would only say that an argument is invalid.
        let at = rfc3339(expires_ms);
        return Err(bad(format!("expired at {at}: replace it with one that is still good")));
    }
    Ok(Token { text, principal, expires_ms })
}

/// Files that are older than this are all written: they may be changed one after the other.
const SETTLED: Duration = Duration::from_secs(1);
/// How seldom files that cannot be used are tried in the end. A try costs a few kilobytes for good: librdkafka's bindings keep the
/// configuration of a client that could not be made.
const LEAST_OFTEN: Duration = Duration::from_mins(10);

#[expect(
    clippy::disallowed_methods,
    reason = "issuers set the end of a token by the wall clock, as librdkafka reads it, and files are dated by it"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Whether a time is past.
fn is_over(at: TimestampMs) -> bool {
    let now = wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::from(at) <= now.as_millis().cast_signed()
}

/// What is dated in the future is no younger than anything else.
fn is_older_than(time: SystemTime, age: Duration) -> bool {
    wall_clock().duration_since(time).is_ok_and(|old| old >= age) || time > wall_clock()
}

/// Subject and expiry in milliseconds of a JWT. Its signature is the broker's business.
fn claims(token: &str) -> Option<(String, i64)> {
    let body = token.split('.').nth(1)?;
    let body: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
    let expires = body.get("exp")?.as_f64()?;
    Some((body.get("sub")?.as_str()?.to_owned(), (expires * 1000.0) as i64))
}

/// Keeps the clients of one owner let in: watches the files of a configuration by their times of change, and hands
/// out what changed. To be made before the clients, so that nothing changes unnoticed in between.
#[derive(Debug)]
pub(super) struct Rotation {
    config: KafkaConfig,
    login: Files,
    certificates: Files,
    looked: Instant,
    is_stale: bool,
}

/// Files of one kind.
#[derive(Debug)]
struct Files {
    all: Vec<PathBuf>,
    seen: Vec<Option<SystemTime>>,
    /// They changed, and nobody has tried them since.
    are_new: bool,
    unusable: Option<Unusable>,
}

/// What came of the last try, if it failed.
#[derive(Debug)]
struct Unusable {
    at: Instant,
    /// After which they are tried again.
    wait: Duration,
    why: String,
}

impl Files {
    fn new(all: Vec<PathBuf>) -> Self {
        Self { seen: times(&all), all, are_new: false, unusable: None }
    }

    /// Whether they are to be tried: they changed, or could not be used when they were last tried. Not while somebody writes them.
    fn want_a_try(&mut self) -> bool {
        let now = times(&self.all);
        if now != self.seen {
            (self.seen, self.are_new, self.unusable) = (now, true, None);
        }
        let is_due = |unusable: &Unusable| unusable.at.elapsed() >= unusable.wait;
        let are_written = self.seen.iter().flatten().max().is_none_or(|last| is_older_than(*last, SETTLED));
        are_written && self.unusable.as_ref().map_or(self.are_new, is_due)
    }

    /// What came of trying them. Whether they are good.
    fn tried(&mut self, result: Result<(), LogError>, what: &str) -> bool {
        self.are_new = false;
        let before = self.unusable.take();
        let Err(error) = result else { return true };
        let why = error.to_string();
        let wait = before.as_ref().map_or(Rotation::INTERVAL, |before| (before.wait * 2).min(LEAST_OFTEN));
        if before.is_none_or(|before| before.why != why) || wait == LEAST_OFTEN {
            warn!("the {what} changed and cannot be used, what was there before stays in use: {why}");
        }
        self.unusable = Some(Unusable { at: Instant::now(), wait, why });
        false
    }
}

impl Rotation {
    /// How often it is worth looking for who comes by all the time.
    pub(super) const INTERVAL: Duration = Duration::from_secs(5);

    pub(super) fn new(config: &KafkaConfig) -> Self {
        let login: Vec<_> = config.sasl.iter().flat_map(Credentials::files).map(Path::to_owned).collect();
        let certificates = config.tls.iter().flat_map(|tls| {
            let identity = tls.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
            tls.ca_file.iter().chain(identity).chain(&tls.key_password_file).cloned().collect::<Vec<_>>()
        });
        let (login, certificates) = (Files::new(login), Files::new(certificates.collect()));
        Self { config: config.clone(), login, certificates, looked: Instant::now(), is_stale: false }
    }

    /// As `look`, unless that was done just now.
    pub(super) fn look_now_and_then(&mut self, clients: impl IntoIterator<Item = ffi::Client>) -> bool {
        if self.looked.elapsed() < Self::INTERVAL {
            return self.is_stale;
        }
        self.look(clients)
    }

    /// Gives a changed user and password, or token, to the clients, for their next connections. Whether certificates changed
    /// instead, to others that can be used: then the clients, and this, have to be made anew.
    pub(super) fn look(&mut self, clients: impl IntoIterator<Item = ffi::Client>) -> bool {
        self.looked = Instant::now();
        if self.certificates.want_a_try() && self.certificates.tried(try_out(&self.config), "TLS files") {
            info!("the TLS files changed: clients are made anew");
            self.is_stale = true;
        }
        if let Some(sasl) = self.config.sasl.as_ref().filter(|_| self.login.want_a_try())
            && self.login.tried(hand_out(sasl, clients), "credentials")
        {
            info!("the credentials changed: they are used from the next connection on");
        }
        self.is_stale
    }
}

/// Whether clients can be made with the certificates of now: certificate and key may be written one after the other.
fn try_out(config: &KafkaConfig) -> Result<(), LogError> {
    let client: Result<BaseProducer<Context>, _> = config.client()?.create_with_context(Context::new(config));
    client.map(drop).map_err(|error| error::from_kafka(&error, "no client can be made with them"))
}

fn hand_out(sasl: &Credentials, clients: impl IntoIterator<Item = ffi::Client>) -> Result<(), LogError> {
    match &sasl.login {
        Login::Token { file, last } => {
            let token = last.lock().insert(read_token(file)?).clone();
            clients.into_iter().try_for_each(|client| token.hand_to(client))
        }
        Login::User { .. } | Login::Files { .. } => {
            let Some((user, password)) = sasl.login()? else { return Ok(()) };
            clients.into_iter().try_for_each(|client| {
                ffi::set_login(client, user.expose(), password.expose())
                    .map_err(|code| error::from_code(code, "cannot hand over the new credentials"))
            })
        }
    }
}

fn times(files: &[PathBuf]) -> Vec<Option<SystemTime>> {
    files.iter().map(|file| std::fs::metadata(file).and_then(|meta| meta.modified()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_claims_of_a_token() {
        let body = URL_SAFE_NO_PAD.encode(r#"{"sub":"admin","exp":1700000000}"#);
        assert_eq!(claims(&format!("e30.{body}.")), Some(("admin".to_owned(), 1_700_000_000_000)));
        assert_eq!(claims("e30.x.y"), None);
    }

    fn token(expires: u64) -> String {
        let body = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"admin","exp":{expires}}}"#));
        format!("e30.{body}.signature")
    }

    /// Files are rewritten in the midst of things.
    #[test]
    fn the_last_good_token_is_used_while_its_file_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let credentials = Credentials::token(file.clone());
        assert!(credentials.bearer().is_err());
        std::fs::write(&file, token(100_000_000_000)).unwrap();
        let good = credentials.bearer().unwrap().unwrap();
        for bad in ["", "half.a", &token(1_700_000_000)] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(credentials.clone().bearer().unwrap().unwrap().text, good.text);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(credentials.bearer().unwrap().unwrap().text, good.text);
    }

    /// librdkafka refuses it, too, and quotes it.
    #[test]
    fn a_token_with_characters_that_no_token_has_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let good = token(100_000_000_000);
        for bad in
            [format!("\u{feff}{good}"), format!("{good} "), format!("{good}\u{a0}"), format!("{good}\n\n")]
        {
            std::fs::write(&file, &bad).unwrap();
            let said = Credentials::token(file.clone()).bearer().map(drop).unwrap_err().to_string();
            assert!(said.contains(file.to_str().unwrap()) && said.contains("printable ASCII"), "{said}");
            assert!(!said.contains(&good), "{said}");
        }
    }

    #[test]
    fn a_bad_secret_is_named_by_its_file_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, " hunter2").unwrap();
        let said = read_secret(&file).unwrap_err().to_string();
        assert!(said.contains(file.to_str().unwrap()) && said.contains("begins with a blank"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
        std::fs::write(&file, "hunter2\n").unwrap();
        assert_eq!(read_secret(&file).unwrap().expose(), "hunter2");
        assert_eq!(format!("{:?}", read_secret(&file).unwrap()), "Secret(…)");
    }

    /// The certificate of some authority.
    const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBcDCCARegAwIBAgIULxtahls5V/nVFcUL649gSfr+su8wCgYIKoZIzj0EAwIw\n\
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIzMTIwNjE4WhgPMjEyNjEwMzAxMjA2MTha\n\
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAETAdOu+hY\n\
/FMQ4fkejMLOSO92GVavqlLFZnpWLiw5j1mOPP3L4OQ+KoyMnItEy4UE1eZJ4K50\n\
UWqOgCN7i0p3AaNTMFEwHQYDVR0OBBYEFAU8aJdXRrQgYTqad6Qu3pDPP8AvMB8G\n\
A1UdIwQYMBaAFAU8aJdXRrQgYTqad6Qu3pDPP8AvMA8GA1UdEwEB/wQFMAMBAf8w\n\
CgYIKoZIzj0EAwIDRwAwRAIgJMEfUcQbYzuGuQOLtdrlVcssfb5drvw87en1BCOs\n\
lfMCIBvX1WcTah3fa2VME0dng2ek3qCv9QKBZNPYZmNzGp6n\n\
-----END CERTIFICATE-----\n";

    /// They are written one after the other, and a client that was given up for such a moment would be missed.
    #[test]
    fn certificates_count_once_they_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let good = AUTHORITY;
        std::fs::write(&file, good).unwrap();
        let mut config = KafkaConfig::plain(["127.0.0.1:1"]);
        let tls = super::super::config::Tls { ca_file: Some(file.clone()), ..Default::default() };
        config.tls = Some(tls);
        let mut rotation = Rotation::new(&config);
        let mut look = |text: Option<&str>, at| {
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            // Two writes may have one time.
            if text.is_some() {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
                std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
            }
            rotation.look([])
        };
        assert!(!look(Some(&good[..good.len() / 2]), 1));
        assert!(!look(Some(""), 2));
        assert!(!look(None, 3));
        assert!(look(Some(good), 4));
    }

    #[test]
    fn a_token_that_has_expired_is_named_with_its_time_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let credentials = Credentials::token(file.clone());
        let write = |expires: u64| {
            std::fs::write(&file, token(expires)).unwrap();
            token(expires)
        };
        let body = write(1_700_000_000);
        let error = credentials.bearer().map(drop).unwrap_err();
        assert!(matches!(error, LogError::BadConfig(_)), "{error:?}");
        let said = error.to_string();
        let parts = [file.to_str().unwrap(), "expired at 2023-11-14T22:13:20.000Z", "replace it"];
        assert!(parts.iter().all(|part| said.contains(part)) && !said.contains(&body), "{said}");
        write(100_000_000_000);
        assert_eq!(credentials.bearer().unwrap().unwrap().principal, "admin");
    }
}
