//! `coproc deploy registry/name:tag`, with the embedded log and with Kafka: the tag is resolved once, nodes fetch by
//! digest, and a signature is demanded where a key says so.

use std::process::Stdio;
use std::time::{Duration, Instant};

use coproc::control::observed;
use coproc::control::writer::DesiredWriter;
use coproc::core::deployment::Deployment;
use coproc::core::digest::Digest;
use coproc::core::names::{Installation, PoolName};
use coproc::core::status::State;
use coproc::log::{Options, open_or_connect};
use serde_json::{Value, json};

use crate::brokers::{fresh, plain};
use crate::place::Place;
use crate::stage::{lower, mixed, upper};
use crate::world::{Registry, Signer, digest_of, sign_as_cosign};

/// A place with a registry, and where its log is.
struct Desk {
    place: Place,
    registry: Registry,
    /// Flags that name the log.
    log: Vec<String>,
    input: String,
    output: String,
    /// A file that says how the registry is reached, with a cache of the test's own.
    reach: String,
}

impl Desk {
    fn new(log: &[&str]) -> Self {
        let (place, registry) = (Place::new(), Registry::start("plain"));
        let reach = json!({"insecure": [registry.address()], "cacheDir": place.path("modules")});
        let reach = place.write("registry.yaml", reach.to_string());
        Self {
            reach: reach.to_str().unwrap().to_owned(),
            place,
            registry,
            log: log.iter().map(|&flag| flag.to_owned()).collect(),
            input: fresh("images-in"),
            output: fresh("images-out"),
        }
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        arguments.iter().copied().chain(self.log.iter().map(String::as_str)).collect()
    }

    fn reach(&self) -> &str {
        &self.reach
    }

    fn make_topics(&self) {
        let create = ["topic", "create", &self.input, &self.output];
        self.place.coproc(&self.arguments(&create)).succeeds();
    }

    fn push(&self, image: &str, module: &[u8]) -> Value {
        let file = self.place.write("module.wasm", module);
        let image = self.registry.image(image);
        let push = ["push", file.to_str().unwrap(), &image, "--registry-config", self.reach(), "-o", "json"];
        serde_json::from_str(&self.place.coproc(&push).succeeds().out).unwrap()
    }

    fn deploy(&self, image: &str, more: &[&str]) -> crate::place::Ran {
        let image = self.registry.image(image);
        let deploy = [
            "deploy",
            &image,
            "-i",
            &self.input,
            "-o",
            &self.output,
            "--registry-config",
            self.reach(),
            "--name",
            "redact",
        ];
        self.place.coproc(&self.arguments(&[&deploy, more].concat()))
    }

    fn module(&self) -> Value {
        let described = self.place.coproc(&self.arguments(&["describe", "redact", "-o", "json"])).succeeds();
        let described: Value = serde_json::from_str(&described.out).unwrap();
        described["deployment"]["steps"][0]["module"].clone()
    }

    fn gives(&self, value: &str, wanted: &str) {
        self.place
            .coproc_with(&self.arguments(&["produce", &self.input]), format!("{value}\n").as_bytes())
            .succeeds();
        let consume = self.arguments(&["consume", &self.output]);
        self.place.wait_for(&consume, |ran| ran.out.lines().last() == Some(wanted));
    }

