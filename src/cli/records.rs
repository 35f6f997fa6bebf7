//! Records as lines of JSON: what `consume -o json` prints, `produce --json` and golden files read.
//!
//! Byte-exact both ways. A key, value or header that is UTF-8 is a string, one that is not stands as base64
//! under `key_base64` or `value_base64`; null is null. As a value, JSON that is no string is taken as its own
//! text, so that documents need no quoting.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::core::record::{Record, TimestampMs};
use crate::ports::Fetched;

/// A record as it was written, and the partition that it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The record.
    pub record: Record,
    /// The partition, where the line names one.
    pub partition: Option<u32>,
    /// The topic, where the line names one.
    pub topic: Option<String>,
}

/// What is wrong with a line of JSON, and at which column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// The column in bytes, from 1; 0 where it concerns the whole line.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecord<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    key_base64: Option<String>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
    #[serde(default)]
    headers: RawHeaders,
    timestamp: Option<TimestampMs>,
    partition: Option<u32>,
    topic: Option<String>,
    // What `consume` prints and `produce` has no use for.
    #[serde(default, rename = "offset")]
    _offset: Option<IgnoredAny>,
    #[serde(default, rename = "id")]
    _id: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
}

/// A list of `{key, value}` objects, or one object for headers without duplicates.
#[derive(Default)]
struct RawHeaders(Vec<RawHeader>);

impl<'de> Deserialize<'de> for RawHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = RawHeaders;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of {key, value} objects, or an object of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawHeaders, A::Error> {
        let mut headers = Vec::new();
        while let Some(header) = seq.next_element()? {
            headers.push(header);
        }
        Ok(RawHeaders(headers))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeaders, A::Error> {
        let mut headers = Vec::new();
        while let Some((key, value)) = map.next_entry()? {
            headers.push(RawHeader { key: Some(key), key_base64: None, value, value_base64: None });
        }
        Ok(RawHeaders(headers))
    }
}

/// Reads a record from one line of JSON.
pub fn parse(line: &[u8]) -> Result<Parsed, BadLine> {
    // A derived reader takes lists too, field after field: nobody means that.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(no_object(line));
    }
    let raw: RawRecord<'_> = serde_json::from_slice(line).map_err(|error| BadLine {
        column: error.column(),
        message: if error.is_data() {
            in_words(&error)
        } else {
            format!("this is no JSON: {}", said(&error))
        },
    })?;
    let headers = raw.headers.0.into_iter().map(header).collect::<Result<_, _>>()?;
    let record = Record {
        key: either("key", raw.key.map(text_of).transpose()?, raw.key_base64)?,
        value: either("value", raw.value.map(text_of).transpose()?, raw.value_base64)?,
        headers,
        timestamp: raw.timestamp,
    };
    Ok(Parsed { record, partition: raw.partition, topic: raw.topic })
}

fn no_object(line: &[u8]) -> BadLine {
    match serde_json::from_slice::<IgnoredAny>(line) {
        Ok(_) => bad("this is JSON, but no object"),
        Err(error) => {
            BadLine { column: error.column(), message: format!("this is no JSON: {}", said(&error)) }
        }
    }
}

/// What the reader of JSON says, without the place that we say better.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// The same without the names of types.
fn in_words(error: &serde_json::Error) -> String {
    let mut text = said(error);
    for (ours, theirs) in
        [("expected u32", "expected a number, 0 or more"), ("expected i64", "expected a whole number")]
    {
        text = text.replace(ours, theirs);
    }
    text
}

fn bad(message: impl Into<String>) -> BadLine {
    BadLine { column: 0, message: message.into() }
}

fn header(raw: RawHeader) -> Result<(Vec<u8>, Option<Vec<u8>>), BadLine> {
    let key = either("header key", raw.key.map(String::into_bytes), raw.key_base64)?;
    let key = key.ok_or_else(|| bad("a header has no key"))?;
    Ok((key, either("header value", raw.value.map(String::into_bytes), raw.value_base64)?))
}

fn text_of(raw: &RawValue) -> Result<Vec<u8>, BadLine> {
    if raw.get().starts_with('"') {
        // A lone surrogate escape is no text: the one thing that raw JSON does not find.
        let text: String = serde_json::from_str(raw.get()).map_err(|error| bad(error.to_string()))?;
        return Ok(text.into_bytes());
    }
    Ok(raw.get().as_bytes().to_vec())
}

fn either(what: &str, text: Option<Vec<u8>>, base64: Option<String>) -> Result<Option<Vec<u8>>, BadLine> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(bad(format!("the {what} is there twice, as text and as base64"))),
        (text, None) => Ok(text),
        (None, Some(base64)) => {
            let bytes = BASE64.decode(base64.as_bytes());
            bytes.map(Some).map_err(|error| bad(format!("the {what} is not base64: {error}")))
        }
    }
}

/// Puts key, value and headers into a JSON object.
pub fn fields(record: &Record) -> Map<String, Value> {
    let mut object = Map::new();
    put(&mut object, "key", record.key.as_deref());
    put(&mut object, "value", record.value.as_deref());
    let headers = record.headers.iter().map(|(key, value)| {
        let mut header = Map::new();
        put(&mut header, "key", Some(key));
        put(&mut header, "value", value.as_deref());
        Value::Object(header)
    });
    object.insert("headers".into(), headers.collect());
    object
}

