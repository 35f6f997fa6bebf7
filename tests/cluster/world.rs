//! The world of the end-to-end run: a cluster, Kafka, a registry, and the tools that people use on them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_coproc");
/// Where everything is installed.
pub const NAMESPACE: &str = "coproc-system";

/// The checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Everything that runs; it ends with this.
pub struct World {
    dir: tempfile::TempDir,
    env: BTreeMap<String, String>,
    /// Chains of the packet filter that were there before.
    chains: Vec<String>,
}

/// The chains that clusters make in the packet filter, by their tables.
fn chains() -> Vec<String> {
    let of = |tool: &str| {
        let output = Command::new(tool).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    };
    let mut found = Vec::new();
    for tool in ["iptables-save", "ip6tables-save"] {
        let mut table = String::new();
        for line in of(tool).lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = format!("{tool} {name}");
            } else if line.starts_with(":KUBE-") || line.starts_with(":CNI-") {
                found.push(format!("{table} {}", line.split(' ').next().unwrap_or(line)));
            }
        }
    }
    found.sort();
    found
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.picture());
        }
        let stopped = self.script("cluster").arg("stop").arg(self.dir.path()).output();
        assert!(stopped.is_ok_and(|output| output.status.success()) || std::thread::panicking());
        let (before, after) = (&self.chains, chains());
        let left: Vec<_> = after.iter().filter(|chain| !before.contains(chain)).collect();
        assert!(left.is_empty() || std::thread::panicking(), "chains are left: {left:?}");
    }
}

/// What a command printed, if it went well.
fn done(what: &str, output: &Output) -> Result<String, String> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{what}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))),
    }
}

/// kcat takes it for the end of a partition when a broker has had nothing for it for so long. With the default of half a
/// second it reads on for ever where records come all the time.
const SHORT_WAIT: &str = "fetch.wait.max.ms=10";

impl World {
    pub fn start() -> Self {
        let mut world = Self { dir: tempfile::tempdir().unwrap(), env: BTreeMap::new(), chains: chains() };
        let mut start = world.script("cluster");
        start.arg("start").arg(world.dir.path()).arg(PROGRAM);
        let printed = done("the cluster", &start.stderr(Stdio::inherit()).output().unwrap()).unwrap();
        let lines = printed.lines().filter_map(|line| line.split_once('='));
        world.env = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        world
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(root().join("tests/env").join(name));
        command.env("COPROC_KUBE_OWNER", std::process::id().to_string());
        command
    }

