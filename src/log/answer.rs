//! Answers to callers: given by the writer, for a whole group of commits at once.
//!
//! A caller that waits sleeps at a door; the writer lays down the answers of a group, then opens its door, which is one
//! system call for all who sleep there. A wake-up for each of them, one after another, took longer than the sync of a
//! fast disk. There are two doors, because the callers of the next group are there already while one is committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::thread::futex;

use crate::ports::LogError;

/// Takes an answer, on the writer's thread: must not block.
pub type Callback<T> = Box<dyn FnOnce(Result<T, LogError>) + Send>;

/// Where callers sleep.
#[derive(Debug, Default)]
pub struct Doors {
    /// How often each was opened.
    turns: [AtomicU32; 2],
}

impl Doors {
    /// Wakes everybody who sleeps at this door.
    pub fn open(&self, door: usize) {
        let turns = &self.turns[door % 2];
        turns.fetch_add(1, Ordering::Release);
        // It can only fail where there is no futex, and there nobody could have slept.
        let _ = futex::wake(turns, futex::Flags::PRIVATE, i32::MAX.cast_unsigned());
    }
}

/// An answer that is owed. Dropped without one, it says that the log was closed.
pub enum Answer<T> {
    /// To a callback.
    Call(Callback<T>),
    /// To a caller that sleeps.
    Wait(Debt<T>),
}

impl<T> Answer<T> {
    /// An answer, and the place where its caller waits for it.
    pub fn new() -> (Self, Waiting<T>) {
        let slot = Arc::new(Slot { result: Mutex::new(None) });
        (Self::Wait(Debt(Some(slot.clone()))), Waiting(slot))
    }

    /// Gives the answer. Who sleeps still has to be woken.
    pub fn give(self, result: Result<T, LogError>) {
        match self {
            Self::Call(callback) => callback(result),
            Self::Wait(mut debt) => debt.pay(result),
        }
    }
}

/// An answer that somebody sleeps for.
pub struct Debt<T>(Option<Arc<Slot<T>>>);

impl<T> Debt<T> {
    fn pay(&mut self, result: Result<T, LogError>) {
        if let Some(slot) = self.0.take() {
            *slot.result.lock() = Some(result);
        }
    }
}

impl<T> Drop for Debt<T> {
    fn drop(&mut self) {
        self.pay(Err(closed()));
    }
}

/// What is said when there is nobody left to answer.
pub fn closed() -> LogError {
    LogError::Unavailable("it was closed".into())
}

struct Slot<T> {
    result: Mutex<Option<Result<T, LogError>>>,
}

/// A caller's side of an answer.
pub struct Waiting<T>(Arc<Slot<T>>);

impl<T> Waiting<T> {
    /// Sleeps at `door` until there is an answer.
    pub fn sleep(self, doors: &Doors, door: usize) -> Result<T, LogError> {
        let turns = &doors.turns[door % 2];
        loop {
            // Before the slot: an answer that comes after the look at it opens the door after this.
            let turn = turns.load(Ordering::Acquire);
            if let Some(result) = self.0.result.lock().take() {
                return result;
            }
            // Returns at once where the door was opened since; interrupted, it looks again.
            let _ = futex::wait(turns, futex::Flags::PRIVATE, turn, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_at_the_door_gets_their_own_answer() {
        let doors = &Doors::default();
        std::thread::scope(|scope| {
            for round in 0..200 {
                let (answers, sleepers): (Vec<_>, Vec<_>) = (0..4).map(|_| Answer::<usize>::new()).unzip();
                let threads: Vec<_> = sleepers
                    .into_iter()
                    .map(|waiting| scope.spawn(move || waiting.sleep(doors, round)))
                    .collect();
                for (number, answer) in answers.into_iter().enumerate() {
                    // One of them is forgotten.
                    if number != 2 {
                        answer.give(Ok(number));
                    }
                }
                doors.open(round);
                for (number, thread) in threads.into_iter().enumerate() {
                    let result = thread.join().unwrap();
                    assert!(result.is_ok_and(|found| found == number) || number == 2, "{round}: {number}");
                }
            }
        });
    }
}
