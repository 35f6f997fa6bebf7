//! The two threads of a link. They end when the last handle is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Receiver;
use tokio::sync::mpsc::error::TrySendError;

use super::{Health, Notice, Shared, Write};
use crate::control::desired::{Change, Desired, DesiredState};
use crate::control::keys::ControlKey;
use crate::control::topics::OwnTopic;
use crate::core::disposition::Disposition;
use crate::core::names::Identity;
use crate::core::retry::RetrySchedule;
use crate::ports::{FencedWriter, Fold, FoldEvent, Keyed, LogError};

/// Longest wait in a fold before commands are looked at.
const TURN: Duration = Duration::from_millis(20);
/// Most records of one transaction.
const BATCH: usize = 500;
/// How long the thread of observed state waits in its fold.
const LISTEN: Duration = Duration::from_millis(200);
/// Waits before the log is asked again.
const RETRY: RetrySchedule =
    RetrySchedule { initial: Duration::from_millis(250), max: Duration::from_secs(15) };

pub fn start(shared: &Arc<Shared>, writes: Receiver<Write>) -> std::io::Result<()> {
    let (writer, listener) = (shared.clone(), shared.clone());
    spawn("op-control", move || write_and_follow(&writer, &writes))?;
    spawn("op-status", move || listen(&listener))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    // Not joined: both look at the stop flag at least every second, and a log that hangs must not hang the operator.
    std::thread::Builder::new().name(name.into()).spawn(body).map(drop)
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits before the next attempt, in steps that notice a stop.
    fn wait(&self, attempt: u32) {
        let until = self.clock.monotonic() + RETRY.delay(attempt, 0.0);
        while !self.is_stopped() && self.clock.monotonic() < until {
            self.clock.sleep(Duration::from_millis(50));
        }
    }

    /// Tells the controllers. When too many notices wait, they are told later to look at everything.
    fn tell(&self, notice: Notice) {
        match self.notices.try_send(notice) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.overflow.store(true, Ordering::Relaxed),
            Err(TrySendError::Closed(_)) => self.stop.store(true, Ordering::Relaxed),
        }
    }

    fn tell_what_was_dropped(&self) {
        if self.overflow.swap(false, Ordering::Relaxed) {
            self.tell(Notice::Everything(self.pool.clone()));
        }
    }

    fn set_health(&self, health: Health) {
        let mut current = self.health.write();
        let changed = *current != health;
        *current = health;
        drop(current);
        if changed {
            self.tell(Notice::Everything(self.pool.clone()));
        }
    }

    fn tell_all(&self, identities: BTreeSet<Identity>) {
        for identity in identities {
            self.tell(Notice::Deployment(identity));
        }
    }
}

fn write_and_follow(shared: &Shared, writes: &Receiver<Write>) {
    let mut attempt = 0;
    while !shared.is_stopped() {
        let Err(error) = serve(shared, writes, &mut attempt) else { return };
        if shared.is_stopped() {
            // A link that was replaced is fenced by its successor: that is as it should be.
            return refuse(writes, &error);
        }
        tracing::warn!(pool = shared.pool.owner(), "{error}");
        *shared.log.write() = None;
        shared.set_health(Health::Down(error.to_string()));
        refuse(writes, &error);
        if error.disposition() == Disposition::Fenced {
            // Nothing matters more; whoever listens for it does nothing else.
            let _ = shared.notices.blocking_send(Notice::Fenced(shared.pool.clone()));
            return;
        }
        attempt += 1;
        shared.wait(attempt);
    }
}

fn refuse(writes: &Receiver<Write>, error: &LogError) {
    for write in writes.try_iter() {
        let _ = write.done.send(Err(LogError::Unavailable(error.to_string())));
    }
}

/// Serves until it is stopped or the log fails.
fn serve(shared: &Shared, writes: &Receiver<Write>, attempt: &mut u32) -> Result<(), LogError> {
    let log = shared.logs.open(&shared.connection)?;
    OwnTopic::Control.ensure(log.as_ref())?;
    OwnTopic::Status.ensure(log.as_ref())?;
    let topic = OwnTopic::Control.name();
    let mut writer = log.fenced_writer(&topic, &shared.pool.writer_id())?;
    let mut fold = log.fold(&topic)?;
    // A fold from the start: what was known before counts only once it has been seen again.
    shared.desired.write().apply(FoldEvent::Reset);
    *shared.log.write() = Some(log);
    while !shared.is_stopped() {
        shared.tell_what_was_dropped();
        follow(shared, fold.as_mut())?;
        if shared.desired.read().is_caught_up() {
            *attempt = 0;
            shared.set_health(Health::Up);
            write_batch(shared, writes, writer.as_mut())?;
        }
    }
    Ok(())
}

