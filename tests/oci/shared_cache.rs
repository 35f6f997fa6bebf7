//! One cache, many threads, many processes, no registry: a digest is fetched once, and checked each time.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use coproc::core::deployment::ModuleRef;
use coproc::core::disposition::Disposition;
use coproc::core::units::ByteSize;
use coproc::oci::RawOciConfig;
use coproc::ports::ModuleStore;

use crate::malicious::Artefact;
use crate::scripted::{Reply, Server};
use crate::world::{config, digest_of, module, open, store};

fn slow_server() -> Server {
    let artefact = Artefact::of(module(1));
    Server::start(move |request| {
        std::thread::sleep(Duration::from_millis(300));
        artefact.reply(request)
    })
}

fn wanted(server: &Server) -> ModuleRef {
    ModuleRef { digest: digest_of(&module(1)), image: Some(format!("{}/team/x:1", server.address())) }
}

#[test]
fn a_hundred_threads_fetch_a_digest_once() {
    let server = slow_server();
    let dir = tempfile::tempdir().unwrap();
    let (store, wanted, start) =
        (store(dir.path(), &[&server.address()]), wanted(&server), Barrier::new(100));
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                start.wait();
                assert_eq!(store.fetch(&wanted).unwrap(), module(1));
            });
        }
    });
    assert_eq!(server.requests().len(), 1);
}

/// Runs one ignored test of this file in a process of its own.
fn child(test: &str, dir: &Path, address: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("shared_cache::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
        .env("OCI_TEST_DIR", dir)
        .env("OCI_TEST_ADDRESS", address)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn from_parent() -> (std::path::PathBuf, String) {
    (std::env::var("OCI_TEST_DIR").unwrap().into(), std::env::var("OCI_TEST_ADDRESS").unwrap())
}

#[test]
#[ignore = "run by several_processes_fetch_a_digest_once, in processes of its own"]
fn child_fetches() {
    let (dir, address) = from_parent();
    let image = Some(format!("{address}/team/x:1"));
    let store = store(&dir, &[&address]);
    assert_eq!(store.fetch(&ModuleRef { digest: digest_of(&module(1)), image }).unwrap(), module(1));
}

#[test]
fn several_processes_fetch_a_digest_once() {
    let server = slow_server();
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..6).map(|_| child("child_fetches", dir.path(), &server.address())).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    }
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_process_that_ends_in_the_middle_is_no_obstacle() {
    let stalling = Server::start(|_| Reply::Drip(Duration::from_millis(10)));
    let dir = tempfile::tempdir().unwrap();
    let mut child = child("child_fetches", dir.path(), &stalling.address());
    let begun = Instant::now();
    while stalling.requests().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let server = slow_server();
    let store = store(dir.path(), &[&server.address()]);
    assert_eq!(store.fetch(&wanted(&server)).unwrap(), module(1));
    assert_eq!(std::fs::read_dir(dir.path().join("oci-v1/tmp")).unwrap().count(), 0, "its half file is gone");
}

#[test]
#[ignore = "run by memory_stays_bounded, in a process of its own"]
fn child_is_flooded() {
    let (dir, address) = from_parent();
    let image = Some(format!("{address}/team/x:1"));
    let raw = RawOciConfig {
        insecure: vec![address],
        max_module_bytes: ByteSize(128 << 20),
        cache_max_bytes: ByteSize(1 << 20),
        ..config(&dir)
    };
    let store = open(&raw);
    assert!(store.fetch(&ModuleRef { digest: digest_of(b"x"), image }).is_err());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 96 << 10, "128 MiB passed through, and the process grew to {kib} KiB");
}

#[test]
fn memory_stays_bounded() {
    let server = Server::start(|_| Reply::Endless(vec![b'x'; 256 << 10]));
    let dir = tempfile::tempdir().unwrap();
    let output = child("child_is_flooded", dir.path(), &server.address()).wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
fn a_tampered_file_is_fetched_again() {
    let server = slow_server();
    let dir = tempfile::tempdir().unwrap();
    let (store, wanted) = (store(dir.path(), &[&server.address()]), wanted(&server));
    let path = dir.path().join("oci-v1/blobs").join(wanted.digest.hex());
    store.fetch(&wanted).unwrap();
    std::fs::write(&path, module(2)).unwrap();
    assert_eq!(store.fetch(&wanted).unwrap(), module(1));
    assert_eq!(std::fs::read(&path).unwrap(), module(1));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn without_a_registry_the_cache_serves() {
    let server = slow_server();
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(&server);
    let address = server.address();
    let image = format!("{address}/team/x:1");
    let resolved = store(dir.path(), &[&address]).resolve(&image).unwrap();
    drop(server);

    let restarted = store(dir.path(), &[&address]);
    assert_eq!(restarted.fetch(&wanted).unwrap(), module(1));
    assert_eq!(restarted.resolve(resolved.module.image.as_deref().unwrap()).unwrap(), resolved, "by digest");
    let error = restarted.resolve(&image).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Transient, "a tag has to be asked for: {error}");
    let new = ModuleRef { digest: digest_of(&module(2)), image: Some(image) };
    assert_eq!(restarted.fetch(&new).unwrap_err().disposition(), Disposition::Transient);
    assert!(restarted.fetch(&ModuleRef { image: None, ..wanted }).is_ok());
}
