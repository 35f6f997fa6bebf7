//! Reads a topic to its end, or on and on.

use std::time::{Duration, Instant};

use crate::core::names::TopicName;
use crate::ports::{Fetched, LogError, Reader};

/// The longest wait for records that are there but not yet fetched.
const WAIT: Duration = Duration::from_millis(20);
/// The longest wait for records that are yet to be written.
const FOLLOW: Duration = Duration::from_millis(500);
/// How long nothing may come before the end is reached.
const STALLS: Duration = Duration::from_secs(10);

/// The records of a topic, a few at a time.
pub struct Records {
    reader: Box<dyn Reader>,
    topic: TopicName,
    follow: bool,
    progress: Instant,
}

impl Records {
    /// What `reader`, a reader of `topic`, has still to read; with `follow` also what is written from now on.
    pub fn new(reader: Box<dyn Reader>, topic: &TopicName, follow: bool) -> Self {
        Self { reader, topic: topic.clone(), follow, progress: Instant::now() }
    }

    /// More records, perhaps none yet; `None` at the end that the topic had when the reader was opened, unless
    /// it is followed.
    ///
    /// # Errors
    ///
    /// Those of the reader, and `Unavailable` when nothing came for ten seconds before that end: clients wait for ever
    /// for a partition whose leader is away.
    pub fn more(&mut self) -> Result<Option<Vec<Fetched>>, LogError> {
        if self.follow {
            return self.reader.fetch(FOLLOW).map(Some);
        }
        if self.reader.is_caught_up()? {
            return Ok(None);
        }
        let fetched = self.reader.fetch(WAIT)?;
        if !fetched.is_empty() {
            self.progress = Instant::now();
        } else if self.progress.elapsed() > STALLS {
            return Err(LogError::Unavailable(format!(
                "{} cannot be read to its end: nothing came for {} s",
                self.topic,
                STALLS.as_secs()
            )));
        }
        Ok(Some(fetched))
    }
}
