#!/usr/bin/env bash
# Installs what building and testing need beyond a Debian with git, a C toolchain and rustup. Quiet when all is there.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

if ! have cargo; then
    # rustup is there, but this shell does not know it.
    if [ -r "${HOME}/.cargo/env" ]; then . "${HOME}/.cargo/env"; fi
fi
have cargo || { echo "setup: cargo is missing: install rustup first (https://rustup.rs)" >&2; exit 1; }

# rust-toolchain.toml names the toolchain, its components and the wasm targets; rustup installs them on first use.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for target in wasm32-wasip1 wasm32-unknown-unknown; do
    rustup target list --installed | grep -qx "$target" || rustup target add "$target"
done
