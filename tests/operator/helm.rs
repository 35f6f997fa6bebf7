//! The real Helm, of the cache.

use std::path::PathBuf;
use std::process::{Command, Output};

/// The checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs Helm; it is built the first time.
pub fn helm(arguments: &[&str]) -> Output {
    let built = Command::new(root().join("tests/env/kube")).args(["build", "helm"]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let helm = String::from_utf8(built.stdout).unwrap();
    Command::new(helm.trim()).args(arguments).current_dir(root()).output().unwrap()
}

/// What the chart makes of these values, or why it refuses them.
pub fn render(namespace: &str, sets: &[&str]) -> Result<String, String> {
    let mut arguments =
        vec!["template", "coproc", "charts/coproc", "--namespace", namespace, "--kube-version", "1.34.0"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    let output = helm(&arguments);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
