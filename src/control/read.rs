//! Reads a topic to its end, or on and on.

use std::time::{Duration, Instant};

use crate::core::names::TopicName;
use crate::ports::{Fetched, LogError, Reader};

/// The longest wait for records that are there but not yet fetched.
const WAIT: Duration = Duration::from_millis(20);
/// The longest wait for records that are yet to be written.
const FOLLOW: Duration = Duration::from_millis(500);
/// How long nothing may come before the end of a user's topic is reached, also by a slow connection.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The records of a topic, a few at a time.
pub struct Records {
    reader: Box<dyn Reader>,
    topic: TopicName,
    /// `None` where it goes on for ever.
    patience: Option<Duration>,
    progress: Instant,
}

impl Records {
    /// What `reader`, a reader of `topic`, has still to read. With no patience also what is written from now on; else up to the
    /// end that the topic has now, as long as something comes within that time.
    pub fn new(reader: Box<dyn Reader>, topic: &TopicName, patience: Option<Duration>) -> Self {
        Self { reader, topic: topic.clone(), patience, progress: Instant::now() }
    }

    /// More records, perhaps none yet; `None` at the end that the topic had when the reader was opened, unless
    /// it is followed.
    ///
    /// # Errors
    ///
    /// Those of the reader, and `Unavailable` when its patience is over before that end: clients wait for ever for a partition
    /// whose leader is away.
    pub fn more(&mut self) -> Result<Option<Vec<Fetched>>, LogError> {
        let Some(patience) = self.patience else {
            return self.reader.fetch(FOLLOW).map(Some);
        };
        if self.reader.is_caught_up()? {
            return Ok(None);
        }
        let fetched = self.reader.fetch(WAIT)?;
        if !fetched.is_empty() {
            self.progress = Instant::now();
        } else if self.progress.elapsed() > patience {
            return Err(LogError::Unavailable(format!(
                "{} cannot be read to its end: nothing came for {} s",
                self.topic,
                patience.as_secs()
            )));
        }
        Ok(Some(fetched))
    }
}
