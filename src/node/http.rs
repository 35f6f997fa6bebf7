//! `/metrics`, `/healthz`, `/readyz`.
//!
//! Liveness is that the process answers. Readiness is that the control topic has been read and the node is not
//! draining; never a coprocessor's health.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::node::threads::{self, SpawnError, Stoppable};
use crate::telemetry::metrics::NodeMetrics;

/// The server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("listen on {address}: {error}: choose another address with --http, or `--http off`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// No runtime.
    #[error("start the HTTP server: {0}")]
    Runtime(std::io::Error),
    /// No thread.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// The server; it ends when this is dropped.
pub struct HttpServer {
    /// Where it listens.
    pub address: SocketAddr,
    _thread: Stoppable,
}

#[derive(Clone)]
struct Shown {
    metrics: Arc<NodeMetrics>,
    ready: Arc<AtomicBool>,
}

impl HttpServer {
    /// Starts to serve.
    pub fn start(
        address: SocketAddr,
        metrics: Arc<NodeMetrics>,
        ready: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let bind = |error| Error::Bind { address, error };
        let listener = std::net::TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        let thread = threads::spawn("coproc-http", move |stop| {
            let stop = stop.clone();
            runtime.block_on(serve(listener, Shown { metrics, ready }, stop));
        })?;
        Ok(Self { address, _thread: thread })
    }
}

async fn serve(listener: std::net::TcpListener, shown: Shown, stop: Arc<AtomicBool>) {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(shown);
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the HTTP server does not start: metrics and probes are not served");
            return;
        }
    };
    let stopped = async move {
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        // The order does not matter: either ends the server.
        biased;
        () = stopped => {}
        served = axum::serve(listener, app) => {
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP server ended: metrics and probes are not served");
            }
        }
    }
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.text())
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    if shown.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the control topic is being read, or the node is draining\n")
    }
}
