//! `coproc docs` (hidden): the command line's reference, made from the same definitions that parse it.

use std::fmt::Write;

use clap::{Args, CommandFactory};

use crate::cli::exit;
use crate::cli::output::emit;

/// Print the reference of the command line as Markdown
#[derive(Debug, Args)]
pub struct Command {}

impl Command {
    /// Runs it.
    #[expect(clippy::unused_self, reason = "every command has this shape")]
    pub fn run(&self) -> anyhow::Result<()> {
        emit(&reference())
    }
}

/// The whole reference.
pub fn reference() -> String {
    let mut text = String::from(
        "# Command line reference\n\nMade by `coproc docs`; a test compares. `UPDATE=1 cargo test --test cli` rewrites it.\n\n",
    );
    let _ = writeln!(text, "{}", exit::HELP);
    let mut root = super::Cli::command().term_width(100);
    root.build();
    section(&mut text, &mut root, "");
    text
}

fn section(text: &mut String, command: &mut clap::Command, parents: &str) {
    let name = format!("{parents}{}", command.get_name());
    if !parents.is_empty() {
        // They are the same everywhere: once, at the root, is enough.
        *command = command.clone().mut_args(|arg| {
            let repeated = arg.is_global_set() || arg.get_id() == "help";
            if repeated { arg.hide(true) } else { arg }
        });
    }
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n"));
    for child in command.get_subcommands_mut().filter(|child| !child.is_hide_set()) {
        if child.get_name() != "help" {
            section(text, child, &format!("{name} "));
        }
    }
}
