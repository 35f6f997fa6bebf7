//! `coproc completion`: a script that lets the shell complete commands and options.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::output::emit;

/// Print a completion script
///
/// For instance: source <(coproc completion bash)
#[derive(Debug, Args)]
pub struct Command {
    /// The shell
    shell: Shell,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "coproc", &mut script);
        emit(&String::from_utf8(script)?)
    }
}
