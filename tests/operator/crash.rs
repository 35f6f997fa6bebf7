//! A client whose process dies at a write: from then on nothing is sent, and no call comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use tokio::sync::Notify;
use tower::Service;

use crate::cluster::{client, config};

#[derive(Default)]
struct Fate {
    writes: AtomicUsize,
    is_dead: AtomicBool,
}

#[derive(Clone)]
struct Dying<S> {
    inner: S,
    at_write: usize,
    is_after: bool,
    fate: Arc<Fate>,
    told: Arc<Notify>,
}

impl<S> Service<axum::http::Request<Body>> for Dying<S>
where
    S: Service<axum::http::Request<Body>>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: axum::http::Request<Body>) -> Self::Future {
        if self.fate.is_dead.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        let is_write = request.method() != "GET";
        if !is_write || self.fate.writes.fetch_add(1, Ordering::SeqCst) + 1 != self.at_write {
            return Box::pin(self.inner.call(request));
        }
        self.fate.is_dead.store(true, Ordering::SeqCst);
        let (told, sent) = (self.told.clone(), self.is_after.then(|| self.inner.call(request)));
        Box::pin(async move {
            if let Some(sent) = sent {
                drop(sent.await);
            }
            told.notify_one();
            std::future::pending().await
        })
    }
}

/// A client that dies at the write of this number, counted from 1, before or after it; tells when.
pub async fn dying_client(at_write: usize, is_after: bool, told: &Arc<Notify>) -> Client {
    // The definitions are there.
    drop(client().await);
    let (fate, told) = (Arc::new(Fate::default()), told.clone());
    let layer = tower::layer::layer_fn(move |inner| Dying {
        inner,
        at_write,
        is_after,
        fate: fate.clone(),
        told: told.clone(),
    });
    ClientBuilder::try_from(config(None).await).unwrap().with_layer(&layer).build()
}
