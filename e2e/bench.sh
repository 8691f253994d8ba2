#!/usr/bin/env bash
# Measures Braid against the kernel and against named peers: 'e2e/bench.sh [name...]', all without a name. Tables on
# the terminal, JSON in target/bench/, and after a run of all of them BENCHMARKS.md. About a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
printf 'building the benchmarks (a few minutes the first time)\n'
# Naming the target keeps crt-static away from build scripts, and shares what images.sh has built.
RUSTFLAGS="-C target-feature=+crt-static" cargo build -q --release --locked --target "$host" \
  -p braid-e2e --example benchmarks --bin bench-floor --bin sandbox
figures=${CARGO_TARGET_DIR:-target}/$host/release/examples/benchmarks

# The sandboxes of the benchmarks go, however this ends. BRAID_BENCH_KEEP leaves them for a look.
trap '[ -n "${BRAID_BENCH_KEEP:-}" ] || "$figures" down' EXIT
"$figures" "$@"
if [ $# -eq 0 ]; then
  "$figures" assemble
fi
