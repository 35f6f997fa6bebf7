//! The `coproc` program: parse, then hand over.

/// Of the C libraries too. A record is allocated by one thread and freed by another all the time, which glibc's allocator
/// does behind locks: it cost a third of the throughput on Kafka.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    coproc::cli::main()
}
