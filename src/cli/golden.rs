//! Golden files: input records, and the outputs that a module is to give for them. Pure.
//!
//! YAML, one case a document, or lines of JSON, `{"input": …}` and `{"output": …}`, one case a file. What an
//! expected output does not name is not compared; a value that is no string is compared as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::cli::harness::Written;
use crate::cli::records;
use crate::core::names::TopicName;
use crate::core::record::Record;

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The topic that the records come from; the manifest's first unless named.
    pub topic: Option<TopicName>,
    /// Variables besides those of the manifest.
    pub env: BTreeMap<String, String>,
    /// The records.
    pub input: Vec<Record>,
    /// What is to come out, in order.
    pub output: Vec<Expected>,
    /// The class of the failure that is to end it.
    pub error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    #[serde(default)]
    name: String,
    topic: Option<TopicName>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    input: Vec<Value>,
    output: Vec<Map<String, Value>>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum RawLine {
    Input(Value),
    Output(Map<String, Value>),
}

/// Reads a YAML file.
pub fn from_yaml(text: &str) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let number = cases.len() + 1;
        let raw = RawCase::deserialize(document).map_err(|error| format!("case {number}: {error}"))?;
        let name = if raw.name.is_empty() { format!("case {number}") } else { raw.name.clone() };
        cases.push(case(raw, name.clone()).map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(cases)
}

/// Reads lines of JSON.
pub fn from_json_lines(text: &str) -> Result<Vec<Case>, String> {
    let (mut input, mut output) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))? {
            RawLine::Input(record) => input.push(record),
            RawLine::Output(record) => output.push(record),
        }
    }
    let raw = RawCase { name: String::new(), topic: None, env: BTreeMap::new(), input, output, error: None };
    Ok(vec![case(raw, "records".into())?])
}

fn case(raw: RawCase, name: String) -> Result<Case, String> {
    let record = |(i, value): (usize, &Value)| {
        let parsed = records::parse(value.to_string().as_bytes());
        parsed.map(|parsed| parsed.record).map_err(|bad| format!("input {}: {}", i + 1, bad.message))
    };
    let expected = |(i, fields): (usize, Map<String, Value>)| {
        Expected::new(fields).map_err(|error| format!("output {}: {error}", i + 1))
    };
    Ok(Case {
        name,
        topic: raw.topic,
        env: raw.env,
        input: raw.input.iter().enumerate().map(record).collect::<Result<_, _>>()?,
        output: raw.output.into_iter().enumerate().map(expected).collect::<Result<_, _>>()?,
        error: raw.error,
    })
}

/// An output as it is to be: the named fields only.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    fields: Map<String, Value>,
}

impl Expected {
    fn new(mut fields: Map<String, Value>) -> Result<Self, String> {
        let known = ["topic", "timestamp"];
        let topic_and_time: Vec<(String, Value)> =
            known.iter().filter_map(|name| fields.remove_entry(*name)).collect();
        let value_as_json = fields.get("value").filter(|value| is_document(value)).cloned();
        let named: Vec<String> = fields.keys().map(|name| name.trim_end_matches("_base64").into()).collect();
        // Through the same reader as inputs, so that both have the same forms and the same errors.
        let text = Value::Object(fields).to_string();
        let parsed = records::parse(text.as_bytes()).map_err(|bad| bad.message)?;
        let mut normal = records::fields(&parsed.record);
        normal.retain(|name, _| named.iter().any(|named| named == name.trim_end_matches("_base64")));
        if let Some(value) = value_as_json {
            normal.insert("value".into(), value);
        }
        normal.extend(topic_and_time);
        Ok(Self { fields: normal })
    }

    fn matches(&self, written: &Written) -> bool {
        self.fields == project(written, &self.fields)
    }
}

/// Whether a value is compared as JSON.
fn is_document(value: &Value) -> bool {
    !matches!(value, Value::String(_) | Value::Null)
}

/// What was written, reduced to the fields that `like` names and in its form.
fn project(written: &Written, like: &Map<String, Value>) -> Map<String, Value> {
    let mut fields = records::fields(&written.record);
    let topic = written.topic.as_ref().map(TopicName::as_str);
    fields.insert("topic".into(), topic.into());
    fields.insert("timestamp".into(), written.record.timestamp.into());
    if like.get("value").is_some_and(is_document)
        && let Some(Ok(value)) = written.record.value.as_deref().map(serde_json::from_slice::<Value>)
    {
        fields.insert("value".into(), value);
    }
    let names = |name: &str| {
        like.keys().any(|like| like.trim_end_matches("_base64") == name.trim_end_matches("_base64"))
    };
    fields.retain(|name, _| names(name));
    fields
}

