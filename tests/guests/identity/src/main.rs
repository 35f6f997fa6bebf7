//! Writes every record as it came.

use redpanda_transform_sdk::{BorrowedRecord, RecordWriter, WriteError, WriteEvent, on_record_written};

fn main() {
    on_record_written(copy)
}

fn copy(event: WriteEvent, writer: &mut RecordWriter) -> Result<(), WriteError> {
    writer.write(BorrowedRecord::from(event.record))
}
