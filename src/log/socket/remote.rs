//! The log of another process.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status, Streaming};

use super::generated as wire;
use super::{MAX_MESSAGE_BYTES, convert, runtime};
use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, TopicName};
use crate::core::record::{Offset, TimestampMs};
use crate::log::LONGEST_WAIT;
use crate::ports::{
    Ability, Capabilities, Extent, FencedWriter, Fetched, Fold, FoldEvent, Keyed, LaneSession, LaneSpec, Log,
    LogError, Offsets, Produce, Produced, ReadFrom, Reader, TopicAdmin, TopicConfig, TopicInfo,
};

use wire::log_client::LogClient;
use wire::session_reply::Kind as Reply;
use wire::session_request::Kind as Ask;

/// Longest time for an answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A log that another process has open. Its calls block, so none of them may be made on an async thread.
pub struct RemoteLog {
    connection: Connection,
    description: String,
}

#[derive(Clone)]
struct Connection {
    runtime: Arc<Runtime>,
    deadline: Duration,
    client: LogClient<Channel>,
}

impl RemoteLog {
    /// Connects to the socket that a node serves its log at.
    pub fn connect(path: &Path) -> Result<Self, LogError> {
        let failed = |error: &dyn std::error::Error| {
            LogError::Unavailable(format!("nobody answers at {}: {}", path.display(), root(error)))
        };
        let socket = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let runtime = runtime("log-remote", 1)?;
        // The name is for the protocol only: the connector knows where to go.
        let endpoint = Endpoint::from_static("http://log").connect_timeout(DEADLINE);
        let channel = runtime.block_on(endpoint.connect_with_connector(connector));
        Self::over(runtime, channel.map_err(|error| failed(&error))?)
    }

    /// Connects to a log that is served at a TCP address.
    pub fn connect_tcp(address: SocketAddr) -> Result<Self, LogError> {
        let failed = |error: &dyn std::error::Error| {
            LogError::Unavailable(format!("nobody answers at {address}: {}", root(error)))
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(&error))?;
        let runtime = runtime("log-remote", 1)?;
        let channel = runtime.block_on(endpoint.connect_timeout(DEADLINE).connect());
        Self::over(runtime, channel.map_err(|error| failed(&error))?)
    }

    /// With another longest time for an answer.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.connection.deadline = deadline;
        self
    }

    fn over(runtime: Runtime, channel: Channel) -> Result<Self, LogError> {
        let client = LogClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let connection = Connection { runtime: Arc::new(runtime), deadline: DEADLINE, client };
        let reply = connection.call(|mut client| async move { client.capabilities(wire::Empty {}).await })?;
        Ok(Self { connection, description: reply.description })
    }
}

/// What is at the bottom of an error of the transport, which says little itself.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl Connection {
    fn call<T, F>(&self, call: impl FnOnce(LogClient<Channel>) -> F) -> Result<T, LogError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = call(self.client.clone());
        let answer = self.runtime.block_on(async { tokio::time::timeout(self.deadline, call).await });
        match answer {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(convert::error_of(&status)),
            Err(_) => Err(no_answer(self.deadline)),
        }
    }

    fn open(&self, ask: Ask) -> Result<Exchange, LogError> {
        let (requests, receiver) = mpsc::channel(1);
        let mut client = self.client.clone();
        let replies = self.call(|_| async move { client.session(ReceiverStream::new(receiver)).await })?;
        let streams = Some((requests, replies));
        let mut exchange = Exchange { runtime: self.runtime.clone(), deadline: self.deadline, streams };
        match exchange.ask(ask)? {
            Reply::Done(_) => Ok(exchange),
            _ => Err(unexpected()),
        }
    }
}

/// A session on the other side: requests and their answers, in turn.
struct Exchange {
    runtime: Arc<Runtime>,
    deadline: Duration,
    /// `None` once an answer did not come: a late one would be taken for the answer to the next question.
    streams: Option<(mpsc::Sender<wire::SessionRequest>, Streaming<wire::SessionReply>)>,
}

