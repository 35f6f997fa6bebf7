//! The `coproc` program: parse, then hand over.

fn main() {}
