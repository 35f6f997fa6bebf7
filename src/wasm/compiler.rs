//! Compiles modules: few at a time, each once, none for longer than the limit.
//!
//! A compilation cannot be cancelled, and a module can be made to compile for minutes. So each runs on a thread of
//! its own, single-threaded (nothing is shared that a bad module could block) and at low priority, and who waits
//! for it gives up at the limit. A thread that was given up goes on in the background and its place goes to others,
//! for as many as `MAX_ABANDONED`; after that, new compilations wait for a place, and say so when they get none.
//! Where the thread only waits for a child process (`helper`), the child ends itself at the limit, and so does it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::core::digest::Digest;
use crate::ports::{ModuleError, Program};

use super::helper::{COMPILER_STACK, too_slow};

/// Threads that may go on in the background after they were given up.
const MAX_ABANDONED: usize = 2;

type Compiled = Result<Arc<dyn Program>, ModuleError>;

/// Runs compilations.
pub(super) struct Compiler {
    shared: Arc<Shared>,
    threads: usize,
    timeout: Duration,
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    /// What was compiled and is in use.
    programs: HashMap<Digest, Weak<dyn Program>>,
    pending: HashMap<Digest, Job>,
    /// Threads that hold a place.
    running: usize,
    abandoned: usize,
    /// Nobody is to wait any more.
    stopped: bool,
}

/// A compilation that is going on.
struct Job {
    /// `None` while it waits for a place.
    started: Option<Instant>,
    abandoned: bool,
    result: Option<Compiled>,
    waiting: usize,
}

impl Compiler {
    pub(super) fn new(threads: usize, timeout: Duration) -> Self {
        Self { shared: Arc::default(), threads: threads.max(1), timeout }
    }

    /// The program of this digest: the one in use, the one being compiled, or what `work` makes.
    pub(super) fn compile(
        &self,
        digest: Digest,
        work: impl FnOnce() -> Compiled + Send + 'static,
    ) -> Compiled {
        let mut jobs = self.shared.jobs.lock();
        if let Some(program) = jobs.programs.get(&digest).and_then(Weak::upgrade) {
            return Ok(program);
        }
        jobs.programs.retain(|_, program| program.strong_count() > 0);
        if jobs.stopped {
            return Err(stopping());
        }
        if jobs.pending.contains_key(&digest) {
            return self.wait(&mut jobs, digest);
        }
        jobs.pending.insert(digest, Job { started: None, abandoned: false, result: None, waiting: 0 });
        // Everybody who holds a place either ends or is given up within the limit.
        let patience = Instant::now() + self.timeout * 2;
        while jobs.running >= self.threads {
            let timed_out = self.shared.changed.wait_until(&mut jobs, patience).timed_out();
            if jobs.stopped {
                jobs.pending.remove(&digest);
                return Err(stopping());
            }
            if timed_out {
                jobs.pending.remove(&digest);
                self.shared.changed.notify_all();
                return Err(ModuleError::CompileTimeout(format!(
                    "no place to compile the module: {} other modules have been compiling for longer than {:?}; \
                     restart the node, or find out which module takes so long",
                    jobs.running + jobs.abandoned,
                    self.timeout
                )));
            }
        }
        if let Err(error) = self.spawn(&mut jobs, digest, work) {
            jobs.pending.remove(&digest);
            self.shared.changed.notify_all();
            return Err(ModuleError::Unavailable(format!("cannot start a thread to compile on: {error}")));
        }
        self.wait(&mut jobs, digest)
    }

    /// Nobody waits any more, and nothing more is compiled.
    pub(super) fn stop(&self) {
        self.shared.jobs.lock().stopped = true;
        self.shared.changed.notify_all();
    }

    /// The program of this digest, if somebody still has it.
    pub(super) fn cached(&self, digest: Digest) -> Option<Arc<dyn Program>> {
        self.shared.jobs.lock().programs.get(&digest).and_then(Weak::upgrade)
    }

    fn spawn(
        &self,
        jobs: &mut Jobs,
        digest: Digest,
        work: impl FnOnce() -> Compiled + Send + 'static,
    ) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        // Stop policy: it ends by itself; nobody waits for one that was given up, not even the end of the process.
        thread::Builder::new().name("compile".to_owned()).stack_size(COMPILER_STACK).spawn(move || {
            // Lanes come first. Where this is not allowed it is not needed either.
            let _ = rustix::process::nice(10);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
                Err(ModuleError::Invalid("the compiler failed on this module: please report it".to_owned()))
            });
            shared.finish(digest, result);
        })?;
        jobs.running += 1;
        if let Some(job) = jobs.pending.get_mut(&digest) {
            job.started = Some(Instant::now());
        }
        Ok(())
    }

    /// Waits for a compilation that is going on, for as long as it may take.
    fn wait(&self, jobs: &mut parking_lot::MutexGuard<'_, Jobs>, digest: Digest) -> Compiled {
        if let Some(job) = jobs.pending.get_mut(&digest) {
            job.waiting += 1;
        }
        loop {
            let stopped = jobs.stopped;
            let Some(job) = jobs.pending.get_mut(&digest) else {
                return Err(ModuleError::CompileTimeout("the module got no place to compile".to_owned()));
            };
            if let Some(result) = job.result.clone() {
                job.waiting -= 1;
                if job.waiting == 0 {
                    jobs.pending.remove(&digest);
                }
                return result;
            }
            if stopped {
                job.waiting -= 1;
                return Err(stopping());
            }
            let deadline = job.started.map(|started| started + self.timeout);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                job.waiting -= 1;
                if !job.abandoned && jobs.abandoned < MAX_ABANDONED {
                    jobs.abandon(digest);
                    self.shared.changed.notify_all();
                }
                return Err(too_slow(self.timeout));
            }
            match deadline {
                Some(deadline) => drop(self.shared.changed.wait_until(jobs, deadline)),
                None => self.shared.changed.wait(jobs),
            }
        }
    }
}

