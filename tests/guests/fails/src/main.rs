//! Does what the record's value says, after writing it: the ways in which a guest fails.

use redpanda_transform_sdk::{
    BorrowedRecord, RecordWriter, WriteEvent, WriteOptions, on_record_written,
};

fn main() {
    match std::env::var("START").as_deref() {
        Ok("panic") => panic!("cannot start"),
        Ok("return") => return,
        Ok("loop") => spin(),
        Ok("exit") => std::process::exit(3),
        _ => {}
    }
    on_record_written(obey)
}

fn obey(event: WriteEvent, writer: &mut RecordWriter) -> Result<(), String> {
    writer.write(BorrowedRecord::from(&event.record)).map_err(|error| format!("{error:?}"))?;
    match event.record.value().unwrap_or_default() {
        b"err" => Err("this record is bad".to_owned()),
        b"panic" => panic!("a panic of the guest"),
        b"loop" => spin(),
        b"eat" => eat(),
        b"exit" => std::process::exit(7),
        b"deep" => {
            println!("{}", deep(event.record.value().map_or(0, <[u8]>::len) as u64));
            Ok(())
        }
        b"elsewhere" => writer
            .write_with_options(BorrowedRecord::from(&event.record), WriteOptions::to_topic("nowhere"))
            .map_err(|error| format!("{error:?}")),
        b"flood" => {
            let chunk = vec![b'x'; 64 << 10];
            loop {
                writer.write(BorrowedRecord::new(None, Some(&chunk))).map_err(|error| format!("{error:?}"))?;
            }
        }
        _ => Ok(()),
    }
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

fn eat() -> ! {
    let mut meals: Vec<Vec<u8>> = Vec::new();
    loop {
        meals.push(std::hint::black_box(vec![1; 1 << 20]));
    }
}

#[allow(unconditional_recursion, reason = "this is what the test is about")]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 64]);
    deep(n + 1) + room[(n % 64) as usize]
}
