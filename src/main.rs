//! The `coproc` program: parse, then hand over.

fn main() -> std::process::ExitCode {
    coproc::cli::main()
}
