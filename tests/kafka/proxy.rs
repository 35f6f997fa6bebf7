//! A proxy between client and broker that can hold back the request to end a transaction, or hide that the broker has
//! transactions.
#![allow(dead_code, reason = "not every test binary that shares this file needs all of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

/// API key of `EndTxn`.
const END_TXN: i16 = 26;
/// API keys of `AddPartitionsToTxn`, `AddOffsetsToTxn`, `EndTxn` and `TxnOffsetCommit`.
const OF_TRANSACTIONS: [i16; 4] = [24, 25, END_TXN, 28];

#[derive(Default)]
struct State {
    armed: bool,
    held: Option<(TcpStream, Vec<u8>)>,
}

/// Listens on one port and forwards to the next.
pub struct Proxy {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Listens on a port whose successor is free as well.
    pub fn start() -> Self {
        Self::start_and(|_| {})
    }

    /// As `start`, before a broker that seems to have no transactions.
    pub fn without_transactions() -> Self {
        Self::start_and(hide_transactions)
    }

    /// Changes the first answer on each connection, which says what the broker takes.
    fn start_and(change: fn(&mut Vec<u8>)) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/env/ports");
        let output =
            Command::new(script).args(["--consecutive", "2"]).output().expect("tests/env/ports runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let ports = String::from_utf8_lossy(&output.stdout).into_owned();
        let port: u16 =
            ports.split_whitespace().next().and_then(|port| port.parse().ok()).expect("two ports");
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        #[allow(clippy::disallowed_methods, reason = "a test's own thread")]
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", port + 1)) else { continue };
                let (mut back, mut to) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    if let Some(mut first) = frame(&mut back) {
                        change(&mut first);
                        let _ = to.write_all(&first);
                        let _ = std::io::copy(&mut back, &mut to);
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
                let shared = Arc::clone(&shared);
                thread::spawn(move || forward(client, broker, &shared));
            }
        });
        Self { port, state }
    }

    /// The next request to end a transaction is held, and its connection cut: the client will ask again.
    pub fn hold_next(&self) {
        self.state.lock().unwrap().armed = true;
    }

    /// Sends the held request on to the broker.
    pub fn release(&self) {
        let (mut broker, frame) = self.state.lock().unwrap().held.take().expect("a request is held");
        broker.write_all(&frame).unwrap();
    }
}

/// The next frame, its length included; `None` at the end.
fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}

/// Leaves requests out of an answer to `ApiVersions` 3: length, correlation id, error, a compact array of key, oldest,
/// newest and no tags, and the rest.
fn hide_transactions(frame: &mut Vec<u8>) {
    let (count, entries) = match frame[10] {
        low if low < 0x80 => (usize::from(low) - 1, 11),
        low => (usize::from(low & 0x7f) + (usize::from(frame[11]) << 7) - 1, 12),
    };
    let (taken, rest) = frame[entries..].split_at(7 * count);
    let is_shown = |entry: &&[u8]| !OF_TRANSACTIONS.contains(&i16::from_be_bytes([entry[0], entry[1]]));
    let shown: Vec<&[u8]> = taken.chunks(7).filter(is_shown).collect();
    let mut changed = frame[..10].to_vec();
    let count = shown.len() + 1;
    assert!(count < 0x80, "one byte is enough");
    changed.push(count as u8);
    changed.extend(shown.concat());
    changed.extend_from_slice(rest);
    let length = (changed.len() - 4) as u32;
    changed[..4].copy_from_slice(&length.to_be_bytes());
    *frame = changed;
}

fn forward(mut client: TcpStream, mut broker: TcpStream, state: &Mutex<State>) {
    while let Some(frame) = frame(&mut client) {
        let is_end = i16::from_be_bytes([frame[4], frame[5]]) == END_TXN;
        let mut state = state.lock().unwrap();
        if is_end && state.armed {
            state.armed = false;
            state.held = Some((broker, frame));
            let _ = client.shutdown(Shutdown::Both);
            return;
        }
        drop(state);
        if broker.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = broker.shutdown(Shutdown::Both);
}
