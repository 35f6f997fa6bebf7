//! What a coprocessor or pipeline needs next: to be run, to be cleaned up, or to be let go. Pure.
//!
//! The finalizer keeps a resource until its group and its records are gone. It must never keep a namespace, or
//! outlive the Kafka that it waits for: every way out is here.

/// The finalizer.
pub const FINALIZER: &str = "coproc.dev/cleanup";
/// Annotation: `true` gives up the clean-up.
pub const FORCE: &str = "coproc.dev/force-finalize";

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
    /// Its pool is there and stays.
    pub has_pool: bool,
    /// A Secret that the pool needs is gone.
    pub secret_is_gone: bool,
    /// Its namespace is being deleted.
    pub namespace_ends: bool,
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
        Facts { namespace_ends: true, .. } => Step::GiveUp("the namespace is being deleted"),
        Facts { has_pool: false, .. } => Step::GiveUp("its RuntimePool is gone"),
        Facts { secret_is_gone: true, .. } => Step::GiveUp("a Secret that its RuntimePool needs is gone"),
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
            (Facts { namespace_ends: true, ..deleted }, Step::GiveUp("the namespace is being deleted")),
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
