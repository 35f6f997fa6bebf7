//! Metrics and probes. A candidate that does not lead is ready: it would take over at once.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::operator::metrics::Metrics;

/// Counts what is in the caches, just before it is read.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// Serves until `stop` ends.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    refresh: Refresh,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let render = move || {
        refresh();
        std::future::ready(metrics.render())
    };
    let routes = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| std::future::ready("ok")))
        .route("/readyz", get(|| std::future::ready("ok")));
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}