/// A record with its place, as one line of JSON, its fields in the order that people read.
pub struct Line<'a> {
    id: Option<String>,
    topic: &'a str,
    fetched: &'a Fetched,
}

impl<'a> Line<'a> {
    /// The line of a record.
    pub fn new(topic: &'a str, fetched: &'a Fetched) -> Self {
        Self { id: None, topic, fetched }
    }

    /// The line with the record's id.
    #[must_use]
    pub fn with_id(self, id: String) -> Self {
        Self { id: Some(id), ..self }
    }
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Fetched { partition, offset, record, .. } = self.fetched;
        let mut map = serializer.serialize_map(None)?;
        if let Some(id) = &self.id {
            map.serialize_entry("id", id)?;
        }
        map.serialize_entry("topic", self.topic)?;
        map.serialize_entry("partition", partition)?;
        map.serialize_entry("offset", offset)?;
        map.serialize_entry("timestamp", &record.timestamp)?;
        entry(&mut map, ("key", "key_base64"), record.key.as_deref())?;
        entry(&mut map, ("value", "value_base64"), record.value.as_deref())?;
        let header = |(key, value): &'_ (Vec<u8>, Option<Vec<u8>>)| HeaderLine(key.clone(), value.clone());
        let headers: Vec<HeaderLine> = record.headers.iter().map(header).collect();
        map.serialize_entry("headers", &headers)?;
        map.end()
    }
}

struct HeaderLine(Vec<u8>, Option<Vec<u8>>);

impl Serialize for HeaderLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        entry(&mut map, ("key", "key_base64"), Some(&self.0))?;
        entry(&mut map, ("value", "value_base64"), self.1.as_deref())?;
        map.end()
    }
}

fn entry<M: SerializeMap>(
    map: &mut M,
    (text, base64): (&'static str, &'static str),
    bytes: Option<&[u8]>,
) -> Result<(), M::Error> {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| BASE64.encode(bytes))) {
        None => map.serialize_entry(text, &()),
        Some(Ok(utf8)) => map.serialize_entry(text, utf8),
        Some(Err(encoded)) => map.serialize_entry(base64, &encoded),
    }
}

fn put(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => object.insert(name.into(), Value::Null),
        Some(Ok(text)) => object.insert(name.into(), text.into()),
        Some(Err(_)) => {
            object.insert(format!("{name}_base64"), BASE64.encode(bytes.unwrap_or_default()).into())
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        let parsed = parse(
            br#"{"key": "k", "value": {"mag": 4.50}, "headers": {"a": "1", "b": null}, "partition": 2,
                "timestamp": 5}"#,
        )
        .unwrap();
        assert_eq!(parsed.partition, Some(2));
        assert_eq!(
            parsed.record,
            Record {
                key: Some(b"k".to_vec()),
                value: Some(br#"{"mag": 4.50}"#.to_vec()),
                headers: vec![(b"a".to_vec(), Some(b"1".to_vec())), (b"b".to_vec(), None)],
                timestamp: Some(5),
            }
        );
        assert_eq!(parse(br#"{"value": null}"#).unwrap().record, Record::default());
        assert_eq!(parse(br#"{"value_base64": "/w=="}"#).unwrap().record.value, Some(vec![255]));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (line, column, says) in [
            (r#"{"value": "a""#, 13, "EOF while parsing"),
            (r#"{"value": x}"#, 11, "expected value"),
            (r#"{"valeu": "a"}"#, 8, "unknown field `valeu`"),
            (r#"{"partition": -1}"#, 16, "invalid value"),
            (r#"{"value": "a"} more"#, 16, "trailing characters"),
            ("[1]", 0, "this is JSON, but no object"),
            ("hello", 1, "this is no JSON: expected value"),
            (r#"["k", null, "v", null, [], 5, 0, "t", 1, "i"]"#, 0, "no object"),
            (r#"{"partition": "x"}"#, 17, "expected a number, 0 or more"),
            (r#"{"key": "a", "key_base64": "YQ=="}"#, 0, "twice"),
            (r#"{"key_base64": "?"}"#, 0, "not base64"),
            (r#"{"headers": [{"value": "a"}]}"#, 0, "no key"),
        ] {
            let bad = parse(line.as_bytes()).unwrap_err();
            assert!(bad.message.contains(says), "{line}: {bad:?}");
            assert!(column == 0 || bad.column == column, "{line}: {bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(
            key: Option<Vec<u8>>,
            value: Option<Vec<u8>>,
            text: String,
            headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
            timestamp: i64,
        ) {
            let value = value.or_else(|| Some(text.into_bytes()));
            let record = Record { key, value, headers, timestamp: Some(timestamp) };
            let fetched = Fetched { partition: 3, offset: 9, appended_ms: 0, record };
            let line = serde_json::to_string(&Line::new("t", &fetched)).unwrap();
            prop_assert_eq!(parse(line.as_bytes()).unwrap().record, fetched.record);
        }
    }
}
