//! The operator: turns `RuntimePool`, `Coprocessor` and `Pipeline` into pods and control records, and tells the
//! truth about them in their status.
//!
//! Every reconciliation is the same five steps: dereference → validate → build → apply → status. Only the first
//! and the fourth talk to anybody; the others are pure. It never imports `node`: the two meet in the topics of
//! `control`. Called by `cli`, which plugs in the log and the registry.

pub mod apply;
pub mod backoff;
pub mod bridge;
pub mod build;
pub mod conditions;
pub mod context;
pub mod controller;
pub mod crd;
pub mod dereference;
pub mod draft;
mod http;
pub mod lease;
pub mod lifecycle;
pub mod link;
pub mod metrics;
pub mod observe;
pub mod questions;
pub mod resolution;
pub mod status;
pub mod validate;
mod wiring;
pub mod world;
pub mod written;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::core::names::Installation;
use crate::operator::context::{Context, Parts, World};
use crate::operator::lease::{Election, Leadership, Settings};
use crate::operator::metrics::Metrics;

pub use wiring::Scope;

/// Notices that wait to be routed; beyond it links say later that everything has to be looked at.
const NOTICES: usize = 4_096;
/// How long reconciliations that run may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// Name of the Lease.
const LEASE: &str = "coproc-operator";

/// What the operator is told about itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// The installation: tells apart several Kubernetes clusters on one Kafka.
    pub installation: Installation,
    /// What it watches.
    pub scope: Scope,
    /// Where its Lease is; `None` does without an election.
    pub lease_namespace: Option<String>,
    /// Name of this process: its pod's.
    pub instance: String,
    /// Image of pods whose pool names none.
    pub default_image: String,
    /// Where metrics and probes are served; `None` serves none.
    pub http: Option<SocketAddr>,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not lead any more. A new start stands for election again.
    #[error(
        "another operator leads now: this one ends, and stands for election again when it is started anew"
    )]
    LeadershipLost,
    /// Another operator writes for a pool.
    #[error("another operator writes for pool {0}: is an installation of the same name on the same Kafka?")]
    Fenced(String),
    /// Metrics could not be set up.
    #[error("set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A task ended that must not.
    #[error("a part of the operator ended by itself: this is a bug, please report it")]
    Ended,
}

/// Runs until `stop` ends, or leadership is lost.
pub async fn run(
    client: Client,
    options: Options,
    world: World,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let metrics = Metrics::new()?;
    let (stores, writers) = wiring::caches();
    let (notices, noticed) = mpsc::channel(NOTICES);
    let (fenced, mut fencing) = mpsc::channel(1);
    let (stopping, stops) = watch::channel(false);
    let context = Arc::new(Context::new(Parts {
        client: client.clone(),
        installation: options.installation.clone(),
        default_image: options.default_image.clone(),
        instance: options.instance.clone(),
        world: world.clone(),
        stores,
        metrics: metrics.clone(),
        notices,
    }));
    let mut around = JoinSet::new();
    serve(&mut around, &options, &context, metrics.clone(), &stops);
    let mut leadership = stand(&mut around, &client, &options, &world, &stops);
    let mut stop = std::pin::pin!(stop);
    tokio::select! {
        // Before it leads there is nothing to end in good order.
        biased;
        () = &mut stop => return finish(&stopping, around).await,
        led = reaches(&mut leadership, Leadership::Leading) => led?,
    }
    tracing::info!(instance = options.instance, "leading");
    metrics.leader.set(1);
    let mut controllers = JoinSet::new();
    let (working, work_stops) = watch::channel(false);
    for part in wiring::controllers(&context, &options.scope, writers, noticed, fenced, &work_stops) {
        controllers.spawn(part);
    }
    let ended = tokio::select! {
        // Losing comes before everything: from then on nothing may be written.
        biased;
        _ = reaches(&mut leadership, Leadership::Lost) => Err(Error::LeadershipLost),
        pool = fencing.recv() => {
            Err(Error::Fenced(pool.map(|pool| pool.owner()).unwrap_or_default()))
        }
        () = &mut stop => Ok(()),
        _ = controllers.join_next() => Err(Error::Ended),
    };
    metrics.leader.set(0);
    working.send_replace(true);
    if ended.is_err() {
        controllers.abort_all();
    }
    let drained = async { while controllers.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        tracing::warn!("reconciliations did not end in time: they are cut off");
    }
    context.close();
    // The Lease is released last: by then nobody writes any more.
    finish(&stopping, around).await?;
    ended
}

fn serve(
    tasks: &mut JoinSet<()>,
    options: &Options,
    context: &Arc<Context>,
    metrics: Metrics,
    stops: &watch::Receiver<bool>,
) {
    let Some(address) = options.http else { return };
    let (context, stops) = (context.clone(), stops.clone());
    let (leads, seen) = (metrics.clone(), context.clone());
    let ready = Arc::new(move || leads.leader.get() == 0 || seen.is_filled());
    let refresh = Arc::new(move || wiring::count_resources(&context));
    tasks.spawn(async move {
        if let Err(error) = http::serve(address, metrics, refresh, ready, wiring::stopped(stops)).await {
            tracing::error!(%error, %address, "metrics and probes are not served: choose another address");
        }
    });
}

fn stand(
    tasks: &mut JoinSet<()>,
    client: &Client,
    options: &Options,
    world: &World,
    stops: &watch::Receiver<bool>,
) -> watch::Receiver<Leadership> {
    let Some(namespace) = &options.lease_namespace else {
        let (state, told) = watch::channel(Leadership::Leading);
        let stops = stops.clone();
        tasks.spawn(async move {
            wiring::stopped(stops).await;
            drop(state);
        });
        return told;
    };
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let settings = Settings::new(LEASE, options.instance.clone());
    let (election, told) = Election::new(api, settings, world.clock.clone());
    tasks.spawn(election.run(wiring::stopped(stops.clone())));
    told
}

/// Waits for a standing; the guard of the channel must not live across other waits.
async fn reaches(told: &mut watch::Receiver<Leadership>, wanted: Leadership) -> Result<(), Error> {
    told.wait_for(|at| *at == wanted).await.map(drop).map_err(|_| Error::Ended)
}

async fn finish(stopping: &watch::Sender<bool>, mut around: JoinSet<()>) -> Result<(), Error> {
    stopping.send_replace(true);
    let ended = async { while around.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("the operator did not end in time: it is cut off");
    }
    Ok(())
}
