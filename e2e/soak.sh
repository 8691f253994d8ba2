#!/usr/bin/env bash
# What is too long for `make test`, with every time as it is shipped: ten minutes of churn, and a node that stays silent for
# longer than the orphan timeout. About half an hour. `BRAID_E2E_CHURN_MINUTES` makes the churn longer.
set -euo pipefail
cd "$(dirname "$0")/.."

export BRAID_E2E_SHIPPED_TIMES=1 BRAID_E2E_NAME=${BRAID_E2E_NAME:-soak}
export BRAID_E2E_CHURN_MINUTES=${BRAID_E2E_CHURN_MINUTES:-10}
rm -f target/e2e/tests.jsonl target/e2e/steps.tsv
# shellcheck disable=SC2317 # the trap calls it
remove() {
  for cluster in alone1 alone2; do
    e2e/sandbox down --name "$BRAID_E2E_NAME-$cluster" || echo "cluster $BRAID_E2E_NAME-$cluster is not removed" >&2
  done
}
trap remove EXIT
for part in kubernetes containerd etcd cni; do e2e/tools/build "$part" >/dev/null; done
failed=0
cargo test --locked -p braid-e2e --test promises -- --test-threads=128 churn:: soak_ || failed=1
cargo test --locked -p braid-e2e --test promises -- lane_end:: || failed=1
cargo run -q --locked -p braid-e2e --bin test-table
exit "$failed"
