//! Logins: TLS, mutual TLS, every SASL mechanism, from files; what a refusal says, and what it does not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coproc::control::modules;
use coproc::control::observed;
use coproc::control::topics::OwnTopic;
use coproc::control::writer::DesiredWriter;
use coproc::core::deployment::{Naming, Sink};
use coproc::core::disposition::Disposition;
use coproc::core::names::{Installation, NodeId, TopicName};
use coproc::core::record::Record;
use coproc::core::status::{State, StatusKey};
use coproc::kafka::{Credentials, KafkaConfig, KafkaLog, Mechanism, Tls};
use coproc::ports::{
    Ability, FencedWriter, Fetched, Fold, FoldEvent, Keyed, Log, Produce, ReadFrom, Reader, TopicConfig,
};

use super::cluster::{Cluster, await_end, fill, fresh, topic};
use super::lane::{Lane, spec};
use super::support::{Rig, deployment, guest, identity, identity_of, start_node_of, text, wait_for};

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
    token_of("admin", expires)
}

fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn token_of(subject: &str, expires: u64) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let issued = expires - 7200;
    let claims = format!(r#"{{"sub":"{subject}","iat":{issued},"exp":{expires}}}"#);
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
    let mut config = cluster.config();
    config.sasl = Some(Credentials::token(file(&cluster, "token", &token(now() + 3600))));
    copies(config.clone());
    let log = KafkaLog::connect(config).unwrap();
    let group = fresh("g").parse().unwrap();
    assert!(log.offsets().committed(&group).unwrap().is_empty());
    log.offsets().delete(&group).unwrap();
}

/// Collects everything that is logged, at every level.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Lines {
    /// A failure that comes once in fifty times is to say what led to it.
    fn drop(&mut self) {
        const MOST: usize = 400;
        if std::thread::panicking() && Arc::strong_count(&self.0) == 1 {
            let said = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
            let lines: Vec<_> = said.lines().filter(|line| line.contains("kafka")).collect();
            eprintln!("{}", lines[lines.len().saturating_sub(MOST)..].join("\n"));
        }
    }
}

/// Every client that a log has besides those of lanes, each with a connection of its own.
struct Others {
    topic: TopicName,
    fold: Box<dyn Fold>,
    writer: Box<dyn FencedWriter>,
    reader: Box<dyn Reader>,
}

impl Others {
    fn open(log: &KafkaLog, read: &TopicName) -> Self {
        let topic: TopicName = fresh("others").parse().unwrap();
        log.topics().create(&topic, &TopicConfig::compacted()).unwrap();
        let mut others = Self {
            fold: log.fold(&topic).unwrap(),
            writer: log.fenced_writer(&topic, &fresh("w")).unwrap(),
            reader: log.reader(read, None, ReadFrom::End).unwrap(),
            topic,
        };
        others.write("before");
        others
    }

    fn write(&mut self, key: &str) {
        let keyed = Keyed { key: key.as_bytes().to_vec(), value: Some(b"v".to_vec()) };
        self.writer.write(&[keyed]).unwrap();
        wait_for("the fold", || match self.fold.next(Duration::from_millis(200)) {
            Ok(FoldEvent::Record { key: found, .. }) if found == key.as_bytes() => Some(()),
            _ => None,
        });
    }

    /// All of them still work, and a hundred records are in `read`.
    fn go_on(&mut self, log: &KafkaLog, read: &TopicName) {
        fill(log, read, 1, 100);
        let mut found = 0;
        let deadline = Instant::now() + LONG;
        while found < 100 {
            let fetched = self.reader.fetch(Duration::from_millis(200));
            found += fetched.as_ref().map_or(0, Vec::len);
            assert!(Instant::now() < deadline, "the reader has {found} of 100 records, and then {fetched:?}");
        }
        assert_eq!(found, 100);
        self.write("after");
        assert!(log.topics().describe(&self.topic).unwrap().is_some());
        log.topics().create(&fresh("new").parse().unwrap(), &TopicConfig::default()).unwrap();
        assert!(log.offsets().committed(&fresh("g").parse().unwrap()).unwrap().is_empty());
    }
}

