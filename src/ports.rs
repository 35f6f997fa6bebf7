//! The few traits that the runtime needs from the world: what a log, a guest, a module store are to it.
//!
//! All of them are synchronous. A lane is one OS thread and its log client blocks; everything else that waits
//! does so on a thread of its own. Implementations live in the adapters; `control` and `node` are written
//! against these traits, and the simulation implements them in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::core::deployment::{Delivery, ModuleRef, StartOffset};
use crate::core::digest::Digest;
use crate::core::disposition::Disposition;
use crate::core::ledger::{Ledger, TopicPartition};
use crate::core::names::{ConsumerGroup, TopicName};
use crate::core::partitioner::Partitioner;
use crate::core::record::{Batch, Offset, Outputs, Record, TimestampMs};

// ---------------------------------------------------------------------------------------------------------
// The log

/// Why the log did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// There is no such topic.
    #[error("topic {0} does not exist: {hint}", hint = how_to_make(.0))]
    UnknownTopic(TopicName),
    /// The topic has no such partition.
    #[error("topic {topic} has {count} partition{}, there is no partition {partition}", if *count == 1 { "" } else { "s" })]
    UnknownPartition {
        /// The topic.
        topic: TopicName,
        /// The partition that was asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// A topic of that name is there already.
    #[error("topic {0} exists already")]
    TopicExists(TopicName),
    /// The topic takes no records from whoever is asking.
    #[error("topic {topic} takes no records: {reason}")]
    NotWritable {
        /// The topic.
        topic: TopicName,
        /// Why.
        reason: String,
    },
    /// The topic will not take this record.
    #[error("topic {topic} refuses the record: {reason}")]
    RecordRefused {
        /// The topic.
        topic: TopicName,
        /// Why, for instance its size.
        reason: String,
    },
    /// The offset is not in the log any more, or not yet.
    #[error(
        "offset {wanted} of {partition} is {}: the first one there is {first}, the next to be written {end}",
        if wanted < first { "gone" } else { "not written yet" }
    )]
    OffsetOutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// The offset that was asked for.
        wanted: Offset,
        /// The first offset there is.
        first: Offset,
        /// The next offset to be written.
        end: Offset,
    },
    /// The disk is full, or writing to it failed: nothing was committed.
    #[error("the log cannot write: {0}")]
    Storage(String),
    /// What was read is not what was written.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// Somebody else has the store open.
    #[error("{0}")]
    Locked(String),
    /// Another process took over this writer or lane.
    #[error("another process took over {0}: this one stops writing")]
    Fenced(String),
    /// The log cannot be reached, or did not answer in time.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The log refuses: authentication, authorization, or an ability that it does not have.
    #[error("the log refuses: {0}")]
    Refused(String),
    /// Others read with the lane's consumer group: the partitions would be divided between them and us.
    #[error("consumer group {group} is in use by {by}: stop that, or name another group")]
    GroupInUse {
        /// The group.
        group: ConsumerGroup,
        /// Who uses it, as far as the log knows.
        by: String,
    },
    /// A configuration that the log cannot take.
    #[error("{0}")]
    BadConfig(String),
    /// A transaction was open for longer than the log allows: nothing of it was committed.
    #[error("a transaction took too long: {0}")]
    Expired(String),
    /// It is not known whether the commit happened. The session is tainted: only `rewind` helps.
    #[error("it is not known whether the commit went through: {0}")]
    Uncertain(String),
}

fn how_to_make(topic: &TopicName) -> String {
    match topic.as_materialized() {
        None => format!("create it with `coproc topic create {topic}`"),
        Some((source, dest)) => format!(
            "it is made when a coprocessor that reads {source} is deployed with `--output-topic {dest} --materialized`"
        ),
    }
}

