//! The schema registry: the published SDK's client in a guest, our client in the host, a server on loopback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coproc::connect::schema_registry::{HttpSchemaRegistry, RegistryOptions};
use coproc::ports::{Run, SchemaDefinition, SchemaKind, SchemaReference, SchemaRegistry};

use crate::harness::{Host, give, module};

/// What was asked: method and path, authorization, body.
type Asked = (String, String, String);

/// A registry that answers by a table, and remembers what it was asked. It lives as long as the test process.
#[derive(Clone)]
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(answers: &[(&str, u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server =
            Self { url: format!("http://{}", listener.local_addr().unwrap()), asked: Arc::default() };
        let answers: HashMap<String, (u16, String)> = answers
            .iter()
            .map(|(asked, status, body)| ((*asked).to_owned(), (*status, (*body).to_owned())))
            .collect();
        let asked = Arc::clone(&server.asked);
        thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = serve(stream, &answers, &asked);
                }
            })
            .unwrap();
        server
    }

    fn client(&self) -> Arc<HttpSchemaRegistry> {
        let mut options = RegistryOptions::new(&self.url);
        options.credentials = Some(("user".to_owned(), "pass".to_owned()));
        options.max_bytes = 10_000;
        Arc::new(HttpSchemaRegistry::new(options).unwrap())
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(
    mut stream: TcpStream,
    answers: &HashMap<String, (u16, String)>,
    asked: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let what = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let (mut length, mut authorization) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "authorization" => value.clone_into(&mut authorization),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let (status, answer) = answers
        .get(&what)
        .cloned()
        .unwrap_or((404, r#"{"error_code":40401,"message":"not there"}"#.to_owned()));
    asked.lock().unwrap().push((what, authorization, body));
    if status == 0 {
        thread::sleep(Duration::from_secs(5));
    }
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len()
    )
}

const AVRO: &str = r#"{"schema":"\"string\""}"#;
const JSON: &str = r#"{"subject":"s","id":7,"version":3,"schemaType":"JSON","schema":"{}","references":[{"name":"n","subject":"o","version":2}]}"#;

#[test]
fn a_guest_asks_for_schemas() {
    let server = Server::start(&[
        ("GET /schemas/ids/5", 200, AVRO),
        ("GET /subjects/s/versions/latest", 200, JSON),
        ("GET /subjects/s/versions/3", 200, JSON),
        ("POST /subjects/s/versions", 200, r#"{"id":9}"#),
    ]);
    let host = Host::with_registry(&module("schemas"), server.client());
    let questions = ["id 5", "latest s", "version s 3", "create s {}", "id 6"];
    let (run, _, answers) = give(host.start().as_mut(), &questions);
    assert_eq!(run, Run::Finished);
    for (answer, says) in answers.iter().zip([
        &["Ok(", r#"schema: "\"string\"""#, "Avro"][..],
        &["Ok(", "SchemaId(7)", "SchemaVersion(3)", "Json", r#"name: "n""#],
        &["Ok(", "SchemaId(7)"],
        &["Ok(", "SchemaId(9)"],
        &["Err(", "-2"],
    ]) {
        assert!(says.iter().all(|part| answer.contains(part)), "{answer}: {says:?}");
    }
    let asked = server.asked();
    let paths: Vec<_> = asked.iter().map(|(what, ..)| what.as_str()).collect();
    assert_eq!(
        paths,
        [
            "GET /schemas/ids/5",
            "GET /subjects/s/versions/latest",
            "GET /subjects/s/versions/3",
            "POST /subjects/s/versions",
            "GET /schemas/ids/6",
        ],
        "each question is asked once, though the guest asks for the length first"
    );
    assert!(asked.iter().all(|(_, authorization, _)| authorization == "Basic dXNlcjpwYXNz"));
    assert_eq!(
        asked[3].2,
        r#"{"schema":"{}","schemaType":"JSON","references":[{"name":"other","subject":"other-value","version":1}]}"#
    );
    let lines = host.lines.take();
    assert!(
        lines.iter().any(|line| line.starts_with("!schema registry: ")
            && line.contains("404")
            && line.contains("not there")),
        "{lines:?}"
    );
    // What cannot change is not asked again, not even by another instance.
    let (_, _, answers) = give(host.start().as_mut(), &["id 5", "version s 3"]);
    assert!(answers.iter().all(|answer| answer.contains("Ok(")));
    assert_eq!(server.asked(), []);
}

#[test]
fn without_a_registry_the_sdk_says_so() {
    let (run, _, answers) = give(Host::of(&module("schemas")).start().as_mut(), &["id 5"]);
    assert_eq!(run, Run::Finished);
    assert!(answers[0].contains("Err("), "{answers:?}");
}

#[test]
fn time_with_the_registry_is_not_the_guests() {
    struct Slow;
    impl SchemaRegistry for Slow {
        fn definition(&self, _: i32) -> Result<SchemaDefinition, coproc::ports::SchemaError> {
            thread::sleep(Duration::from_millis(400));
            Ok(SchemaDefinition { kind: SchemaKind::Avro, schema: "\"int\"".to_owned(), references: vec![] })
        }
        fn subject(
            &self,
            _: &str,
            _: Option<i32>,
        ) -> Result<coproc::ports::SubjectSchema, coproc::ports::SchemaError> {
            Err(coproc::ports::SchemaError("no".to_owned()))
        }
        fn register(&self, _: &str, _: &SchemaDefinition) -> Result<i32, coproc::ports::SchemaError> {
            Err(coproc::ports::SchemaError("no".to_owned()))
        }
    }
    let host = Host::with_registry(&module("schemas"), Arc::new(Slow)).time(Duration::from_millis(200));
    let (run, _, answers) = give(host.start().as_mut(), &["id 5"]);
    assert_eq!(run, Run::Finished);
    assert!(answers[0].contains("Ok("), "{answers:?}");
}

#[test]
fn the_client_keeps_its_bounds() {
    let page = format!("<html>{}</html>", "x".repeat(20_000));
    let server = Server::start(&[
        ("GET /schemas/ids/1", 200, "what?"),
        ("GET /schemas/ids/2", 200, &page),
        ("GET /schemas/ids/3", 500, "<html>"),
        ("GET /schemas/ids/4", 200, r#"{"schema":"x","schemaType":"XML"}"#),
        ("GET /schemas/ids/5", 301, ""),
        ("GET /subjects/a%2F..%2Fb%20c/versions/latest", 200, JSON),
    ]);
    let client = server.client();
    for (id, says) in [(1, "makes no sense"), (2, "larger than"), (3, "500"), (4, "XML"), (5, "301")] {
        let error = client.definition(id).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("pass"), "{error}");
    }
    assert_eq!(client.subject("a/../b c", None).unwrap().id, 7);
    assert!(client.subject("..", None).is_err());
    let definition = SchemaDefinition {
        kind: SchemaKind::Avro,
        schema: "\"int\"".to_owned(),
        references: vec![SchemaReference { name: "n".to_owned(), subject: "s".to_owned(), version: 1 }],
    };
    assert!(client.register("nobody", &definition).unwrap_err().to_string().contains("404"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(async { client.definition(1) }).unwrap_err().to_string();
    assert!(error.contains("asynchronous"), "{error}");
    runtime.block_on(async { drop(client) });
}

#[test]
fn a_silent_registry_does_not_hold_the_lane() {
    let server = Server::start(&[("GET /schemas/ids/1", 0, "")]);
    let mut options = RegistryOptions::new(&server.url);
    options.timeout = Duration::from_millis(100);
    let client = HttpSchemaRegistry::new(options).unwrap();
    let begin = Instant::now();
    let error = client.definition(1).unwrap_err().to_string();
    assert!(
        error.contains("did not answer within 100ms") && begin.elapsed() < Duration::from_secs(4),
        "{error}"
    );
    let nobody = HttpSchemaRegistry::new(RegistryOptions::new("http://127.0.0.1:1")).unwrap();
    let error = nobody.definition(1).unwrap_err().to_string();
    assert!(error.contains("cannot be asked"), "{error}");
}
