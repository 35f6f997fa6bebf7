//! The priority of lane threads: one whose guest failed steps back until it next commits, so that its retries do not
//! slow its neighbours.
//!
//! Linux lets everybody lower the priority of a thread, and only the privileged raise it again: without `CAP_SYS_NICE`, or
//! an `RLIMIT_NICE` that allows it, a thread that went down stays there. That holds for niceness and for `SCHED_IDLE` alike
//! (`sched(7)`), and `SCHED_BATCH` takes nothing away from a thread that does not sleep. A fresh thread is no way out: a
//! lane's clients and guests are made, used and dropped on one. So where this is not allowed the lane is told, and has its
//! guests rest instead (`RunBudget::gently`).

use std::sync::OnceLock;

/// Niceness of a lane whose guest failed.
const LOW: i32 = 19;
const NORMAL: i32 = 0;

/// Lowers the calling thread's priority, or puts it back: whether the system does. It does nothing where it could not
/// put it back.
pub fn set_low(low: bool) -> bool {
    *MAY_RAISE.get_or_init(may_raise) && set(if low { LOW } else { NORMAL })
}

static MAY_RAISE: OnceLock<bool> = OnceLock::new();

fn set(nice: i32) -> bool {
    // On Linux a priority set for the process id 0 is the calling thread's.
    rustix::process::setpriority_process(None, nice).is_ok()
}

/// Tries it on a thread made for that.
fn may_raise() -> bool {
    let tried = super::threads::spawn("coproc-priority", |_| {
        let is_allowed = set(1) && set(NORMAL);
        let _ = ALLOWED.set(is_allowed);
    });
    drop(tried);
    ALLOWED.get().copied().unwrap_or(false)
}

static ALLOWED: OnceLock<bool> = OnceLock::new();