    fn story(&self) {
        let first = self.push("redact:1", &upper());
        self.deploy("redact:1", &["--wait", "--timeout", "60s"])
            .succeeds()
            .says("redact deployed, generation 1");
        let module = self.module();
        assert_eq!(module["digest"], first["digest"]);
        assert_eq!(module["image"], first["image"], "pinned to the manifest");
        self.gives("no1", "NO1");

        // The tag moves: nothing changes until somebody deploys again.
        let second = self.push("redact:1", &lower());
        self.gives("no2", "NO2");
        assert_eq!(self.module(), module);
        self.deploy("redact:1", &["--wait", "--timeout", "60s"]).succeeds().says("generation 2");
        assert_eq!(self.module()["digest"], second["digest"]);
        self.gives("NO3", "no3");
        let back = first["image"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
        self.deploy(&back, &["--wait", "--timeout", "60s"]).succeeds();
        self.gives("no4", "NO4");

        // What a key has to vouch for: refused, and what runs goes on; signed, it runs.
        let signer = Signer::new(1);
        let key = self.place.write("cosign.pub", signer.pem());
        let key = key.to_str().unwrap();
        let third = self.push("redact:3", &mixed());
        self.deploy("redact:3", &["--key", key]).exits(4).complains("it is not signed");
        assert_eq!(self.module()["digest"], first["digest"]);
        let manifest = third["manifest"].as_str().unwrap().parse().unwrap();
        sign_as_cosign(self.registry.address(), "redact", &Signer::new(2), manifest, manifest);
        self.deploy("redact:3", &["--key", key]).exits(4).complains("not by a key of the policy");
        sign_as_cosign(self.registry.address(), "redact", &signer, manifest, manifest);
        self.deploy("redact:3", &["--key", key, "--wait", "--timeout", "60s"]).succeeds();
        self.gives("no5", "nO5");

        self.deploy("redact:none", &[]).exits(3).complains("has no manifest");
        self.registry.stop();
        self.deploy("redact:1", &[]).exits(5).complains("cannot be reached");
        self.gives("no6", "nO6");
    }
}

#[test]
fn an_image_is_deployed_to_the_embedded_log() {
    let desk = Desk::new(&[]);
    let _node = desk.place.node_with(&["--insecure", desk.registry.address()]);
    desk.make_topics();
    desk.story();
}

#[test]
fn an_image_is_deployed_to_kafka() {
    let pool = fresh("images");
    let desk = Desk::new(&["--brokers", &plain().bootstrap, "--pool", &pool]);
    let config = format!("registry: {{insecure: ['{}']}}\n", desk.registry.address());
    let config = desk.place.write("node.yaml", config);
    desk.make_topics();
    let mut command = std::process::Command::new(crate::place::PROGRAM);
    command.args(desk.arguments(&["node", "--node-id", "77", "--http", "off"])).arg("--config");
    let log = std::fs::File::create(desk.place.path("node.log")).unwrap();
    command.arg(config).env("COPROC_DIR", desk.place.path("node")).stdin(Stdio::null()).stderr(log);
    let mut node = command.spawn().unwrap();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| desk.story()));
    node.kill().unwrap();
    node.wait().unwrap();
    if let Err(panic) = ended {
        eprintln!("{}", std::fs::read_to_string(desk.place.path("node.log")).unwrap_or_default());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_node_with_a_key_runs_nothing_else() {
    let desk = Desk::new(&[]);
    let (signer, file) = (Signer::new(1), upper());
    let key = desk.place.write("cosign.pub", signer.pem());
    let _node =
        desk.place.node_with(&["--insecure", desk.registry.address(), "--key", key.to_str().unwrap()]);
    desk.make_topics();
    let reason = |wanted: &str| {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let ran = desk.place.coproc(&["describe", "redact", "-o", "json"]).succeeds();
            let described: Value = serde_json::from_str(&ran.out).unwrap();
            let node = &described["nodes"][0];
            if node["reason"].as_str().or(node["state"].as_str()) == Some(wanted) {
                return;
            }
            assert!(Instant::now() < end, "{wanted}: {described:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    // A module without an image has no signatures.
    let path = desk.place.write("redact.wasm", &file);
    let topics = ["-i", desk.input.as_str(), "-o", desk.output.as_str()];
    desk.place.coproc(&[&["deploy", path.to_str().unwrap()], &topics[..]].concat()).succeeds();
    reason("SignatureRejected");
    // Who deploys may be lenient; the node is not.
    let pushed = desk.push("redact:1", &file);
    desk.deploy("redact:1", &[]).succeeds();
    reason("SignatureRejected");
    let manifest = pushed["manifest"].as_str().unwrap().parse().unwrap();
    sign_as_cosign(desk.registry.address(), "redact", &signer, manifest, manifest);
    desk.deploy("redact:1", &["--description", "signed"]).succeeds();
    reason("running");
    assert_eq!(desk.module()["digest"], digest_of(&file).to_string());
}

/// A module that `coproc build` made says itself what it reads and writes, from a file and from a registry.
#[test]
fn a_built_module_needs_no_flags() {
    let desk = Desk::new(&[]);
    let _node = desk.place.node_with(&["--insecure", desk.registry.address()]);
    desk.make_topics();
    let manifest = format!(
        "name: shout\nlanguage: wat\ndescription: louder\ninputTopics: [{}]\noutputTopics: [{}]\nenv: {{LEVEL: '2'}}\n",
        desk.input, desk.output
    );
    let file = desk.place.write("project/coproc.yaml", manifest);
    desk.place.write("project/shout.wat", include_str!("../../src/cli/templates/wat/module.wat.template"));
    desk.place.coproc(&["build", "-f", file.to_str().unwrap()]).succeeds();
    let built = desk.place.path("project/shout.wasm");
    desk.place.coproc(&["deploy", built.to_str().unwrap(), "--wait"]).succeeds().says("shout deployed");
    desk.gives("one", "ONE");

    let image = desk.registry.image("team/loud:1");
    let insecure = ["--registry-config", desk.reach()];
    desk.place.coproc(&[&["push", built.to_str().unwrap(), &image], &insecure[..]].concat()).succeeds();
    let deploy = ["deploy", &image, "--var", "LEVEL=3", "--description", "from a registry", "--wait"];
    desk.place.coproc(&[&deploy[..], &insecure].concat()).succeeds().says("shout deployed, generation 2");
    let ran = desk.place.coproc(&["describe", "shout", "-o", "json"]).succeeds();
    let described: Value = serde_json::from_str(&ran.out).unwrap();
    let deployment = &described["deployment"];
    assert_eq!(deployment["steps"][0]["env"]["LEVEL"], "3");
    assert_eq!(deployment["description"], "from a registry");
    assert!(deployment["steps"][0]["module"]["image"].as_str().unwrap().starts_with(&image));
    desk.gives("two", "TWO");
}

/// A hundred coprocessors on one node: of the registry's bytes each is asked for once, by its digest.
#[test]
fn a_hundred_coprocessors_fetch_their_module_once() {
    let desk = Desk::new(&[]);
    let signer = Signer::new(1);
    let key = desk.place.write("cosign.pub", signer.pem());
    let key = ["--key", key.to_str().unwrap(), "--max-lanes", "200"];
    let _node = desk.place.node_with(&[&["--insecure", desk.registry.address()], &key[..]].concat());
    desk.make_topics();
    let pushed = desk.push("redact:1", &upper());
    let manifest: Digest = pushed["manifest"].as_str().unwrap().parse().unwrap();
    sign_as_cosign(desk.registry.address(), "redact", &signer, manifest, manifest);

    let log = open_or_connect(&desk.place.path("log"), Options::default()).unwrap();
    let module = json!({"digest": pushed["digest"], "image": pushed["image"]});
    let deployment: Deployment =
        serde_json::from_value(json!({"schema": "1.0", "generation": 1, "owner": "cli",
        "source": {"type": "Kafka", "kafka": {"topics": [desk.input]}},
        "steps": [{"name": "main", "module": module}],
        "sinks": [{"type": "Kafka", "kafka": {"topic": desk.output}}]}))
        .unwrap();
    let writer = DesiredWriter::new(log.as_ref(), Installation::default_name());
    for i in 0..100 {
        let identity = format!("default/_cli/coprocessor/many-{i}").parse().unwrap();
        writer.deploy(&PoolName::default_name(), &identity, &deployment).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let observed = observed::read(log.as_ref()).unwrap().map(|state| state.nodes()).unwrap_or_default();
        let all: Vec<_> = observed.iter().flat_map(|node| node.status.coprocessors.values()).collect();
        let running = all.iter().filter(|status| status.state == State::Running).count();
        if running == 100 {
            break;
        }
        assert!(Instant::now() < end, "{running} run: {:?}", all.first());
        std::thread::sleep(Duration::from_millis(200));
    }
    let asked = |path: String| desk.registry.count("GET", &format!("/v2/redact/{path}"));
    assert_eq!(asked(format!("blobs/{}", pushed["digest"].as_str().unwrap())), 1);
    assert_eq!(asked(format!("manifests/{manifest}")), 1);
    assert_eq!(asked(format!("manifests/sha256-{}.sig", manifest.hex())), 1);
    assert_eq!(asked("manifests/1".to_owned()), 0, "nodes never ask for a tag");
}
