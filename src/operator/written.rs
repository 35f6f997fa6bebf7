//! The statuses that this process wrote: when, and what, until the cache has seen it.
//!
//! A reconciliation may begin before its last write has come back by the watch. Compared with what the cache has then,
//! a status that went from A to B and is A again looks as if nothing had to be written, and B would stay for ever: our
//! own writes start no reconciliation.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[derive(Debug)]
struct Last {
    at: Duration,
    version: Option<u64>,
    status: Value,
}

/// What was written last, by object.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, Last>>);

impl Written {
    /// Notes that the status of an object was written at this time, and which version the object has since.
    pub fn note(&self, object: String, at: Duration, version: Option<&str>, status: Value) {
        self.0.lock().insert(object, Last { at, version: version.and_then(number), status });
    }

    /// When the status of an object was written last.
    pub fn at(&self, object: &str) -> Option<Duration> {
        self.0.lock().get(object).map(|last| last.at)
    }

    /// What was written last, if it is later than the version of the object that is at hand.
    pub fn later_than<S: DeserializeOwned>(&self, object: &str, version: Option<&str>) -> Option<S> {
        let mut all = self.0.lock();
        let last = all.get_mut(object)?;
        if last.version? > version.and_then(number)? {
            return serde_json::from_value(last.status.clone()).ok();
        }
        // The cache has it: no need to keep it twice.
        last.status = Value::Null;
        None
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, object: &str) {
        self.0.lock().remove(object);
    }
}

/// Versions of one kind of object are numbers that rise.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_counts_until_the_cache_has_it() {
        let written = Written::default();
        assert_eq!(written.later_than::<String>("a", Some("7")), None);
        written.note("a".into(), Duration::from_secs(3), Some("10"), "b".into());
        assert_eq!(written.later_than("a", Some("9")), Some("b".to_owned()));
        assert_eq!(written.later_than::<String>("a", Some("10")), None);
        assert_eq!(written.at("a"), Some(Duration::from_secs(3)));
        // An object that was made anew is later than everything that was written before.
        assert_eq!(written.later_than::<String>("a", Some("12")), None);
        written.note("a".into(), Duration::ZERO, Some("13"), "c".into());
        written.forget("a");
        assert_eq!(written.later_than::<String>("a", Some("12")), None);
    }
}
