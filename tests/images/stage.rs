//! The parts of the run, each a process: what people do to them, and what they show.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::control::{desired, observed};
use coproc::core::deployment::{Deployment, ModuleRef, Sink};
use coproc::core::names::{Identity, TopicName};
use coproc::core::record::Record;
use coproc::kafka::KafkaLog;
use coproc::ports::{Keyed, Log, Produce, ReadFrom, TopicConfig};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::brokers;
use crate::cluster::{Fixture, api_of, condition, run_directory, until};
use crate::world::{Registry, pull_secret};

const PROGRAM: &str = env!("CARGO_BIN_EXE_coproc");
const UPPERCASE: &str = include_str!("../../src/cli/templates/wat/module.wat.template");
const PATIENCE: Duration = Duration::from_secs(90);

/// Writes values in upper case.
pub fn upper() -> Vec<u8> {
    wat::parse_str(UPPERCASE).unwrap()
}

/// Writes values in lower case.
pub fn lower() -> Vec<u8> {
    let text = UPPERCASE.replace("(i32.const 97)", "(i32.const 65)").replace(
        "(i32.sub (local.get $letter) (i32.const 32))",
        "(i32.add (local.get $letter) (i32.const 32))",
    );
    wat::parse_str(text).unwrap()
}

/// Writes the letter o in upper case.
pub fn mixed() -> Vec<u8> {
    let text = UPPERCASE.replace("(i32.const 97)) (i32.const 26)", "(i32.const 111)) (i32.const 1)");
    assert_ne!(text, UPPERCASE);
    wat::parse_str(text).unwrap()
}

/// What `coproc push` printed.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    pub image: String,
    pub manifest: coproc::core::digest::Digest,
    pub digest: String,
}

/// A process of the program; it ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(log: &Path, command: &mut Command) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

/// Everything; it ends with this.
pub struct Stage {
    fixture: Fixture,
    registry: Registry,
    log: Arc<KafkaLog>,
    dir: tempfile::TempDir,
    has_tls: bool,
    operator: Option<Running>,
    node: Option<Running>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["operator.log", "node.log"] {
                let text = fs::read_to_string(self.path(log)).unwrap_or_default();
                let from = text.len().saturating_sub(6_000);
                eprintln!("{log}: {}", text.get(from..).unwrap_or(&text));
            }
        }
    }
}

impl Stage {
    /// Starts everything but the node, in a namespace of its own.
    pub async fn new(namespace: &str, registry: &str) -> Self {
        let fixture = Fixture::new(namespace).await;
        let log = brokers::plain().log();
        let mut stage = Self {
            fixture,
            registry: Registry::start(registry),
            log,
            dir: tempfile::tempdir().unwrap(),
            has_tls: registry.starts_with("tls"),
            operator: None,
            node: None,
        };
        for topic in ["in", "out", "out-new", "out-forged"] {
            stage.log.topics().create(&stage.topic(topic), &TopicConfig::default()).unwrap();
        }
        fs::create_dir(stage.path("no-certificates")).unwrap();
        stage.start_operator();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn topic(&self, name: &str) -> TopicName {
        format!("{}-{name}", self.fixture.namespace).parse().unwrap()
    }

    pub fn address(&self) -> &str {
        self.registry.address()
    }

    pub fn image(&self, rest: &str) -> String {
        self.registry.image(rest)
    }

    /// A command without the system's certificates.
    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("KUBECONFIG", run_directory().join("admin.kubeconfig"))
            .env("HOME", self.dir.path())
            .env("SSL_CERT_FILE", self.path("no-certificates/none.pem"))
            .env("SSL_CERT_DIR", self.path("no-certificates"));
        command
    }

    pub fn start_operator(&mut self) {
        let (secrets, cache) = (self.path("operator-secrets"), self.path("operator-cache"));
        let mut command = self.program(&["operator", "--image", "coproc:test", "--namespace"]);
        command.arg(&self.fixture.namespace).arg("--secrets-dir").arg(secrets).arg("--cache-dir").arg(cache);
        self.operator = Some(Running::start(&self.path("operator.log"), &mut command));
    }

    pub fn stop_operator(&mut self) {
        self.operator = None;
    }

