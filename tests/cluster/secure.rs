//! Everything that asks who one is: Kafka with TLS and SCRAM, a registry with TLS and accounts, signed images. Pods get at all of it
//! by Secrets that the pool names; one of them rotates.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::oci::{Signer, pull_secret, sign_as_cosign};
use crate::world::{NAMESPACE, World, condition, root, until};

/// Starts the registry of its own: in the open at first, to be filled.
struct Registry<'a> {
    world: &'a World,
    address: String,
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        self.run("stop", "plain");
    }
}

impl<'a> Registry<'a> {
    fn start(world: &'a World) -> Self {
        let mut registry = Self { world, address: format!("{}:0", host(world)) };
        registry.address = registry.run("start", "plain")["ADDRESS"].as_str().unwrap().to_owned();
        registry
    }

    /// From now on with TLS and an account: what `tests/env/registry` says of it.
    fn lock(&self) -> Value {
        self.run("stop", "plain");
        self.run("start", "tls-basic")
    }

    fn run(&self, word: &str, variant: &str) -> Value {
        let (host, port) = self.address.rsplit_once(':').unwrap();
        let mut command = Command::new(root().join("tests/env/registry"));
        let dir = self.world.path("registry-with-accounts");
        let output = command.arg(word).arg(dir).arg(variant).env("HOST", host).env("PORT", port).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(a, b)| (a.to_owned(), Value::from(b)))
            .collect()
    }
}

fn host(world: &World) -> &str {
    world.of("REGISTRY").rsplit_once(':').unwrap().0
}

/// Makes a Secret of files.
fn secret(world: &World, name: &str, keys: &[(&str, &str)]) {
    let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "stringData": keys.iter().map(|(key, text)| ((*key).to_owned(), Value::from(*text))).collect::<Value>()});
    world.apply(&body.to_string());
}

/// Gives the user of the pool this password.
fn set_password(world: &World, password: &str) {
    let config = format!("SCRAM-SHA-512=[iterations=4096,password={password}]");
    let arguments = ["--alter", "--add-config", &config, "--entity-type", "users", "--entity-name", "coproc"];
    world.kafka_tool("kafka.admin.ConfigCommand", &arguments);
}

fn flows(world: &World, prefix: &str) {
    let lines: Vec<String> = (0..50).map(|i| format!("{prefix}{i:03}")).collect();
    world.produce("sealed", lines.iter().cloned());
    let wanted: Vec<String> = lines.iter().map(|line| line.to_uppercase()).collect();
    until(&format!("{prefix} comes out"), 90, || {
        let found = world.values("sealed-loud");
        wanted.iter().all(|line| found.contains(line)).then_some(())
    });
}

/// Uid and restarts of the pool's pod.
fn life(world: &World) -> (Value, Value) {
    let pod = world.get("pod", "sealed-runtime-0");
    (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone())
}

/// Runs it: everything that is asked for, and what is refused without it.
pub fn behind_locks(world: &World, module: &str) {
    for topic in ["sealed", "sealed-loud"] {
        world.coproc(&["topic", "create", topic, "--partitions", "1"]);
    }
    let registry = Registry::start(world);
    let signer = Signer::new(7);
    let image = |tag: &str| format!("{}/sealed:{tag}", registry.address);
    let signed = world.push_to(&registry.address, "sealed:signed", module);
    let manifest = signed.split_once('@').unwrap().1.parse().unwrap();
    sign_as_cosign(&registry.address, "sealed", &signer, manifest, manifest);
    world.push_to(&registry.address, "sealed:unsigned", &module.replace("(i32.const 26)", "(i32.const 25)"));
    let told = registry.lock();

    set_password(world, "first-password");
    let text = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    secret(world, "kafka-ca", &[("ca.crt", &text(&world.path("kafka/tls/ca.pem")))]);
    secret(world, "kafka-user", &[("username", "coproc"), ("password", "first-password")]);
    secret(world, "registry-ca", &[("ca.crt", &text(told["CA"].as_str().unwrap().as_ref()))]);
    secret(world, "cosign", &[("cosign.pub", &signer.pem())]);
    let (name, word) = (told["LOGIN_NAME"].as_str().unwrap(), told["LOGIN_WORD"].as_str().unwrap());
    let login = text(&pull_secret(&world.path("kube"), &registry.address, name, word));
    let login = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry-login"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": login}});
    world.apply(&login.to_string());
    let pool = json!({"apiVersion": "coproc.dev/v1alpha1", "kind": "RuntimePool", "metadata": {"name": "sealed"},
        "spec": {
            "kafka": {
                "bootstrapServers": world.of("SECURE").split(',').collect::<Vec<_>>(),
                "tls": {"caSecret": {"name": "kafka-ca", "key": "ca.crt"}},
                "sasl": {"mechanism": "SCRAM-SHA-512",
                    "usernameSecret": {"name": "kafka-user", "key": "username"},
                    "passwordSecret": {"name": "kafka-user", "key": "password"}}},
            "registry": {"pullSecrets": ["registry-login"], "privateHosts": [host(world)],
                "caSecrets": [{"name": "registry-ca", "key": "ca.crt"}]},
            "verification": {"publicKeySecret": {"name": "cosign", "key": "cosign.pub"}}}});
    world.apply(&pool.to_string());
    let coprocessor = |tag: &str, description: &str| {
        json!({"apiVersion": "coproc.dev/v1alpha1", "kind": "Coprocessor", "metadata": {"name": "sealed"},
            "spec": {"pool": "sealed", "description": description, "module": {"image": image(tag)},
                "inputTopics": ["sealed"], "outputTopics": ["sealed-loud"]}})
        .to_string()
    };
    world.apply(&coprocessor("signed", ""));
    world.kubectl(&["wait", "--for=condition=Ready", "coprocessor/sealed", "--timeout=90s"]);
    let told = world.get("coprocessor", "sealed");
    assert_eq!(condition(&told, "SignatureVerified")["status"], "True", "{}", told["status"]);
    flows(world, "first");

    // What nobody has signed is not deployed; what runs goes on.
    world.apply(&coprocessor("unsigned", ""));
    until("the unsigned image is refused", 60, || {
        let told = world.get("coprocessor", "sealed");
        (condition(&told, "Ready")["reason"] == "SignatureInvalid").then_some(())
    });
    flows(world, "still");
    world.apply(&coprocessor("signed", ""));

    // The password rotates: in the Secret, then in Kafka, which has everybody log in again every five seconds.
    let before = life(world);
    let rotated = Instant::now();
    secret(world, "kafka-user", &[("username", "coproc"), ("password", "second-password")]);
    set_password(world, "second-password");
    std::thread::sleep(Duration::from_secs(10));
    flows(world, "second");
    world.apply(&coprocessor("signed", "the operator has the new password"));
    let key = format!("deployment/default/{NAMESPACE}/sealed/coprocessor/sealed");
    until("the operator writes with the new password", 60, || {
        world.table("coprocessor_internal_topic").get(&key)?.contains("new password").then_some(())
    });
    world.kubectl(&["wait", "--for=condition=Ready", "coprocessor/sealed", "--timeout=60s"]);
    assert_eq!(life(world), before, "the pod was restarted");
    eprintln!("with the new password after {:.1?}, without a restart", rotated.elapsed());
    for kind in ["coprocessor/sealed", "runtimepool/sealed"] {
        world.kubectl(&["delete", kind, "--timeout=60s"]);
    }
}
