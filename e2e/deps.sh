#!/usr/bin/env bash
# Compiled dependencies as a cached part, so that a fresh clone compiles this project's own crates only.
#
#   e2e/deps.sh restore     before a build: fills an empty target/ from the cache
#   e2e/deps.sh save        after a build: adds to the cache what it does not have yet
#
# The cache lies in ${XDG_CACHE_HOME:-~/.cache}/braid/deps-<key>. The key covers what decides how a dependency is compiled:
# Cargo.lock, every manifest (features, profiles), the compiler, and flags from the environment. Files keep their times, by which
# cargo tells what is fresh. Crates of this workspace are never kept: their sources change under one key. A cache that cannot be
# used is a slow build and no failure.
# shellcheck disable=SC2317 # the functions are called by the name that was given
set -euo pipefail
cd "$(dirname "$0")/.."

verb=${1:?usage: e2e/deps.sh restore|save}
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/braid
target=${CARGO_TARGET_DIR:-target}
host=$(rustc -vV | sed -n 's/^host: //p')
manifests=$(find . -name target -prune -o -name Cargo.toml -print | sort)
# shellcheck disable=SC2086 # paths of this repository have no spaces
key=$({ cat Cargo.lock rust-toolchain.toml $manifests; rustc -vV; printf '%s\n' "${RUSTFLAGS:-}" "${CARGO_HOME:-$HOME/.cargo}"; } | sha256sum | cut -c1-16)
kept=$cache/deps-$key
# Where cargo puts what it compiles for this machine, and for images (e2e/images.sh names the target).
folders=(debug release "$host/release")

restore() {
  [ -e "$kept/complete" ] || return 0
  # What a restore that was killed has left.
  rm -rf "$target"/.deps-*
  for folder in "${folders[@]}"; do
    if [ ! -d "$kept/$folder/deps" ] || [ -d "$target/$folder/deps" ]; then continue; fi
    printf 'compiled dependencies from the cache: %s\n' "$folder"
    mkdir -p "$target/$folder"
    partial=$(mktemp -d "$target/.deps-XXXXXX")
    cp -a "$kept/$folder/." "$partial/"
    rm -rf "$target/$folder/build" "$target/$folder/.fingerprint"
    # `deps` is last: while it is missing, the next restore begins anew.
    for part in build .fingerprint deps; do [ ! -d "$partial/$part" ] || mv "$partial/$part" "$target/$folder/"; done
    rm -rf "$partial"
  done
}

save() {
  own=$(cargo metadata --locked --offline --no-deps --format-version 1 | jq -r '[.packages[].targets[].name | gsub("-"; "_")] | unique | join("|")')
  mkdir -p "$kept"
  # Another process may be at work on the same key, or cargo on the same folder.
  exec 9>"$kept.lock"
  flock 9
  rm -rf "$kept/.partial"
  for folder in "${folders[@]}"; do
    [ -d "$target/$folder/deps" ] || continue
    exec 8>>"$target/$folder/.cargo-lock"
    flock 8
    for part in build .fingerprint deps; do
      [ -d "$target/$folder/$part" ] || continue
      mkdir -p "$kept/$folder/$part"
      # <name>-<hash>, lib<name>-<hash>.rlib: names of this workspace are left out.
      find "$target/$folder/$part" -mindepth 1 -maxdepth 1 -printf '%f\n' |
        { grep -vE "^(lib)?($own|${own//_/-})-[0-9a-f]{16}" || true; } |
        while IFS= read -r name; do
          from=$target/$folder/$part/$name to=$kept/$folder/$part/$name
          if [ -e "$to" ] && [ ! "$from" -nt "$to" ]; then continue; fi
          cp -a "$from" "$kept/.partial"
          rm -rf "$to"
          mv "$kept/.partial" "$to"
        done
    done
    exec 8>&-
  done
  touch "$kept/complete" "$kept"
  # Two keys: this one and the one before it.
  find "$cache" -maxdepth 1 -type d -name 'deps-*' -printf '%T@ %p\n' | sort -rn | tail -n +3 | cut -d' ' -f2- | xargs -r rm -rf
}

case $verb in
restore | save) ;;
*)
  echo "unknown verb '$verb': restore or save" >&2
  exit 2
  ;;
esac
# In a shell of its own, where `set -e` counts.
set +e
(set -e; "$verb")
code=$?
[ "$code" = 0 ] || echo "the cache of compiled dependencies ($kept) cannot be used: delete it if this happens again" >&2
exit 0
