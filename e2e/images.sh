#!/usr/bin/env bash
# Builds Braid's static binaries and packs them into target/images/braid.tar (image localhost/braid:dev).
# Nothing is built again when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
out=target/images/braid.tar

printf 'building the static binaries (the first time takes minutes; cargo shows how far it is)\n'
# Naming the target keeps crt-static away from build scripts and proc macros.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$host" \
  -p braid-controller -p braid-node -p braid-cni -p braidctl
cargo build --locked -p braid-e2e --bin pack-image

bin=target/$host/release
mkdir -p "$(dirname "$out")"
target/debug/pack-image --out "$out" --image localhost/braid:dev --entrypoint /usr/bin/braid-controller \
  --file "$bin/braid-controller:/usr/bin/braid-controller:0755" \
  --file "$bin/braid-node:/usr/bin/braid-node:0755" \
  --file "$bin/braid-cni:/usr/bin/braid-cni:0755" \
  --file "$bin/braidctl:/usr/bin/braidctl:0755"
printf '%s: %s\n' "$out" "$(du -h "$out" | cut -f1)"
