//! The exchange of modules in running lanes: in all of them, or in none.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::core::deployment::Deployment;
use crate::core::record::TimestampMs;
use crate::node::chain::StepFailure;
use crate::node::lane::Command;
use crate::node::lane_thread::LaneHandle;
use crate::node::plan::LanePlan;
use crate::node::supervisor::Context;
use crate::node::supervisor::entry::{Entry, Load, RETRY, modules_of};

/// Lanes that were told to swap.
pub(super) struct Swapping {
    plan: LanePlan,
    replies: Vec<Reply>,
    /// Some lane could not, so the others are told to go back: why, and when they are told again if they cannot either.
    undoing: Option<(StepFailure, Instant)>,
}

/// A lane's answer to a swap.
enum Reply {
    Awaited(Receiver<Result<(), StepFailure>>),
    Given(Result<(), StepFailure>),
}

impl Reply {
    /// Tells a lane to exchange its chain.
    fn to_swap(lane: &LaneHandle, plan: &LanePlan) -> Self {
        let (reply, told) = crossbeam_channel::bounded(1);
        // A lane that ended has closed its mailbox; `look_at_lanes` sees to it.
        let _ = lane.commands.try_send(Command::Swap { plan: Box::new(plan.clone()), reply });
        Self::Awaited(told)
    }

    fn failure(&self) -> Option<&StepFailure> {
        match self {
            Self::Given(Err(failure)) => Some(failure),
            _ => None,
        }
    }

    /// Whether the lane has answered. One that ended without an answer is seen to elsewhere.
    fn is_given(&mut self) -> bool {
        if let Self::Awaited(reply) = self {
            match reply.try_recv() {
                Ok(given) => *self = Self::Given(given),
                Err(TryRecvError::Disconnected) => *self = Self::Given(Ok(())),
                Err(TryRecvError::Empty) => return false,
            }
        }
        true
    }
}

impl Entry {
    pub(super) fn swap(&mut self, plan: &LanePlan) {
        let Some(running) = &self.running else { return };
        let replies = running.lanes.iter().map(|lane| Reply::to_swap(lane, plan)).collect();
        self.swapping = Some(Swapping { plan: plan.clone(), replies, undoing: None });
    }

    /// All lanes end on the same modules: the new ones, or where one of them cannot, all on the old ones.
    pub(super) fn look_at_swap(&mut self, context: &Context) {
        let (Some(swapping), Some(running)) = (&mut self.swapping, &self.running) else { return };
        // Every lane is asked, so no short circuit.
        if !swapping.replies.iter_mut().fold(true, |all, reply| reply.is_given() & all) {
            return;
        }
        let failure = swapping.replies.iter().find_map(Reply::failure).cloned();
        match (&swapping.undoing, failure) {
            (None, None) => self.swapped(context),
            (None, Some(failure)) => {
                let back = |(lane, reply): (&LaneHandle, &Reply)| match reply.failure() {
                    None => Reply::to_swap(lane, &running.plan),
                    Some(_) => Reply::Given(Ok(())),
                };
                swapping.replies = running.lanes.iter().zip(&swapping.replies).map(back).collect();
                swapping.undoing = Some((failure, Instant::now() + RETRY.initial));
            }
            (Some((failure, _)), None) => {
                let (deployment, failure) = (swapping.plan.deployment.clone(), failure.clone());
                self.swapping = None;
                self.not_swapped(deployment, &failure, context.parts.clock.wall_ms());
            }
            (Some((first, at)), Some(failure)) if *at <= Instant::now() => {
                tracing::warn!(deployment = %self.identity, %failure, "a lane does not get back to its old modules: told again");
                let again = |(lane, reply): (&LaneHandle, &Reply)| match reply.failure() {
                    None => Reply::Given(Ok(())),
                    Some(_) => Reply::to_swap(lane, &running.plan),
                };
                let undoing = Some((first.clone(), Instant::now() + RETRY.initial));
                swapping.replies = running.lanes.iter().zip(&swapping.replies).map(again).collect();
                swapping.undoing = undoing;
            }
            (Some(_), Some(_)) => {}
        }
    }

    fn swapped(&mut self, context: &Context) {
        let (Some(swapping), Some(running)) = (self.swapping.take(), &mut self.running) else { return };
        let name = self.identity.display_name();
        context.metrics.set_modules(&name, &modules_of(&running.plan), false);
        context.metrics.set_modules(&name, &modules_of(&swapping.plan), true);
        let generation = swapping.plan.deployment.generation;
        tracing::info!(deployment = %self.identity, generation, "the chain was swapped");
        running.plan = swapping.plan;
        self.attempt = 0;
        self.reason = None;
        self.last_error = None;
    }

    fn not_swapped(&mut self, deployment: Arc<Deployment>, failure: &StepFailure, now_ms: TimestampMs) {
        let generation = deployment.generation;
        let message = format!("generation {generation} does not start, the one before goes on: {failure}");
        self.load = Load::Failed { deployment, retry_at: None };
        self.refuse("GuestStartFailed", message, now_ms);
    }
}
