//! Writes three records for each: two to the first topic, one to the second.

use redpanda_transform_sdk::{
    BorrowedRecord, RecordWriter, WriteError, WriteEvent, WriteOptions, on_record_written,
};

fn main() {
    let second = std::env::var("REDPANDA_OUTPUT_TOPIC_1").expect("fan_out needs two output topics");
    on_record_written(|event: WriteEvent, writer: &mut RecordWriter| -> Result<(), WriteError> {
        let value = event.record.value().unwrap_or_default();
        let numbered = |n: u8| [value, &[b'-', b'0' + n][..]].concat();
        writer.write(BorrowedRecord::new(event.record.key(), Some(&numbered(1))))?;
        writer.write_with_options(
            BorrowedRecord::new(event.record.key(), Some(&numbered(2))),
            WriteOptions::to_topic(&second),
        )?;
        writer.write(BorrowedRecord::new(event.record.key(), Some(&numbered(3))))
    })
}
