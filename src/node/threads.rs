//! The one place where threads are born. Each has a name and a stop policy; dropping the registry stops all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A thread that is told to stop by a flag, and waited for.
pub struct Stoppable {
    name: String,
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// A thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("start thread {name:?}: {error}")]
pub struct SpawnError {
    name: String,
    error: std::io::Error,
}

/// Starts a thread. `body` is given the flag that tells it to stop, and has to look at it at least every second.
pub fn spawn(
    name: impl Into<String>,
    body: impl FnOnce(&Arc<AtomicBool>) + Send + 'static,
) -> Result<Stoppable, SpawnError> {
    spawn_with(name, Arc::default(), body)
}

/// As `spawn`, with a flag that others hold too.
pub fn spawn_with(
    name: impl Into<String>,
    stop: Arc<AtomicBool>,
    body: impl FnOnce(&Arc<AtomicBool>) + Send + 'static,
) -> Result<Stoppable, SpawnError> {
    let name = name.into();
    let flag = stop.clone();
    // Linux shows the first 15 bytes of a thread's name.
    let builder = std::thread::Builder::new().name(name.chars().take(15).collect());
    match builder.spawn(move || body(&flag)) {
        Ok(handle) => Ok(Stoppable { name, stop, handle: Some(handle) }),
        Err(error) => Err(SpawnError { name, error }),
    }
}

impl Stoppable {
    /// Tells the thread to stop, without waiting.
    pub fn ask(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the thread has ended.
    pub fn is_over(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells the thread to stop and waits until `deadline`: whether it ended. One that did not is left behind.
    pub fn stop_by(mut self, deadline: Instant) -> bool {
        self.ask();
        while !self.is_over() {
            if Instant::now() >= deadline {
                tracing::error!(thread = self.name, "the thread does not stop: it is left behind");
                self.handle = None;
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.join();
        true
    }

    /// As `stop_by`, for a thread whose work may be left undone at any time.
    pub fn leave_by(mut self, deadline: Instant) {
        self.ask();
        while !self.is_over() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.is_over() { self.join() } else { self.handle = None }
    }

    fn join(&mut self) {
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!(thread = self.name, "the thread panicked: this is a bug, please report it");
        }
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        self.ask();
        self.join();
    }
}