fn stopping() -> ModuleError {
    ModuleError::Unavailable("the node stops: nothing is compiled any more".to_owned())
}

impl Jobs {
    /// The thread goes on, without a place.
    fn abandon(&mut self, digest: Digest) {
        if let Some(job) = self.pending.get_mut(&digest) {
            job.abandoned = true;
            self.abandoned += 1;
            self.running -= 1;
        }
    }
}

impl Shared {
    fn finish(&self, digest: Digest, result: Compiled) {
        let mut jobs = self.jobs.lock();
        if let Ok(program) = &result {
            jobs.programs.insert(digest, Arc::downgrade(program));
        }
        if let Some(job) = jobs.pending.get_mut(&digest) {
            let (abandoned, waiting) = (job.abandoned, job.waiting);
            job.result = Some(result);
            if abandoned {
                jobs.abandoned -= 1;
            } else {
                jobs.running -= 1;
            }
            if waiting == 0 {
                jobs.pending.remove(&digest);
            }
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Guest, GuestFailure, GuestLines, GuestSpec};
    use crossbeam_channel::bounded;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Nothing(Digest);

    impl Program for Nothing {
        fn digest(&self) -> Digest {
            self.0
        }

        fn start(&self, _: &GuestSpec, _: Arc<dyn GuestLines>) -> Result<Box<dyn Guest>, GuestFailure> {
            unreachable!("never started here")
        }
    }

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn program(n: u8) -> Arc<dyn Program> {
        Arc::new(Nothing(digest(n)))
    }

    #[test]
    fn each_module_is_compiled_once_while_it_is_used() {
        let compiler = Compiler::new(2, Duration::from_mins(1));
        let count = Arc::new(AtomicUsize::new(0));
        let (go, wait) = bounded::<()>(0);
        thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| {
                    let (count, wait) = (Arc::clone(&count), wait.clone());
                    let compiler = &compiler;
                    scope.spawn(move || {
                        compiler.compile(digest(1), move || {
                            count.fetch_add(1, Ordering::SeqCst);
                            let _ = wait.recv();
                            Ok(program(1))
                        })
                    })
                })
                .collect();
            while compiler.shared.jobs.lock().pending.get(&digest(1)).is_none_or(|job| job.waiting < 4) {
                thread::yield_now();
            }
            drop(go);
            let programs: Vec<_> = all.into_iter().map(|one| one.join().unwrap().unwrap()).collect();
            assert!(programs.iter().all(|program| Arc::ptr_eq(program, &programs[0])));
            let again = compiler.compile(digest(1), || unreachable!("it is in use")).unwrap();
            assert!(Arc::ptr_eq(&again, &programs[0]));
        });
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let anew = compiler.compile(digest(1), || Ok(program(1))).unwrap();
        assert_eq!(anew.digest(), digest(1), "nobody used it, so it was compiled again");
        assert!(compiler.shared.jobs.lock().pending.is_empty());
    }

    #[test]
    fn a_bomb_blocks_nobody() {
        // Long enough for a good module on a busy machine, too.
        let compiler = Compiler::new(1, Duration::from_millis(500));
        let (stop, endless) = bounded::<()>(0);
        let bomb = |n: u8| {
            let endless = endless.clone();
            compiler.compile(digest(n), move || {
                let _ = endless.recv();
                Ok(program(n))
            })
        };
        for n in 0..MAX_ABANDONED as u8 {
            assert!(matches!(bomb(n), Err(ModuleError::CompileTimeout(_))));
            assert!(matches!(bomb(n), Err(ModuleError::CompileTimeout(_))), "asked again, at once");
            assert!(compiler.compile(digest(100 + n), move || Ok(program(100 + n))).is_ok());
        }
        assert!(matches!(bomb(50), Err(ModuleError::CompileTimeout(_))));
        let error = compiler.compile(digest(60), || Ok(program(60))).err().unwrap().to_string();
        assert!(error.contains("no place"), "{error}");
        drop(stop);
        while compiler.shared.jobs.lock().abandoned > 0 {
            thread::yield_now();
        }
        assert!(compiler.compile(digest(60), || Ok(program(60))).is_ok());
    }

    #[test]
    fn a_panic_of_the_compiler_is_an_error() {
        let compiler = Compiler::new(1, Duration::from_mins(1));
        let result = compiler.compile(digest(1), || panic!("compiler bug (expected by this test)"));
        assert!(matches!(result, Err(ModuleError::Invalid(_))));
    }
}
