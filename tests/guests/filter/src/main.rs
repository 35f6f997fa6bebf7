//! Writes the records whose value contains what the variable `KEEP` says.

use redpanda_transform_sdk::{BorrowedRecord, RecordWriter, WriteError, WriteEvent, on_record_written};

fn main() {
    let keep = std::env::var("KEEP").expect("the variable KEEP says what to keep").into_bytes();
    on_record_written(|event: WriteEvent, writer: &mut RecordWriter| -> Result<(), WriteError> {
        let value = event.record.value().unwrap_or_default();
        if value.windows(keep.len()).any(|part| part == keep) {
            writer.write(BorrowedRecord::from(event.record))?;
        }
        Ok(())
    })
}
