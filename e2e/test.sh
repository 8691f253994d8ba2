#!/usr/bin/env bash
# Every test of the project, cheap failures first:
#   1. house rules, pure cores, kernel code in network namespaces   2. end to end in sandbox clusters
# Each suite ends with the summary line of cargo's own test runner. A promise that is broken does not hide the next one.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%dm%02ds)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

# One file per promise. cargo runs them in the order of their names, whatever stands here: what removes Braid is called so.
promises=(api_objects admission pod_admission cert_manager reachability networks flat addresses spoofing full_subnet drift in_force
  lifecycle retention virtual_machines agent_restart outage two_leaders churn zz_uninstall)

step 'house rules'
cargo test --locked -p braid-e2e --lib --test tidy

step 'unit, property and kernel tests'
cargo test --locked --workspace --exclude braid-e2e

step 'the image'
e2e/images.sh

# Built before the first test that has a time limit of its own.
step 'the programs of the sandbox, from their pinned sources'
for part in kubernetes containerd etcd cni cert-manager; do e2e/tools/build "$part" >/dev/null; done

step 'the sandbox itself, with the reference plugins'
cargo test --locked -p braid-e2e --test sandbox_smoke -- --test-threads=1

step 'end to end: one test at a time, on one cluster'
trap 'e2e/sandbox down --name "${BRAID_E2E_NAME:-e2e}"' EXIT
cargo test --locked --no-fail-fast -p braid-e2e "${promises[@]/#/--test=}" -- --test-threads=1

step 'all tests passed'