impl LogError {
    /// Whose fault it is.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::UnknownTopic(_)
            | Self::UnknownPartition { .. }
            | Self::TopicExists(_)
            | Self::NotWritable { .. }
            | Self::RecordRefused { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::Locked(_)
            | Self::Refused(_)
            | Self::GroupInUse { .. }
            | Self::BadConfig(_) => Disposition::User,
            Self::Storage(_) | Self::Unavailable(_) | Self::Expired(_) | Self::Uncertain(_) => {
                Disposition::Transient
            }
            Self::Fenced(_) => Disposition::Fenced,
            Self::Corrupt(_) => Disposition::Bug,
        }
    }
}

/// What happened on a lane's session.
#[derive(Debug)]
pub enum Event {
    /// The batch holds records of one partition.
    Records,
    /// Nothing happened in the time given.
    Idle,
    /// The reader stands at the end of a partition, at the last stable offset: `next_offset` counts past
    /// transaction markers, so committing it makes lag 0 mean 0.
    CaughtUp {
        /// The partition.
        partition: TopicPartition,
        /// The offset that the next record will have at least.
        next_offset: Offset,
    },
    /// The lane owns these partitions now; it starts each at its committed offset, or by the start policy.
    Assigned(Vec<TopicPartition>),
    /// These partitions go to somebody else. They stay owned until `release`: commit before it, unless `lost`.
    Revoking {
        /// The partitions; none where the group asks everybody. It waits for the `release` all the same.
        partitions: Vec<TopicPartition>,
        /// Whether somebody else has them already, so that nothing of theirs may be committed.
        lost: bool,
    },
    /// This partition cannot be read on: what is there is damaged, or its offset is gone. It says so once, and again
    /// after a rewind. The others are not affected, and what was processed can still be committed.
    Stuck {
        /// The partition.
        partition: TopicPartition,
        /// Why.
        error: LogError,
    },
    /// The log failed: what was processed may still be committed; then `rewind`, or stop, as the error's disposition
    /// says.
    Failed(LogError),
}

/// What is known of a deployment's partitions beside the log's own committed offsets.
pub trait History {
    /// Whether an offset of this partition was ever committed for the deployment.
    fn had_committed(&self, partition: &TopicPartition) -> Result<bool, LogError>;
}

/// A lane's session with the log: one consumer, one transactional producer, on one thread.
///
/// Clients are made when the session is opened and dropped with it, on the lane's own thread. What was emitted
/// and not ack-committed when the session is dropped never becomes visible.
pub trait LaneSession {
    /// Waits at most `wait` for something to happen. With `Event::Records` the batch holds the records of one
    /// partition, ascending; with any other event it is empty.
    fn poll(&mut self, batch: &mut Batch, wait: Duration) -> Event;

    /// Writes a record within the open transaction; the first one opens it. The record becomes visible with the
    /// next `ack_commit`, together with everything else since the last one.
    fn emit(&mut self, output: &Emit<'_>) -> Result<(), LogError>;

    /// The atomic step: what was emitted and the ledger's uncommitted offsets become visible together or not at
    /// all. After an error only `rewind` is allowed.
    fn ack_commit(&mut self, ledger: &Ledger) -> Result<(), LogError>;

    /// The one way back after a failure of the log: aborts, drops everything buffered, makes clients anew where
    /// the fate of a commit is uncertain, and seeks every assigned partition to its committed offset. One that has
    /// none any more is `Stuck`: it is not started anew behind anybody's back.
    fn rewind(&mut self) -> Result<(), LogError>;

    /// Told before a wait for `rewind`: ends the open transaction without its records, as far as that goes, so that nobody who
    /// reads the outputs waits for it. Nothing to do for a log that shows nothing of what is not committed.
    fn abandon(&mut self) {}

    /// Stops handing out records of these partitions. They stay owned.
    fn pause(&mut self, partitions: &[TopicPartition]);

    /// Hands out records of these partitions again, from where it stopped.
    fn resume(&mut self, partitions: &[TopicPartition]);

    /// Gives up the partitions of the last `Revoking`. One that was paused is not any more when it comes back.
    fn release(&mut self);

    /// Told before the first `poll`: a partition without a committed offset, of which there was one, is `Stuck` instead of
    /// started anew. Nothing to do for a log from whose groups nobody else can remove offsets.
    fn recall(&mut self, history: Box<dyn History>) {
        drop(history);
    }

    /// The owned partitions of which a committed offset is known.
    fn settled(&self) -> Vec<TopicPartition> {
        Vec::new()
    }

    /// Asked after `Assigned`: where the partitions that it names start, as far as the session says.
    fn starts(&mut self) -> Vec<(TopicPartition, Offset)> {
        Vec::new()
    }

    /// Output bytes after which it is to be committed, whatever the deployment allows. A log that keeps them in memory until
    /// then says how many.
    fn commit_room(&self) -> u64 {
        u64::MAX
    }

    /// Where each owned partition starts and ends, also those that are paused, as far as known without waiting. The first
    /// offset is exact only where the partition stands still.
    fn extents(&mut self) -> Vec<(TopicPartition, Extent)>;
}

/// A record on its way out.
#[derive(Debug, Clone, Copy)]
pub struct Emit<'a> {
    /// The topic.
    pub topic: &'a TopicName,
    /// Where in it.
    pub placement: Placement,
    /// The timestamp; the input's, unless the guest chose one.
    pub timestamp: TimestampMs,
    /// Key, value and headers, well-formed.
    pub payload: &'a [u8],
}