fn follow(shared: &Shared, fold: &mut dyn Fold) -> Result<(), LogError> {
    loop {
        let event = fold.next(TURN)?;
        let (is_idle, is_reset) = (event == FoldEvent::Idle, event == FoldEvent::Reset);
        let mut desired = shared.desired.write();
        let known = known(&desired, &event);
        let changes = desired.apply(event);
        drop(desired);
        if is_reset {
            tracing::warn!(
                pool = shared.pool.owner(),
                "the control topic was made anew: everything is written again"
            );
        }
        for change in changes {
            match change {
                Change::CaughtUp => shared.tell(Notice::Everything(shared.pool.clone())),
                Change::Ignored { key, why, .. } => tracing::warn!(key, %why, "a control record was ignored"),
                // Our own write comes back.
                Change::Set(_, _, desired) if known.as_ref() == Some(&desired) => {}
                // Somebody else wrote or removed what Kubernetes owns: the reconciliation sees the difference.
                Change::Set(_, identity, _) | Change::Removed(_, identity) => {
                    if shared.pool.owns(&identity) && shared.desired.read().is_caught_up() {
                        shared.tell(Notice::Deployment(identity));
                    }
                }
            }
        }
        if is_idle {
            return Ok(());
        }
    }
}

/// What is known already under the key of a record.
fn known(state: &DesiredState, event: &FoldEvent) -> Option<Desired> {
    let FoldEvent::Record { key, value: Some(_), .. } = event else { return None };
    let ControlKey::Deployment(pool, identity) = ControlKey::parse(key)? else { return None };
    state.confirmed(&pool, &identity).cloned()
}

fn write_batch(
    shared: &Shared,
    writes: &Receiver<Write>,
    writer: &mut dyn FencedWriter,
) -> Result<(), LogError> {
    while let Ok(first) = writes.try_recv() {
        let mut records = first.records;
        let mut waiting = vec![first.done];
        while records.len() < BATCH
            && let Ok(more) = writes.try_recv()
        {
            records.extend(more.records);
            waiting.push(more.done);
        }
        let result = writer.write(&records);
        if result.is_ok() {
            remember(shared, records);
        }
        for done in waiting {
            let _ = done.send(result.clone());
        }
        result?;
    }
    Ok(())
}

/// What was written counts at once, not when the fold brings it. Claims of node ids do not: there the order in the
/// topic decides.
fn remember(shared: &Shared, records: Vec<Keyed>) {
    let mut desired = shared.desired.write();
    for Keyed { key, value } in records {
        if !matches!(ControlKey::parse(&key), Some(ControlKey::Nodes(_))) {
            desired.apply(FoldEvent::Record { key, value, offset: -1, appended_ms: 0 });
        }
    }
}

fn listen(shared: &Shared) {
    let mut attempt = 0;
    while !shared.is_stopped() {
        if let Err(error) = listen_once(shared, &mut attempt) {
            tracing::warn!(pool = shared.pool.owner(), "status is not followed: {error}");
            attempt += 1;
        }
        shared.wait(attempt.max(1));
    }
}

fn listen_once(shared: &Shared, attempt: &mut u32) -> Result<(), LogError> {
    let Some(log) = shared.log.read().clone() else { return Ok(()) };
    // Whoever deletes this topic does no harm: it is made anew, and deletions need not wait for it for ever.
    OwnTopic::Status.ensure(log.as_ref())?;
    let mut fold = log.fold(&OwnTopic::Status.name())?;
    let affected = shared.observer.write().apply(&FoldEvent::Reset, shared.clock.monotonic());
    drop(affected);
    while !shared.is_stopped() {
        let event = fold.next(LISTEN)?;
        *attempt = 0;
        let now = shared.clock.monotonic();
        let mut observer = shared.observer.write();
        let had_nodes = observer.has_nodes();
        let mut affected = observer.apply(&event, now);
        affected.extend(observer.expire(now));
        // Whether there are nodes at all is said of resources, too, that no node lists.
        let concerns_all = observer.has_nodes() != had_nodes || event == FoldEvent::CaughtUp;
        drop(observer);
        if concerns_all {
            shared.tell(Notice::Everything(shared.pool.clone()));
        } else {
            shared.tell_all(affected);
        }
    }
    Ok(())
}
