//! What a deployment means on this node, worked out before anything is done. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::deployment::{Deployment, KafkaSink, Limits, Naming};
use crate::core::names::{Identity, NodeId, TopicName};
use crate::core::partitioner::Partitioner;
use crate::ports::{Cleanup, GuestLimits, GuestSpec, LaneSpec, Placement, Program, TopicConfig};

/// One step with its compiled module.
#[derive(Clone)]
pub struct StepPlan {
    /// Its name.
    pub name: String,
    /// Its module.
    pub program: Arc<dyn Program>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its bounds.
    pub limits: GuestLimits,
}

/// The steps of a deployment, ready to be started: what a hot swap exchanges.
#[derive(Clone)]
pub struct ChainPlan {
    /// Name of the deployment.
    pub name: String,
    /// The steps, at least one.
    pub steps: Vec<StepPlan>,
    /// The outputs by the names that guests know.
    pub outputs: Vec<TopicName>,
}

impl ChainPlan {
    /// What the guest of a step is told. Steps before the last one know one output: the next step.
    pub fn guest_spec(&self, step: &StepPlan, input: &TopicName, is_last: bool) -> GuestSpec {
        let known = if is_last { self.outputs.len() } else { 1 };
        GuestSpec {
            name: self.name.clone(),
            step: step.name.clone(),
            input: input.clone(),
            outputs: self.outputs.iter().take(known).cloned().collect(),
            env: step.env.clone(),
            limits: step.limits,
        }
    }
}

/// The bounds of a guest, as it is told.
pub fn guest_limits(limits: &Limits) -> GuestLimits {
    GuestLimits {
        memory: limits.memory.bytes(),
        time_per_record: limits.time_per_record.duration(),
        max_output_bytes: limits.max_output_bytes.bytes(),
    }
}

/// Where the outputs of one sink go, for the records of one input topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The topic.
    pub topic: TopicName,
    /// `None` keeps the source's partition, as materialized topics do.
    pub partitioner: Option<Partitioner>,
    /// Largest record that it takes, in bytes of key, value and headers.
    pub max_record_bytes: usize,
    /// Whether it takes no record without a key.
    pub needs_key: bool,
}

impl Route {
    /// The route of a sink for the records of `input`.
    pub fn of(
        sink: &KafkaSink,
        input: &TopicName,
        topics: &BTreeMap<TopicName, TopicConfig>,
    ) -> Option<Self> {
        let (topic, partitioner) = match sink.naming {
            Naming::Plain => (sink.topic.clone(), Some(sink.partitioner)),
            Naming::Materialized => (TopicName::materialized(input, &sink.topic).ok()?, None),
        };
        Self::to(topic, partitioner, topics)
    }

    /// The route to a topic.
    pub fn to(
        topic: TopicName,
        partitioner: Option<Partitioner>,
        topics: &BTreeMap<TopicName, TopicConfig>,
    ) -> Option<Self> {
        let config = topics.get(&topic)?;
        Some(Self {
            topic,
            partitioner,
            max_record_bytes: config.max_record_bytes,
            needs_key: config.cleanup != Cleanup::Delete,
        })
    }

    /// Where a record that stems from this partition goes.
    pub fn placement(&self, source_partition: u32) -> Placement {
        match self.partitioner {
            Some(partitioner) => Placement::By(partitioner, source_partition),
            None => Placement::Exactly(source_partition),
        }
    }
}

/// Everything that a lane has to know.
#[derive(Clone)]
pub struct LanePlan {
    /// Which deployment.
    pub identity: Identity,
    /// The deployment as it is desired.
    pub deployment: Arc<Deployment>,
    /// Its steps.
    pub chain: Arc<ChainPlan>,
    /// For each input topic the routes of its outputs, in the order that guests know.
    pub routes: BTreeMap<TopicName, Vec<Route>>,
    /// Where dead letters go.
    pub dead_letters: Option<Route>,
}

impl LanePlan {
    /// The plan of a deployment, given the configurations of the topics that it writes; `None` names no topic that
    /// is missing: the caller has looked.
    pub fn new(
        identity: Identity,
        deployment: Arc<Deployment>,
        chain: Arc<ChainPlan>,
        topics: &BTreeMap<TopicName, TopicConfig>,
    ) -> Option<Self> {
        let mut routes = BTreeMap::new();
        for input in deployment.inputs() {
            let of_input: Option<Vec<Route>> =
                deployment.kafka_sinks().map(|sink| Route::of(sink, input, topics)).collect();
            routes.insert(input.clone(), of_input?);
        }
        let dead_letters = match deployment.policies.error_policy.dead_letter_topic.clone() {
            Some(topic) => Some(Route::to(topic, Some(Partitioner::Key), topics)?),
            None => None,
        };
        Some(Self { identity, deployment, chain, routes, dead_letters })
    }

    /// What lane number `lane` of this node tells the log.
    pub fn lane_spec(&self, node: NodeId, lane: u16) -> LaneSpec {
        let batch = &self.deployment.policies.batch;
        LaneSpec {
            group: self.deployment.consumer_group(&self.identity),
            transactional_id: self.identity.transactional_id(node, lane),
            inputs: self.deployment.inputs().to_vec(),
            outputs: self.deployment.all_outputs().into_iter().collect(),
            start: self.deployment.start_offset(),
            delivery: self.deployment.policies.delivery,
            max_records: batch.max_records as usize,
            max_bytes: batch.max_bytes.bytes(),
        }
    }
}

/// What it takes to get from one deployment to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Nothing that running lanes notice.
    Nothing,
    /// Modules, environment, limits, error policy or batches: exchanged at a commit boundary, no rebalance.
    Swap,
    /// Inputs, outputs, parallelism or delivery: stop, then start.
    Restart,
}

/// What it takes to get from `running` to `wanted`.
pub fn difference(running: &Deployment, wanted: &Deployment) -> Difference {
    let keeps_lanes = running.source == wanted.source
        && running.sinks == wanted.sinks
        && running.policies.parallelism == wanted.policies.parallelism
        && running.policies.delivery == wanted.policies.delivery
        && running.policies.error_policy.dead_letter_topic == wanted.policies.error_policy.dead_letter_topic
        && running.policies.batch.max_records == wanted.policies.batch.max_records
        && running.policies.batch.max_bytes == wanted.policies.batch.max_bytes;
    if !keeps_lanes {
        Difference::Restart
    } else if running.steps != wanted.steps || running.policies != wanted.policies {
        Difference::Swap
    } else {
        Difference::Nothing
    }
}