/// How the partition of a record on its way out is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Just there: materialized topics keep the source's partition.
    Exactly(u32),
    /// As the partitioner says, for a record that stems from this partition.
    By(Partitioner, u32),
}

/// What a lane's session has to know.
#[derive(Debug, Clone)]
pub struct LaneSpec {
    /// The consumer group that the lane joins.
    pub group: ConsumerGroup,
    /// The transactional id: stable over restarts of this slot.
    pub transactional_id: String,
    /// Topics to read; they exist.
    pub inputs: Vec<TopicName>,
    /// Topics to write, dead-letter topic included; they exist.
    pub outputs: Vec<TopicName>,
    /// Where a partition without a committed offset starts.
    pub start: StartOffset,
    /// What was promised to the user.
    pub delivery: Delivery,
    /// Most records in one batch.
    pub max_records: usize,
    /// About the most payload bytes in one batch; a larger single record still comes, alone.
    pub max_bytes: usize,
}

/// What happens to old records of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cleanup {
    /// Dropped by age and size.
    Delete,
    /// The last record of each key stays.
    Compact,
    /// Both.
    CompactAndDelete,
}

/// How a topic is to be, or is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// Number of partitions.
    pub partitions: u32,
    /// What happens to old records.
    pub cleanup: Cleanup,
    /// Age at which records may go, in milliseconds; `None` keeps them for ever.
    pub retention_ms: Option<u64>,
    /// Size per partition at which old records may go, in bytes; `None` is no limit.
    pub retention_bytes: Option<u64>,
    /// Largest record, in bytes of key, value and headers.
    pub max_record_bytes: usize,
    /// Whether only the log's own coprocessors may write to it.
    pub materialized: bool,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            partitions: 1,
            cleanup: Cleanup::Delete,
            retention_ms: None,
            retention_bytes: None,
            max_record_bytes: 1 << 20,
            materialized: false,
        }
    }
}

impl TopicConfig {
    /// A compacted topic of one partition: what desired and observed state live in.
    pub fn compacted() -> Self {
        Self { cleanup: Cleanup::Compact, ..Self::default() }
    }
}

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: TopicName,
    /// Changes when the topic is deleted and created again.
    pub id: String,
    /// Its configuration.
    pub config: TopicConfig,
}

/// First and next offset of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first offset there is.
    pub first: Offset,
    /// The offset after the last stable record.
    pub end: Offset,
}

/// How many copies of a topic there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Of the partition that has the fewest.
    pub fewest: usize,
    /// As many as the topic would be made with now.
    pub wanted: usize,
}

