//! A process that compiles one module and ends.
//!
//! A module of half a megabyte can be made to take the compiler tens of gigabytes, and an allocation that fails
//! ends the process. So a node compiles in a child: it bounds its own memory and time, and when it dies nobody
//! else does. The module comes in on standard input; the answer goes out on standard output, a byte that says
//! what it is and then compiled code or a sentence. The child is this program, called by a hidden command.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::ports::ModuleError;

use super::engine::runtime;

/// The answer is compiled code.
const CODE: u8 = 0;
/// The answer is why there is none.
const REFUSAL: u8 = 1;
/// Exit code when time is up.
const TIME_IS_UP: u8 = 3;
/// Compilers recurse over the structure of functions.
pub(super) const COMPILER_STACK: usize = 16 << 20;

/// How the child is called: these arguments, then the time in milliseconds and the memory in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileHelper {
    /// The program: this one.
    pub program: PathBuf,
    /// What makes it call `run_compile_helper` with the arguments that follow.
    pub arguments: Vec<String>,
}

/// Bounds of the child.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) time: Duration,
    pub(super) memory: u64,
}

/// The children that live, so that they can be killed.
#[derive(Debug, Default)]
pub(super) struct Children(Mutex<Living>);

#[derive(Debug, Default)]
struct Living {
    stopped: bool,
    pids: Vec<Pid>,
}

impl Children {
    /// Kills all of them, and those that come.
    pub(super) fn stop(&self) {
        let mut living = self.0.lock();
        living.stopped = true;
        // A child leaves the list before it is waited for, so that no id here can be somebody else's.
        for pid in living.pids.drain(..) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn add(&self, child: &Child) {
        let mut living = self.0.lock();
        if living.stopped {
            let _ = kill_process(Pid::from_child(child), Signal::KILL);
        } else {
            living.pids.push(Pid::from_child(child));
        }
    }

    fn remove(&self, child: &Child) {
        let pid = Pid::from_child(child);
        self.0.lock().pids.retain(|living| *living != pid);
    }
}

impl CompileHelper {
    /// Compiles a module in a child and waits for it.
    pub(super) fn compile(
        &self,
        module: &[u8],
        bounds: Bounds,
        children: &Children,
    ) -> Result<Vec<u8>, ModuleError> {
        let unavailable = |what: &str, error: std::io::Error| {
            ModuleError::Unavailable(format!(
                "{what} the process that compiles ({}): {error}",
                self.program.display()
            ))
        };
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .args([bounds.time.as_millis().to_string(), bounds.memory.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| unavailable("cannot start", error))?;
        children.add(&child);
        // It reads everything before it writes anything. When it dies early, its exit status says more than this.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(module));
        let mut answer = Vec::new();
        let read = child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut answer));
        children.remove(&child);
        let status = child.wait().map_err(|error| unavailable("cannot wait for", error))?;
        read.map_err(|error| unavailable("cannot hear", error))?;
        match (status.code(), answer.split_first()) {
            (Some(0), Some((&CODE, code))) => Ok(code.to_vec()),
            (Some(1), Some((&REFUSAL, message))) => Err(ModuleError::Invalid(format!(
                "invalid WebAssembly: {}",
                String::from_utf8_lossy(message)
            ))),
            (Some(code), _) if code == i32::from(TIME_IS_UP) => Err(too_slow(bounds.time)),
            (None, _) => Err(ModuleError::TooLarge(format!(
                "compiling the module took more than {} MiB of memory: make its largest functions smaller",
                bounds.memory >> 20
            ))),
            (Some(code), _) => Err(ModuleError::Unavailable(format!(
                "{} is not the process that compiles: it ended with code {code}",
                self.program.display()
            ))),
        }
    }
}

/// The error for a module that takes too long.
pub(super) fn too_slow(limit: Duration) -> ModuleError {
    ModuleError::CompileTimeout(format!(
        "compiling the module takes longer than {limit:?}: make it smaller, or split its largest functions"
    ))
}

/// The child's whole life. `arguments` are the last two that it was called with.
pub fn run_compile_helper(arguments: &[String]) -> ExitCode {
    let [time, memory] = arguments else { return ExitCode::from(2) };
    let (Ok(time), Ok(memory)) = (time.parse(), memory.parse()) else { return ExitCode::from(2) };
    if bound(Duration::from_millis(time), memory).is_err() {
        return ExitCode::from(2);
    }
    let compile = || {
        let mut module = Vec::new();
        std::io::stdin().read_to_end(&mut module).map_err(|error| error.to_string())?;
        let engine = runtime().map_err(|error| format!("{error:#}"))?;
        engine.precompile_module(&module).map_err(|error| format!("{error:#}"))
    };
    let thread = thread::Builder::new().name("compile".to_owned()).stack_size(COMPILER_STACK).spawn(compile);
    let result = thread.map(thread::JoinHandle::join);
    let (kind, answer, code) = match result {
        Ok(Ok(Ok(code))) => (CODE, code, 0),
        Ok(Ok(Err(message))) => (REFUSAL, message.into_bytes(), 1),
        Ok(Err(_)) => (REFUSAL, b"the compiler failed on this module: please report it".to_vec(), 1),
        Err(_) => return ExitCode::from(2),
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(&[kind]).and_then(|()| out.write_all(&answer)).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::from(2),
    }
}

fn bound(time: Duration, memory: u64) -> std::io::Result<()> {
    lower(Resource::As, memory)?;
    lower(Resource::Core, 0)?;
    // Lanes come first. Where this is not allowed it is not needed either.
    let _ = rustix::process::nice(10);
    // Nobody wants the code any more when the parent is gone.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // Stop policy: it ends the process, or the process ends it.
    thread::Builder::new().name("deadline".to_owned()).spawn(move || {
        thread::sleep(time);
        std::process::exit(i32::from(TIME_IS_UP));
    })?;
    Ok(())
}

/// Sets a limit, unless it is lower already.
fn lower(resource: Resource, limit: u64) -> std::io::Result<()> {
    let is = getrlimit(resource).maximum;
    let limit = Some(is.map_or(limit, |is| is.min(limit)));
    Ok(setrlimit(resource, Rlimit { current: limit, maximum: limit })?)
}
