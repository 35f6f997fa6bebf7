//! The command line: one file per command, each written against the ports.
//!
//! This is the top floor: it reads the arguments and the environment, plugs adapters in, and turns errors into
//! messages and exit codes. Nothing below knows that it exists.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod arguments;
mod bench;
mod build;
mod completion;
mod consume;
#[cfg(feature = "operator")]
mod crds;
mod deploy;
mod deployments;
mod describe;
mod dev;
mod docs;
mod doctor;
pub mod drop_folder;
mod engine;
pub mod exit;
#[cfg(feature = "failpoints")]
mod failpoints;
mod golden;
mod harness;
mod init;
mod inspect;
#[cfg(feature = "kafka")]
mod kafka;
mod list;
mod log;
mod logs;
mod manifest;
mod modules;
mod node;
mod offsets;
mod open;
#[cfg(feature = "operator")]
mod operator;
mod output;
mod pause;
#[cfg(feature = "operator")]
mod pool;
mod produce;
#[cfg(feature = "oci")]
mod push;
mod records;
#[cfg(feature = "oci")]
mod registry;
mod remove;
mod runtime;
mod test;
mod topic;
mod wait;

pub use docs::reference;

/// WebAssembly functions on Kafka streams, each record exactly once
#[derive(Debug, Parser)]
#[command(name = "coproc", version, after_help = after_help(), arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    target: open::Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Command),
    Build(build::Command),
    Test(test::Command),
    Bench(bench::Command),
    Inspect(inspect::Command),
    #[cfg(feature = "oci")]
    Push(push::Command),
    Dev(dev::Command),
    Node(node::Command),
    Deploy(deploy::Command),
    #[command(visible_alias = "ls")]
    List(list::Command),
    Describe(describe::Command),
    Logs(logs::Command),
    /// Stop processing after the last commit, keep the place
    Pause(pause::Command),
    /// Go on after a pause
    Resume(pause::Command),
    /// Remove deployments and their offsets; topics and records stay
    ///
    /// Once the nodes have stopped a deployment, its committed offsets go too: one of the same name begins anew, where
    /// its --from-offset says. With --keep-offsets it goes on where this one stopped.
    #[command(visible_alias = "rm")]
    Remove(remove::Command),
    #[command(subcommand)]
    Topic(topic::Command),
    Produce(produce::Command),
    Consume(consume::Command),
    #[command(subcommand)]
    Offsets(offsets::Command),
    #[command(subcommand)]
    Log(log::Command),
    Doctor(doctor::Command),
    #[cfg(feature = "operator")]
    Operator(operator::Command),
    #[cfg(feature = "operator")]
    #[command(subcommand)]
    Crds(crds::Command),
    #[cfg(feature = "operator")]
    #[command(subcommand)]
    Pool(pool::Command),
    Completion(completion::Command),
    #[command(hide = true)]
    Docs(docs::Command),
    #[command(hide = true)]
    CompileHelper(engine::Command),
}

/// Parses the arguments, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    failpoints::arm();
    let cli = parse();
    if let Command::CompileHelper(helper) = &cli.command {
        // Its exit code is part of a protocol, so none of ours.
        return helper.run();
    }
    match cli.command.run(&cli.target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if exit::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(exit::of(&error) as u8)
        }
    }
}

fn after_help() -> String {
    let begin = "To begin: `coproc dev` runs a node here, `coproc init hello` makes a project whose README says the rest.\n\
                 `coproc doctor` looks for what is wrong.";
    format!("{begin}\n\n{}", exit::HELP)
}

fn parse() -> Cli {
    let matches = with_negative_numbers(Cli::command()).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A negative number after a flag is a value: the flag's own parser says better what is wrong with it.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let is_flag = !arg.is_positional() && arg.get_action().takes_values();
        if is_flag && !arg.is_allow_hyphen_values_set() { arg.allow_negative_numbers(true) } else { arg }
    });
    command.mut_subcommands(with_negative_numbers)
}

impl Command {
    fn run(&self, target: &open::Target) -> anyhow::Result<()> {
        match self {
            Self::Init(command) => command.run(),
            Self::Build(command) => command.run(),
            Self::Test(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Inspect(command) => command.run(),
            #[cfg(feature = "oci")]
            Self::Push(command) => command.run(),
            Self::Dev(command) => command.run(target),
            Self::Node(command) => command.run(target),
            Self::Deploy(command) => command.run(target),
            Self::List(command) => command.run(target),
            Self::Describe(command) => command.run(target),
            Self::Logs(command) => command.run(target),
            Self::Pause(command) => command.run(target, true),
            Self::Resume(command) => command.run(target, false),
            Self::Remove(command) => command.run(target),
            Self::Topic(command) => command.run(target),
            Self::Produce(command) => command.run(target),
            Self::Consume(command) => command.run(target),
            Self::Offsets(command) => command.run(target),
            Self::Log(command) => command.run(target),
            Self::Doctor(command) => command.run(target),
            #[cfg(feature = "operator")]
            Self::Operator(command) => command.run(target),
            #[cfg(feature = "operator")]
            Self::Crds(command) => command.run(),
            #[cfg(feature = "operator")]
            Self::Pool(command) => command.run(),
            Self::Completion(command) => command.run(),
            Self::Docs(command) => command.run(),
            Self::CompileHelper(_) => Ok(()),
        }
    }
}
