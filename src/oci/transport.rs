//! HTTP with a registry that is not trusted: who is asked, with which credentials, for how long, for how much.
//!
//! Redirects are followed by hand, because each hop is checked and credentials stay with the registry. Every
//! body is read in pieces up to a limit; nothing is collected before its size is known to be allowed.

use std::collections::hash_map::RandomState;
use std::error::Error as _;
use std::future::Future;
use std::hash::BuildHasher;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::runtime::Runtime;

use crate::core::retry::RetrySchedule;
use crate::oci::access::{Access, Endpoint};
use crate::oci::addresses::{AddressRefused, GuardedResolver};
use crate::oci::body::{BodySink, Window, registry_words};
use crate::oci::config::{Limits, OciConfig};
use crate::oci::credentials::{Login, login_for};
use crate::oci::error::OciError;
use crate::oci::token::{Action, Challenge, Tokens, read_token, token_url};

const MAX_REDIRECTS: usize = 4;
const MAX_TOKEN_BYTES: u64 = 64 << 10;
const MAX_ERROR_BYTES: u64 = 4 << 10;
const RETRIES: RetrySchedule =
    RetrySchedule { initial: Duration::from_millis(200), max: Duration::from_secs(5) };

/// One request.
pub(super) struct Call<'a> {
    pub(super) at: &'a Endpoint,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) accept: Option<&'static str>,
    pub(super) body: Option<(&'a str, &'a [u8])>,
    pub(super) action: Action,
    /// What is asked for, for people.
    pub(super) what: &'a str,
    /// Most bytes of the answer.
    pub(super) limit: u64,
    /// Longest time with all retries.
    pub(super) total: Duration,
}

impl<'a> Call<'a> {
    /// A request that reads.
    pub(super) fn get(at: &'a Endpoint, rest: &str, what: &'a str, limit: u64, total: Duration) -> Self {
        let url = at.url(rest);
        Self {
            at,
            method: Method::GET,
            url,
            accept: None,
            body: None,
            action: Action::Pull,
            what,
            limit,
            total,
        }
    }
}

/// The client.
pub(super) struct Transport {
    // `None` only while it is dropped.
    runtime: Option<Runtime>,
    http: Client,
    /// Whether there are certificates that servers' can be checked with.
    has_authorities: bool,
    access: Arc<Access>,
    limits: Limits,
    secrets: Vec<PathBuf>,
    tokens: Tokens,
    random: RandomState,
}

