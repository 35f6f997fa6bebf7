//! A directory of its own for each test, and the program in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_coproc");

/// A directory of its own; it goes when this is dropped.
pub struct Place {
    dir: tempfile::TempDir,
}

/// What a run of the program left.
#[derive(Debug)]
#[expect(dead_code, reason = "what was run is shown where a test fails")]
pub struct Ran {
    pub args: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Assembles a module.
    pub fn module(&self, name: &str, wat: &str) -> PathBuf {
        self.write(name, wat::parse_str(wat).unwrap())
    }

    /// The module of the WAT template: writes values in upper case.
    pub fn uppercase(&self) -> PathBuf {
        let text = include_str!("../../src/cli/templates/wat/module.wat.template");
        self.module("uppercase.wasm", text)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).current_dir(self.dir.path()).env("COPROC_DIR", self.path("log"));
        for name in ["COPROC_POOL", "COPROC_INSTALLATION", "COPROC_LOG", "COPROC_NODE_ID", "COPROC_CONFIG"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs it with nothing to read.
    pub fn coproc(&self, args: &[&str]) -> Ran {
        self.coproc_with(args, b"")
    }

    /// Runs it with this on standard input.
    pub fn coproc_with(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feed = std::thread::Builder::new().spawn(move || {
            // It may end without reading everything.
            let _ = stdin.write_all(&input);
        });
        let out = child.wait_with_output().unwrap();
        feed.unwrap().join().unwrap();
        Ran {
            args: args.join(" "),
            code: out.status.code(),
            out: String::from_utf8_lossy(&out.stdout).into_owned(),
            err: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Runs it until what it prints satisfies `enough`, for 20 seconds at most.
    pub fn wait_for(&self, args: &[&str], enough: impl Fn(&Ran) -> bool) -> Ran {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let ran = self.coproc(args);
            if enough(&ran) {
                return ran;
            }
            assert!(Instant::now() < deadline, "this did not come in time: {ran:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts `coproc dev` and waits for its socket.
    pub fn node(&self) -> Node {
        self.node_with(&[])
    }

    pub fn node_with(&self, more: &[&str]) -> Node {
        let log = std::fs::File::create(self.path("node.log")).unwrap();
        let mut command = self.command(&[&["dev", "--http", "off"], more].concat());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut node = Node { child, log: self.path("node.log") };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.path("log/coproc.sock").exists() {
            assert!(node.child.try_wait().unwrap().is_none(), "the node ended: {}", node.log());
            assert!(Instant::now() < deadline, "the node has no socket: {}", node.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        node
    }
}

impl Ran {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.out.contains(text), "not printed: {text:?} in {self:#?}");
        self
    }

    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert_eq!(self.out, text, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.err.contains(text), "not said: {text:?} in {self:#?}");
        self
    }
}

/// A running node; it is stopped when this is dropped.
pub struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(Path::new(&self.log)).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Stops it in good order: its exit code, and how long it took.
    pub fn stop(mut self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        self.signal("TERM");
        let code = self.child.wait().unwrap().code();
        (code, started.elapsed())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
