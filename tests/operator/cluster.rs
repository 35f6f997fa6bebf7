//! A real API server for all tests of this process, and an operator on a log in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use coproc::core::digest::Digest;
use coproc::core::disposition::Disposition;
use coproc::core::names::Installation;
use coproc::core::status::{DeploymentStatus, NodeStatus, PartitionStatus, State, UpDown};
use coproc::operator::context::World;
use coproc::operator::validate::{Resolved, Verified};
use coproc::operator::world::{Modules, Registry, ResolveError};
use coproc::operator::{Error, Options, Scope};
use coproc::telemetry::clock::SystemClock;
use futures::FutureExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::memory::Memory;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The run directory of the API server, started with the first test and stopped with the process.
pub fn run_directory() -> &'static PathBuf {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = std::env::temp_dir().join(format!("coproc-kube-{}", std::process::id()));
        let output = Command::new(root().join("tests/env/kube"))
            .args(["start", "api"])
            .env("COPROC_KUBE_RUN", &run)
            .env("COPROC_KUBE_OWNER", std::process::id().to_string())
            .stderr(Stdio::inherit())
            .output()
            .expect("tests/env/kube can be run");
        assert!(output.status.success(), "the API server did not start");
        run
    })
}

/// A client; with `user`, one that acts as that user.
pub async fn client_as(user: Option<&str>) -> Client {
    Client::try_from(config(user).await).unwrap()
}

/// The way to the API server.
pub async fn config(user: Option<&str>) -> Config {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let file = Kubeconfig::read_from(run_directory().join("admin.kubeconfig")).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info.impersonate = user.map(str::to_owned);
    config
}

/// A client that may do anything, with the definitions installed.
pub async fn client() -> Client {
    static INSTALLED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let client = client_as(None).await;
    INSTALLED.get_or_init(|| install(client.clone())).await;
    client
}

async fn install(client: Client) {
    let definitions = api_of(&client, "apiextensions.k8s.io", "v1", "CustomResourceDefinition", None);
    for file in ["runtimepools", "coprocessors", "pipelines"] {
        let text = std::fs::read_to_string(root().join(format!("crds/{file}.yaml"))).unwrap();
        let body: Value = serde_yaml::from_str(&text).unwrap();
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("test").force();
        definitions
            .patch(&name, &params, &Patch::Apply(&body))
            .await
            .expect("the API server takes the definition");
        until(&format!("{name} is established"), Duration::from_secs(20), async || {
            let found = definitions.get(&name).await.unwrap().data;
            let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|at| at["type"] == "Established" && at["status"] == "True").then_some(())
        })
        .await;
    }
}

/// Any kind of object.
pub fn api_of(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Waits until there is an answer.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Resolves images by their names alone.
pub struct Images;

/// How often it was asked for each image.
static ASKED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// How often registries were asked for an image, by all tests of this process.
#[allow(dead_code, reason = "tests/operator_outage.rs does not ask")]
pub fn asked(image: &str) -> usize {
    ASKED.lock().get(image).copied().unwrap_or_default()
}

impl Modules for Images {
    fn check(&self, registry: &Registry) -> Result<(), String> {
        let is_nonsense = registry.insecure.iter().any(|host| host.contains("nonsense"));
        if is_nonsense { Err("insecure: that is no host".into()) } else { Ok(()) }
    }

    fn resolve(&self, image: &str, registry: &Registry) -> Result<Resolved, ResolveError> {
        let error = |reason, disposition| {
            let message = format!("image {image} cannot be had: push it, or name another");
            Err(ResolveError { reason, message, disposition })
        };
        if image.contains("missing") {
            return error("ImageNotFound", Disposition::User);
        }
        if image.contains("unreachable") {
            return error("RegistryUnavailable", Disposition::Transient);
        }
        *ASKED.lock().entry(image.to_owned()).or_default() += 1;
        if image.contains("slow") {
            std::thread::sleep(Duration::from_millis(50));
        }
        let digest = digest(image);
        let verified = registry.policy().map(|policy| Verified { key: "test".into(), policy });
        Ok(Resolved { image: image.to_owned(), pinned: format!("{image}@{digest}"), digest, verified })
    }
}

/// The digest that `Images` gives an image.
pub fn digest(image: &str) -> Digest {
    use sha2::Digest as _;
    Digest::from_bytes(sha2::Sha256::digest(image).into())
}

/// A namespace of its own for each test, with a log and, if wanted, an operator.
pub struct Fixture {
    pub client: Client,
    pub namespace: String,
    pub log: Memory,
}

/// An operator that runs.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Stops it in good order.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap().unwrap();
    }

    /// Waits until it ends by itself.
    pub async fn end(self) -> Result<(), Error> {
        self.task.await.unwrap()
    }

    /// Kills it: nothing is released.
    pub fn kill(self) {
        self.task.abort();
    }
}

