//! The priority of lane threads: one whose guest failed steps back until it next commits, so that its retries do not
//! slow its neighbours.

use std::sync::OnceLock;

/// Niceness of a lane whose guest failed.
const LOW: i32 = 19;
const NORMAL: i32 = 0;

/// Lowers the calling thread's priority, or puts it back. Does nothing where it could not be put back: an ordinary
/// user may lower a priority, but only a privileged one may raise it.
pub fn set_low(low: bool) {
    if *MAY_RAISE.get_or_init(may_raise) {
        let _ = set(if low { LOW } else { NORMAL });
    }
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