    pub fn of(&self, name: &str) -> &str {
        &self.env[name]
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with the cluster's tools and configuration.
    pub fn command(&self, program: &str) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(program);
        command.env("KUBECONFIG", self.of("KUBECONFIG")).env("PATH", format!("{}:{path}", self.of("BIN")));
        command.current_dir(root());
        command
    }

    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(program).args(arguments).output().unwrap();
        done(&format!("{program} {}", arguments.join(" ")), &output)
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.run("kubectl", &[&["-n", NAMESPACE], arguments].concat())
    }

    /// An object, or `Null`.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let arguments = ["-n", NAMESPACE, "get", kind, name, "-o", "json", "--ignore-not-found"];
        serde_json::from_str(&self.run("kubectl", &arguments)).unwrap_or_default()
    }

    pub fn list(&self, kind: &str, labels: &str) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.kubectl(&["get", kind, "-l", labels, "-o", "json"])).unwrap();
        list["items"].as_array().cloned().unwrap()
    }

    /// Applies a manifest, as people do.
    pub fn apply(&self, manifest: &str) {
        self.apply_in(NAMESPACE, manifest);
    }

    /// The same in another namespace.
    pub fn apply_in(&self, namespace: &str, manifest: &str) {
        let mut child = self
            .command("kubectl")
            .args(["-n", namespace, "apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        done("kubectl apply", &child.wait_with_output().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The command line, on the cluster's Kafka.
    pub fn coproc(&self, arguments: &[&str]) -> String {
        self.run(PROGRAM, &[&["--brokers", self.of("BOOTSTRAP")], arguments].concat())
    }

    /// Compiles a module and pushes it: the image by its digest.
    pub fn push(&self, image: &str, wat: &str) -> String {
        self.push_to(self.of("REGISTRY"), image, wat)
    }

    /// The same, to another registry.
    pub fn push_to(&self, registry: &str, image: &str, wat: &str) -> String {
        let file = self.path("module.wasm");
        std::fs::write(&file, wat::parse_str(wat).unwrap()).unwrap();
        let image = format!("{registry}/{image}");
        let file = file.to_str().unwrap();
        let pushed = self.run(PROGRAM, &["push", file, &image, "--insecure", registry, "-o", "json"]);
        let pushed: Value = serde_json::from_str(&pushed).unwrap();
        pushed["image"].as_str().unwrap().to_owned()
    }

    /// A tool of Kafka's own.
    pub fn kafka_tool(&self, class: &str, arguments: &[&str]) -> String {
        let script = root().join("tests/env/kafka");
        let of = self.path("kafka");
        let fixed = ["tool", of.to_str().unwrap(), class, "--bootstrap-server", self.of("BOOTSTRAP")];
        self.run(script.to_str().unwrap(), &[&fixed, arguments].concat())
    }

    /// Produces lines, keyed by themselves.
    pub fn produce(&self, topic: &str, lines: impl IntoIterator<Item = String>) {
        let mut child = self.producer(topic);
        let mut to = child.stdin.take().unwrap();
        for line in lines {
            writeln!(to, "{line}:{line}").unwrap();
        }
        drop(to);
        assert!(child.wait().unwrap().success(), "kcat produces to {topic}");
    }

    /// A producer of `key:value` lines.
    pub fn producer(&self, topic: &str) -> Child {
        self.command("kcat")
            .args(["-b", self.of("BOOTSTRAP"), "-P", "-t", topic, "-K", ":"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Every committed value of a topic, sorted.
    pub fn values(&self, topic: &str) -> Vec<String> {
        let isolation = "isolation.level=read_committed";
        let at = self.of("BOOTSTRAP");
        let arguments =
            ["-b", at, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-X", isolation, "-X", SHORT_WAIT];
        let mut values: Vec<String> = self.run("kcat", &arguments).lines().map(str::to_owned).collect();
        values.sort();
        values
    }

    /// The last value of every key of a topic that is compacted; keys whose last value is null are gone.
    pub fn table(&self, topic: &str) -> BTreeMap<String, String> {
        let arguments = [
            "-b",
            self.of("BOOTSTRAP"),
            "-C",
            "-t",
            topic,
            "-o",
            "beginning",
            "-e",
            "-q",
            "-X",
            SHORT_WAIT,
            "-Z",
            "-f",
            "%k\t%s\n",
        ];
        let mut table = BTreeMap::new();
        // A topic that is not there is empty.
        for line in self.try_run("kcat", &arguments).unwrap_or_default().lines() {
            let Some((key, value)) = line.split_once('\t') else { continue };
            match value {
                "NULL" => drop(table.remove(key)),
                value => drop(table.insert(key.to_owned(), value.to_owned())),
            }
        }
        table
    }

    /// Stops the registry, or starts it again at the same address.
    pub fn registry(&self, runs: bool) {
        let (host, port) = self.of("REGISTRY").rsplit_once(':').unwrap();
        let word = if runs { "start" } else { "stop" };
        let mut command = self.script("registry");
        let dir = self.path("registry");
        let output = command.arg(word).arg(&dir).env("HOST", host).env("PORT", port).output().unwrap();
        done("the registry", &output).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Puts the program into the node as another image, which says that it is of this version.
    pub fn image(&self, tag: &str, version: &str) {
        let mut command = self.script("cluster");
        command.arg("image").arg(self.dir.path()).args([PROGRAM, tag, version]);
        done("the image", &command.output().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Kills the API server, or starts it again.
    pub fn api_server(&self, runs: bool) {
        let mut command = self.script("cluster");
        command.arg("api").arg(self.dir.path()).arg(if runs { "up" } else { "down" });
        done("the API server", &command.output().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Whether others use this machine, too: then no time that is measured on it says much.
    pub fn is_busy(&self) -> bool {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
        load > 3.0 * std::thread::available_parallelism().map_or(1, usize::from) as f64
    }

    /// What the cluster looks like, for whoever reads why a test failed.
    fn picture(&self) -> String {
        if self.env.is_empty() {
            return String::new();
        }
        let of = |arguments: &[&str]| {
            let all = [&["-n", NAMESPACE], arguments].concat();
            self.try_run("kubectl", &all).unwrap_or_else(|error| error)
        };
        [
            of(&["get", "pods,runtimepools,coprocessors", "-o", "wide"]),
            of(&[
                "get",
                "coprocessors,runtimepools",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{\" \"}{.status}{\"\\n\"}{end}",
            ]),
            of(&["get", "events", "--sort-by=.lastTimestamp"]),
            of(&["logs", "-l", "app.kubernetes.io/component=operator", "--tail=40", "--prefix"]),
            of(&["logs", "-l", "app.kubernetes.io/component=runtime", "--tail=40", "--prefix"]),
        ]
        .join("\n----\n")
    }
}

/// Waits until there is an answer.
pub fn until<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// A condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|at| at["type"] == kind).unwrap_or(&Value::Null)
}

/// The first fenced block of a language in a document that has this text.
pub fn fenced(document: &Path, language: &str, containing: &str) -> String {
    let text = std::fs::read_to_string(document).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1).filter_map(|rest| rest.split_once("```"));
    let found = blocks.map(|(block, _)| block).find(|block| block.contains(containing));
    found
        .unwrap_or_else(|| panic!("{} has no {language} block with {containing:?}", document.display()))
        .to_owned()
}
