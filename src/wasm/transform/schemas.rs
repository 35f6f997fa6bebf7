//! The functions of the module `redpanda_schema_registry`, on top of the port `SchemaRegistry`.
//!
//! The guest asks for an answer's length, then for the answer: it is asked from the registry once, so that both
//! calls speak of the same schema. A failure is a code for the guest and a line in its log for people.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Caller, Linker};

use crate::core::record::{put_varint, take_varint};
use crate::ports::{
    LineLevel, SchemaDefinition, SchemaError, SchemaKind, SchemaReference, SchemaRegistry, SubjectSchema,
};
use crate::wasm::ticker::ticks_for;

use super::memory::parts;
use super::state::State;

const MODULE: &str = "redpanda_schema_registry";

/// There is no registry.
const NOT_ENABLED: i32 = -1;
/// The registry failed, or something did not fit or make sense.
const FAILED: i32 = -2;

/// The version that stands for the latest.
const LATEST: i32 = -1;

/// The longest that the registry may keep a lane waiting within one record, all calls together. It does not
/// count as the guest's own time.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question, for as long as its answer is kept.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    Id(i32),
    Subject(String, i32),
}

/// The registry as one guest sees it.
pub(super) struct Schemas {
    registry: Option<Arc<dyn SchemaRegistry>>,
    answer: Option<(Question, Vec<u8>)>,
    waited_ticks: u64,
}

impl Schemas {
    pub(super) fn new(registry: Option<Arc<dyn SchemaRegistry>>) -> Self {
        Self { registry, answer: None, waited_ticks: 0 }
    }

    /// The guest came to another record: patience is full again, and latest versions are asked anew.
    pub(super) fn next_record(&mut self) {
        self.waited_ticks = 0;
        if self.answer.is_some() {
            self.answer = None;
        }
    }
}

/// Defines the functions, with the names that versions 1.0.0 and 1.0.1 of the Rust SDK use by mistake.
pub(super) fn define(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "check_abi_version_0", || {})?;
    linker.func_wrap(MODULE, "get_schema_definition_len", definition_len)?;
    linker.func_wrap(MODULE, "get_schema_definition", definition)?;
    for name in ["get_subject_schema_len", "get_schema_subject_len"] {
        linker.func_wrap(MODULE, name, subject_len)?;
    }
    for name in ["get_subject_schema", "get_schema_subject"] {
        linker.func_wrap(MODULE, name, subject)?;
    }
    linker.func_wrap(MODULE, "create_subject_schema", create)?;
    Ok(())
}

fn definition_len(mut caller: Caller<'_, State>, id: i32, len_out: u32) -> wasmtime::Result<i32> {
    let known = answer(&mut caller, Question::Id(id));
    put_len(&mut caller, known, len_out)
}

fn definition(mut caller: Caller<'_, State>, id: i32, buffer: u32, len: u32) -> wasmtime::Result<i32> {
    let known = answer(&mut caller, Question::Id(id));
    put_answer(&mut caller, known, buffer, len)
}

fn subject_len(
    mut caller: Caller<'_, State>,
    subject: u32,
    subject_len: u32,
    version: i32,
    len_out: u32,
) -> wasmtime::Result<i32> {
    let known = subject_answer(&mut caller, subject, subject_len, version)?;
    put_len(&mut caller, known, len_out)
}

fn subject(
    mut caller: Caller<'_, State>,
    subject: u32,
    subject_len: u32,
    version: i32,
    buffer: u32,
    len: u32,
) -> wasmtime::Result<i32> {
    let known = subject_answer(&mut caller, subject, subject_len, version)?;
    put_answer(&mut caller, known, buffer, len)
}

fn create(
    mut caller: Caller<'_, State>,
    subject: u32,
    subject_len: u32,
    buffer: u32,
    len: u32,
    id_out: u32,
) -> wasmtime::Result<i32> {
    let (mut memory, state) = parts(&mut caller)?;
    if state.schemas.registry.is_none() {
        return Ok(NOT_ENABLED);
    }
    let subject = std::str::from_utf8(memory.read(subject, subject_len)?).map(str::to_owned);
    let definition = decode_definition(memory.read(buffer, len)?);
    memory.at(id_out, 4)?;
    let (Ok(subject), Some(definition)) = (subject, definition) else { return Ok(FAILED) };
    match ask(&mut caller, |registry| registry.register(&subject, &definition)) {
        Ok(id) => {
            parts(&mut caller)?.0.put_u32(id_out, id as u32)?;
            Ok(0)
        }
        Err(code) => Ok(code),
    }
}

fn subject_answer(
    caller: &mut Caller<'_, State>,
    subject: u32,
    subject_len: u32,
    version: i32,
) -> wasmtime::Result<Result<(), i32>> {
    let (memory, _) = parts(caller)?;
    let Ok(subject) = std::str::from_utf8(memory.read(subject, subject_len)?) else { return Ok(Err(FAILED)) };
    let question = Question::Subject(subject.to_owned(), version);
    Ok(answer(caller, question))
}

