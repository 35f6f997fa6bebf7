//! Logins: TLS, mutual TLS, every SASL mechanism, from files; what a refusal says, and what it does not.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coproc::core::disposition::Disposition;
use coproc::kafka::{Credentials, KafkaConfig, KafkaLog, Mechanism, Tls};
use coproc::ports::Log;

use super::cluster::{Cluster, await_end, fill, fresh, topic};
use super::lane::{Lane, spec};

const LONG: Duration = Duration::from_mins(1);

fn copies(config: KafkaConfig) {
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "secure", 1), topic(&*log, "secure-out", 1));
    fill(&*log, &from, 1, 100);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && lane.at_end.len() == 1).unwrap();
    await_end(&*log, &to, 101);
}

fn refused(config: KafkaConfig) {
    let error = KafkaLog::connect(config).err().expect("a wrong login is refused");
    assert_eq!(error.disposition(), Disposition::User, "{error}");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("coproc-test") && !shown.contains("hunter2"), "{shown}");
}

fn file(cluster: &Cluster, name: &str, text: &str) -> PathBuf {
    let path = cluster.dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn token(expires: u64) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let issued = expires - 7200;
    let claims = format!(r#"{{"sub":"admin","iat":{issued},"exp":{expires}}}"#);
    format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims))
}

#[test]
fn sasl_logs_in_by_every_mechanism() {
    let cluster = Cluster::start("sasl", &["--sasl"]);
    let password = file(&cluster, "password", "coproc-test\n");
    for mechanism in [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512] {
        let mut config = cluster.config();
        config.sasl = Some(Credentials::user(mechanism, "alice".to_owned(), password.clone()));
        copies(config.clone());
        let wrong = file(&cluster, "wrong", "hunter2");
        config.sasl = Some(Credentials::user(mechanism, "alice".to_owned(), wrong));
        refused(config);
    }
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let mut config = cluster.config();
    config.sasl = Some(Credentials::token(file(&cluster, "token", &token(now + 3600))));
    copies(config.clone());
    let log = KafkaLog::connect(config).unwrap();
    let group = fresh("g").parse().unwrap();
    assert!(log.offsets().committed(&group).unwrap().is_empty());
    log.offsets().delete(&group).unwrap();
}

#[test]
fn tls_and_mutual_tls_let_in_whom_they_should() {
    for variant in ["tls", "mtls"] {
        let cluster = Cluster::start(variant, &[&format!("--{variant}")]);
        let tls = cluster.dir.join("tls");
        let identity = Some((tls.join("client.pem"), tls.join("client.key")));
        let mut config = cluster.config();
        let ca_file = Some(tls.join("ca.pem"));
        config.tls = Some(Tls { ca_file: ca_file.clone(), identity: None, key_password_file: None });
        if variant == "mtls" {
            assert!(KafkaLog::connect(config.clone()).is_err(), "no certificate, no entrance");
            config.tls = Some(Tls { ca_file, identity, key_password_file: None });
        }
        copies(config.clone());
        config.tls = Some(Tls::default());
        refused(config);
    }
}

/// The permissions that a lane needs, no more, on a cluster that denies what is not allowed.
#[test]
fn a_lane_runs_with_just_the_permissions_that_are_documented() {
    let cluster = Cluster::start("acl", &["--sasl", "--authorizer"]);
    let password = file(&cluster, "password", "coproc-test");
    let mut admin = cluster.config();
    admin.sasl = Some(Credentials::user(Mechanism::Plain, "admin".to_owned(), password.clone()));
    let admin = KafkaLog::connect(admin).unwrap();
    let (from, to) = (topic(&*admin, "acl", 1), topic(&*admin, "acl-out", 1));
    fill(&*admin, &from, 1, 100);
    let mut config = cluster.config();
    config.sasl = Some(Credentials::user(Mechanism::Plain, "alice".to_owned(), password));
    let log = KafkaLog::connect(config).unwrap();
    let (group, id) = (fresh("coproc.g"), fresh("coproc.t"));
    assert!(log.lane(&spec(&group, &id, &from, &to)).is_err(), "nothing is allowed yet");
    let properties = cluster.dir.join("client.properties");
    let allow = |args: &[&str]| {
        let mut all = vec!["--command-config", properties.to_str().unwrap(), "--add"];
        all.extend(["--allow-principal", "User:alice"]);
        all.extend(args);
        cluster.tool("org.apache.kafka.tools.AclCommand", &all);
    };
    allow(&["--operation", "Read", "--operation", "Describe", "--topic", from.as_str()]);
    let output =
        ["Write", "Describe", "DescribeConfigs"].map(|operation| ["--operation", operation]).concat();
    allow(&[output.as_slice(), &["--topic", to.as_str()]].concat());
    allow(&["--operation", "Read", "--group", "coproc.", "--resource-pattern-type", "prefixed"]);
    let ids = ["--transactional-id", "coproc.", "--resource-pattern-type", "prefixed"];
    allow(&[&["--operation", "Write", "--operation", "Describe"][..], &ids].concat());
    std::thread::sleep(Duration::from_millis(500));
    let mut lane = Lane::open(&*log, &spec(&group, &id, &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && lane.at_end.len() == 1).unwrap();
    drop(lane);
    await_end(&*admin, &to, 101);
}