impl Exchange {
    fn ask(&mut self, ask: Ask) -> Result<Reply, LogError> {
        let gone = || LogError::Unavailable("the process that has the log went away".into());
        let Some((requests, mut replies)) = self.streams.take() else { return Err(gone()) };
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(self.deadline, async {
                let request = wire::SessionRequest { kind: Some(ask) };
                requests.send(request).await.map_err(|_| gone())?;
                let reply = replies.message().await.map_err(|status| convert::error_of(&status))?;
                reply.and_then(|reply| reply.kind).ok_or_else(gone)
            })
            .await
        });
        let Ok(answer) = answer else { return Err(no_answer(self.deadline)) };
        self.streams = Some((requests, replies));
        match answer {
            Ok(Reply::Error(error)) => Err(convert::error_in(error)),
            answer => answer,
        }
    }

    /// Asks again until there is something, or `wait` is over: the other side waits a second at most.
    fn wait<T>(
        &mut self,
        wait: Duration,
        ask: impl Fn(wire::Wait) -> Ask,
        something: impl Fn(Reply) -> Result<Option<T>, LogError>,
    ) -> Result<Option<T>, LogError> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let reply = self.ask(ask(wire::Wait { wait_ms: left.as_millis() as u64 }))?;
            let found = something(reply)?;
            // Less than a millisecond is not a wait on the other side.
            if found.is_some()
                || deadline.saturating_duration_since(Instant::now()) < Duration::from_millis(1)
            {
                return Ok(found);
            }
        }
    }
}

fn no_answer(within: Duration) -> LogError {
    LogError::Unavailable(format!("no answer within {} s", within.as_secs()))
}

fn unexpected() -> LogError {
    LogError::Unavailable("the answer is for another question: use the same version of coproc".into())
}

/// What was asked to be written may be written, though nobody said so.
fn uncertain(error: LogError) -> LogError {
    match error {
        LogError::Unavailable(message) => LogError::Uncertain(message),
        other => other,
    }
}

impl Log for RemoteLog {
    fn lane(&self, _: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        Err(LogError::BadConfig(
            "a lane runs only in the process that has the log open: deploy to the node that runs there"
                .into(),
        ))
    }

    fn topics(&self) -> &dyn TopicAdmin {
        &self.connection
    }

    fn offsets(&self) -> &dyn Offsets {
        &self.connection
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        let open = wire::OpenFold { topic: topic.to_string() };
        Ok(Box::new(RemoteFold(self.connection.open(Ask::OpenFold(open))?)))
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        let open = wire::OpenWriter { topic: topic.to_string(), id: id.to_owned() };
        Ok(Box::new(RemoteWriter(self.connection.open(Ask::OpenWriter(open))?)))
    }

    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError> {
        let open = wire::OpenReader {
            topic: topic.to_string(),
            partitions: partitions.map(|some| wire::Partitions { partitions: some.to_vec() }),
            from: Some(convert::from_out(from)),
        };
        Ok(Box::new(RemoteReader(self.connection.open(Ask::OpenReader(open))?)))
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        let records = records.iter().map(convert::produce_out).collect();
        let request = wire::ProduceRequest { records };
        let reply = self.connection.call(|mut client| async move { client.produce(request).await });
        let produced = reply.map_err(uncertain)?.produced.into_iter().map(|produced| Produced {
            partition: produced.partition,
            offset: produced.offset,
            appended_ms: produced.appended_ms,
        });
        Ok(produced.collect())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            description: format!("{}, through its socket", self.description),
            transactions: Ability::Present,
            compaction: Ability::Present,
        }
    }
}

struct RemoteReader(Exchange);

impl Reader for RemoteReader {
    fn fetch(&mut self, wait: Duration) -> Result<Vec<Fetched>, LogError> {
        let fetched = self.0.wait(wait, Ask::Fetch, |reply| match reply {
            Reply::Fetched(reply) if reply.records.is_empty() => Ok(None),
            Reply::Fetched(reply) => {
                let records: Result<Vec<_>, _> = reply.records.into_iter().map(convert::fetched_in).collect();
                records.map(Some)
            }
            _ => Err(unexpected()),
        })?;
        Ok(fetched.unwrap_or_default())
    }

    fn is_caught_up(&mut self) -> Result<bool, LogError> {
        match self.0.ask(Ask::IsCaughtUp(wire::Empty {}))? {
            Reply::IsCaughtUp(is_caught_up) => Ok(is_caught_up),
            _ => Err(unexpected()),
        }
    }
}

