//! A proxy between client and broker that can hold back a request of a transaction, lose offsets, hide that the broker has
//! transactions, or say that there are no brokers.
#![allow(dead_code, reason = "not every test binary that shares this file needs all of it")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

/// API keys of `Metadata` and `ApiVersions`.
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
/// API key of `FindCoordinator`.
const FIND_COORDINATOR: i16 = 10;
/// API key of `EndTxn`.
pub const END_TXN: i16 = 26;
/// API key of `TxnOffsetCommit`.
pub const TXN_OFFSET_COMMIT: i16 = 28;
/// API keys of `AddPartitionsToTxn`, `AddOffsetsToTxn`, `EndTxn` and `TxnOffsetCommit`.
const OF_TRANSACTIONS: [i16; 4] = [24, 25, END_TXN, TXN_OFFSET_COMMIT];

/// What is not as the broker has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lie {
    #[default]
    None,
    /// The broker has no transactions.
    NoTransactions,
    /// There are no brokers.
    NoBrokers,
    /// Offsets of transactions get lost on the way.
    NoOffsets,
    /// Nobody says who coordinates a group.
    NoCoordinator,
}

#[derive(Default)]
struct State {
    /// The API key of the request that is held next.
    armed: Option<i16>,
    held: Option<(TcpStream, Vec<u8>)>,
    lie: Lie,
    /// The clients that were told that there are no brokers.
    denied: Vec<String>,
    clients: Vec<TcpStream>,
}

/// API keys of the requests that were not answered yet, and who asked, by their correlation ids.
type Asked = Arc<Mutex<HashMap<[u8; 4], (i16, String)>>>;

/// Listens on one port and forwards to the next.
#[derive(Clone)]
pub struct Proxy {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Before a broker that seems to have no transactions.
    pub fn without_transactions() -> Self {
        let proxy = Self::start();
        proxy.tell(Lie::NoTransactions);
        proxy
    }

    /// Listens on a port whose successor is free as well.
    pub fn start() -> Self {
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
                let (back, to) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                let (asked, state) = (Asked::default(), Arc::clone(&shared));
                let of_answers = Arc::clone(&asked);
                thread::spawn(move || answer(back, to, &state, &of_answers));
                let state = Arc::clone(&shared);
                state.lock().unwrap().clients.push(client.try_clone().unwrap());
                thread::spawn(move || forward(client, broker, &state, &asked));
            }
        });
        Self { port, state }
    }

    /// From now on.
    pub fn tell(&self, lie: Lie) {
        self.state.lock().unwrap().lie = lie;
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        for client in self.state.lock().unwrap().clients.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// The client ids of those who were told that there are no brokers, each time.
    pub fn denied(&self) -> Vec<String> {
        self.state.lock().unwrap().denied.clone()
    }

    /// The next request with this API key is held, and its connection cut: the client will ask again.
    pub fn hold_next(&self, key: i16) {
        self.state.lock().unwrap().armed = Some(key);
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

/// Leaves the brokers out of an answer to `Metadata` 9 or later: length, correlation id, no tags, throttle time, a compact
/// array of brokers, and the rest. A broker is its id, host, port, rack and no tags; texts have their length before them.
fn hide_brokers(frame: &mut Vec<u8>) {
    const BROKERS: usize = 13;
    let short = |at: usize| {
        assert!(frame[at] < 0x80, "one byte is enough");
        usize::from(frame[at].saturating_sub(1))
    };
    let mut at = BROKERS + 1;
    for _ in 0..short(BROKERS) {
        at += 4;
        at += 1 + short(at);
        at += 4;
        at += 1 + short(at);
        assert_eq!(frame[at], 0, "no tags");
        at += 1;
    }
    frame.splice(BROKERS..at, [1]);
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
}

fn answer(mut broker: TcpStream, mut client: TcpStream, state: &Mutex<State>, asked: &Asked) {
    while let Some(mut frame) = frame(&mut broker) {
        let asked = asked.lock().unwrap().remove(&frame[4..8]);
        let mut state = state.lock().unwrap();
        match asked {
            Some((API_VERSIONS, _)) if state.lie == Lie::NoTransactions => hide_transactions(&mut frame),
            Some((METADATA, client_id)) if state.lie == Lie::NoBrokers => {
                hide_brokers(&mut frame);
                state.denied.push(client_id);
            }
            _ => {}
        }
        drop(state);
        if client.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn forward(mut client: TcpStream, mut broker: TcpStream, state: &Mutex<State>, asked: &Asked) {
    while let Some(frame) = frame(&mut client) {
        let number = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
        let key = number(4);
        let correlation = [frame[8], frame[9], frame[10], frame[11]];
        let client_id = &frame[14..][..number(12) as usize];
        let client_id = String::from_utf8_lossy(client_id).into_owned();
        asked.lock().unwrap().insert(correlation, (key, client_id));
        let mut state = state.lock().unwrap();
        let is_lost = match state.lie {
            Lie::NoOffsets => key == TXN_OFFSET_COMMIT,
            Lie::NoCoordinator => key == FIND_COORDINATOR,
            Lie::None | Lie::NoTransactions | Lie::NoBrokers => false,
        };
        if is_lost {
            continue;
        }
        if state.armed == Some(key) {
            state.armed = None;
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
