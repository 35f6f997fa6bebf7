//! A proxy between client and broker that can hold back the request to end a transaction.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// API key of `EndTxn`.
const END_TXN: i16 = 26;

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
        let listener = loop {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let next = listener.local_addr().unwrap().port().saturating_add(1);
            if TcpListener::bind(("127.0.0.1", next)).is_ok() {
                break listener;
            }
        };
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        #[allow(clippy::disallowed_methods, reason = "a test's own thread")]
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", port + 1)) else { continue };
                let (mut back, mut to) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut back, &mut to);
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

fn forward(mut client: TcpStream, mut broker: TcpStream, state: &Mutex<State>) {
    loop {
        let mut length = [0; 4];
        if client.read_exact(&mut length).is_err() {
            break;
        }
        let mut frame = length.to_vec();
        frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
        if client.read_exact(&mut frame[4..]).is_err() {
            break;
        }
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
