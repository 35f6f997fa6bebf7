//! Shows its world: arguments, environment, clocks, randomness, sleep; on both outputs, in fragments.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redpanda_transform_sdk::{BorrowedRecord, RecordWriter, WriteError, WriteEvent, on_record_written};

fn main() {
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    println!("start: args {:?} clock {}", std::env::args().collect::<Vec<_>>(), wall_ms());
    eprintln!("variables {variables:?}");
    on_record_written(show)
}

fn wall_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

fn show(event: WriteEvent, writer: &mut RecordWriter) -> Result<(), WriteError> {
    let value = String::from_utf8_lossy(event.record.value().unwrap_or_default()).into_owned();
    let begin = Instant::now();
    std::thread::sleep(Duration::from_secs(3600));
    let steps = begin.elapsed().as_millis();
    // A map seeds itself with `random_get`.
    let map: HashMap<_, _> = [("a", 1)].into();
    println!("value {value} clock {} steps {steps} map {}", wall_ms(), map.len());
    eprint!("frag");
    eprint!("ment {:?}", 1);
    eprintln!();
    let mut out = std::io::stdout();
    let _ = out.write_all(b"bad \xff\x1b[31m byte\nno end");
    let _ = out.flush();
    writer.write(BorrowedRecord::new(None, Some(format!("{}", wall_ms()).as_bytes())))
}
