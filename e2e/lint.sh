#!/usr/bin/env bash
# Everything that reads the code without running it. Warnings are errors.
set -euo pipefail
cd "$(dirname "$0")/.."

deny_version=0.20.2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/braid
deny=$cache/cargo-deny-$deny_version/bin/cargo-deny

step() { printf '== %s (%ss)\n' "$1" "$SECONDS"; }

step shellcheck
git ls-files -z '*.sh' .ci/run e2e/sandbox | xargs -0 -r shellcheck

step rustfmt
cargo fmt --all -- --check

step clippy
cargo clippy -q --workspace --all-targets --locked -- -D warnings

step cargo-deny
if [ ! -x "$deny" ]; then
  printf 'building cargo-deny %s, once\n' "$deny_version"
  # Its own optimised profile takes minutes that a checker does not earn back.
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install -q --locked --no-default-features --root "$cache/cargo-deny-$deny_version" cargo-deny@"$deny_version"
fi
# The advisory database is a git repository that not every build machine reaches; licences, bans and sources
# are decided from Cargo.lock alone.
cargo fetch -q --locked
"$deny" --offline --log-level error check licenses bans sources

e2e/deps.sh save

step 'lint done'
