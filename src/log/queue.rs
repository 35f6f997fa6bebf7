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
    items: VecDeque<Item<T>>,
    bytes: usize,
    closed: bool,
    /// How often items were taken.
    turn: usize,
    /// The receiver sleeps until there are so many items.
    wanted: usize,
}

#[derive(Debug)]
struct Item<T> {
    bytes: usize,
    door: usize,
    value: T,
}

/// Items that were taken together.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<T> {
    /// The items.
    pub items: Vec<T>,
    /// Which of the two doors those who put them in were sent to.
    pub doors: [bool; 2],
    /// Whether most of those who were waited for came.
    pub came_back: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, closed: false, turn: 0, wanted: 1 };
        Self { state: Mutex::new(state), not_empty: Condvar::new(), not_full: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Puts an item of so many bytes in, after waiting for room. Gives it back when the queue is closed, else the door
    /// to wait at: the other one after each `take`.
    pub fn push(&self, bytes: usize, item: T) -> Result<usize, T> {
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
        let door = state.turn % 2;
        state.items.push_back(Item { bytes, door, value: item });
        state.bytes += bytes;
        if state.items.len() >= state.wanted || state.bytes >= TAKE_BYTES {
            self.not_empty.notify_one();
        }
        Ok(door)
    }

    /// Waits for an item, then at most `linger` until there are `returning` more than now; takes what is there. `None`
    /// when the queue is closed and empty.
    pub fn take(&self, returning: usize, linger: Duration) -> Option<Taken<T>> {
        let mut state = self.state.lock();
        let before = state.items.len();
        let wanted = before + returning;
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
        let came_back = state.items.len() >= before + returning.div_ceil(2);
        let mut taken = Taken { items: Vec::with_capacity(state.items.len()), doors: [false; 2], came_back };
        let mut bytes = 0;
        while let Some(next) = state.items.front() {
            if !taken.items.is_empty() && bytes + next.bytes > TAKE_BYTES {
                break;
            }
            bytes += next.bytes;
            taken.doors[next.door] = true;
            taken.items.extend(state.items.pop_front().map(|next| next.value));
        }
        state.bytes -= bytes;
        state.turn += 1;
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
        let take = |wanted, linger| queue.take(wanted, linger).map(|taken| (taken.items, taken.doors));
        let long = Duration::from_secs(9);
        assert_eq!(take(1, Duration::ZERO), Some((vec![0, 1, 2, 3, 4], [true, false])));
        assert_eq!(queue.push(TAKE_BYTES, 5), Ok(1));
        assert_eq!(queue.push(1, 6), Ok(1));
        assert_eq!(take(9, long), Some((vec![5], [false, true])), "a large one is not waited behind");
        assert_eq!(queue.push(1, 7), Ok(0));
        queue.close();
        assert_eq!(queue.push(1, 8), Err(8));
        assert_eq!(
            take(9, long),
            Some((vec![6, 7], [true, true])),
            "who was left waits where they were sent"
        );
        assert_eq!(take(1, Duration::ZERO), None);
    }

    #[test]
    fn a_full_queue_makes_the_sender_wait() {
        let queue = Queue::default();
        queue.push(MAX_BYTES, 0).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| queue.push(1, 1));
            let take = || queue.take(1, Duration::ZERO).map(|taken| taken.items);
            assert_eq!([take(), take()], [Some(vec![0]), Some(vec![1])]);
        });
    }
}
