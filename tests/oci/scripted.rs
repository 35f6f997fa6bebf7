//! An HTTP server that does what a test tells it to, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
}

/// What to answer.
pub enum Reply {
    /// Status, headers, body.
    Whole(u16, Vec<(String, String)>, Vec<u8>),
    /// This, again and again, until the other side hangs up.
    Endless(Vec<u8>),
    /// One byte, a pause, one byte…
    Drip(Duration),
    /// Headers, then nothing.
    Stall,
    /// A `Content-Length` and no byte of it.
    Claim(u64),
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Whole(status, Vec::new(), Vec::new())
    }

    pub fn body(media_type: &str, body: &[u8]) -> Self {
        Self::Whole(200, vec![("content-type".into(), media_type.into())], body.to_vec())
    }

    pub fn json(body: &str) -> Self {
        Self::body("application/json", body.as_bytes())
    }

    pub fn with(self, name: &str, value: &str) -> Self {
        match self {
            Self::Whole(status, mut headers, body) => {
                headers.push((name.into(), value.into()));
                Self::Whole(status, headers, body)
            }
            other => other,
        }
    }

    pub fn redirect(to: &str) -> Self {
        Self::status(307).with("location", to)
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

pub struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, seen, stopped) =
                    (Arc::clone(&handler), Arc::clone(&seen), Arc::clone(&stopped));
                std::thread::spawn(move || serve(stream.unwrap(), &*handler, &seen, &stopped));
            }
        });
        Self { address, requests, stop }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.path.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(stream: TcpStream, handler: &Handler, seen: &Mutex<Vec<Request>>, stop: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader) {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        seen.lock().unwrap().push(request.clone());
        if write_reply(&mut writer, &request, handler(&request)).is_none() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut authorization, mut length) = (None, 0u64);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?;
    Some(Request { method, path, authorization })
}

fn write_reply(writer: &mut TcpStream, request: &Request, reply: Reply) -> Option<()> {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    match reply {
        Reply::Whole(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head = format!("{head}{name}: {value}\r\n");
            }
            writer.write_all(format!("{head}\r\n").as_bytes()).ok()?;
            if request.method != "HEAD" {
                writer.write_all(&body).ok()?;
            }
        }
        Reply::Endless(piece) => {
            writer.write_all(chunked.as_bytes()).ok()?;
            loop {
                writer.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).ok()?;
                writer.write_all(&piece).ok()?;
                writer.write_all(b"\r\n").ok()?;
            }
        }
        Reply::Drip(pause) => {
            writer.write_all(chunked.as_bytes()).ok()?;
            loop {
                writer.write_all(b"1\r\nx\r\n").ok()?;
                std::thread::sleep(pause);
            }
        }
        Reply::Stall => {
            writer.write_all(chunked.as_bytes()).ok()?;
            std::thread::sleep(Duration::from_secs(20));
        }
        Reply::Claim(length) => {
            writer
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())
                .ok()?;
            std::thread::sleep(Duration::from_secs(20));
        }
    }
    Some(())
}