/// Topics: make, look at, remove.
pub trait TopicAdmin: Send + Sync {
    /// Creates a topic; `TopicExists` when there is one, whatever its configuration.
    fn create(&self, name: &TopicName, config: &TopicConfig) -> Result<(), LogError>;
    /// As `create`, with what `source` has beyond what a `TopicConfig` says, where the log knows of such things.
    fn create_like(
        &self,
        name: &TopicName,
        config: &TopicConfig,
        source: &TopicName,
    ) -> Result<(), LogError> {
        let _ = source;
        self.create(name, config)
    }
    /// Deletes a topic with all its records.
    fn delete(&self, name: &TopicName) -> Result<(), LogError>;
    /// Gives a topic more partitions; success when it has as many. A log whose topics keep their number refuses.
    fn grow(&self, name: &TopicName, partitions: u32) -> Result<(), LogError> {
        Err(LogError::Refused(format!(
            "topic {name} cannot be given {partitions} partitions: the number stays"
        )))
    }
    /// All topics, in the order of their names.
    fn list(&self) -> Result<Vec<TopicInfo>, LogError>;
    /// One topic, `None` when there is none of that name.
    fn describe(&self, name: &TopicName) -> Result<Option<TopicInfo>, LogError>;
    /// How many copies of a topic there are; `None` where the log does not keep several.
    fn replicas(&self, _name: &TopicName) -> Result<Option<Replicas>, LogError> {
        Ok(None)
    }
    /// First and next offset of every partition of a topic, in their order.
    fn extents(&self, name: &TopicName) -> Result<Vec<Extent>, LogError>;
    /// The first offset whose record has at least this timestamp, per partition; the end where there is none.
    fn offsets_at(&self, name: &TopicName, timestamp: TimestampMs) -> Result<Vec<Offset>, LogError>;
}

/// Consumer groups: look at, change, remove. Changing needs a group without members.
pub trait Offsets: Send + Sync {
    /// The groups there are: all of them, or an error.
    fn groups(&self) -> Result<Vec<ConsumerGroup>, LogError>;
    /// The committed offsets of a group.
    fn committed(&self, group: &ConsumerGroup) -> Result<BTreeMap<TopicPartition, Offset>, LogError>;
    /// How many members a group has now.
    fn members(&self, group: &ConsumerGroup) -> Result<usize, LogError>;
    /// Sets committed offsets.
    fn alter(&self, group: &ConsumerGroup, to: &BTreeMap<TopicPartition, Offset>) -> Result<(), LogError>;
    /// Removes a group with its offsets; success when there is none.
    fn delete(&self, group: &ConsumerGroup) -> Result<(), LogError>;
}

/// A record as a reader gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: Offset,
    /// When the log took it, in milliseconds since the epoch; the record's own timestamp where not known.
    pub appended_ms: TimestampMs,
    /// The record.
    pub record: Record,
}

/// Reads one topic, committed records only, without a group.
pub trait Reader: Send {
    /// Waits at most `wait` for records; empty when none came.
    fn fetch(&mut self, wait: Duration) -> Result<Vec<Fetched>, LogError>;
    /// Whether every partition was read to where it ended when the reader was opened or last asked here.
    fn is_caught_up(&mut self) -> Result<bool, LogError>;
}

/// Where a reader starts in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the first record.
    Start,
    /// After the last record.
    End,
    /// At this offset.
    Offset(Offset),
    /// At the first record with at least this timestamp.
    Timestamp(TimestampMs),
    /// So many records before the end.
    Last(u64),
}

/// What a fold reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoldEvent {
    /// A record: `value` is `None` for a tombstone.
    Record {
        /// The key; records without one are skipped.
        key: Vec<u8>,
        /// The value.
        value: Option<Vec<u8>>,
        /// The offset.
        offset: Offset,
        /// When the log took it, in milliseconds since the epoch.
        appended_ms: TimestampMs,
    },
    /// Everything that was in the topic when the fold began, or began again, has been reported.
    CaughtUp,
    /// The topic was deleted or made anew, or the reader was away for too long: forget all, it begins again.
    Reset,
    /// Nothing new in the time given.
    Idle,
}