struct RemoteFold(Exchange);

impl Fold for RemoteFold {
    fn next(&mut self, wait: Duration) -> Result<FoldEvent, LogError> {
        let event = self.0.wait(wait, Ask::Next, |reply| match reply {
            Reply::Event(event) => {
                let event = convert::event_in(event)?;
                Ok((event != FoldEvent::Idle).then_some(event))
            }
            _ => Err(unexpected()),
        })?;
        Ok(event.unwrap_or(FoldEvent::Idle))
    }
}

struct RemoteWriter(Exchange);

impl FencedWriter for RemoteWriter {
    fn write(&mut self, records: &[Keyed]) -> Result<(), LogError> {
        let records = records.iter().map(convert::keyed_out).collect();
        match self.0.ask(Ask::Write(wire::WriteRecords { records })).map_err(uncertain)? {
            Reply::Done(_) => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

impl TopicAdmin for Connection {
    fn create(&self, name: &TopicName, config: &TopicConfig) -> Result<(), LogError> {
        let config = Some(convert::config_out(config));
        let request = wire::CreateTopicRequest { topic: name.to_string(), config };
        self.call(|mut client| async move { client.create_topic(request).await }).map(drop)
    }

    fn delete(&self, name: &TopicName) -> Result<(), LogError> {
        let request = wire::TopicRequest { topic: name.to_string() };
        self.call(|mut client| async move { client.delete_topic(request).await }).map(drop)
    }

    fn list(&self) -> Result<Vec<TopicInfo>, LogError> {
        let reply = self.call(|mut client| async move { client.list_topics(wire::Empty {}).await })?;
        reply.topics.into_iter().map(convert::topic_in).collect()
    }

    fn describe(&self, name: &TopicName) -> Result<Option<TopicInfo>, LogError> {
        let request = wire::TopicRequest { topic: name.to_string() };
        let reply = self.call(|mut client| async move { client.describe_topic(request).await })?;
        reply.topics.into_iter().next().map(convert::topic_in).transpose()
    }

    fn extents(&self, name: &TopicName) -> Result<Vec<Extent>, LogError> {
        let request = wire::TopicRequest { topic: name.to_string() };
        let reply = self.call(|mut client| async move { client.extents(request).await })?;
        Ok(reply.extents.iter().map(|extent| Extent { first: extent.first, end: extent.end }).collect())
    }

    fn offsets_at(&self, name: &TopicName, timestamp: TimestampMs) -> Result<Vec<Offset>, LogError> {
        let request = wire::OffsetsAtRequest { topic: name.to_string(), timestamp_ms: timestamp };
        Ok(self.call(|mut client| async move { client.offsets_at(request).await })?.offsets)
    }
}

impl Offsets for Connection {
    fn groups(&self) -> Result<Vec<ConsumerGroup>, LogError> {
        let reply = self.call(|mut client| async move { client.list_groups(wire::Empty {}).await })?;
        reply.groups.iter().map(|group| convert::name(group)).collect()
    }

    fn committed(&self, group: &ConsumerGroup) -> Result<BTreeMap<TopicPartition, Offset>, LogError> {
        let request = wire::GroupRequest { group: group.to_string() };
        let reply = self.call(|mut client| async move { client.committed(request).await })?;
        reply.offsets.iter().map(convert::offset_in).collect()
    }

    fn members(&self, group: &ConsumerGroup) -> Result<usize, LogError> {
        let request = wire::GroupRequest { group: group.to_string() };
        Ok(self.call(|mut client| async move { client.members(request).await })?.members as usize)
    }

    fn alter(&self, group: &ConsumerGroup, to: &BTreeMap<TopicPartition, Offset>) -> Result<(), LogError> {
        let offsets = to.iter().map(|(at, offset)| convert::offset_out(at, *offset)).collect();
        let request = wire::AlterOffsetsRequest { group: group.to_string(), offsets };
        self.call(|mut client| async move { client.alter_offsets(request).await }).map(drop)
    }

    fn delete(&self, group: &ConsumerGroup) -> Result<(), LogError> {
        let request = wire::GroupRequest { group: group.to_string() };
        self.call(|mut client| async move { client.delete_group(request).await }).map(drop)
    }
}
