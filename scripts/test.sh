#!/usr/bin/env bash
# Every check and test. `make test` and CI run just this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all -- --check
step "lints"
cargo clippy --all-targets -- -D warnings
step "features alone: each adapter builds on core and ports only"
for feature in log wasm connect oci kafka operator; do
    cargo check --quiet --lib --no-default-features --features "$feature"
done
step "tests"
cargo test --features failpoints