impl Drop for Transport {
    /// Waits for nothing, so that the client may be dropped on a thread of another runtime.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Transport {
    pub(super) fn new(config: &OciConfig) -> Result<Self, OciError> {
        let fault = |what: &str, reason: String| OciError::ReadConfig { what: what.to_owned(), reason };
        // Another part of the process may have installed a provider: either will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let built = client(config).tls_certs_merge(config.certificates.iter().cloned()).build();
        let (http, has_authorities) = match built {
            Ok(http) => Ok((http, true)),
            // The verifier does not start without any certificate. Registries without TLS need none.
            Err(_) if config.certificates.is_empty() => {
                client(config).tls_certs_only([]).build().map(|http| (http, false))
            }
            Err(error) => Err(error),
        }
        .map_err(|error| fault("the HTTP client does not start", chain(&error)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("oci")
            .enable_all()
            .build()
            .map_err(|error| fault("the HTTP client does not start", error.to_string()))?;
        Ok(Self {
            runtime: Some(runtime),
            http,
            has_authorities,
            access: Arc::clone(&config.access),
            limits: config.limits,
            secrets: config.pull_secret_files.clone(),
            tokens: Tokens::default(),
            random: RandomState::new(),
        })
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Makes the request, writes the body of its answer to the sink, and gives the answer's headers.
    pub(super) fn run(&self, call: &Call<'_>, sink: &mut dyn BodySink) -> Result<HeaderMap, OciError> {
        let Some(runtime) = &self.runtime else { return Err(timed_out(call, Duration::ZERO)) };
        runtime.block_on(async {
            let all = self.with_retries(call, sink);
            tokio::time::timeout(call.total, all).await.unwrap_or_else(|_| Err(timed_out(call, call.total)))
        })
    }

    async fn with_retries(&self, call: &Call<'_>, sink: &mut dyn BodySink) -> Result<HeaderMap, OciError> {
        let mut attempt = 1;
        loop {
            sink.restart()?;
            let error = match self.attempt(call, sink).await {
                Ok(headers) => return Ok(headers),
                Err(error) => error,
            };
            if !error.is_worth_retrying() || attempt >= self.limits.attempts {
                return Err(error);
            }
            let asked = error.retry_after().unwrap_or_default().min(self.limits.max_retry_after);
            let wait = RETRIES.delay(attempt, self.jitter(attempt)).max(asked);
            tracing::debug!(host = call.at.authority, what = call.what, %error, ?wait, "asking the registry again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    fn jitter(&self, attempt: u32) -> f64 {
        let hash = self.random.hash_one((attempt, Instant::now()));
        (hash % 1_024) as f64 / 1_024.0
    }

    async fn attempt(&self, call: &Call<'_>, sink: &mut dyn BodySink) -> Result<HeaderMap, OciError> {
        let response = self.authorized(call).await?;
        let status = response.status();
        let headers = response.headers().clone();
        if status.is_success() {
            if call.method != Method::HEAD {
                self.read_body(call, response, call.limit, sink).await?;
            }
            return Ok(headers);
        }
        Err(self.failure(call, response).await)
    }

    /// Sends the request; when the registry asks for credentials, again with those that are configured for it.
    async fn authorized(&self, call: &Call<'_>) -> Result<Response, OciError> {
        let known = self.tokens.get(call.at, call.action);
        let response = self.follow(call, known).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.tokens.forget(call.at, call.action);
        let login = login_for(&self.secrets, call.at)?;
        let challenge = Challenge::first(response.headers().get_all(WWW_AUTHENTICATE).iter());
        let (header, good_for) = match (challenge, &login) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.ask_for_token(call, &realm, service.as_deref(), login.as_ref()).await?
            }
            (Some(Challenge::Basic), Some(login)) => (secret(&login.basic(), call)?, Duration::from_mins(5)),
            _ => return Err(denied(call, login.is_some())),
        };
        let response = self.follow(call, Some(header.clone())).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(denied(call, login.is_some()));
        }
        self.tokens.put(call.at, call.action, header, good_for);
        Ok(response)
    }

    async fn ask_for_token(
        &self,
        call: &Call<'_>,
        realm: &str,
        service: Option<&str>,
        login: Option<&Login>,
    ) -> Result<(HeaderValue, Duration), OciError> {
        let realm = Url::parse(realm).map_err(|_| bad_answer(call, "its token realm is no URL"))?;
        self.access.check_realm(call.at, &realm)?;
        let url = token_url(&realm, service, call.at, call.action);
        let mut request = self.http.get(url);
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, secret(&login.basic(), call)?);
        }
        let response = self.send(call, request).await?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(denied(call, login.is_some())),
            _ => return Err(self.failure(call, response).await),
        }
        let mut body = Vec::new();
        self.read_body(call, response, MAX_TOKEN_BYTES, &mut body).await?;
        read_token(&body).ok_or_else(|| bad_answer(call, "its token server gave no token"))
    }

    /// Sends the request, and follows redirects of reading requests to where that is allowed.
    async fn follow(
        &self,
        call: &Call<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, OciError> {
        let mut url = Url::parse(&call.url).map_err(|error| bad_answer(call, &error.to_string()))?;
        self.access.check_literal(&url)?;
        let mut with_credentials = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.request(call.method.clone(), url.clone());
            if let Some(accept) = call.accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some((media_type, body)) = &call.body {
                request = request.header(CONTENT_TYPE, *media_type).body(body.to_vec());
            }
            if let Some(value) = authorization.as_ref().filter(|_| with_credentials) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let response = self.send(call, request).await?;
            let is_reading = matches!(call.method, Method::GET | Method::HEAD);
            if !(is_reading && matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)) {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let target = target.ok_or_else(|| bad_answer(call, "it redirects to nowhere"))?;
            url = url.join(target).map_err(|_| bad_answer(call, "it redirects to what is no URL"))?;
            // Once away, credentials stay away, also when the way leads back.
            with_credentials &= self.access.check_redirect(call.at, &url)?;
        }
        Err(bad_answer(call, "it redirects in circles"))
    }

    async fn send(&self, call: &Call<'_>, request: reqwest::RequestBuilder) -> Result<Response, OciError> {
        let request = request.build().map_err(|error| connection_error(call, &error))?;
        if request.url().scheme() == "https" && !self.has_authorities {
            let host = request.url().host_str().unwrap_or_default().to_owned();
            return Err(OciError::NoAuthorities { host });
        }
        let sent = within(call, self.limits.connect + self.limits.read, self.http.execute(request)).await?;
        sent.map_err(|error| connection_error(call, &error))
    }

    /// Reads a body in pieces: not more than the limit, not slower than allowed.
    async fn read_body(
        &self,
        call: &Call<'_>,
        mut response: Response,
        limit: u64,
        sink: &mut dyn BodySink,
    ) -> Result<(), OciError> {
        let too_large =
            || OciError::TooLarge { what: format!("{} from {}", call.what, call.at.authority), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let (mut total, mut window) = (0u64, Window::new());
        loop {
            let piece = within(call, self.limits.read, response.chunk()).await?;
            let Some(piece) = piece.map_err(|error| connection_error(call, &error))? else { return Ok(()) };
            total += piece.len() as u64;
            if total > limit {
                return Err(too_large());
            }
            if window.is_too_slow(piece.len() as u64, &self.limits) {
                let (host, what) = (call.at.authority.clone(), call.what.to_owned());
                return Err(OciError::TooSlow { host, what, least: self.limits.bytes_per_second });
            }
            sink.write(&piece)?;
        }
    }

    /// What an answer says that is no success.
    async fn failure(&self, call: &Call<'_>, response: Response) -> OciError {
        let (host, what) = (call.at.authority.clone(), call.what.to_owned());
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND => return OciError::NotFound { host, what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let credentials = "it forbids that to whoever asks with the pull secrets there are";
                return OciError::Denied { host, what, credentials };
            }
            _ => {}
        }
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let mut body = Vec::new();
        let _ = self.read_body(call, response, MAX_ERROR_BYTES, &mut body).await;
        OciError::Status { host, what, status: status.as_u16(), detail: registry_words(&body), retry_after }
    }
}

