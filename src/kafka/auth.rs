//! Credentials: read from files each time they are used, so that they may rotate without a restart.
//!
//! Nothing here shows a secret: `Secret` has neither `Display` nor a telling `Debug`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tracing::info;

use super::config::{KafkaConfig, Mechanism};
use super::{error, ffi};
use crate::core::record::TimestampMs;
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

/// Reads a secret from a file; one line end at the end is not part of it.
pub(super) fn read_secret(file: &Path) -> Result<Secret, LogError> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        LogError::BadConfig(format!("cannot read the credential file {}: {error}", file.display()))
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

#[derive(Debug, Clone)]
enum Login {
    User { name: String, password_file: PathBuf },
    Files { name_file: PathBuf, password_file: PathBuf },
    Token { file: PathBuf },
}

/// How to log in.
#[derive(Debug, Clone)]
pub struct Credentials {
    mechanism: Mechanism,
    login: Login,
}

/// A bearer token.
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
        Self { mechanism: Mechanism::OauthBearer, login: Login::Token { file } }
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

    /// The token, now; `None` with a user.
    pub(super) fn bearer(&self) -> Result<Option<Token>, LogError> {
        let Login::Token { file } = &self.login else { return Ok(None) };
        let text = read_secret(file)?;
        let (principal, expires_ms) = claims(text.expose()).ok_or_else(|| {
            LogError::BadConfig(format!(
                "the token in {} is no JWT with the claims sub and exp",
                file.display()
            ))
        })?;
        if is_over(expires_ms) {
            // librdkafka would only say that an argument is invalid.
            return Err(LogError::BadConfig(format!(
                "the token in {} expired at {}: replace it with one that is still good",
                file.display(),
                rfc3339(expires_ms)
            )));
        }
        Ok(Some(Token { text, principal, expires_ms }))
    }

    /// Gives a client that nobody polls the token of now; nothing to do for a user.
    pub(super) fn hand_token(&self, client: ffi::Client) -> Result<(), LogError> {
        let Some(token) = self.bearer()? else { return Ok(()) };
        ffi::set_token(client, token.text.expose(), &token.principal, token.expires_ms)
            .map_err(|code| error::from_code(code, "cannot use the bearer token"))
    }

    fn files(&self) -> Vec<&Path> {
        match &self.login {
            Login::User { password_file, .. } => vec![password_file],
            Login::Files { name_file, password_file } => vec![name_file, password_file],
            Login::Token { file } => vec![file],
        }
    }
}

/// Whether a time is past.
#[expect(
    clippy::disallowed_methods,
    reason = "the issuer sets a token's end by the wall clock, and librdkafka reads that too"
)]
fn is_over(at: TimestampMs) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::from(at) <= now.as_millis().cast_signed()
}

/// Subject and expiry in milliseconds of a JWT. Its signature is the broker's business.
fn claims(token: &str) -> Option<(String, i64)> {
    let body = token.split('.').nth(1)?;
    let body: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
    let expires = body.get("exp")?.as_f64()?;
    Some((body.get("sub")?.as_str()?.to_owned(), (expires * 1000.0) as i64))
}

/// What changed on disk since it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    /// Passwords can be given to a living client.
    Login,
    /// Certificates cannot: the clients have to be made anew.
    Certificates,
}

/// Keeps the clients of one owner let in: watches the files of a configuration by their times of change, and hands
/// out what changed. To be made before the clients, so that nothing changes unnoticed in between.
#[derive(Debug)]
pub(super) struct Rotation {
    sasl: Option<Credentials>,
    login: Vec<PathBuf>,
    certificates: Vec<PathBuf>,
    seen: (Vec<Option<SystemTime>>, Vec<Option<SystemTime>>),
    looked: Instant,
    is_stale: bool,
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
        let certificates: Vec<_> = certificates.collect();
        let seen = (times(&login), times(&certificates));
        let sasl = config.sasl.clone();
        Self { sasl, login, certificates, seen, looked: Instant::now(), is_stale: false }
    }

    /// As `look`, unless that was done just now.
    pub(super) fn look_now_and_then(&mut self, clients: impl IntoIterator<Item = ffi::Client>) -> bool {
        if self.looked.elapsed() < Self::INTERVAL {
            return self.is_stale;
        }
        self.look(clients)
    }

    /// Gives a changed user and password to the clients, for their next connections. Whether certificates changed
    /// instead: then the clients, and this, have to be made anew.
    pub(super) fn look(&mut self, clients: impl IntoIterator<Item = ffi::Client>) -> bool {
        self.looked = Instant::now();
        match self.changed() {
            Changed::Nothing => {}
            Changed::Certificates => {
                info!("the TLS files changed: clients are made anew");
                self.is_stale = true;
            }
            Changed::Login => self.hand_out(clients),
        }
        self.is_stale
    }

    fn hand_out(&mut self, clients: impl IntoIterator<Item = ffi::Client>) {
        let (user, password) = match self.sasl.as_ref().map(Credentials::login) {
            Some(Ok(Some(login))) => login,
            // A token: clients ask for theirs.
            Some(Ok(None)) | None => return,
            Some(Err(error)) => {
                info!(%error, "the credentials changed and cannot be read: tried again");
                self.seen.0.clear();
                return;
            }
        };
        info!("the credentials changed: they are used from the next connection on");
        for client in clients {
            if let Err(error) = ffi::set_login(client, user.expose(), password.expose()) {
                info!(%error, "could not hand over the new credentials");
            }
        }
    }

    fn changed(&mut self) -> Changed {
        let now = (times(&self.login), times(&self.certificates));
        let before = std::mem::replace(&mut self.seen, now);
        if before.1 != self.seen.1 {
            Changed::Certificates
        } else if before.0 != self.seen.0 {
            Changed::Login
        } else {
            Changed::Nothing
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

    #[test]
    fn a_token_that_has_expired_is_named_with_its_time_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let credentials = Credentials::token(file.clone());
        let write = |expires: u64| {
            let body = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"admin","exp":{expires}}}"#));
            std::fs::write(&file, format!("e30.{body}.signature")).unwrap();
            body
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

    #[test]
    fn a_secret_ends_before_the_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        std::fs::write(&file, "a b \r\n").unwrap();
        assert_eq!(read_secret(&file).unwrap().expose(), "a b ");
        assert_eq!(format!("{:?}", read_secret(&file).unwrap()), "Secret(…)");
    }
}
