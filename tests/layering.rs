//! The floors of `docs/architecture.md`, checked: who may know whom, who may use which library.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below `src`, with its text.
fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(at: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &mut found);
    found.into_iter().map(|(path, text)| (path.strip_prefix(&root).unwrap().to_owned(), text)).collect()
}

/// The floor that a file stands on: the first part of its path.
fn floor(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Production lines that are code: no comments, nothing after the tests begin.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.take_while(|(_, line)| line.trim() != "#[cfg(test)]").filter(|(_, line)| {
        let line = line.trim_start();
        !line.starts_with("//")
    })
}

/// What a floor may use of ours.
fn allowed(floor: &str) -> &'static [&'static str] {
    match floor {
        "core" => &["core"],
        "ports" => &["core", "ports"],
        "control" => &["core", "ports", "control"],
        "telemetry" => &["core", "ports", "telemetry"],
        "node" => &["core", "ports", "control", "telemetry", "node"],
        "operator" => &["core", "ports", "control", "telemetry", "operator"],
        "log" => &["core", "ports", "log"],
        "kafka" => &["core", "ports", "kafka"],
        "wasm" => &["core", "ports", "wasm"],
        "oci" => &["core", "ports", "oci"],
        "connect" => &["core", "ports", "connect"],
        _ => &[],
    }
}

#[test]
fn arrows_point_down_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let floor = floor(&path);
        if matches!(floor.as_str(), "cli" | "main" | "lib") {
            continue;
        }
        assert!(!allowed(&floor).is_empty(), "{} is on no floor: name it in this test", path.display());
        for (number, line) in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let rest = &line[at + "crate::".len()..];
                let used: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if !used.is_empty() && !allowed(&floor).contains(&used.as_str()) {
                    wrong.push(format!("{}:{number}: {floor} uses {used}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A library stays behind its adapter's wall; the core is pure; only `cli` and `main` read the environment.
#[test]
fn libraries_stay_behind_their_walls() {
    let walls: &[(&str, &[&str])] = &[
        ("rdkafka::", &["kafka"]),
        ("wasmtime::", &["wasm"]),
        ("wasmparser::", &["wasm", "oci"]),
        ("p256::", &["oci"]),
        ("reqwest::", &["oci", "connect"]),
        ("fjall::", &["log"]),
        ("tonic::", &["log"]),
        ("kube::", &["operator", "cli", "main"]),
        ("anyhow::", &["cli", "main"]),
        ("clap::", &["cli", "main"]),
        ("std::env::", &["cli", "main"]),
        ("std::thread::Builder", &["node", "operator", "log", "wasm", "kafka", "oci", "connect", "cli"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let floor = floor(&path);
        for (number, line) in code(&text) {
            for (library, homes) in walls {
                let is_used = line.match_indices(library).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
                });
                if is_used && !homes.contains(&floor.as_str()) {
                    wrong.push(format!("{}:{number}: {floor} uses {library}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let foreign =
        ["tokio::", "async ", ".await", "std::fs", "std::net", "std::thread", "SystemTime", "Instant"];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if floor(&path) != "core" {
            continue;
        }
        for (number, line) in code(&text) {
            for word in foreign {
                if line.contains(word) {
                    wrong.push(format!("{}:{number}: {word}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every file opens by saying what it is.
#[test]
fn files_say_what_they_are() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !text.starts_with("//!") && !path.to_string_lossy().contains("generated"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "no //! header: {}", silent.join(", "));
}
