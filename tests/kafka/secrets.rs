//! Nothing secret is shown: not in logs at any level, errors, status records, metrics, nor by any command.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::cluster::{Cluster, fresh};
use super::place::Place;
use super::{Service, well};

/// The password of every user of the brokers that tests start.
const PASSWORD: &str = "coproc-test";
const WRONG: &str = "hunter2-wrong";
const PASSPHRASE: &str = "hunter2-passphrase";

/// Everything that somebody may get to see, with where it was seen.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    /// `secrets` are in none of it, as they are or in base64.
    fn hides(&self, secrets: &[&str]) {
        for (place, text) in &self.0 {
            for secret in secrets {
                for form in [(*secret).to_owned(), STANDARD.encode(secret), URL_SAFE_NO_PAD.encode(secret)] {
                    assert!(!text.contains(&form), "{place} shows {form:?}: {text}");
                }
            }
        }
    }
}

/// What the node answers on its HTTP port.
fn http(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A connection as `kafka:` in node.yaml says it.
struct Connection<'a> {
    cluster: &'a Cluster,
    /// The login, in YAML.
    login: String,
}

impl Connection<'_> {
    fn yaml(&self) -> String {
        format!("{{bootstrapServers: ['{}'], {}}}", self.cluster.bootstrap, self.login)
    }

    fn node_yaml(&self, place: &Place, pool: &str, address: &str) -> String {
        let (dir, kafka) = (place.path("node").display().to_string(), self.yaml());
        format!(
            "{{nodeId: 7, http: '{address}', dir: {dir}, pool: {pool}, logFilter: trace, kafka: {kafka}}}"
        )
    }

    /// A node and every command that shows something, with a login that is good.
    fn works(&self, seen: &mut Seen) {
        let (place, pool) = (Place::new(), fresh("pool"));
        let config = place.write("kafka.yaml", self.yaml()).display().to_string();
        let target = ["--kafka-config", &config, "--pool", &pool];
        let coproc = |args: &[&str]| well(place.coproc(&[&target, args].concat()));
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let node = Service::start(&place, "node", &self.node_yaml(&place, &pool, &address));
        let (from, to, name) = (fresh("in"), fresh("out"), fresh("c"));
        coproc(&["topic", "create", &from, &to]);
        let module = place.uppercase();
        coproc(&["deploy", module.to_str().unwrap(), "--name", &name, "-i", &from, "-o", &to, "--wait"]);
        let produced = place.coproc_with(&[&target[..], &["produce", &from]].concat(), b"a\nb\n");
        seen.add("produce", well(produced));
        place.wait_for(&[&target[..], &["describe", &name]].concat(), |ran| ran.out.contains("lag 0"));
        let commands: [&[&str]; 12] = [
            &["describe", &name],
            &["describe", &name, "-o", "json"],
            &["list", "-o", "wide"],
            &["list", "--raw"],
            &["doctor"],
            &["doctor", "-o", "json"],
            &["logs", &name],
            &["offsets", "list"],
            &["topic", "list", "-o", "yaml"],
            &["consume", "coprocessor_status_topic"],
            &["consume", "coprocessor_internal_topic"],
            &["consume", "coprocessor_logs"],
        ];
        for command in commands {
            let ran = place.coproc(&[&target, command].concat());
            assert_eq!(ran.code, Some(0), "{ran:#?}");
            seen.add(command.join(" "), ran.out + &ran.err);
        }
        for path in ["/metrics", "/readyz", "/healthz"] {
            seen.add(path, http(&address, path));
        }
        assert!(seen.0.iter().any(|(place, text)| place == "/metrics" && text.contains("coproc_")));
        let said = node.stop();
        assert!(said.contains("\"level\":\"TRACE\""), "the log is not at its loudest");
        seen.add("the node's log", said);
    }

    /// The same, with one that is refused.
    fn is_refused(&self, seen: &mut Seen) {
        let (place, pool) = (Place::new(), fresh("pool"));
        let config = place.write("kafka.yaml", self.yaml()).display().to_string();
        for command in [&["list"][..], &["doctor"], &["describe", "x"]] {
            let ran = place.coproc(&[&["--kafka-config", &config], command].concat());
            assert_ne!(ran.code, Some(0), "{ran:#?}");
            seen.add(command.join(" "), ran.out + &ran.err);
        }
        let mut node = Service::start(&place, "node", &self.node_yaml(&place, &pool, "off"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while node.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
        let said = std::fs::read_to_string(&node.log).unwrap();
        assert!(!said.is_empty());
        seen.add("the log of a node that is refused", said);
    }
}

fn file(cluster: &Cluster, name: &str, text: &str) -> PathBuf {
    let path = cluster.dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn token() -> String {
    let expires = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() + 3_600;
    let claims =
        format!(r#"{{"sub":"admin","iat":{},"exp":{expires},"jti":"of-this-one-alone"}}"#, expires - 7_200);
    format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims))
}

#[test]
fn passwords_and_tokens_are_shown_nowhere() {
    let cluster = Cluster::start("secrets", &["--sasl"]);
    let connection = |mechanism: &str, rest: String| Connection {
        cluster: &cluster,
        login: format!("sasl: {{mechanism: {mechanism}, {rest}}}"),
    };
    let (good, bad) = (file(&cluster, "good", PASSWORD), file(&cluster, "bad", WRONG));
    let user = |file: &PathBuf| format!("username: alice, passwordFile: {}", file.display());
    let mut seen = Seen::default();
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        connection(mechanism, user(&good)).works(&mut seen);
        connection(mechanism, user(&bad)).is_refused(&mut seen);
    }
    let token = token();
    let claims = token.split('.').nth(1).unwrap().to_owned();
    let bearer = |file: &PathBuf| connection("OAUTHBEARER", format!("tokenFile: {}", file.display()));
    bearer(&file(&cluster, "token", &token)).works(&mut seen);
    let garbled = format!("{claims}.{WRONG}");
    bearer(&file(&cluster, "garbled", &garbled)).is_refused(&mut seen);
    // Where a user wrote it instead of the name of a file.
    let mut written = connection("PLAIN", format!("username: alice, password: {WRONG}"));
    written.is_refused(&mut seen);
    written.login = format!("config: {{sasl.password: {WRONG}}}");
    written.is_refused(&mut seen);
    let plain = format!("\0alice\0{PASSWORD}");
    seen.hides(&[PASSWORD, WRONG, &plain, &token, &claims, &garbled]);
}

#[test]
fn the_passphrase_of_a_key_is_shown_nowhere() {
    let cluster = Cluster::start("passphrase", &["--mtls"]);
    let tls = cluster.dir.join("tls");
    let key = tls.join("client.encrypted.key");
    let made = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", &format!("pass:{PASSPHRASE}"), "-in"])
        .arg(tls.join("client.key"))
        .arg("-out")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let with = |file: PathBuf| Connection {
        cluster: &cluster,
        login: format!(
            "tls: {{caFile: {}, certificateFile: {}, keyFile: {}, keyPasswordFile: {}}}",
            tls.join("ca.pem").display(),
            tls.join("client.pem").display(),
            key.display(),
            file.display()
        ),
    };
    let mut seen = Seen::default();
    with(file(&cluster, "good", PASSPHRASE)).works(&mut seen);
    with(file(&cluster, "bad", WRONG)).is_refused(&mut seen);
    let body = std::fs::read_to_string(&key).unwrap();
    let line = body.lines().nth(1).unwrap();
    seen.hides(&[PASSPHRASE, WRONG, line]);
}