/// The password changes on the broker and in the file; the lane's connections are cut, and it goes on by itself.
#[test]
fn a_password_that_rotates_needs_no_restart_and_is_in_no_log() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    // Beside a second one: with a single one, tracing asks whatever thread comes by a line first whether anybody wants it, and
    // other tests come by the same lines.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // librdkafka's lines come by way of the polls, which are on this thread.
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let cluster = Cluster::start("rotate", &["--sasl"]);
    let password = file(&cluster, "rotating", "coproc-test\n");
    let scram = |file: &Path| {
        let mut config = cluster.config();
        config.sasl = Some(Credentials::user(Mechanism::ScramSha256, "alice".to_owned(), file.to_owned()));
        config
    };
    let log = KafkaLog::connect(scram(&password)).unwrap();
    let (from, to) = (topic(&*log, "rotate", 1), topic(&*log, "rotate-out", 1));
    fill(&*log, &from, 1, 100);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && lane.at_end.len() == 1).unwrap();
    let mut others = Others::open(&log, &from);

    let properties = cluster.dir.join("client.properties");
    cluster.tool(
        "kafka.admin.ConfigCommand",
        &[
            "--command-config",
            properties.to_str().unwrap(),
            "--alter",
            "--entity-type",
            "users",
            "--entity-name",
            "alice",
            "--add-config",
            "SCRAM-SHA-256=[password=hunter2-rotated]",
        ],
    );
    std::fs::write(&password, "hunter2-rotated\n").unwrap();
    // The lane looks every five seconds.
    let looked = Instant::now();
    while looked.elapsed() < Duration::from_secs(7) {
        lane.step().unwrap();
    }
    cluster.restart(1);
    let old = file(&cluster, "old", "coproc-test");
    assert!(KafkaLog::connect(scram(&old)).is_err(), "the old password is void");
    others.go_on(&log, &from);
    lane.run(LONG, |lane| lane.copied >= 200 && lane.at_end.len() == 1).unwrap();
    drop(lane);
    let said = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    assert!(said.contains("the credentials changed"), "{said}");
    assert!(!said.contains("hunter2") && !said.contains("coproc-test"), "a password was logged");
}

/// All certificates are made anew, the authority's too, so that the old ones are good for nothing.
#[test]
fn certificates_that_rotate_need_no_restart() {
    let cluster = Cluster::start("certificates", &["--mtls"]);
    let names = ["ca.pem", "client.pem", "client.key"];
    let copy = |to: &str| {
        let dir = cluster.dir.join(to);
        std::fs::create_dir_all(&dir).unwrap();
        for name in names {
            std::fs::copy(cluster.dir.join("tls").join(name), dir.join(name)).unwrap();
        }
        let mut config = cluster.config();
        let identity = Some((dir.join("client.pem"), dir.join("client.key")));
        config.tls = Some(Tls { ca_file: Some(dir.join("ca.pem")), identity, key_password_file: None });
        config
    };
    let (mine, old) = (copy("mine"), copy("old"));
    let log = KafkaLog::connect(mine).unwrap();
    let (from, to) = (topic(&*log, "rotate", 1), topic(&*log, "rotate-out", 1));
    fill(&*log, &from, 1, 100);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && lane.at_end.len() == 1).unwrap();
    let mut others = Others::open(&log, &from);

    cluster.make_certificates();
    // A key without its certificate, for as long as somebody takes to write the next file: what runs goes on.
    std::fs::copy(cluster.dir.join("tls/client.key"), cluster.dir.join("mine/client.key")).unwrap();
    fill(&*log, &from, 1, 100);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        lane.step().unwrap();
    }
    assert_eq!(lane.copied, 200);
    let mut found = 0;
    while found < 100 {
        found += others.reader.fetch(Duration::from_millis(200)).unwrap().len();
    }
    log.topics().create(&fresh("meanwhile").parse().unwrap(), &TopicConfig::default()).unwrap();
    copy("mine");
    let changed = Instant::now();
    cluster.restart(1);
    assert!(KafkaLog::connect(old).is_err(), "the old certificates are void");
    // Lanes and readers look every five seconds.
    std::thread::sleep(Duration::from_secs(6).saturating_sub(changed.elapsed()));
    others.go_on(&log, &from);
    lane.run(LONG, |lane| lane.copied >= 300 && lane.at_end.len() == 1).unwrap();
    drop(lane);
    let config = copy("new");
    assert_eq!(KafkaLog::connect(config).unwrap().topics().extents(&to).unwrap()[0].first, 0);
}

