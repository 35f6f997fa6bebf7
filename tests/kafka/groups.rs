//! Consumer groups on a cluster of which not every broker can say what it has. A real one is in such a state for
//! milliseconds only, so two brokers are played here: just enough of the protocol, in its oldest versions.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use coproc::core::ledger::TopicPartition;
use coproc::core::names::ConsumerGroup;
use coproc::kafka::{KafkaConfig, KafkaLog};
use coproc::ports::{Log, LogError};

use super::cluster::short;

/// Error codes of the protocol.
const LOADING: i16 = 14;
const NOT_ALLOWED: i16 = 29;
const UNKNOWN: i16 = -1;

const METADATA: i16 = 3;
const OFFSET_FETCH: i16 = 9;
const FIND_COORDINATOR: i16 = 10;
const DESCRIBE_GROUPS: i16 = 15;
const LIST_GROUPS: i16 = 16;
const API_VERSIONS: i16 = 18;
/// What a broker takes, in which version. The client looks for group requests before it asks for a coordinator.
const TAKES: [(i16, i16); 11] = [
    (METADATA, 1),
    (8, 2),
    (OFFSET_FETCH, 1),
    (FIND_COORDINATOR, 0),
    (11, 0),
    (12, 0),
    (13, 0),
    (14, 0),
    (DESCRIBE_GROUPS, 0),
    (LIST_GROUPS, 0),
    (API_VERSIONS, 0),
];

/// What the first broker says when it is asked for its groups, and how often; then it has the group `early`.
struct First {
    error: i16,
    times: AtomicU32,
}

/// Two brokers: the first answers at once, the second has the group `late` and takes its time.
struct Two {
    ports: [u16; 2],
    first: First,
}

#[derive(Default)]
struct Answer(Vec<u8>);

impl Answer {
    fn i16(mut self, number: i16) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn i32(mut self, number: i32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut this = self.i16(text.len() as i16);
        this.0.extend(text.as_bytes());
        this
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

impl Two {
    fn start(error: i16, times: u32) -> (Arc<Self>, Arc<KafkaLog>) {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|n: usize| listeners[n].local_addr().unwrap().port());
        let two = Arc::new(Self { ports, first: First { error, times: times.into() } });
        for (broker, listener) in listeners.into_iter().enumerate() {
            let of_clients = Arc::clone(&two);
            #[allow(clippy::disallowed_methods, reason = "a test's own threads")]
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let two = Arc::clone(&of_clients);
                    thread::spawn(move || two.serve(broker, client));
                }
            });
        }
        let mut config = KafkaConfig::plain([format!("127.0.0.1:{}", ports[0])]);
        config.timing = short();
        let log = KafkaLog::open(config).unwrap();
        (two, log)
    }

    fn serve(&self, broker: usize, mut client: TcpStream) -> Option<()> {
        loop {
            let mut head = [0; 12];
            client.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            client.read_exact(&mut vec![0; length - 8]).ok()?;
            let (key, version) =
                (i16::from_be_bytes([head[4], head[5]]), i16::from_be_bytes([head[6], head[7]]));
            let answer = Answer::default().bytes(&head[8..]);
            let answer = self.answer(broker, key, version, answer).0;
            client.write_all(&(answer.len() as u32).to_be_bytes()).ok()?;
            client.write_all(&answer).ok()?;
        }
    }

    fn answer(&self, broker: usize, key: i16, version: i16, answer: Answer) -> Answer {
        let address = |answer: Answer, n: usize| {
            answer.i32(n as i32 + 1).text("127.0.0.1").i32(i32::from(self.ports[n]))
        };
        match key {
            API_VERSIONS => {
                // A newer version is refused in the words of the first one, which says what is taken.
                let answer = answer.i16(if version == 0 { 0 } else { 35 }).i32(TAKES.len() as i32);
                TAKES.iter().fold(answer, |answer, (key, newest)| answer.i16(*key).i16(0).i16(*newest))
            }
            METADATA => {
                let answer = [0, 1].iter().fold(answer.i32(2), |answer, n| address(answer, *n).i16(-1));
                let answer = answer.i32(1).i32(1).i16(0).text("orders").bytes(&[0]).i32(2);
                [0, 1].iter().fold(answer, |answer, partition| {
                    answer.i16(0).i32(*partition).i32(1).i32(1).i32(1).i32(1).i32(1)
                })
            }
            FIND_COORDINATOR => address(answer.i16(0), 0),
            // One partition that has a committed offset, and one that the broker does not say.
            OFFSET_FETCH => {
                let answer = answer.i32(1).text("orders").i32(2);
                let answer = answer.i32(0).bytes(&5_i64.to_be_bytes()).text("").i16(0);
                answer.i32(1).bytes(&(-1_i64).to_be_bytes()).text("").i16(NOT_ALLOWED)
            }
            LIST_GROUPS if broker == 0 => {
                let less = |left: u32| left.checked_sub(1);
                match self.first.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
                    Ok(_) => answer.i16(self.first.error).i32(0),
                    Err(_) => answer.i16(0).i32(1).text("early").text("consumer"),
                }
            }
            LIST_GROUPS => {
                thread::sleep(Duration::from_millis(300));
                answer.i16(0).i32(1).text("late").text("consumer")
            }
            DESCRIBE_GROUPS => {
                let name = if broker == 0 { "early" } else { "late" };
                answer.i32(1).i16(0).text(name).text("Empty").text("consumer").text("").i32(0)
            }
            other => panic!("no answer to request {other}"),
        }
    }
}

/// The second broker answers after the first one failed: an error that it must not take away.
#[test]
fn groups_are_all_there_are_or_an_error() {
    let names =
        |log: &KafkaLog| log.offsets().groups().map(|all| all.iter().map(ToString::to_string).collect());
    // While it loads what it coordinates, it is asked again.
    let (_two, log) = Two::start(LOADING, 2);
    let listed: Vec<String> = names(&log).unwrap();
    assert_eq!(listed, ["early", "late"]);
    let (_two, log) = Two::start(UNKNOWN, u32::MAX);
    let error: LogError = names(&log).map(|all: Vec<String>| panic!("{all:?}")).unwrap_err();
    assert!(matches!(error, LogError::Unavailable(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("not every broker answered") && said.contains("Broker [1]"), "{said}");
}

#[test]
fn an_offset_that_the_broker_does_not_say_is_not_absent() {
    let (_two, log) = Two::start(LOADING, 0);
    let group: ConsumerGroup = "early".parse().unwrap();
    let error = log.offsets().committed(&group).unwrap_err();
    assert!(matches!(error, LogError::Refused(_)), "{error:?}");
    let at = TopicPartition::new(&"orders".parse().unwrap(), 1).to_string();
    assert!(error.to_string().contains(&at), "{error}");
}
