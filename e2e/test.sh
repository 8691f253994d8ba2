#!/usr/bin/env bash
# Every test of the project, cheap failures first:
#   1. house rules, pure cores, kernel code in network namespaces   2. end to end in sandbox clusters
#
#   e2e/test.sh                           all of it, as `make test`
#   SUITE='flat drift' e2e/test.sh        suites: files of e2e/tests/promises, crates (braid-types), or `tidy`
#   KEEP=1 SUITE=flat e2e/test.sh         the clusters stay up for the next run
#
# A promise that is broken does not hide the next one. At the end a table says what each suite took, and of what share.
set -euo pipefail
cd "$(dirname "$0")/.."

records=target/e2e
cluster=${BRAID_E2E_NAME:-e2e}
current='' began=0 clusters=''

step() { # name: ends the step before and begins this one
  [ -z "$current" ] || printf '%s\t%s\n' "$current" $((SECONDS - began)) >>"$records/steps.tsv"
  current=$1 began=$SECONDS
  [ -z "$1" ] || printf '\n== %s (%dm%02ds)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60))
}
# shellcheck disable=SC2317 # the trap calls it
finish() {
  code=$?
  trap - EXIT
  step ''
  if [ -n "$clusters" ] && [ -z "${KEEP:-}" ]; then
    for name in "$cluster" "$cluster-alone1" "$cluster-alone2"; do e2e/sandbox down --name "$name" || code=1; done
  fi
  cargo run -q --locked -p braid-e2e --bin test-table || code=1
  if [ "$code" = 0 ]; then echo 'all tests passed'; else echo "FAILED (exit code $code)"; fi
  exit "$code"
}

# What is asked for: crates, suites of end-to-end tests, house rules.
known_crates=$(cargo metadata --locked --no-deps --format-version 1 | jq -r '.packages[].name')
all=1 tidy='' crates=() suites=()
for word in ${SUITE:-}; do
  all=''
  if [ "$word" = tidy ]; then tidy=1
  elif [ -f "e2e/tests/promises/$word.rs" ] && [[ ! $word =~ ^(main|lane_end)$ ]]; then suites+=("$word")
  elif [ "$word" != braid-e2e ] && grep -qxF "$word" <<<"$known_crates"; then crates+=("$word")
  else
    echo "there is no suite '$word'. Suites are: tidy (with the unit tests of braid-e2e), the crates" >&2
    grep -vxF braid-e2e <<<"$known_crates" | tr '\n' ' ' >&2
    printf '\nand the files of e2e/tests/promises\n' >&2
    (cd e2e/tests/promises && printf '%s ' *.rs | sed 's/main\.rs //; s/lane_end\.rs //; s/\.rs//g; s/$/\n/') >&2
    exit 2
  fi
done
# Only a run that begins deletes what the one before has left.
mkdir -p "$records"
rm -f "$records"/*.jsonl "$records"/*.tsv "$records"/*.txt "$records"/*.tar.gz
trap finish EXIT

if [ -n "$all$tidy" ]; then
  step 'house rules'
  cargo test --locked -p braid-e2e --lib --test tidy
fi

if [ -n "$all" ] || [ "${#crates[@]}" -gt 0 ]; then
  step 'unit, property and kernel tests'
  if [ -n "$all" ]; then cargo test --locked --workspace --exclude braid-e2e; else cargo test --locked "${crates[@]/#/-p=}"; fi
fi

[ -n "$all" ] || [ "${#suites[@]}" -gt 0 ] || exit 0

step 'the image'
e2e/images.sh

# Built before the first test that has a time limit of its own.
step 'the programs of the sandbox'
for part in kubernetes containerd etcd cni cert-manager; do e2e/tools/build "$part" >/dev/null; done

e2e/deps.sh save

step 'end to end'
# Every test has a thread, in which it waits for its turn: e2e/src/lanes.rs.
promises() {
  # The runner's own note that a test waits for more than a minute is the rule here.
  cargo test --locked -p braid-e2e --test promises -- --test-threads=128 "$@" 2>&1 |
    { grep --line-buffered -v ' has been running for over 60 seconds$' || true; }
}
if [ "${#suites[@]}" = 0 ]; then
  for file in e2e/tests/promises/*.rs; do
    suite=$(basename "$file" .rs)
    [[ $suite =~ ^(main|lane_end)$ ]] || suites+=("$suite")
  done
fi
# The runner takes parts of names for names; these are whole ones.
tests=()
for suite in "${suites[@]}"; do
  mapfile -t found < <(promises --list | sed -n "s/^\($suite::.*\): test$/\1/p" | grep -v '::soak_')
  [ "${#found[@]}" -gt 0 ] || { echo "suite $suite has no test: is it in e2e/tests/promises/main.rs?" >&2; exit 1; }
  tests+=("${found[@]}")
done
clusters=1 failed=0
promises --exact "${tests[@]}" || failed=1
promises lane_end:: || failed=1
for suite in "${suites[@]}"; do
  grep -q "\"suite\":\"$suite\"" "$records/tests.jsonl" || { echo "no test of suite $suite has run" >&2; failed=1; }
done
exit "$failed"