/// A token lasts for a while only; clients take the next one from the file in time.
#[test]
fn a_token_that_runs_out_is_followed_by_the_next() {
    let cluster = Cluster::start("token", &["--sasl"]);
    let path = file(&cluster, "token", &token(now() + 20));
    let mut config = cluster.config();
    config.sasl = Some(Credentials::token(path.clone()));
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "token", 1), topic(&*log, "token-out", 1));
    fill(&*log, &from, 1, 100);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && lane.at_end.len() == 1).unwrap();
    let mut others = Others::open(&log, &from);
    std::fs::write(&path, token(now() + 3_600)).unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(22) {
        lane.step().unwrap();
    }
    // New connections, for which the first token is of no use any more.
    cluster.restart(1);
    others.go_on(&log, &from);
    lane.run(LONG, |lane| lane.copied >= 200 && lane.at_end.len() == 1).unwrap();
}

/// An address that answers the first question as the broker does, and hangs up at the login; how often it did.
fn hangs_up_at_login(broker: &str) -> (String, Arc<AtomicUsize>) {
    fn frame(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let mut frame = length.to_vec();
        frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
        from.read_exact(&mut frame[4..])?;
        Ok(frame)
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, broker) = (listener.local_addr().unwrap().to_string(), broker.to_owned());
    let times = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&times);
    #[expect(clippy::disallowed_methods, reason = "it serves until the process ends")]
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut meet = || {
                let mut broker = TcpStream::connect(&broker)?;
                broker.write_all(&frame(&mut client)?)?;
                client.write_all(&frame(&mut broker)?)?;
                frame(&mut client)
            };
            counted.fetch_add(usize::from(meet().is_ok()), Ordering::Relaxed);
        }
    });
    (address, times)
}