/// The difference between what is to be and what is, a line a record; `None` when there is none.
pub fn difference(expected: &[Expected], written: &[Written]) -> Option<String> {
    let pairs = longest_common(expected, written);
    if pairs.len() == expected.len() && pairs.len() == written.len() {
        return None;
    }
    let all: Map<String, Value> = match expected {
        [] => [("topic", Value::Null), ("key", Value::Null), ("value", Value::Null)]
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .collect(),
        some => some.iter().flat_map(|expected| expected.fields.clone()).collect(),
    };
    let line = |text: &mut String, sign: char, fields: Map<String, Value>| {
        let _ = writeln!(text, "{sign} {}", Value::Object(fields));
    };
    let mut text = String::new();
    let (mut i, mut j) = (0, 0);
    for (next_i, next_j) in pairs.into_iter().chain([(expected.len(), written.len())]) {
        expected[i..next_i].iter().for_each(|expected| line(&mut text, '-', expected.fields.clone()));
        written[j..next_j].iter().for_each(|written| line(&mut text, '+', project(written, &all)));
        if let Some(same) = expected.get(next_i) {
            line(&mut text, ' ', same.fields.clone());
        }
        (i, j) = (next_i + 1, next_j + 1);
    }
    Some(text)
}

/// Most cells of the table below: what is larger is compared in order, without looking for shifted records.
const MAX_CELLS: usize = 4_000_000;

/// Indices of a longest common subsequence.
fn longest_common(expected: &[Expected], written: &[Written]) -> Vec<(usize, usize)> {
    let (rows, columns) = (expected.len(), written.len());
    if rows.saturating_mul(columns) > MAX_CELLS {
        let pairs = expected.iter().zip(written).enumerate();
        return pairs.filter(|(_, (a, b))| a.matches(b)).map(|(i, _)| (i, i)).collect();
    }
    let mut lengths = vec![vec![0u32; columns + 1]; rows + 1];
    for i in (0..rows).rev() {
        for j in (0..columns).rev() {
            lengths[i][j] = if expected[i].matches(&written[j]) {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < rows && j < columns {
        if expected[i].matches(&written[j]) {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[i + 1][j] >= lengths[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(topic: &str, key: &str, value: &str) -> Written {
        let record = Record::new(Some(key.as_bytes()), Some(value.as_bytes()));
        Written { topic: Some(topic.parse().unwrap()), record }
    }

    fn expected(yaml: &str) -> Vec<Expected> {
        from_yaml(&format!("input: []\noutput:\n{yaml}")).unwrap().remove(0).output
    }

    #[test]
    fn only_named_fields_are_compared_and_documents_as_json() {
        let got = [written("a", "k", r#"{"x": 1.0, "y": [2]}"#)];
        for same in [
            "- {key: k}",
            "- {value: {y: [2], x: 1.0}}",
            "- {topic: a, value: '{\"x\": 1.0, \"y\": [2]}'}",
            "- {headers: []}",
        ] {
            assert_eq!(difference(&expected(same), &got), None, "{same}");
        }
        for other in [
            "- {key: null}",
            "- {value: {x: 1.0}}",
            "- {topic: b}",
            "- {headers: {a: b}}",
            "- {key_base64: AA==}",
        ] {
            assert!(difference(&expected(other), &got).is_some(), "{other}");
        }
    }

    #[test]
    fn differences_read_like_a_diff() {
        let expected = expected("- {value: A}\n- {value: B}\n- {value: C}");
        let got = [written("t", "k", "A"), written("t", "k", "C"), written("t", "k", "D")];
        let text = difference(&expected, &got).unwrap();
        assert_eq!(
            text,
            "  {\"value\":\"A\"}\n- {\"value\":\"B\"}\n  {\"value\":\"C\"}\n+ {\"value\":\"D\"}\n"
        );
    }

    #[test]
    fn says_where_a_file_is_wrong() {
        for (yaml, says) in [
            ("input: []", "case 1: missing field `output`"),
            ("name: x\ninput: [{valeu: a}]\noutput: []", "x: input 1: unknown field `valeu`"),
            ("input: []\noutput: [{valeu: a}]", "case 1: output 1: unknown field `valeu`"),
            ("input: []\noutput: []\nerrors: trap", "unknown field `errors`"),
        ] {
            let error = from_yaml(yaml).unwrap_err();
            assert!(error.contains(says), "{yaml}: {error}");
        }
        let lines = "{\"input\": {\"value\": \"a\"}}\n\n{\"output\": {\"value\": \"A\"}}\n";
        let cases = from_json_lines(lines).unwrap();
        assert_eq!((cases[0].input.len(), cases[0].output.len()), (1, 1));
        assert!(from_json_lines("{\"in\": 1}").unwrap_err().starts_with("line 1: unknown variant"));
    }
}