/// Makes sure that the answer to this question is the one that is kept.
fn answer(caller: &mut Caller<'_, State>, question: Question) -> Result<(), i32> {
    let schemas = &caller.data().schemas;
    if schemas.answer.as_ref().is_some_and(|(asked, _)| *asked == question) {
        return Ok(());
    }
    let encoded = match &question {
        Question::Id(id) => ask(caller, |registry| registry.definition(*id)).map(|definition| {
            let mut out = Vec::new();
            put_definition(&mut out, &definition);
            out
        }),
        Question::Subject(subject, version) => {
            let version = (*version != LATEST).then_some(*version);
            ask(caller, |registry| registry.subject(subject, version)).map(|found| encode_subject(&found))
        }
    }?;
    caller.data_mut().schemas.answer = Some((question, encoded));
    Ok(())
}

/// Asks the registry, on the lane's thread: what the guest waits for here is not charged to it.
fn ask<T>(
    caller: &mut Caller<'_, State>,
    question: impl FnOnce(&dyn SchemaRegistry) -> Result<T, SchemaError>,
) -> Result<T, i32> {
    let state = caller.data_mut();
    let Some(registry) = state.schemas.registry.clone() else { return Err(NOT_ENABLED) };
    if state.schemas.waited_ticks >= ticks_for(PATIENCE) {
        return Err(FAILED);
    }
    let before = state.clock.now();
    let result = question(registry.as_ref());
    let now = state.clock.now();
    let waited = now.saturating_sub(before);
    state.schemas.waited_ticks += waited;
    state.deadline = state.deadline.saturating_add(waited);
    result.map_err(|error| {
        caller.data_mut().lines.print(LineLevel::Warn, format!("{error}\n").as_bytes());
        FAILED
    })
}

fn put_len(caller: &mut Caller<'_, State>, known: Result<(), i32>, len_out: u32) -> wasmtime::Result<i32> {
    if let Err(code) = known {
        return Ok(code);
    }
    let (mut memory, state) = parts(caller)?;
    let len = state.schemas.answer.as_ref().map_or(0, |(_, bytes)| bytes.len());
    memory.put_u32(len_out, len as u32)?;
    Ok(0)
}

fn put_answer(
    caller: &mut Caller<'_, State>,
    known: Result<(), i32>,
    buffer: u32,
    len: u32,
) -> wasmtime::Result<i32> {
    if let Err(code) = known {
        return Ok(code);
    }
    let (mut memory, state) = parts(caller)?;
    let bytes = state.schemas.answer.as_ref().map_or(&[][..], |(_, bytes)| bytes);
    if bytes.len() > len as usize {
        return Ok(FAILED);
    }
    memory.put(buffer, bytes)?;
    Ok(bytes.len() as i32)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as i64);
    out.extend_from_slice(text.as_bytes());
}

fn put_definition(out: &mut Vec<u8>, definition: &SchemaDefinition) {
    put_varint(
        out,
        match definition.kind {
            SchemaKind::Avro => 0,
            SchemaKind::Protobuf => 1,
            SchemaKind::Json => 2,
        },
    );
    put_text(out, &definition.schema);
    put_varint(out, definition.references.len() as i64);
    for reference in &definition.references {
        put_text(out, &reference.name);
        put_text(out, &reference.subject);
        put_varint(out, i64::from(reference.version));
    }
}

fn encode_subject(subject: &SubjectSchema) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, i64::from(subject.id));
    put_varint(&mut out, i64::from(subject.version));
    put_definition(&mut out, &subject.definition);
    out
}

fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = take_varint(bytes, "length").ok()?;
    let (text, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    std::str::from_utf8(text).ok()
}

fn take_number(bytes: &mut &[u8]) -> Option<i64> {
    let (value, rest) = take_varint(bytes, "number").ok()?;
    *bytes = rest;
    Some(value)
}

fn decode_definition(mut bytes: &[u8]) -> Option<SchemaDefinition> {
    let bytes = &mut bytes;
    let kind = match take_number(bytes)? {
        0 => SchemaKind::Avro,
        1 => SchemaKind::Protobuf,
        2 => SchemaKind::Json,
        _ => return None,
    };
    let schema = take_text(bytes)?.to_owned();
    // Each reference takes three bytes at least: a count that cannot be ends at the end of the bytes.
    let count = usize::try_from(take_number(bytes)?).ok()?;
    let mut references = Vec::new();
    for _ in 0..count {
        references.push(SchemaReference {
            name: take_text(bytes)?.to_owned(),
            subject: take_text(bytes)?.to_owned(),
            version: i32::try_from(take_number(bytes)?).ok()?,
        });
    }
    bytes.is_empty().then_some(SchemaDefinition { kind, schema, references })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn definitions_go_both_ways() {
        let definition = SchemaDefinition {
            kind: SchemaKind::Protobuf,
            schema: "message A {}".to_owned(),
            references: vec![SchemaReference {
                name: "b".to_owned(),
                subject: "b-value".to_owned(),
                version: 3,
            }],
        };
        let mut bytes = Vec::new();
        put_definition(&mut bytes, &definition);
        assert_eq!(decode_definition(&bytes), Some(definition));
        bytes.push(0);
        assert_eq!(decode_definition(&bytes), None, "bytes after the last reference");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_fail_badly(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_definition(&bytes);
        }
    }
}
