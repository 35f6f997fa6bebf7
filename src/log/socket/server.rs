//! Serves a log to other processes.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::generated as wire;
use super::session::Session;
use super::{MAX_MESSAGE_BYTES, runtime};
use crate::ports::{Ability, Log, LogError};

use wire::log_server::{Log as Service, LogServer};

/// Calls that wait at the same time; more of them queue.
const MAX_BLOCKED: usize = 256;

/// Serves a log until dropped.
pub struct Server {
    runtime: Option<Runtime>,
    path: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl Server {
    /// Serves `log` at a Unix socket that only this user may use. A socket that nobody listens at is replaced.
    pub fn start(log: Arc<dyn Log>, path: &Path) -> Result<Self, LogError> {
        let failed = |error: std::io::Error| LogError::Storage(format!("socket {}: {error}", path.display()));
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(LogError::Locked(format!("another process listens at {}: stop it", path.display())));
        }
        let runtime = runtime("log-socket", MAX_BLOCKED)?;
        // Made aside and moved into place: nobody can connect before the mode is right.
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&aside);
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(&aside).map_err(failed)?
        };
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        std::fs::rename(&aside, path).map_err(failed)?;
        serve(&runtime, log, UnixListenerStream::new(listener));
        Ok(Self { runtime: Some(runtime), path: Some(path.to_owned()), address: None })
    }

    /// Serves `log` at a TCP address of this machine; port 0 chooses one. There is no authentication, so an address
    /// that others reach is refused.
    pub fn start_tcp(log: Arc<dyn Log>, address: SocketAddr) -> Result<Self, LogError> {
        if !address.ip().is_loopback() {
            return Err(LogError::BadConfig(format!(
                "{address} can be reached by others, and the log asks nobody who they are: use a loopback address"
            )));
        }
        let failed = |error: std::io::Error| LogError::Unavailable(format!("listen at {address}: {error}"));
        let runtime = runtime("log-socket", MAX_BLOCKED)?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        serve(&runtime, log, TcpListenerStream::new(listener));
        Ok(Self { runtime: Some(runtime), path: None, address: Some(address) })
    }

    /// The TCP address that it serves at.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
        if let Some(runtime) = self.runtime.take() {
            // No call waits longer than `session::MAX_WAIT`; after that nobody holds the log for us.
            runtime.shutdown_timeout(Duration::from_secs(3));
        }
    }
}

fn serve<S, C>(runtime: &Runtime, log: Arc<dyn Log>, incoming: S)
where
    S: Stream<Item = std::io::Result<C>> + Send + 'static,
    C: tonic::transport::server::Connected
        + tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + Unpin
        + Send
        + 'static,
{
    let service = LogServer::new(Handler { log })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    runtime.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the log's socket does not serve any more: restart the node");
        }
    });
}

struct Handler {
    log: Arc<dyn Log>,
}

impl Handler {
    /// Does blocking work on a thread for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Log) -> Result<T, LogError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || work(&*log)).await {
            Ok(Ok(reply)) => Ok(Response::new(reply)),
            Ok(Err(error)) => Err(convert::status(&error)),
            Err(_) => Err(Status::unavailable("the log is being closed")),
        }
    }
}

#[tonic::async_trait]
impl Service for Handler {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::SessionReply, Status>> + Send>>;

    async fn capabilities(
        &self,
        _: Request<wire::Empty>,
    ) -> Result<Response<wire::CapabilitiesReply>, Status> {
        let capabilities = self.log.capabilities();
        // What could not be found out is assumed by whoever needs it: for them it is as if it were there.
        let missing = |ability| match ability {
            Ability::Absent(why) => Some(why),
            Ability::Present | Ability::Unknown(_) => None,
        };
        Ok(Response::new(wire::CapabilitiesReply {
            description: capabilities.description,
            no_transactions: missing(capabilities.transactions),
            no_compaction: missing(capabilities.compaction),
        }))
    }

    async fn create_topic(
        &self,
        request: Request<wire::CreateTopicRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        let wire::CreateTopicRequest { topic, config } = request.into_inner();
        self.blocking(move |log| {
            log.topics().create(&convert::name(&topic)?, &convert::config_in(config)?)?;
            Ok(wire::Empty {})
        })
        .await
    }

    async fn delete_topic(
        &self,
        request: Request<wire::TopicRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        let topic = request.into_inner().topic;
        self.blocking(move |log| {
            log.topics().delete(&convert::name(&topic)?)?;
            Ok(wire::Empty {})
        })
        .await
    }

