//! The command line as a user meets it: the real program, its output, its exit codes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/drop_folder.rs"]
mod drop_folder;
#[path = "cli/life.rs"]
mod life;
#[path = "cli/node.rs"]
mod node;
#[path = "cli/place.rs"]
mod place;
#[path = "cli/project.rs"]
mod project;
#[path = "cli/topics.rs"]
mod topics;

use place::{PROGRAM, Place};

/// The reference is what `coproc docs` makes: `UPDATE=1` rewrites it.
#[test]
fn the_reference_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");
    let made = coproc::cli::reference();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference")).unwrap();
        std::fs::write(path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == made, "docs/reference/cli.md is out of date: run UPDATE=1 cargo test --test cli");
}

#[test]
fn help_version_and_completion() {
    let place = Place::new();
    for (args, says) in [
        (&["--help"][..], "Exit codes: 0 done"),
        (&["--version"], concat!("coproc ", env!("CARGO_PKG_VERSION"))),
        (&["deploy", "--help"], "--input-topic"),
        (&["completion", "bash"], "complete"),
        (&["completion", "zsh"], "#compdef coproc"),
        (&["completion", "fish"], "complete -c coproc"),
    ] {
        place.coproc(args).succeeds().says(says);
    }
    place.coproc(&[]).exits(2).complains("Usage");
    place.coproc(&["depoly"]).exits(2).complains("deploy");
    place.coproc(&["completion", "cmd"]).exits(2).complains("possible values");
}

/// `coproc` is a keyword of bash. After what the README says it is this program.
#[test]
fn bash_takes_the_name_for_the_program() {
    let directory = std::path::Path::new(PROGRAM).parent().unwrap().display();
    // Aliases are for interactive shells unless asked for; each line is read after the one before was done.
    let script = format!(
        "shopt -s expand_aliases\nPATH={directory}:$PATH\neval \"$(command coproc completion bash)\"\ncoproc --version\n"
    );
    let out = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    let version = concat!("coproc ", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), version, "{out:?}");
}

/// A reader that goes away is no reason to panic.
#[test]
fn a_closed_pipe_is_no_error() {
    let script = format!("{PROGRAM} completion bash | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}");
    let out = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "0");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}
