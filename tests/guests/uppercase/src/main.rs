//! Writes every record with its value in upper case.

use redpanda_transform_sdk::{BorrowedRecord, RecordWriter, WriteError, WriteEvent, on_record_written};

fn main() {
    on_record_written(shout)
}

fn shout(event: WriteEvent, writer: &mut RecordWriter) -> Result<(), WriteError> {
    let value = event.record.value().map(<[u8]>::to_ascii_uppercase);
    writer.write(BorrowedRecord::new_with_headers(
        event.record.key(),
        value.as_deref(),
        event.record.headers().to_vec(),
    ))
}