    async fn list_topics(&self, _: Request<wire::Empty>) -> Result<Response<wire::TopicsReply>, Status> {
        self.blocking(|log| {
            let topics = log.topics().list()?.iter().map(convert::topic_out).collect();
            Ok(wire::TopicsReply { topics })
        })
        .await
    }

    async fn describe_topic(
        &self,
        request: Request<wire::TopicRequest>,
    ) -> Result<Response<wire::TopicsReply>, Status> {
        let topic = request.into_inner().topic;
        self.blocking(move |log| {
            let topic = log.topics().describe(&convert::name(&topic)?)?;
            Ok(wire::TopicsReply { topics: topic.iter().map(convert::topic_out).collect() })
        })
        .await
    }

    async fn extents(
        &self,
        request: Request<wire::TopicRequest>,
    ) -> Result<Response<wire::ExtentsReply>, Status> {
        let topic = request.into_inner().topic;
        self.blocking(move |log| {
            let extents = log.topics().extents(&convert::name(&topic)?)?;
            let extents = extents.iter().map(|extent| wire::Extent { first: extent.first, end: extent.end });
            Ok(wire::ExtentsReply { extents: extents.collect() })
        })
        .await
    }

    async fn offsets_at(
        &self,
        request: Request<wire::OffsetsAtRequest>,
    ) -> Result<Response<wire::OffsetsReply>, Status> {
        let wire::OffsetsAtRequest { topic, timestamp_ms } = request.into_inner();
        self.blocking(move |log| {
            let offsets = log.topics().offsets_at(&convert::name(&topic)?, timestamp_ms)?;
            Ok(wire::OffsetsReply { offsets })
        })
        .await
    }

    async fn list_groups(&self, _: Request<wire::Empty>) -> Result<Response<wire::GroupsReply>, Status> {
        self.blocking(|log| {
            let groups = log.offsets().groups()?.iter().map(ToString::to_string).collect();
            Ok(wire::GroupsReply { groups })
        })
        .await
    }

    async fn committed(
        &self,
        request: Request<wire::GroupRequest>,
    ) -> Result<Response<wire::CommittedReply>, Status> {
        let group = request.into_inner().group;
        self.blocking(move |log| {
            let offsets = log.offsets().committed(&convert::name(&group)?)?;
            let offsets = offsets.iter().map(|(at, offset)| convert::offset_out(at, *offset)).collect();
            Ok(wire::CommittedReply { offsets })
        })
        .await
    }

    async fn members(
        &self,
        request: Request<wire::GroupRequest>,
    ) -> Result<Response<wire::MembersReply>, Status> {
        let group = request.into_inner().group;
        self.blocking(move |log| {
            let members = log.offsets().members(&convert::name(&group)?)? as u64;
            Ok(wire::MembersReply { members })
        })
        .await
    }

    async fn alter_offsets(
        &self,
        request: Request<wire::AlterOffsetsRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        let wire::AlterOffsetsRequest { group, offsets } = request.into_inner();
        self.blocking(move |log| {
            let offsets: Result<_, _> = offsets.iter().map(convert::offset_in).collect();
            log.offsets().alter(&convert::name(&group)?, &offsets?)?;
            Ok(wire::Empty {})
        })
        .await
    }

    async fn delete_group(
        &self,
        request: Request<wire::GroupRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        let group = request.into_inner().group;
        self.blocking(move |log| {
            log.offsets().delete(&convert::name(&group)?)?;
            Ok(wire::Empty {})
        })
        .await
    }

    async fn produce(
        &self,
        request: Request<wire::ProduceRequest>,
    ) -> Result<Response<wire::ProduceReply>, Status> {
        let records = request.into_inner().records;
        self.blocking(move |log| {
            let records: Result<Vec<_>, _> = records.into_iter().map(convert::produce_in).collect();
            let produced = log.produce(&records?)?.into_iter().map(|produced| wire::Produced {
                partition: produced.partition,
                offset: produced.offset,
                appended_ms: produced.appended_ms,
            });
            Ok(wire::ProduceReply { produced: produced.collect() })
        })
        .await
    }

    async fn session(
        &self,
        requests: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let session = Arc::new(Mutex::new(Session::new(self.log.clone())));
        let replies = requests.into_inner().then(move |request| {
            let session = session.clone();
            async move {
                let request = request?;
                let answer = move || session.lock().answer(request);
                let reply = tokio::task::spawn_blocking(answer).await;
                reply.map_err(|_| Status::unavailable("the log is being closed"))
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }
}