/// Reads a compacted topic of one partition from its start, then follows it.
pub trait Fold: Send {
    /// Waits at most `wait` for the next event.
    fn next(&mut self, wait: Duration) -> Result<FoldEvent, LogError>;
}

/// A keyed record for a compacted topic: a `None` value removes the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyed {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Option<Vec<u8>>,
}

/// Writes to one topic under an id: a later writer with the same id fences the earlier one.
pub trait FencedWriter: Send {
    /// Writes all of the records, visible together, or none; durable when this returns. Keyed records go to the
    /// partition of their key.
    fn write(&mut self, records: &[Keyed]) -> Result<(), LogError>;
}

/// A record to produce, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produce {
    /// The topic.
    pub topic: TopicName,
    /// The partition; `None` chooses by key, or one after another.
    pub partition: Option<u32>,
    /// The record.
    pub record: Record,
}

/// Where a produced record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: Offset,
    /// When the log took it, in milliseconds since the epoch.
    pub appended_ms: TimestampMs,
}

/// A log: the factory of everything above.
pub trait Log: Send + Sync {
    /// Opens a lane's session. Called on the lane's own thread.
    fn lane(&self, spec: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError>;
    /// Topics.
    fn topics(&self) -> &dyn TopicAdmin;
    /// Consumer groups.
    fn offsets(&self) -> &dyn Offsets;
    /// Follows a compacted topic. The topic exists.
    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError>;
    /// Writes to a topic under an id that fences earlier writers.
    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError>;
    /// Reads a topic without a group.
    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError>;
    /// Appends records, all visible together where the log can; durable when this returns.
    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError>;
    /// What this log is and promises, as last found out, for status and `doctor`. Asks only where nobody has asked yet.
    fn capabilities(&self) -> Capabilities;
}

/// Whether a log can do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Present,
    /// It cannot, and said so: why.
    Absent(String),
    /// It did not say: why. Whoever needs the ability assumes it, and hears of it where it is not there.
    Unknown(String),
}

impl Ability {
    /// Whether the log said that it cannot.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

/// What a log was found able to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// What it is, for people: `embedded log at <path>`, `Kafka at <brokers>`.
    pub description: String,
    /// Transactions over topics and offsets: what exactly-once needs.
    pub transactions: Ability,
    /// Compaction of topics: what desired and observed state need.
    pub compaction: Ability,
}

impl Capabilities {
    /// All of it in a line, for the status.
    pub fn summary(&self) -> String {
        let ability = |name: &str, ability: &Ability| match ability {
            Ability::Present => name.to_owned(),
            Ability::Absent(why) => format!("no {name} ({why})"),
            Ability::Unknown(why) => format!("{name} unknown ({why})"),
        };
        let transactions = ability("transactions", &self.transactions);
        format!("{}; {transactions}, {}", self.description, ability("compaction", &self.compaction))
    }
}

// ---------------------------------------------------------------------------------------------------------
// Guests

/// What a guest did wrong: the class is a metric label and stands in dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuestClass {
    /// A trap: unreachable code, division by zero, out-of-bounds access, a panic of its SDK.
    Trap,
    /// Longer than the time per record, or the time to start.
    Timeout,
    /// More memory than its limit.
    Memory,
    /// More stack than there is.
    Stack,
    /// More output for one record than its limit.
    OutputTooLarge,
    /// A record that the output topic cannot take.
    OutputRefused,
    /// A call of the host that breaks the contract, for instance a pointer outside its memory.
    Abi,
    /// It exited, or returned, where it has to wait for records.
    Exited,
    /// It never asked for a record.
    Start,
    /// More elements in its tables than the limit.
    Table,
}

impl GuestClass {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Stack => "stack",
            Self::OutputTooLarge => "output_too_large",
            Self::OutputRefused => "output_refused",
            Self::Abi => "abi",
            Self::Exited => "exited",
            Self::Start => "start",
            Self::Table => "table",
        }
    }
}

/// A failure of a guest. The instance is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GuestFailure {
    /// What kind.
    pub class: GuestClass,
    /// What happened, in a sentence, with the guest's own words where it had any.
    pub message: String,
}

