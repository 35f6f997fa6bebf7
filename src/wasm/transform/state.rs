//! What a guest's store holds: its place in the world, its work, its limits.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{AsContextMut, Memory, StoreContextMut, Trap, UpdateDeadline};

use crate::core::names::TopicName;
use crate::core::record::TimestampMs;
use crate::ports::{GuestClass, GuestFailure, GuestLines, GuestSpec, LineLevel, SchemaRegistry};
use crate::wasm::ticker::{TICK, Ticks, ticks_for};

use super::limits::Limits;
use super::lines::Lines;
use super::schemas::Schemas;
use super::work::{Slot, Work};

/// Ticks after which a guest in the middle of a record is looked at: whether it is to stop.
const LOOK_TICKS: u64 = 20;
/// The same for one that lets others go first, and how long it rests then.
const GENTLE_TICKS: u64 = 2;
const REST: Duration = TICK.saturating_mul(6);
/// Ticks that a guest has for its record once it is told to stop.
const GRACE_TICKS: u64 = (1_000 / TICK.as_millis()) as u64;

/// Variables that the host sets; a user's may not take their place.
const RESERVED: &str = "REDPANDA_";

/// The data of a guest's store.
pub(super) struct State {
    pub(super) work: Option<Box<Work>>,
    pub(super) slot: Arc<Slot>,
    pub(super) memory: Option<Memory>,
    pub(super) limits: Limits,
    pub(super) lines: Lines,
    pub(super) schemas: Schemas,
    /// Whether it has asked for records.
    pub(super) started: bool,
    /// Its wall clock: the record's timestamp.
    pub(super) now_ms: TimestampMs,
    /// Its other clocks: one millisecond per look.
    pub(super) looks: u64,
    pub(super) name: String,
    pub(super) variables: Vec<String>,
    pub(super) outputs: Vec<TopicName>,
    pub(super) max_output_bytes: usize,
    pub(super) time_limit: Duration,
    pub(super) time_limit_ticks: u64,
    pub(super) clock: Ticks,
    /// The tick at which it is stopped.
    pub(super) deadline: u64,
    /// The tick at which it was seen that the lane is to end.
    told_to_stop: Option<u64>,
    /// Whether it was ended in the middle of a record because the lane ends: nothing that it did wrong.
    pub(super) was_given_up: bool,
}

impl State {
    pub(super) fn new(
        spec: &GuestSpec,
        lines: Arc<dyn GuestLines>,
        registry: Option<Arc<dyn SchemaRegistry>>,
        clock: Ticks,
    ) -> Result<Self, GuestFailure> {
        Ok(Self {
            limits: Limits::new(spec.limits.memory),
            lines: Lines::new(lines),
            schemas: Schemas::new(registry),
            name: spec.name.clone(),
            variables: variables(spec)?,
            outputs: spec.outputs.clone(),
            max_output_bytes: spec.limits.max_output_bytes,
            time_limit: spec.limits.time_per_record,
            time_limit_ticks: ticks_for(spec.limits.time_per_record),
            ..Self::empty(clock)
        })
    }

    /// A state of which no guest is made.
    pub(super) fn empty(clock: Ticks) -> Self {
        Self {
            work: None,
            slot: Arc::default(),
            memory: None,
            limits: Limits::new(0),
            lines: Lines::new(Arc::new(Nobody)),
            schemas: Schemas::new(None),
            started: false,
            now_ms: 0,
            looks: 0,
            name: String::new(),
            variables: Vec::new(),
            outputs: Vec::new(),
            max_output_bytes: 0,
            time_limit: Duration::ZERO,
            time_limit_ticks: 0,
            clock,
            deadline: 0,
            told_to_stop: None,
            was_given_up: false,
        }
    }
}

impl State {
    /// Whether others come first.
    fn is_gentle(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.gently)
    }

    /// Ticks until it is looked at again.
    fn next_look(&self) -> u64 {
        if self.is_gentle() { GENTLE_TICKS } else { LOOK_TICKS }
    }
}

/// Takes the lines of no guest.
struct Nobody;

impl GuestLines for Nobody {
    fn line(&self, _: LineLevel, _: &str) {}
}

/// Gives the guest its full time, from now on.
pub(super) fn rearm(mut store: impl AsContextMut<Data = State>) {
    let mut store = store.as_context_mut();
    let state = store.data_mut();
    let ticks = state.time_limit_ticks;
    state.deadline = state.clock.now().saturating_add(ticks);
    let next_look = state.next_look();
    store.set_epoch_deadline(ticks.min(next_look));
}

/// Looks at a guest that is in the middle of a record: whether its time is up, or its lane ends.
pub(super) fn look(mut store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data_mut();
    let now = state.clock.now();
    if now >= state.deadline {
        return Err(Trap::Interrupt.into());
    }
    if state.work.as_ref().is_some_and(|work| work.is_told_to_stop()) {
        let since = *state.told_to_stop.get_or_insert(now);
        if now - since >= GRACE_TICKS {
            state.was_given_up = true;
            return Err(Trap::Interrupt.into());
        }
    }
    if state.is_gentle() {
        // On the lane's thread, which is what is to be slow.
        std::thread::sleep(REST);
        state.deadline += state.clock.now() - now;
    }
    let left = state.deadline.saturating_sub(state.clock.now());
    Ok(UpdateDeadline::Continue(left.min(state.next_look())))
}

/// The environment as `KEY=value`.
fn variables(spec: &GuestSpec) -> Result<Vec<String>, GuestFailure> {
    let mut all = vec![format!("{RESERVED}INPUT_TOPIC={}", spec.input)];
    let outputs = spec.outputs.iter().enumerate();
    all.extend(outputs.map(|(i, topic)| format!("{RESERVED}OUTPUT_TOPIC_{i}={topic}")));
    for (key, value) in &spec.env {
        let bad = key.is_empty() || key.contains(['=', '\0']) || value.contains('\0');
        if bad || key.starts_with(RESERVED) {
            return Err(GuestFailure {
                class: GuestClass::Start,
                message: format!(
                    "Invalid transform environment: {key:?} cannot be set; a name is not empty, has no '=', does \
                     not begin with {RESERVED}, and neither name nor value has a zero byte"
                ),
            });
        }
        all.push(format!("{key}={value}"));
    }
    Ok(all)
}
