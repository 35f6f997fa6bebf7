//! The queue before the writer: bounded by bytes, so that callers wait rather than fill the memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Most bytes that wait. A single larger item still comes in, alone.
const MAX_BYTES: usize = 16 << 20;
/// Most items that wait.
const MAX_ITEMS: usize = 8_192;
/// Most bytes that are taken at once.
const TAKE_BYTES: usize = 8 << 20;

/// A bounded queue of many senders and one receiver.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    not_empty: Condvar,
    not_full: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    closed: bool,
    /// The receiver sleeps until there are so many items.
    wanted: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, closed: false, wanted: 1 };
        Self { state: Mutex::new(state), not_empty: Condvar::new(), not_full: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Puts an item of so many bytes in, after waiting for room. Gives it back when the queue is closed.
    pub fn push(&self, bytes: usize, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        while !state.closed
            && !state.items.is_empty()
            && (state.bytes + bytes > MAX_BYTES || state.items.len() >= MAX_ITEMS)
        {
            self.not_full.wait(&mut state);
        }
        if state.closed {
            return Err(item);
        }
        state.items.push_back((bytes, item));
        state.bytes += bytes;
        if state.items.len() >= state.wanted || state.bytes >= TAKE_BYTES {
            self.not_empty.notify_one();
        }
        Ok(())
    }

    /// Waits for an item, then at most `linger` for `wanted` of them; takes what is there. `None` when the queue is
    /// closed and empty.
    pub fn take(&self, wanted: usize, linger: Duration) -> Option<Vec<T>> {
        let mut state = self.state.lock();
        state.wanted = 1;
        while state.items.is_empty() {
            if state.closed {
                return None;
            }
            self.not_empty.wait(&mut state);
        }
        let deadline = Instant::now() + linger;
        state.wanted = wanted;
        while state.items.len() < wanted && state.bytes < TAKE_BYTES && !state.closed {
            if self.not_empty.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let mut taken = Vec::with_capacity(state.items.len());
        let mut bytes = 0;
        while let Some((size, _)) = state.items.front() {
            if !taken.is_empty() && bytes + size > TAKE_BYTES {
                break;
            }
            bytes += size;
            taken.extend(state.items.pop_front().map(|(_, item)| item));
        }
        state.bytes -= bytes;
        self.not_full.notify_all();
        Some(taken)
    }

    /// Refuses items from now on; those inside are still taken.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_waits_in_order_and_ends_when_closed() {
        let queue = Queue::default();
        for number in 0..5 {
            queue.push(10, number).unwrap();
        }
        assert_eq!(queue.take(1, Duration::ZERO), Some(vec![0, 1, 2, 3, 4]));
        queue.push(TAKE_BYTES, 5).unwrap();
        queue.push(1, 6).unwrap();
        assert_eq!(queue.take(9, Duration::from_secs(9)), Some(vec![5]), "a large one is not waited behind");
        queue.close();
        assert_eq!(queue.push(1, 7), Err(7));
        assert_eq!(queue.take(9, Duration::from_secs(9)), Some(vec![6]));
        assert_eq!(queue.take(1, Duration::ZERO), None);
    }

    #[test]
    fn a_full_queue_makes_the_sender_wait() {
        let queue = Queue::default();
        queue.push(MAX_BYTES, 0).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| queue.push(1, 1).unwrap());
            assert_eq!(queue.take(1, Duration::ZERO), Some(vec![0]));
            assert_eq!(queue.take(1, Duration::ZERO), Some(vec![1]));
        });
    }
}
