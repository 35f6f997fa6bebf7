//! The drop folder: modules that are moved about by hand, beside a running node.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::bad_input::{ASK, transform};
use crate::place::{Node, Place};

const MANIFEST: &str = "name: shout\ninputTopics: [in]\noutputTopics: [out]\n";

/// A node and its drop folder, with topics `in` and `out`.
struct Drop {
    place: Place,
    node: Option<Node>,
}

impl Drop {
    fn new() -> Self {
        let place = Place::new();
        let node = place.node();
        place.coproc(&["topic", "create", "in", "out"]).succeeds();
        let drop = Self { place, node: Some(node) };
        drop.wait(|| drop.path("submit").is_dir(), "the folders are made");
        drop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path("log/coprocessors").join(name)
    }

    fn is_there(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Puts a file there as a careful program does: whole.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let part = self.place.write("part", bytes);
        std::fs::rename(part, self.path(name)).unwrap();
    }

    fn mv(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// The uppercase module, with a manifest and something that makes its bytes its own.
    fn module(&self, manifest: &str, mark: &str) -> Vec<u8> {
        let plain = std::fs::read(self.place.uppercase()).unwrap();
        coproc::wasm::section::with_manifest(&plain, &format!("{manifest}description: {mark}\n"))
    }

    #[track_caller]
    fn wait(&self, done: impl Fn() -> bool, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done() {
            let log = self.node.as_ref().map(Node::log);
            assert!(Instant::now() < deadline, "this did not come: {what}; the node says: {log:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the module stands in `inactive/` with a reason that says this.
    #[track_caller]
    fn is_rejected(&self, stem: &str, why: &str) {
        let reason = self.path(&format!("inactive/{stem}.error.txt"));
        self.wait(|| std::fs::read_to_string(&reason).is_ok_and(|text| !text.is_empty()), stem);
        let text = std::fs::read_to_string(&reason).unwrap();
        assert!(text.contains(why), "{why:?} is not in {text:?}");
        assert!(
            self.is_there(&format!("inactive/{stem}.wasm")) && !self.is_there(&format!("submit/{stem}.wasm"))
        );
    }

    fn runs(&self, description: &str) {
        let running =
            |ran: &crate::place::Ran| ran.out.contains(description) && ran.out.contains(" running ");
        self.place.wait_for(&["list", "-o", "wide"], running);
    }

    fn is_gone(&self) {
        self.place.wait_for(&["describe", "shout"], |ran| ran.code == Some(3));
        self.place.wait_for(&["list"], |ran| !ran.out.contains("shout"));
    }

    /// What goes in comes out, after everything that came out before.
    fn works(&self, all: &str, more: &str) {
        self.place.coproc_with(&["produce", "in"], more.as_bytes()).succeeds();
        self.place.wait_for(&["consume", "out"], |ran| ran.out == all);
    }

    fn stop(&mut self) {
        assert_eq!(self.node.take().unwrap().stop().0, Some(0));
    }

    fn start(&mut self) {
        self.node = Some(self.place.node());
    }
}

#[test]
fn a_module_is_submitted_replaced_stopped_and_brought_back() {
    let drop = Drop::new();
    drop.put("submit/a.wasm", drop.module(MANIFEST, "first"));
    drop.runs("first");
    assert!(drop.is_there("active/a.wasm") && !drop.is_there("submit/a.wasm"));
    drop.works("A\n", "a\n");
    // Another file of the same deployment: the first one goes to inactive.
    drop.put("submit/b.wasm", drop.module(MANIFEST, "second"));
    drop.runs("second");
    drop.wait(|| drop.is_there("active/b.wasm") && drop.is_there("inactive/a.wasm"), "b is active, a is not");
    assert!(!drop.is_there("active/a.wasm"));
    // Written over where it is.
    drop.put("active/b.wasm", drop.module(MANIFEST, "third"));
    drop.runs("third");
    assert!(drop.is_there("active/b.wasm"));
    // Out, and in again: it goes on where it was.
    drop.mv("active/b.wasm", "inactive/b.wasm");
    drop.is_gone();
    drop.mv("inactive/b.wasm", "active/b.wasm");
    drop.runs("third");
    drop.works("A\nB\n", "b\n");
    std::fs::remove_file(drop.path("active/b.wasm")).unwrap();
    drop.is_gone();
    assert_eq!(drop.place.coproc(&["consume", "out"]).out, "A\nB\n");
}

#[test]
fn what_cannot_run_is_rejected_with_its_reason() {
    let drop = Drop::new();
    let of = |manifest: &str| drop.module(manifest, "bad");
    let unknown = r#"(import "env" "mystery" (func)) (memory (export "memory") 1)"#;
    let unknown = wat::parse_str(transform(unknown, ASK)).unwrap();
    for (stem, bytes, why) in [
        ("garbage", b"this is no module".to_vec(), "it is text"),
        ("empty", Vec::new(), "there are no bytes"),
        ("import", coproc::wasm::section::with_manifest(&unknown, MANIFEST), "mystery"),
        ("bare", std::fs::read(drop.place.uppercase()).unwrap(), "submit bare.yaml with it"),
        ("loop", of("name: round\ninputTopics: [in]\noutputTopics: [in]\n"), "round for ever"),
        (
            "topic",
            of("name: lost\ninputTopics: [in]\noutputTopics: [nowhere]\n"),
            "topic nowhere does not exist",
        ),
        ("broken", of("name: x\ninputtopics: [in]\n"), "unknown field `inputtopics`"),
    ] {
        drop.put(&format!("submit/{stem}.wasm"), bytes);
        drop.is_rejected(stem, why);
    }
    drop.place.coproc(&["list"]).succeeds().prints("COPROCESSOR NAME  NODE ID  INPUT TOPICS  DESCRIPTION\n");
    // With what it lacked, it is taken; the reason goes.
    drop.place.coproc(&["topic", "create", "nowhere"]).succeeds();
    drop.mv("inactive/topic.wasm", "active/topic.wasm");
    drop.place.wait_for(&["list", "-o", "wide"], |ran| ran.out.contains(" running "));
    drop.wait(|| !drop.is_there("inactive/topic.error.txt"), "the reason goes");
    // A manifest beside the module, moved with it.
    let bare = std::fs::read(drop.path("inactive/bare.wasm")).unwrap();
    drop.put("submit/bare.yaml", MANIFEST);
    drop.put("submit/bare.wasm", bare);
    drop.wait(|| drop.is_there("active/bare.wasm") && drop.is_there("active/bare.yaml"), "both are active");
    drop.works("A\n", "a\n");
}

#[test]
fn a_bad_module_over_a_good_one_changes_nothing() {
    let drop = Drop::new();
    let good = drop.module(MANIFEST, "good");
    drop.put("submit/a.wasm", &good);
    drop.runs("good");
    drop.put("active/a.wasm", b"garbage");
    drop.is_rejected("a", "it is text");
    drop.wait(
        || std::fs::read(drop.path("active/a.wasm")).is_ok_and(|bytes| bytes == good),
        "the good one is back",
    );
    drop.place.coproc(&["describe", "shout"]).succeeds().says("Generation:   1");
    drop.works("A\n", "a\n");
    // What is deployed from the command line is not taken over, and the other way round it is.
    let file = drop.place.uppercase();
    let deploy = ["deploy", file.to_str().unwrap(), "--name", "mine", "-i", "in", "-o", "out"];
    drop.place.coproc(&deploy).succeeds();
    drop.put("submit/b.wasm", drop.module("name: mine\ninputTopics: [in]\noutputTopics: [out]\n", "theirs"));
    drop.is_rejected("b", "mine was deployed from the command line");
    drop.place.coproc(&["remove", "shout"]).succeeds();
    drop.wait(
        || drop.is_there("inactive/a.wasm") && !drop.is_there("active/a.wasm"),
        "a removed one is inactive",
    );
}

#[test]
fn changes_made_while_the_node_is_down_count_when_it_is_up() {
    let mut drop = Drop::new();
    for name in ["a", "b", "c"] {
        let manifest = format!("name: {name}\ninputTopics: [in]\noutputTopics: [out]\n");
        drop.put(&format!("submit/{name}.wasm"), drop.module(&manifest, "before"));
    }
    drop.place.wait_for(&["list", "-o", "wide"], |ran| ran.out.matches(" running ").count() == 3);
    let generation = |drop: &Drop| {
        let described = drop.place.coproc(&["describe", "c"]);
        described.out.lines().find(|line| line.starts_with("Generation:")).map(str::to_owned)
    };
    let before = generation(&drop);
    assert!(before.is_some());
    drop.stop();
    drop.mv("active/a.wasm", "inactive/a.wasm");
    let manifest = "name: b\ninputTopics: [in]\noutputTopics: [out]\n";
    drop.put("active/b.wasm", drop.module(manifest, "after"));
    drop.put("submit/d.wasm", drop.module("name: d\ninputTopics: [in]\noutputTopics: [out]\n", "new"));
    drop.start();
    drop.place.wait_for(&["list", "-o", "wide"], |ran| {
        let states: Vec<&str> =
            ran.out.lines().filter(|line| line.contains(" running ")).map(|line| &line[..1]).collect();
        states == ["b", "c", "d"] && ran.out.contains("after") && !ran.out.contains("\na ")
    });
    assert_eq!(generation(&drop), before, "what did not change is not deployed again");
}

#[test]
fn folders_that_are_taken_away_come_back_and_what_runs_goes_on() {
    let drop = Drop::new();
    drop.put("submit/a.wasm", drop.module(MANIFEST, "first"));
    drop.runs("first");
    std::fs::remove_dir_all(drop.path("")).unwrap();
    drop.wait(|| ["submit", "active", "inactive"].iter().all(|it| drop.path(it).is_dir()), "they are back");
    drop.works("A\n", "a\n");
    // It can still be replaced, and stopped.
    drop.put("submit/a.wasm", drop.module(MANIFEST, "second"));
    drop.runs("second");
    drop.wait(|| drop.is_there("active/a.wasm"), "it is active");
    drop.mv("active/a.wasm", "inactive/a.wasm");
    drop.is_gone();
}

#[test]
fn what_runs_is_known_again_without_the_list_of_what_was_registered() {
    let mut drop = Drop::new();
    drop.put("submit/a.wasm", drop.module(MANIFEST, "first"));
    drop.runs("first");
    drop.stop();
    std::fs::remove_file(drop.path(".registered.json")).unwrap();
    drop.start();
    drop.wait(|| drop.is_there(".registered.json"), "it is written again");
    drop.place.coproc(&["describe", "shout"]).succeeds().says("Generation:   1");
    drop.mv("active/a.wasm", "inactive/a.wasm");
    drop.is_gone();
}
