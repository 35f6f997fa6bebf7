//! What a coprocessor, a pipeline or a pool needs next: to be run, to be cleaned up, or to be let go. Pure.
//!
//! The finalizer keeps a resource until its group and its records are gone, and a pool until everything that needs its
//! connection is. It must never keep a namespace for long, or outlive the Kafka that it waits for: every way out is
//! here.

use std::time::Duration;

/// The finalizer.
pub const FINALIZER: &str = "coproc.dev/cleanup";
/// Annotation: `true` gives up the clean-up.
pub const FORCE: &str = "coproc.dev/force-finalize";
/// How long a clean-up may keep a namespace that is being deleted, by the clock of the operator that does it.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How long a pool that is deleted waits for resources that name it and are not being deleted: whoever deletes all of
/// them in one command deletes one after the other.
pub const GRACE: Duration = Duration::from_secs(10);

/// What is known about a resource's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent facts, and the table of tests names them"
)]
pub struct Facts {
    /// It is being deleted.
    pub is_deleted: bool,
    /// It has the finalizer.
    pub has_finalizer: bool,
    /// Its pool is there; being deleted, it waits for it.
    pub has_pool: bool,
    /// A Secret that the pool needs is gone, and there is no connection that was opened with it.
    pub secret_is_gone: bool,
    /// Its namespace is being deleted, and its clean-up has taken longer than `PATIENCE`.
    pub holds_namespace: bool,
    /// The annotation asks to give up.
    pub is_forced: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reconcile it.
    Run,
    /// Add the finalizer, then reconcile.
    AddFinalizer,
    /// Remove what it left in the log.
    CleanUp,
    /// Remove the finalizer without a clean-up, and say why.
    GiveUp(&'static str),
    /// It is on its way out without our doing.
    Nothing,
}

/// Decides.
pub fn step(facts: &Facts) -> Step {
    if !facts.is_deleted {
        return if facts.has_finalizer { Step::Run } else { Step::AddFinalizer };
    }
    if !facts.has_finalizer {
        return Step::Nothing;
    }
    match facts {
        Facts { is_forced: true, .. } => Step::GiveUp("coproc.dev/force-finalize is set"),
        Facts { has_pool: false, .. } => Step::GiveUp("its RuntimePool is gone"),
        Facts { secret_is_gone: true, .. } => Step::GiveUp("a Secret that its RuntimePool needs is gone"),
        Facts { holds_namespace: true, .. } => Step::GiveUp("it keeps a namespace that is being deleted"),
        _ => Step::CleanUp,
    }
}

/// What is still there of a resource that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remains {
    /// Its control record.
    pub is_desired: bool,
    /// Whether all that nodes said is known: before that, no node and no record about it means nothing.
    pub is_heard: bool,
    /// Nodes that were heard of lately and still list it.
    pub nodes: usize,
    /// Members of its group.
    pub members: usize,
}

/// The next step of a clean-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cleaning {
    /// Remove the control record, then look again.
    Tombstone,
    /// Nodes are still stopping.
    Wait(String),
    /// Delete the group, unless it is kept, and the status records; then the finalizer.
    Finish,
}

/// Decides on the clean-up.
pub fn clean(remains: &Remains) -> Cleaning {
    match remains {
        Remains { is_desired: true, .. } => Cleaning::Tombstone,
        Remains { is_heard: false, .. } => Cleaning::Wait("what its nodes say is being read".into()),
        Remains { nodes: 0, members: 0, .. } => Cleaning::Finish,
        Remains { nodes: 0, members, .. } => Cleaning::Wait(format!("{members} member(s) are in its group")),
        Remains { nodes, .. } => Cleaning::Wait(format!("{nodes} node(s) are still stopping it")),
    }
}

/// How the Kafka of a pool that is being deleted is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reach {
    /// It is.
    #[default]
    Up,
    /// Not now.
    Down,
    /// What the operator would need for it is gone, and why.
    Lost(String),
}

/// What is known about a pool that is being deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct PoolFacts {
    /// The annotation asks to give up.
    pub is_forced: bool,
    /// Its namespace is being deleted.
    pub namespace_ends: bool,
    /// Resources of it that have to be cleaned up after first.
    pub ending: usize,
    /// Resources that name it and stay.
    pub staying: usize,
    /// For how long it is known that it is being deleted.
    pub waited: Duration,
    /// For how long no resource has been ending.
    pub alone: Duration,
    /// Whether it has a block of node ids: without one, it wrote nothing.
    pub has_node_ids: bool,
    /// Its StatefulSet belongs to somebody else: it was deleted with `--cascade=orphan`.
    pub is_orphaned: bool,
    /// Pods that there are.
    pub pods: usize,
    /// How its Kafka is reached.
    pub reach: Reach,
    /// Whether all that nodes said is known.
    pub is_heard: bool,
    /// Nodes that were heard of lately.
    pub nodes: usize,
}

/// The next step of a pool that is being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retiring {
    /// Somebody else is at it: with the reason, and what is waited for.
    Wait(&'static str, String),
    /// Its pods are to stop.
    StopNodes,
    /// Remove what it left in the log, then the finalizer.
    CleanUp,
    /// It left nothing in the log.
    LetGo,
    /// Remove the finalizer without a clean-up, and say why.
    GiveUp(String),
}