/// What every client is made from.
fn client(config: &OciConfig) -> reqwest::ClientBuilder {
    Client::builder()
        .dns_resolver(GuardedResolver(Arc::clone(&config.access)))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .connect_timeout(config.limits.connect)
        .user_agent(concat!("coproc/", env!("CARGO_PKG_VERSION")))
        .pool_max_idle_per_host(4)
}

async fn within<T>(call: &Call<'_>, wait: Duration, future: impl Future<Output = T>) -> Result<T, OciError> {
    tokio::time::timeout(wait, future).await.map_err(|_| timed_out(call, wait))
}

fn timed_out(call: &Call<'_>, after: Duration) -> OciError {
    OciError::TimeOut { host: call.at.authority.clone(), what: call.what.to_owned(), after }
}

fn denied(call: &Call<'_>, had_login: bool) -> OciError {
    let credentials = if had_login {
        "the credentials in the pull secrets are not enough for it"
    } else {
        "no pull secret is for it"
    };
    OciError::Denied { host: call.at.authority.clone(), what: call.what.to_owned(), credentials }
}

fn bad_answer(call: &Call<'_>, reason: &str) -> OciError {
    let (host, what) = (call.at.authority.clone(), call.what.to_owned());
    OciError::BadAnswer { host, what, reason: reason.to_owned() }
}

fn secret(text: &str, call: &Call<'_>) -> Result<HeaderValue, OciError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| denied(call, true))?;
    value.set_sensitive(true);
    Ok(value)
}

fn connection_error(call: &Call<'_>, error: &reqwest::Error) -> OciError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(refused) = inner.downcast_ref::<AddressRefused>() {
            let (host, address) = (refused.host.clone(), refused.address.clone());
            return OciError::RefuseAddress { host, address };
        }
        source = inner.source();
    }
    OciError::Connect { host: call.at.authority.clone(), reason: chain(error) }
}

/// The innermost causes, without the URL: its query may be a secret.
fn chain(error: &reqwest::Error) -> String {
    let mut parts = Vec::new();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        source = inner.source();
    }
    if parts.is_empty() { "the request cannot be made".to_owned() } else { parts.join(": ") }
}