/// Why a module cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The bytes are no module that this host runs.
    #[error("{0}")]
    Invalid(String),
    /// The module is larger, or would need more, than a limit allows.
    #[error("{0}")]
    TooLarge(String),
    /// Compiling took longer than allowed.
    #[error("{0}")]
    CompileTimeout(String),
    /// There is no module of this digest, here and now.
    #[error("module {digest} is not available: {reason}")]
    NotFound {
        /// The digest.
        digest: Digest,
        /// Where it was looked for.
        reason: String,
    },
    /// The module store did not answer.
    #[error("module store: {0}")]
    Unavailable(String),
    /// The signature policy does not let it through.
    #[error("{0}")]
    Unverified(String),
    /// A registry denied access, or did what is not allowed here: somebody has to change the configuration.
    #[error("{0}")]
    Refused(String),
    /// The bytes are not the ones that the digest names.
    #[error("module {wanted} has other bytes than its digest says: they are {found}")]
    WrongDigest {
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what came.
        found: Digest,
    },
}

impl ModuleError {
    /// Whose fault it is.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Invalid(_)
            | Self::TooLarge(_)
            | Self::CompileTimeout(_)
            | Self::Unverified(_)
            | Self::Refused(_)
            | Self::WrongDigest { .. } => Disposition::User,
            Self::NotFound { .. } | Self::Unavailable(_) => Disposition::Transient,
        }
    }
}

/// Bounds of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestLimits {
    /// Largest linear memory, in bytes.
    pub memory: usize,
    /// Longest time for one record, and for the start.
    pub time_per_record: Duration,
    /// Most output bytes for one record.
    pub max_output_bytes: usize,
}

/// What a guest is told about its place in the world.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Name of the coprocessor: `argv[0]` of a transform, key of its log lines.
    pub name: String,
    /// Name of the step in its chain.
    pub step: String,
    /// The topic that it reads.
    pub input: TopicName,
    /// The topics that it may write, by the names that it knows; the first is its default.
    pub outputs: Vec<TopicName>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its bounds.
    pub limits: GuestLimits,
}

/// How far a call of `Guest::run` may go.
#[derive(Debug, Clone)]
pub struct RunBudget {
    /// When set, the guest is suspended at the next record boundary. One that does not get there within about a second
    /// is ended in the middle of its record and counts as suspended before it; it is not run again.
    pub stop: Arc<AtomicBool>,
    /// Output bytes in the buffer at which it is suspended at the next record boundary.
    pub output_bytes: usize,
    /// The longest that this call may take before it is suspended at the next record boundary.
    pub time: Duration,
    /// Whether others come first: the guest rests in between, about three quarters of the time, which is not counted
    /// against it.
    pub gently: bool,
}

/// How a call of `Guest::run` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// Every record of the batch is done.
    Finished,
    /// Suspended before the record at `Guest::completed`; `run` goes on there.
    Suspended,
    /// Failed at the record at `Guest::completed`. The instance is of no use any more.
    Failed(GuestFailure),
}

/// An instance of a module, started and waiting for records. Made, used and dropped on the lane's thread.
///
/// Outputs of finished records stay in the buffer until the lane takes them; what an unfinished record wrote is
/// not among them.
pub trait Guest {
    /// Gives a batch; the one before must have been finished or withdrawn.
    fn offer(&mut self, batch: Batch, first: usize);

    /// Runs until the batch is done, the budget is used up, or something fails.
    fn run(&mut self, budget: &RunBudget) -> Run;

    /// How many records of the batch are done, counted from its start.
    fn completed(&self) -> usize;

    /// What the finished records wrote and the lane has not cleared yet.
    fn outputs(&mut self) -> &mut Outputs;

    /// Takes the batch back. After a suspension in its middle the instance must be dropped.
    fn withdraw(&mut self) -> Batch;

    /// Bytes of linear memory that the instance has.
    fn memory_bytes(&self) -> usize;
}