impl Fixture {
    pub async fn new(namespace: &str) -> Self {
        let client = client().await;
        let namespaces = api_of(&client, "", "v1", "Namespace", None);
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        let accounts = api_of(&client, "", "v1", "ServiceAccount", Some(namespace));
        let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let _ = accounts.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await;
        Self { client, namespace: namespace.into(), log: Memory::default() }
    }

    pub fn api(&self, kind: &str) -> Api<DynamicObject> {
        api_of(&self.client, "coproc.dev", "v1alpha1", kind, Some(&self.namespace))
    }

    pub fn object(&self, kind: &str, name: &str, spec: &Value) -> Value {
        json!({"apiVersion": "coproc.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec})
    }

    pub async fn apply(&self, kind: &str, name: &str, spec: &Value) -> Result<DynamicObject, kube::Error> {
        let body = self.object(kind, name, spec);
        self.api(kind).patch(name, &PatchParams::apply("user").force(), &Patch::Apply(&body)).await
    }

    pub async fn pool(&self, change: &Value) {
        let mut spec = json!({"kafka": {"bootstrapServers": ["kafka:9092"]}});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        self.apply("RuntimePool", "default", &spec).await.unwrap();
    }

    pub fn start(&self) -> Running {
        self.start_with(self.client.clone(), None, "operator-0")
    }

    /// An operator that is started again when another one was there before it was gone, as a kubelet does.
    #[expect(clippy::disallowed_methods, reason = "the test is the one that starts and stops operators")]
    #[allow(dead_code, reason = "only tests/operator_outage.rs lets operators die")]
    pub fn keep_running(&self) -> Running {
        let (world, options) = self.parts(None, "second");
        let (stop, stopped) = oneshot::channel::<()>();
        let (client, stopped) = (self.client.clone(), stopped.map(drop).shared());
        let task = tokio::task::spawn(async move {
            loop {
                let run =
                    coproc::operator::run(client.clone(), options.clone(), world.clone(), stopped.clone());
                match run.await {
                    Err(Error::Fenced(_)) => {}
                    ended => return ended,
                }
            }
        });
        Running { stop: Some(stop), task }
    }

    #[expect(clippy::disallowed_methods, reason = "the test is the one that starts and stops operators")]
    pub fn start_with(&self, client: Client, lease_namespace: Option<&str>, instance: &str) -> Running {
        let (world, options) = self.parts(lease_namespace, instance);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::task::spawn(coproc::operator::run(client, options, world, async move {
            let _ = stopped.await;
        }));
        Running { stop: Some(stop), task }
    }

    fn parts(&self, lease_namespace: Option<&str>, instance: &str) -> (World, Options) {
        let world = World {
            logs: Arc::new(self.log.clone()),
            modules: Arc::new(Images),
            clock: Arc::new(SystemClock::default()),
        };
        let options = Options {
            installation: Installation::default_name(),
            scope: Scope::Namespace(self.namespace.clone()),
            lease_namespace: lease_namespace.map(str::to_owned),
            instance: instance.into(),
            default_image: "coproc:0.1.0".into(),
            http: None,
        };
        (world, options)
    }

    /// What a node says last.
    pub fn down(&self, node: u32) {
        self.say(node, UpDown::Down, &[]);
    }

    /// What a node would say: it runs these, with their partitions.
    pub fn heartbeat(&self, node: u32, reports: &[DeploymentStatus]) {
        self.say(node, UpDown::Up, reports);
    }

    fn say(&self, node: u32, status: UpDown, reports: &[DeploymentStatus]) {
        let coprocessors: BTreeMap<_, _> =
            reports.iter().map(|report| (report.identity.display_name(), plain(report))).collect();
        let status = NodeStatus {
            node_id: coproc::core::names::NodeId(node),
            status,
            time: "now".into(),
            version: "0.1.0".into(),
            schema: "1.0".into(),
            pool: "default".into(),
            incarnation: "i".into(),
            log: String::new(),
            coprocessors,
            truncated: false,
        };
        let json = serde_json::to_vec(&status).unwrap();
        self.log.put("coprocessor_status_topic", &node.to_string(), Some(json));
        for report in reports {
            let key = format!("{node}/{}", report.identity);
            self.log.put("coprocessor_status_topic", &key, Some(serde_json::to_vec(report).unwrap()));
        }
    }

    pub fn report(&self, name: &str, generation: u64, state: State, partitions: u32) -> DeploymentStatus {
        let at = |partition| PartitionStatus {
            topic: "in".parse().unwrap(),
            partition,
            offset: 0,
            lag: 0,
            error: None,
        };
        DeploymentStatus {
            identity: format!("default/{}/coprocessor/{name}", self.namespace).parse().unwrap(),
            input_topics: vec!["in".parse().unwrap()],
            description: String::new(),
            state,
            reason: None,
            generation,
            digest: None,
            digests: Vec::new(),
            delivery: None,
            partitions: (0..partitions).map(at).collect(),
            last_error: None,
            truncated: false,
        }
    }

    /// Waits until the `Ready` condition of an object has this reason.
    pub async fn reason(&self, kind: &str, name: &str, reason: &str) -> Value {
        let what = format!("{kind} {name} has reason {reason}");
        let mut last = String::new();
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let Some(object) = self.api(kind).get_opt(name).await.unwrap() {
                    let ready = condition(&object.data, "Ready");
                    if ready["reason"] == reason
                        && ready["observedGeneration"] == json!(object.metadata.generation)
                    {
                        return object.data;
                    }
                    last = ready.to_string();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        found.unwrap_or_else(|_| panic!("{what}: it is {last}"))
    }

    /// Waits until an object is gone.
    pub async fn gone(&self, kind: &str, name: &str) {
        until(&format!("{kind} {name} is gone"), Duration::from_secs(30), async || {
            self.api(kind).get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// Keys of the control topic.
    pub fn deployments(&self) -> Vec<String> {
        let keys = self.log.table("coprocessor_internal_topic").into_keys();
        keys.filter(|key| key.starts_with("deployment/")).collect()
    }
}

/// The spec of a coprocessor.
pub fn coprocessor(change: &Value) -> Value {
    let mut spec = json!({"module": {"image": "r/m:1"}, "inputTopics": ["in"], "outputTopics": ["out"]});
    spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    spec
}

/// A condition of an object.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

fn plain(report: &DeploymentStatus) -> DeploymentStatus {
    DeploymentStatus { partitions: Vec::new(), ..report.clone() }
}

/// One request, from the audit log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub created: bool,
}

/// Requests in a namespace since a line of the audit log, by whoever acts as `user`.
pub fn requests(from_line: usize, namespace: &str, user: Option<&str>) -> Vec<Request> {
    let text = std::fs::read_to_string(run_directory().join("audit.log")).unwrap();
    let events = text.lines().skip(from_line).filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_user = events.filter(|event| {
        user.is_none_or(|user| event["impersonatedUser"]["username"] == user)
            && event["stage"] == "ResponseComplete"
            || event["stage"] == "ResponseStarted"
                && user.is_some_and(|user| event["impersonatedUser"]["username"] == user)
    });
    let in_namespace = of_user.filter(|event| {
        let at = &event["objectRef"];
        at["namespace"] == namespace || at["namespace"].is_null() && at["name"] == namespace
    });
    in_namespace
        .map(|event| {
            let at = &event["objectRef"];
            let text = |field: &str| at[field].as_str().unwrap_or_default().to_owned();
            let sub = text("subresource");
            Request {
                created: event["responseStatus"]["code"] == 201,
                verb: event["verb"].as_str().unwrap_or_default().to_owned(),
                group: text("apiGroup"),
                resource: if sub.is_empty() {
                    text("resource")
                } else {
                    format!("{}/{sub}", text("resource"))
                },
            }
        })
        .collect()
}

/// Lines of the audit log by now.
pub fn audit_lines() -> usize {
    std::fs::read_to_string(run_directory().join("audit.log")).unwrap_or_default().lines().count()
}

/// Whether a request changes something.
pub fn is_write(request: &Request) -> bool {
    !matches!(request.verb.as_str(), "get" | "list" | "watch")
}