    /// Pushes a module with the command line.
    pub fn push(&self, image: &str, module: &[u8]) -> Pushed {
        let file = self.path("module.wasm");
        fs::write(&file, module).unwrap();
        let mut command = self.program(&["push", "-o", "json"]);
        command.arg(&file).arg(self.image(image));
        if self.has_tls {
            command.arg("--ca-file").arg(self.registry.get("CA"));
            command.arg("--pull-secret").arg(self.login());
        } else {
            command.args(["--insecure", self.address()]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn login(&self) -> PathBuf {
        let (name, word) = (self.registry.get("LOGIN_NAME"), self.registry.get("LOGIN_WORD"));
        pull_secret(self.dir.path(), self.address(), name, word)
    }

    pub fn delete_tag(&self, image: &str) {
        let (repository, tag) = image.split_once(':').unwrap();
        self.registry.delete_tag(repository, tag);
    }

    pub fn registry_stops(&self) {
        self.registry.stop();
    }

    pub fn registry_starts(&self) {
        self.registry.start_again();
    }

    /// Writes a Secret, and what a kubelet would have mounted of it.
    pub async fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<&str, &str> = data.iter().copied().collect();
        let kind =
            if data.contains_key(".dockerconfigjson") { "kubernetes.io/dockerconfigjson" } else { "Opaque" };
        let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind,
            "stringData": data});
        let secrets = self.api::<Secret>();
        secrets.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(&body)).await.unwrap();
        let mounted = self.path("secrets").join(name);
        fs::create_dir_all(&mounted).unwrap();
        for (key, text) in data {
            fs::write(mounted.join(key), text).unwrap();
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.fixture.client.clone(), &self.fixture.namespace)
    }

    /// Makes the pool: its registry as the variant wants it.
    pub async fn pool(&self, change: Value) {
        let registry = if self.has_tls {
            let login = fs::read_to_string(self.login()).unwrap();
            self.secret("login", &[(".dockerconfigjson", &login)]).await;
            let ca = fs::read_to_string(self.registry.get("CA")).unwrap();
            self.secret("authority", &[("ca.crt", &ca)]).await;
            json!({"privateHosts": ["127.0.0.1"], "pullSecrets": ["login"],
                "caSecrets": [{"name": "authority", "key": "ca.crt"}]})
        } else {
            json!({"insecure": [self.address()]})
        };
        let servers: Vec<&str> = brokers::plain().bootstrap.split(',').collect();
        let mut spec = json!({"kafka": {"bootstrapServers": servers}, "registry": registry});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        self.fixture.apply("RuntimePool", "default", &spec).await.unwrap();
    }

    /// Starts a node with what the operator wrote for it, as the first pod would be.
    pub async fn start_node(&mut self) {
        let maps = self.api::<ConfigMap>();
        let map = until("the node's configuration is there", PATIENCE, async || {
            maps.get_opt("default-runtime").await.unwrap()
        })
        .await;
        let text = map.data.unwrap()["node.yaml"].clone();
        let at = |name: &str| self.path(name).display().to_string();
        let text = text
            .replace("/etc/coproc/secrets", &at("secrets"))
            .replace("/var/cache/coproc", &at("node-cache"));
        fs::write(self.path("node.yaml"), text).unwrap();
        let mut command = self.program(&["node", "--index", "0", "--incarnation", "test", "--http", "off"]);
        command.arg("--config").arg(self.path("node.yaml"));
        self.node = Some(Running::start(&self.path("node.log"), &mut command));
    }

    /// Kills the node and starts it again.
    pub async fn restart_node(&mut self) {
        self.node = None;
        self.start_node().await;
    }

    pub async fn deploy(&self, name: &str, module: Value) {
        self.deploy_with(name, module, json!({})).await;
    }

    pub async fn deploy_with(&self, name: &str, module: Value, change: Value) {
        let mut spec =
            json!({"module": module, "inputTopics": [self.topic("in")], "outputTopics": [self.topic("out")]});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        self.fixture.apply("Coprocessor", name, &spec).await.unwrap();
    }

    pub async fn deploy_to(&self, name: &str, module: Value, output: &str) {
        self.deploy_with(name, module, json!({"outputTopics": [self.topic(output)]})).await;
    }

    /// Changes a resource without a change of its module.
    pub async fn touch(&self, name: &str, text: &str) {
        let patch = Patch::Merge(json!({"spec": {"description": text}}));
        self.fixture.api("Coprocessor").patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Lets the operator look at the pool again: its Secrets may have changed.
    pub async fn touch_pool(&self) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"test/touched": "yes"}}}));
        self.fixture.api("RuntimePool").patch("default", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until a resource runs with this module, and its node says so too.
    pub async fn runs(&self, name: &str, digest: &str) -> Value {
        self.object(name, &format!("runs with {digest}"), |object| {
            let (status, ready) = (&object["status"], condition(object, "Ready"));
            status["module"]["digest"] == digest
                && ready["reason"] == "Running"
                && ready["observedGeneration"] == object["metadata"]["generation"]
                && status["nodes"][0]["digest"] == status["module"]["shortDigest"]
        })
        .await
    }

    /// Waits until a look-up of the tag has failed for this reason, while the resource runs.
    pub async fn unresolved(&self, name: &str, reason: &str) -> Value {
        self.object(name, &format!("runs, though {reason}"), |object| {
            condition(object, "ModuleResolved")["reason"] == reason
                && condition(object, "Ready")["status"] == "True"
        })
        .await
    }

    pub async fn reason(&self, name: &str, reason: &str) -> Value {
        self.object(name, &format!("has reason {reason}"), |object| {
            let ready = condition(object, "Ready");
            ready["reason"] == reason && ready["observedGeneration"] == object["metadata"]["generation"]
        })
        .await
    }

    async fn object(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let (end, mut last) = (Instant::now() + PATIENCE, Value::Null);
        while Instant::now() < end {
            if let Some(object) = self.fixture.api("Coprocessor").get_opt(name).await.unwrap() {
                last = serde_json::to_value(&object).unwrap();
                if is_so(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} {what}: it does not, {:#}", last["status"]);
    }

    /// Reasons of the events about a resource.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let events = api_of(
            &self.fixture.client,
            "events.k8s.io",
            "v1",
            "Event",
            Some(self.fixture.namespace.as_str()),
        );
        let all = events.list(&ListParams::default()).await.unwrap().items.into_iter();
        let of = all.filter(|event| event.data["regarding"]["name"] == name);
        of.filter_map(|event| event.data["reason"].as_str().map(str::to_owned)).collect()
    }

    fn identity(&self, name: &str) -> Identity {
        format!("default/{}/coprocessor/{name}", self.fixture.namespace).parse().unwrap()
    }

    /// What the control topic says of a resource.
    pub fn control(&self, name: &str) -> Option<Deployment> {
        match desired::read(self.log.as_ref()).unwrap().get(&self.identity(name)) {
            Some((_, desired::Desired::Deployment(deployment))) => Some((**deployment).clone()),
            _ => None,
        }
    }

    /// Writes a control record as nobody should be able to: like that of `like`, with another module and output.
    pub fn forge(&self, name: &str, like: &str, module: &Pushed, output: &str) {
        let mut deployment = self.control(like).unwrap();
        let image = Some(module.image.clone());
        deployment.steps[0].module = ModuleRef { digest: module.digest.parse().unwrap(), image };
        for sink in &mut deployment.sinks {
            if let Sink::Kafka { kafka } = sink {
                kafka.topic = self.topic(output);
            }
        }
        let value = Some(serde_json::to_vec(&deployment).unwrap());
        let namespace = &self.fixture.namespace;
        let key = format!("deployment/default/{namespace}/default/coprocessor/{name}").into_bytes();
        let topic = "coprocessor_internal_topic".parse().unwrap();
        let mut writer = self.log.fenced_writer(&topic, "coproc.test.forger").unwrap();
        writer.write(&[Keyed { key, value }]).unwrap();
    }

    /// What a node says that keeps it from running a resource.
    pub fn node_reason(&self, name: &str) -> Option<String> {
        let state = observed::read(self.log.as_ref()).unwrap()?;
        let nodes = state.nodes();
        let all = nodes.iter().flat_map(|node| node.status.coprocessors.values());
        all.filter(|status| status.identity == self.identity(name)).find_map(|status| status.reason.clone())
    }

    /// Gives the coprocessors a record, and waits for what comes out.
    pub async fn gives(&self, value: &str, wanted: &str) {
        let record = Record::new(Some(b"key"), Some(value.as_bytes()));
        let produce = Produce { topic: self.topic("in"), partition: Some(0), record };
        self.log.produce(&[produce]).unwrap();
        let (log, topic) = (self.log.clone(), self.topic("out"));
        let wanted = wanted.to_owned();
        tokio::task::spawn_blocking(move || {
            let (end, mut found) = (Instant::now() + PATIENCE, Vec::new());
            let mut reader = log.reader(&topic, None, ReadFrom::Start).unwrap();
            while found.last() != Some(&wanted) {
                assert!(Instant::now() < end, "{wanted} does not come out: {found:?}");
                for fetched in reader.fetch(Duration::from_millis(200)).unwrap() {
                    let value = fetched.record.value.unwrap_or_default();
                    found.push(String::from_utf8_lossy(&value).into_owned());
                }
            }
        })
        .await
        .unwrap();
    }
}