/// Decides on a pool that is being deleted.
pub fn retire(facts: &PoolFacts) -> Retiring {
    let PoolFacts { ending, staying, pods, nodes, .. } = *facts;
    let stopping = |message: String| Retiring::Wait("Stopping", message);
    if facts.is_forced {
        return Retiring::GiveUp("coproc.dev/force-finalize is set".into());
    }
    if ending > 0 {
        return stopping(format!("{ending} resource(s) that it runs are being deleted"));
    }
    if staying > 0 && facts.waited < GRACE {
        return stopping(format!(
            "{staying} resource(s) name it; they stay, and wait for a pool of this name"
        ));
    }
    if facts.namespace_ends && facts.alone > PATIENCE {
        return Retiring::GiveUp("it keeps a namespace that is being deleted".into());
    }
    if facts.is_orphaned {
        return Retiring::GiveUp("its StatefulSet is somebody else's, so its nodes may go on".into());
    }
    if pods > 0 {
        return Retiring::StopNodes;
    }
    match &facts.reach {
        Reach::Up => {}
        _ if !facts.has_node_ids => return Retiring::LetGo,
        Reach::Lost(why) => return Retiring::GiveUp(why.clone()),
        Reach::Down => {
            let message = format!(
                "Kafka is not reached, so the records about its nodes cannot be removed; annotate the pool with \
                 {FORCE}=true to give that up"
            );
            return Retiring::Wait("KafkaUnavailable", message);
        }
    }
    match facts {
        PoolFacts { is_heard: false, .. } => stopping("what its nodes say is being read".into()),
        PoolFacts { nodes: 0, .. } => Retiring::CleanUp,
        _ => stopping(format!("{nodes} node(s) were heard of in the last 30 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_out() {
        let alive = Facts { has_finalizer: true, has_pool: true, ..Facts::default() };
        let deleted = Facts { is_deleted: true, ..alive };
        for (facts, wanted) in [
            (Facts { has_finalizer: false, ..alive }, Step::AddFinalizer),
            (alive, Step::Run),
            (Facts { has_pool: false, ..alive }, Step::Run),
            (deleted, Step::CleanUp),
            (Facts { has_finalizer: false, ..deleted }, Step::Nothing),
            (Facts { has_pool: false, ..deleted }, Step::GiveUp("its RuntimePool is gone")),
            (
                Facts { holds_namespace: true, ..deleted },
                Step::GiveUp("it keeps a namespace that is being deleted"),
            ),
            (Facts { is_forced: true, ..deleted }, Step::GiveUp("coproc.dev/force-finalize is set")),
            (
                Facts { secret_is_gone: true, ..deleted },
                Step::GiveUp("a Secret that its RuntimePool needs is gone"),
            ),
        ] {
            assert_eq!(step(&facts), wanted, "{facts:?}");
        }
    }

    #[test]
    fn a_pool_goes_last() {
        let facts = PoolFacts { has_node_ids: true, is_heard: true, ..PoolFacts::default() };
        let late = Duration::from_secs(61);
        let says = |facts: &PoolFacts| match retire(facts) {
            Retiring::Wait(reason, _) => reason.to_owned(),
            Retiring::GiveUp(why) => why,
            other => format!("{other:?}"),
        };
        let forced = PoolFacts { is_forced: true, ending: 1, ..facts.clone() };
        let ending = PoolFacts { ending: 1, namespace_ends: true, waited: late, ..facts.clone() };
        let staying = PoolFacts { staying: 1, ..facts.clone() };
        let down = PoolFacts { reach: Reach::Down, ..facts.clone() };
        let lost = PoolFacts { reach: Reach::Lost("no Secret".into()), ..facts.clone() };
        for (facts, wanted) in [
            (facts.clone(), "CleanUp"),
            (forced, "coproc.dev/force-finalize is set"),
            (ending, "Stopping"),
            (staying.clone(), "Stopping"),
            (PoolFacts { waited: GRACE, ..staying }, "CleanUp"),
            (PoolFacts { pods: 1, ..down.clone() }, "StopNodes"),
            (
                PoolFacts { pods: 1, is_orphaned: true, ..facts.clone() },
                "its StatefulSet is somebody else's, so its nodes may go on",
            ),
            (down.clone(), "KafkaUnavailable"),
            (PoolFacts { namespace_ends: true, ..down.clone() }, "KafkaUnavailable"),
            (
                PoolFacts { namespace_ends: true, alone: late, ..down.clone() },
                "it keeps a namespace that is being deleted",
            ),
            (PoolFacts { has_node_ids: false, ..down }, "LetGo"),
            (lost.clone(), "no Secret"),
            (PoolFacts { has_node_ids: false, ..lost }, "LetGo"),
            (PoolFacts { is_heard: false, ..facts.clone() }, "Stopping"),
            (PoolFacts { nodes: 1, ..facts }, "Stopping"),
        ] {
            assert_eq!(says(&facts), wanted, "{facts:?}");
        }
    }

    #[test]
    fn nothing_is_removed_under_a_node_that_still_runs_it() {
        let remains =
            |is_desired, nodes, members| clean(&Remains { is_desired, is_heard: true, nodes, members });
        assert_eq!(remains(true, 1, 1), Cleaning::Tombstone);
        assert!(matches!(remains(false, 1, 0), Cleaning::Wait(_)));
        assert!(matches!(remains(false, 0, 2), Cleaning::Wait(_)));
        assert_eq!(remains(false, 0, 0), Cleaning::Finish);
        // An operator that has just started knows of no node and of no record yet.
        assert!(matches!(clean(&Remains::default()), Cleaning::Wait(_)));
    }
}