/// A compiled module: makes instances.
pub trait Program: Send + Sync {
    /// The digest of the module.
    fn digest(&self) -> Digest;

    /// Makes an instance and runs it until it first asks for records. On the lane's thread.
    fn start(&self, spec: &GuestSpec, lines: Arc<dyn GuestLines>) -> Result<Box<dyn Guest>, GuestFailure>;
}

/// Turns bytes into programs; keeps what it compiled, by digest.
pub trait Engine: Send + Sync {
    /// Checks and compiles a module. Blocks; never on a lane's thread.
    fn compile(&self, bytes: &[u8], digest: Digest) -> Result<Arc<dyn Program>, ModuleError>;

    /// The program of this digest, if somebody still has it: saves fetching the bytes.
    fn cached(&self, digest: Digest) -> Option<Arc<dyn Program>>;

    /// Gives up what is being compiled, and compiles nothing more: the process is to end. Who waits gets an error.
    fn stop(&self);
}

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineLevel {
    /// Standard output: OTLP severity 9.
    Info,
    /// Standard error: OTLP severity 13.
    Warn,
}

/// Takes the lines that a guest prints; must not block.
pub trait GuestLines: Send + Sync {
    /// One line without its end.
    fn line(&self, level: LineLevel, text: &str);
}

// ---------------------------------------------------------------------------------------------------------
// Modules, schemas, time

/// What an image's name stands for now: resolved, fetched and checked as the policy demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModule {
    /// What goes into a deployment: the module's digest, and the image pinned to the manifest that was seen.
    pub module: ModuleRef,
    /// Size of the module, in bytes.
    pub size: u64,
    /// The key whose signature was found good; `None` when the policy asks for no signature.
    pub verified_by: Option<String>,
}

/// Where the bytes of modules are.
pub trait ModuleStore: Send + Sync {
    /// The bytes of a module; their digest has been checked. The image, where there is one, says where to look.
    fn fetch(&self, module: &ModuleRef) -> Result<Vec<u8>, ModuleError>;

    /// What an image's name stands for now. A store without images knows none.
    fn resolve(&self, image: &str) -> Result<ResolvedModule, ModuleError> {
        Err(ModuleError::Refused(format!(
            "image {image:?} cannot be resolved: no registry client is configured"
        )))
    }
}

/// Kind of a schema, by the numbers of the transform ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaKind {
    /// 0
    Avro,
    /// 1
    Protobuf,
    /// 2
    Json,
}

/// A reference from one schema to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaReference {
    /// The name that the schema uses.
    pub name: String,
    /// The subject.
    pub subject: String,
    /// The version.
    pub version: i32,
}

/// A schema's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaDefinition {
    /// Its kind.
    pub kind: SchemaKind,
    /// Its text.
    pub schema: String,
    /// What it refers to.
    pub references: Vec<SchemaReference>,
}

/// A schema under a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectSchema {
    /// The id that stands in record framing.
    pub id: i32,
    /// The version within the subject.
    pub version: i32,
    /// The schema.
    pub definition: SchemaDefinition,
}

/// The registry did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema registry: {0}")]
pub struct SchemaError(pub String);

/// A schema registry. Calls block, within a time-out of the implementation.
pub trait SchemaRegistry: Send + Sync {
    /// The schema with this id.
    fn definition(&self, id: i32) -> Result<SchemaDefinition, SchemaError>;
    /// A version of a subject; `None` is the latest.
    fn subject(&self, subject: &str, version: Option<i32>) -> Result<SubjectSchema, SchemaError>;
    /// Registers a schema under a subject: its id.
    fn register(&self, subject: &str, definition: &SchemaDefinition) -> Result<i32, SchemaError>;
}

/// Time. One implementation asks the system, another is turned by hand.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary point, never going back: for waiting.
    fn monotonic(&self) -> Duration;
    /// Milliseconds since the Unix epoch: for people and records only.
    fn wall_ms(&self) -> TimestampMs;
    /// Waits; a clock that is turned by hand moves on instead.
    fn sleep(&self, time: Duration);
}
