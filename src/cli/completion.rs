//! `coproc completion`: a script that lets the shell complete commands and options.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::output::emit;

/// `coproc` is a keyword of bash and zsh, which run what follows it as a background job. An alias comes before a keyword.
const ALIAS: &str = "\nalias coproc='command coproc'\n";

/// Print a completion script
///
/// In ~/.bashrc: eval "$(command coproc completion bash)". For bash and zsh, where `coproc` is a keyword of the shell, the
/// script also makes it mean this program.
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
        if matches!(self.shell, Shell::Bash | Shell::Zsh) {
            script.extend_from_slice(ALIAS.as_bytes());
        }
        emit(&String::from_utf8(script)?)
    }
}
