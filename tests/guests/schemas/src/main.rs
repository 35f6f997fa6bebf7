//! Asks the schema registry what the record's value says and writes the answer.

use redpanda_transform_sdk::{BorrowedRecord, RecordWriter, WriteError, WriteEvent, on_record_written};
use redpanda_transform_sdk_sr::{Reference, Schema, SchemaFormat, SchemaId, SchemaRegistryClient, SchemaVersion};

fn main() {
    on_record_written(ask)
}

fn ask(event: WriteEvent, writer: &mut RecordWriter) -> Result<(), WriteError> {
    let value = String::from_utf8_lossy(event.record.value().unwrap_or_default()).into_owned();
    let words: Vec<&str> = value.split(' ').collect();
    let mut client = SchemaRegistryClient::new();
    let answer = match words[..] {
        ["id", id] => format!("{:?}", client.lookup_schema_by_id(SchemaId(id.parse().unwrap()))),
        ["latest", subject] => format!("{:?}", client.lookup_latest_schema(subject)),
        ["version", subject, n] => {
            format!("{:?}", client.lookup_schema_by_version(subject, SchemaVersion(n.parse().unwrap())))
        }
        ["create", subject, text] => {
            let reference = Reference::new("other", "other-value", SchemaVersion(1));
            format!("{:?}", client.create_schema(subject, Schema::new(text, SchemaFormat::Json, vec![reference])))
        }
        _ => "what?".to_owned(),
    };
    writer.write(BorrowedRecord::new(None, Some(answer.as_bytes())))
}
