//! Dead letters: the failing record as it came, with headers that say where it stood and what went wrong.

use crate::core::ledger::TopicPartition;
use crate::core::record::{Payload, RecordRef, put_payload};
use crate::node::chain::StepFailure;

/// Header names, all UTF-8 text values.
pub mod header {
    /// Topic that the record came from.
    pub const TOPIC: &str = "coproc.topic";
    /// Its partition, decimal.
    pub const PARTITION: &str = "coproc.partition";
    /// Its offset, decimal.
    pub const OFFSET: &str = "coproc.offset";
    /// Its timestamp, milliseconds since the Unix epoch, decimal.
    pub const TIMESTAMP: &str = "coproc.timestamp";
    /// Error class: the `class` label of `coproc_guest_errors_total`.
    pub const CLASS: &str = "coproc.error.class";
    /// What happened.
    pub const MESSAGE: &str = "coproc.error.message";
    /// How often the record was tried, decimal.
    pub const ATTEMPTS: &str = "coproc.attempts";
    /// The step that failed.
    pub const STEP: &str = "coproc.step";
    /// Digest of the step's module.
    pub const MODULE: &str = "coproc.module";
    /// Original payload bytes of a record that was too large for the dead-letter topic, decimal.
    pub const TRUNCATED: &str = "coproc.truncated";
}

/// Longest error message in a header, in bytes.
const MAX_MESSAGE: usize = 4 << 10;

/// The dead letter of a record; one larger than `max_bytes` loses its headers, then the end of its value and
/// key, and says so.
pub fn dead_letter(
    from: &TopicPartition,
    record: &RecordRef<'_>,
    failure: &StepFailure,
    attempts: u32,
    max_bytes: usize,
) -> Vec<u8> {
    let Ok(parts) = Payload::parse(record.payload) else { return Vec::new() };
    let mut about = about(from, record, failure, attempts);
    let mut letter = Vec::with_capacity(record.payload.len() + 512);
    let original: Vec<_> = parts.headers().collect();
    write(&mut letter, parts.key, parts.value, &original, &about);
    if letter.len() <= max_bytes {
        return letter;
    }
    about.push((header::TRUNCATED, record.payload.len().to_string()));
    letter.clear();
    write(&mut letter, None, None, &[], &about);
    // Lengths take at most 5 bytes each where null took one.
    let room = max_bytes.saturating_sub(letter.len() + 8);
    letter.clear();
    let key = parts.key.map(|key| &key[..key.len().min(room / 4)]);
    let room = room - key.map_or(0, <[u8]>::len);
    let value = parts.value.map(|value| &value[..value.len().min(room)]);
    write(&mut letter, key, value, &[], &about);
    letter
}

fn about(
    from: &TopicPartition,
    record: &RecordRef<'_>,
    failure: &StepFailure,
    attempts: u32,
) -> Vec<(&'static str, String)> {
    let message = &failure.failure.message;
    let end = (0..=message.len().min(MAX_MESSAGE)).rev().find(|end| message.is_char_boundary(*end));
    vec![
        (header::TOPIC, from.topic.to_string()),
        (header::PARTITION, from.partition.to_string()),
        (header::OFFSET, record.offset.to_string()),
        (header::TIMESTAMP, record.timestamp.to_string()),
        (header::CLASS, failure.failure.class.as_str().to_owned()),
        (header::MESSAGE, message[..end.unwrap_or(0)].to_owned()),
        (header::ATTEMPTS, attempts.to_string()),
        (header::STEP, failure.step.clone()),
        (header::MODULE, failure.digest.to_string()),
    ]
}

fn write(
    out: &mut Vec<u8>,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    original: &[(&[u8], Option<&[u8]>)],
    about: &[(&str, String)],
) {
    let about = about.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
    let all: Vec<_> = original.iter().copied().chain(about).collect();
    put_payload(out, key, value, all.into_iter());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::digest::Digest;
    use crate::core::record::Record;
    use crate::ports::{GuestClass, GuestFailure};

    fn letter(record: &Record, max_bytes: usize, message: &str) -> (usize, Record) {
        let payload = record.payload();
        let from = TopicPartition::new(&"orders".parse().unwrap(), 3);
        let failure = StepFailure {
            step: "main".into(),
            digest: Digest::from_bytes([1; 32]),
            failure: GuestFailure { class: GuestClass::Trap, message: message.into() },
        };
        let source = RecordRef { offset: 42, timestamp: 1_000, payload: &payload };
        let letter = dead_letter(&from, &source, &failure, 11, max_bytes);
        (letter.len(), Record::from_payload(&letter, 1_000).unwrap())
    }

    fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
        let found = record.headers.iter().find(|(key, _)| key == name.as_bytes())?;
        std::str::from_utf8(found.1.as_deref()?).ok()
    }

    #[test]
    fn the_record_is_kept_and_explained() {
        let mut record = Record::new(Some(b"k"), None);
        record.headers.push((b"h".to_vec(), None));
        let (_, letter) = letter(&record, 1 << 20, "it broke");
        assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"k"[..]), None));
        assert_eq!(letter.headers[0], (b"h".to_vec(), None));
        let expected = [
            (header::TOPIC, "orders"),
            (header::PARTITION, "3"),
            (header::OFFSET, "42"),
            (header::TIMESTAMP, "1000"),
            (header::CLASS, "trap"),
            (header::MESSAGE, "it broke"),
            (header::ATTEMPTS, "11"),
            (header::STEP, "main"),
        ];
        for (name, value) in expected {
            assert_eq!(header(&letter, name), Some(value), "{name}");
        }
        assert_eq!(header(&letter, header::TRUNCATED), None);
    }

    #[test]
    fn one_that_is_too_large_is_cut_and_says_so() {
        let record = Record::new(Some(&[7; 5_000]), Some(&vec![8; 50_000]));
        let (bytes, letter) = letter(&record, 10_000, &"é".repeat(5_000));
        assert!(bytes <= 10_000, "{bytes}");
        assert!(letter.value.as_ref().is_some_and(|value| value.len() > 1_000));
        assert!(header(&letter, header::TRUNCATED).unwrap().parse::<usize>().unwrap() > 55_000);
    }
}
