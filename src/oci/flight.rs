//! Single flight: of the threads that want the same thing at the same time, one gets it and the others wait.
//!
//! They share the outcome, failures too: a registry that is down is asked once, not by each of a hundred lanes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::oci::error::OciError;

type Outcome<T> = Result<T, OciError>;

struct Flight<T> {
    outcome: Mutex<Option<Outcome<T>>>,
    landed: Condvar,
}

/// The flights under way.
///
/// The key says all that the outcome depends on, whose image it is too: what one user's image leads to is no
/// answer for another's.
pub(super) struct Flights<T>(Mutex<HashMap<String, Arc<Flight<T>>>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

/// Lands the flight also when the leader panics, so that nobody waits for ever.
struct Landing<'a, T: Clone> {
    flights: &'a Flights<T>,
    flight: Arc<Flight<T>>,
    key: String,
    outcome: Outcome<T>,
}

impl<T: Clone> Drop for Landing<'_, T> {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
        *self.flight.outcome.lock() = Some(self.outcome.clone());
        self.flight.landed.notify_all();
    }
}

impl<T: Clone> Flights<T> {
    /// Runs `get`, or waits for the thread that runs it for this key.
    pub(super) fn run(&self, key: String, get: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let (flight, is_leader) = {
            let mut flights = self.0.lock();
            if let Some(flight) = flights.get(&key) {
                (Arc::clone(flight), false)
            } else {
                let flight = Arc::new(Flight { outcome: Mutex::new(None), landed: Condvar::new() });
                flights.insert(key.clone(), Arc::clone(&flight));
                (flight, true)
            }
        };
        if is_leader {
            let outcome = Err(OciError::AbandonedFetch);
            let mut landing = Landing { flights: self, flight, key, outcome };
            landing.outcome = get();
            return landing.outcome.clone();
        }
        let mut outcome = flight.outcome.lock();
        loop {
            if let Some(outcome) = outcome.as_ref() {
                return outcome.clone();
            }
            flight.landed.wait(&mut outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_thread_gets_it_for_all() {
        const THREADS: usize = 20;
        let (flights, runs, start) = (Flights::default(), AtomicUsize::new(0), Barrier::new(THREADS));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    let got = flights.run("x".to_owned(), || {
                        // It is known to the map, to the leader, and to everybody else once they wait for it.
                        while Arc::strong_count(&flights.0.lock()["x"]) < THREADS + 1 {
                            std::thread::yield_now();
                        }
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    });
                    assert!(matches!(got, Ok(0)));
                });
            }
        });
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
}
