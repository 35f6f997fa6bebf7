//! Metrics and probes. A candidate that does not lead is ready: it would take over at once. A leader is once it has seen every
//! resource: not while the API server is away or lacks the definitions.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::operator::metrics::Metrics;

/// Counts what is in the caches, just before it is read.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// Whether the operator does its work.
pub type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

const NOT_READY: &str =
    "the resources have not been listed yet: is the API server there, and are the definitions installed?";

/// Serves until `stop` ends.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    refresh: Refresh,
    ready: Ready,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let render = move || {
        refresh();
        std::future::ready(metrics.render())
    };
    let readyz = move || {
        let answer =
            if ready() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, NOT_READY) };
        std::future::ready(answer)
    };
    let routes = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| std::future::ready("ok")))
        .route("/readyz", get(readyz));
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_is_ready_when_it_says_so() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let is_ready = Arc::new(AtomicBool::new(false));
        let ready = is_ready.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = serve(
            address,
            Metrics::new().unwrap(),
            Arc::new(|| {}),
            Arc::new(move || ready.load(Ordering::Relaxed)),
            async { drop(stopped.await) },
        );
        let asks = async {
            let answer = ask(address, "/readyz").await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(NOT_READY), "{answer}");
            assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
            is_ready.store(true, Ordering::Relaxed);
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
            drop(stop);
        };
        let (served, ()) = tokio::join!(server, asks);
        served.unwrap();
    }
}
