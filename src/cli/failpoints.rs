//! Crash points for tests: `COPROC_FAILPOINT=name:n` kills the process, as `kill -9` would, at the n-th time that it
//! gets to the point. Only in builds with the feature `failpoints`.

use std::sync::atomic::{AtomicU32, Ordering};

/// Arms the point that the environment names.
#[expect(clippy::disallowed_methods, reason = "the command line reads the environment")]
pub fn arm() {
    let Ok(wanted) = std::env::var("COPROC_FAILPOINT") else { return };
    let Some((name, hit)) =
        wanted.rsplit_once(':').and_then(|(name, hit)| Some((name, hit.parse::<u32>().ok()?)))
    else {
        eprintln!("COPROC_FAILPOINT {wanted:?} is not of the form name:n: nothing is armed");
        return;
    };
    let hits: &'static AtomicU32 = Box::leak(Box::default());
    let armed = fail::cfg_callback(name, move || {
        if hits.fetch_add(1, Ordering::SeqCst) + 1 == hit {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    });
    if let Err(error) = armed {
        eprintln!("COPROC_FAILPOINT {wanted:?}: {error}: nothing is armed");
    }
}