/// Another token is used from the next connection on, however long the one before would last. Whoever is not let in any more hears of
/// it, and nobody else: one address that does not take the login is no such word.
#[test]
fn a_token_that_is_replaced_is_used_and_a_lost_login_is_said() {
    let cluster = Cluster::start("replaced", &["--sasl", "--authorizer"]);
    let admin = KafkaLog::connect(user(&cluster, "admin")).unwrap();
    let name = topic(&*admin, "hidden", 1);
    let path = file(&cluster, "token", &token_of("nobody", now() + 3_600));
    let mut config = cluster.config();
    config.sasl = Some(Credentials::token(path.clone()));
    let log = KafkaLog::open(config).unwrap();
    assert!(log.topics().list().unwrap().is_empty(), "nobody may see nothing");
    let password = file(&cluster, "changing", "coproc-test");
    let mut config = cluster.config();
    config.sasl = Some(Credentials::user(Mechanism::Plain, "admin".to_owned(), password.clone()));
    let mut reader = KafkaLog::open(config).unwrap().reader(&name, None, ReadFrom::Start).unwrap();

    let (hangs, times) = hangs_up_at_login(&cluster.bootstrap);
    let mut config = user(&cluster, "admin");
    config.bootstrap_servers = vec![hangs, cluster.bootstrap.clone()];
    let both = KafkaLog::open(config).unwrap();
    for _ in 0..20 {
        let mut lucky = both.reader(&name, None, ReadFrom::Start).unwrap();
        for _ in 0..5 {
            assert!(lucky.fetch(Duration::from_millis(50)).unwrap().is_empty());
        }
    }
    assert!(times.load(Ordering::Relaxed) > 5, "nobody called there: {times:?}");

    std::fs::write(&path, token_of("admin", now() + 3_600)).unwrap();
    std::fs::write(password, "hunter2").unwrap();
    // Readers look every five seconds.
    std::thread::sleep(Duration::from_secs(6));
    assert!(reader.fetch(Duration::ZERO).unwrap().is_empty());
    cluster.restart(1);
    wait_for("the topic", || log.topics().list().ok()?.iter().any(|info| info.name == name).then_some(()));
    let said = wait_for("what the reader hears", || reader.fetch(Duration::from_millis(200)).err());
    assert_eq!(said.disposition(), Disposition::User, "{said}");
    let said = said.to_string();
    assert!(said.contains(name.as_str()) && said.contains("uthentication"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
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

/// The commands of `docs/kafka.md`.
fn documented_permissions() -> Vec<Vec<String>> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kafka.md")).unwrap();
    let command =
        |line: &str| Some(line.strip_prefix("kafka-acls ")?.split(' ').map(str::to_owned).collect());
    page.lines().filter_map(command).collect()
}

fn user(cluster: &Cluster, name: &str) -> KafkaConfig {
    let password = file(cluster, "password", "coproc-test");
    let mut config = cluster.config();
    config.sasl = Some(Credentials::user(Mechanism::Plain, name.to_owned(), password));
    config
}

/// A node, and somebody who deploys to it, each with the permissions that are documented and no more, on a cluster
/// that denies what is not allowed.
#[test]
fn the_documented_permissions_are_enough_and_needed() {
    let cluster = Cluster::start("acl", &["--sasl", "--authorizer"]);
    let admin: Arc<dyn Log> = KafkaLog::connect(user(&cluster, "admin")).unwrap();
    for own in OwnTopic::ALL {
        own.ensure(&*admin).unwrap();
    }
    admin.topics().create(&"orders".parse().unwrap(), &TopicConfig::default()).unwrap();
    fill(&*admin, &"orders".parse().unwrap(), 1, 100);
    let node: Arc<dyn Log> = KafkaLog::connect(user(&cluster, "node")).unwrap();
    let deployer: Arc<dyn Log> = KafkaLog::connect(user(&cluster, "deployer")).unwrap();
    let spec = || spec("coproc.g", "t", &"orders".parse().unwrap(), &"orders-out".parse().unwrap());
    assert!(node.lane(&spec()).is_err(), "nothing is allowed yet");
    let Ability::Unknown(why) = node.capabilities().transactions else {
        panic!("that could not be found out")
    };
    assert!(why.contains("coproc.probe"), "{why}");
    let properties = cluster.dir.join("client.properties");
    let permissions = documented_permissions();
    assert!(permissions.len() > 8);
    for permission in &permissions {
        let mut all = vec!["--command-config", properties.to_str().unwrap()];
        all.extend(permission.iter().map(String::as_str));
        cluster.tool("org.apache.kafka.tools.AclCommand", &all);
    }
    let rig = Rig::on(deployer, "default", 0);
    // It prints what it reads.
    let module = guest("(call $say (i32.const 4098) (i32.const 1))");
    let digest = wait_for("the permissions to take effect", || modules::upload(&*rig.log, &module).ok());
    // As a node does whose pool says so.
    node.topics().create(&"orders-out".parse().unwrap(), &TopicConfig::default()).unwrap();
    for name in ["orders", "orders-out"] {
        assert!(
            rig.log.topics().describe(&name.parse().unwrap()).unwrap().is_some(),
            "a deploy looks at them"
        );
    }
    rig.put("secured", &deployment(&[digest], "orders", &["orders-out"], ""));
    let mut wanted = deployment(&[digest], "orders", &["view"], "");
    if let Sink::Kafka { kafka } = &mut wanted.sinks[0] {
        kafka.naming = Naming::Materialized;
    }
    rig.put("viewed", &wanted);
    assert_eq!(
        KafkaLog::connect(user(&cluster, "node")).unwrap().capabilities().transactions,
        Ability::Present
    );
    let running = start_node_of(&node, rig.pool.clone(), 0);
    for name in ["orders-out", "orders._view_"] {
        wait_for(name, || {
            let end = admin.topics().extents(&name.parse().unwrap()).ok()?[0].end;
            (end >= 101).then_some(())
        });
    }
    let status = rig.wait_for_state("secured", State::Running);
    for own in [OwnTopic::Status, OwnTopic::Control] {
        let kept = rig.read(own.name().as_str());
        assert!(!kept.is_empty());
        assert!(kept.iter().all(|it| !text(it.record.value.clone()).contains("coproc-test")), "a password");
    }
    assert_eq!(status.last_error.map(|error| error.message), None);
    // Who only runs deployments cannot make one.
    let writer = DesiredWriter::new(&*node, Installation::default_name());
    assert!(
        writer.set_paused(&identity_of("secured"), true).is_err(),
        "a node may not write the control topic"
    );
    rig.set_paused("secured", true);
    rig.wait_for_state("secured", State::Paused);
    let group = identity_of("secured").consumer_group();
    let committed = rig.log.offsets().committed(&group).unwrap();
    assert!(!committed.is_empty());
    wait_for("the lane to leave", || (rig.log.offsets().members(&group).unwrap() == 0).then_some(()));
    rig.log.offsets().alter(&group, &committed.keys().map(|at| (at.clone(), 1)).collect()).unwrap();
    rig.log.offsets().delete(&group).unwrap();
    rig.set_paused("secured", false);
    admin.topics().grow(&"orders".parse().unwrap(), 2).unwrap();
    fill(&*admin, &"orders".parse().unwrap(), 2, 10);
    wait_for("the view to follow", || {
        let view = admin.topics().describe(&"orders._view_".parse().unwrap()).unwrap()?;
        (view.config.partitions == 2).then_some(())
    });
    OwnTopic::Logs.ensure(&*rig.log).unwrap();
    wait_for("what the guest printed", || (!rig.read("coprocessor_logs").is_empty()).then_some(()));
    as_the_operator_forgets_a_node(&rig);
    // Once an hour nodes remove modules that no deployment names: here two days later.
    modules::upload(&*rig.log, &identity()).unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    assert_eq!(modules::sweep(&*node, now + 2 * 86_400_000).unwrap(), 1);
    assert_each_was_needed(&cluster, &permissions);
    // Without one of them a node cannot know what was committed earlier: it must not take that for a first start.
    let args = ["--command-config", properties.to_str().unwrap(), "--remove", "--force"];
    let what =
        ["--allow-principal", "User:node", "--operation", "Read", "--topic", "coprocessor_status_topic"];
    cluster.tool("org.apache.kafka.tools.AclCommand", &[&args[..], &what[..]].concat());
    wait_for("the permission to be gone", || observed::read(&*node).err());
    rig.put("late", &deployment(&[digest], "orders", &["orders-out"], ""));
    wait_for("a refusal that names the topic", || {
        let message = rig.status("late")?.last_error?.message;
        message.contains("coprocessor_status_topic").then_some(())
    });
    let started = rig.log.offsets().committed(&identity_of("late").consumer_group()).unwrap();
    assert!(started.is_empty(), "{started:?}");
    assert!(running.stop());
}

/// A tombstone in the status topic.
fn as_the_operator_forgets_a_node(rig: &Rig) {
    let (topic, key) = (OwnTopic::Status.name(), StatusKey::Node(NodeId(999)).to_string());
    let record = Record::new(Some(key.as_bytes()), None);
    rig.log.produce(&[Produce { topic: topic.clone(), partition: Some(0), record }]).unwrap();
    let is_gone =
        |it: &Fetched| it.record.key.as_deref() == Some(key.as_bytes()) && it.record.value.is_none();
    assert!(rig.read(topic.as_str()).iter().any(is_gone));
}

/// The broker says by which permission it allowed a request. One that is never named could be left out.
fn assert_each_was_needed(cluster: &Cluster, permissions: &[Vec<String>]) {
    let log = std::fs::read_to_string(cluster.dir.join("1/log")).unwrap();
    let allowed: Vec<&str> = log.lines().filter(|line| line.contains(" is Allowed operation = ")).collect();
    let mut unused = Vec::new();
    for words in permissions {
        let after = |flag: &str| -> Vec<&str> {
            words.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_str()).collect()
        };
        let principal = after("--allow-principal")[0];
        let resources = ["--topic", "--group", "--transactional-id"].map(&after).concat();
        for (operation, name) in
            after("--operation").iter().flat_map(|op| resources.iter().map(move |at| (op, at)))
        {
            let asked = format!("Principal = {principal} is Allowed operation = {operation} ").to_lowercase();
            let rule = format!("resourceName={name},");
            let used =
                |line: &&str| line.contains(&rule) && line.to_lowercase().replace('_', "").contains(&asked);
            if !allowed.iter().any(used) {
                unused.push(format!("{principal}: {operation} of {name}"));
            }
        }
    }
    assert!(unused.is_empty(), "documented, and of no use: {unused:#?}; for instance {:#?}", allowed.first());
}
