#!/usr/bin/env bash
# Brings up a three-node cluster on Braid and shows it at work. Ends with a summary and exits non-zero if
# anything failed; the cluster stays up.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${NAME:-braid}
nodes=(node1 node2 node3)
failed=0
results=()

title() { printf '\n\033[1m%s\033[0m\n' "$1"; }
[ -t 1 ] || title() { printf '\n== %s\n' "$1"; }
result() { # ok|FAILED text
  results+=("$(printf '%-7s %s' "$1" "$2")")
  if [ "$1" != ok ]; then failed=1; fi
  printf '  %-7s %s\n' "$1" "$2"
}
# `up` has just built the binary; going through the wrapper would ask cargo again for each of the calls below.
sandbox=${CARGO_TARGET_DIR:-target}/debug/sandbox
kubectl() { "$sandbox" kubectl --name "$name" -- "$@"; }
on() { # node command...
  local node=$1; shift
  "$sandbox" exec --name "$name" "$node" -- "$@"
}
pod_exec() { # pod command...
  local pod=$1; shift
  kubectl -n demo exec "$pod" -- "$@"
}

title 'Braid itself: a container image from this source'
e2e/images.sh
printf '  %dm%02ds so far\n' $((SECONDS / 60)) $((SECONDS % 60))

title 'A cluster of three nodes, with Braid from its manifests'
e2e/sandbox up --name "$name" --nodes 3

title 'A dual-stack overlay Network, a web Deployment with a Service, a client on each node'
kubectl apply --server-side -f config/samples/overlay.yaml
kubectl wait network/overlay subnet/overlay-v4 subnet/overlay-v6 --for=condition=Ready --timeout=60s >/dev/null
kubectl apply -f e2e/demo.yaml >/dev/null
kubectl -n demo rollout status deployment/web --timeout=180s
kubectl -n demo rollout status daemonset/client --timeout=180s
printf '\n'
kubectl get net,subnet,ipi -o wide

# One line a pod: name node IPv4 IPv6
mapfile -t pods < <(kubectl -n demo get pods -o json |
  jq -r '.items[] | select(.metadata.deletionTimestamp == null)
         | [.metadata.name, .spec.nodeName, (.status.podIPs | map(.ip) | map(select(contains(":") | not))[0]),
            (.status.podIPs | map(.ip) | map(select(contains(":")))[0])] | @tsv')

title "Every pair of ${#pods[@]} pods, IPv4 and IPv6"
targets=()
for line in "${pods[@]}"; do
  read -r _ _ ip4 ip6 <<<"$line"
  targets+=("$ip4" "$ip6")
done
for line in "${pods[@]}"; do
  read -r pod node _ _ <<<"$line"
  # One exec per pod: it prints the addresses that did not answer.
  # shellcheck disable=SC2016 # the pod's shell expands these
  lost=$(pod_exec "$pod" sh -c 'for ip in "$@"; do ping -q -c 2 -i 0.01 -W 1 "$ip" >/dev/null || echo "$ip"; done' sh "${targets[@]}") ||
    lost="(the pod could not be entered)"
  if [ -z "$lost" ]; then
    result ok "$pod on $node reaches ${#targets[@]} addresses"
  else
    result FAILED "$pod on $node does not reach: ${lost//$'\n'/ }"
  fi
done

title 'The Service, by its IPv4 and its IPv6 address, from every node'
mapfile -t vips < <(kubectl -n demo get service web -o json | jq -r '.spec.clusterIPs[]')
for line in "${pods[@]}"; do
  read -r pod node _ _ <<<"$line"
  [[ $pod == client-* ]] || continue
  for vip in "${vips[@]}"; do
    url=$vip
    if [[ $vip == *:* ]]; then url="[$vip]"; fi
    if answer=$(pod_exec "$pod" curl -sS -m 5 "http://$url/" 2>&1); then
      result ok "$node -> http://$url/ answered by $answer"
    else
      result FAILED "$node -> http://$url/: $answer"
    fi
  done
done

title "One packet's way, read from the live kernel"
client_on() { local l; for l in "${pods[@]}"; do read -r p n a b <<<"$l"; if [[ $p == client-* && $n == "$1" ]]; then echo "$p $a $b"; fi; done; }
read -r from_pod from4 _ <<<"$(client_on "${nodes[1]}")"
read -r to_pod to4 _ <<<"$(client_on "${nodes[2]}")"
printf '  %s %s (%s)  ->  %s %s (%s)\n' "$from_pod" "$from4" "${nodes[1]}" "$to_pod" "$to4" "${nodes[2]}"
hop() { # node what command...
  local node=$1 what=$2 out; shift 2
  if out=$(on "$node" "$@" 2>&1) && [ -n "$out" ]; then
    printf '  %-6s %-12s %s\n' "$node" "$what" "${out//$'\n'/$'\n                      '}"
  else
    result FAILED "$node: no $what ($*)"
  fi
}
route=$(on "${nodes[1]}" ip -4 route get "$to4" from "$from4" iif "$(on "${nodes[1]}" ip -4 -o route show table 39999 "$from4" | sed 's/.* dev \([^ ]*\).*/\1/')" | head -n 1)
via=$(sed -n 's/.* via \([^ ]*\).*/\1/p' <<<"$route")
dev=$(sed -n 's/.* dev \([^ ]*\).*/\1/p' <<<"$route")
hop "${nodes[1]}" 'rule' ip -4 rule show pref 3210
hop "${nodes[1]}" 'table 40000' sh -c "ip -4 route show table 40000 match $to4 | tail -n 1"
hop "${nodes[1]}" 'neighbour' ip neigh show "$via" dev "$dev"
mac=$(on "${nodes[1]}" ip neigh show "$via" dev "$dev" | sed -n 's/.* lladdr \([^ ]*\).*/\1/p')
hop "${nodes[1]}" 'FDB' sh -c "bridge fdb show dev $dev | grep -i '$mac'"
hop "${nodes[2]}" 'VXLAN' ip -br link show dev "$dev"
hop "${nodes[2]}" 'rule' ip -4 rule show pref 3200
hop "${nodes[2]}" 'table 39999' ip -4 route show table 39999 "$to4"

title 'kill -9 of an agent while 100 pings a second cross its node'
pings=$(mktemp)
pod_exec "$from_pod" ping -q -i 0.01 -w 6 "$to4" >"$pings" 2>&1 &
pinger=$!
agent_of() { kubectl -n braid-system get pods -l app.kubernetes.io/name=braid-node --field-selector "spec.nodeName=$1" -o json; }
restarts() { agent_of "$1" | jq '[.items[].status.containerStatuses[].restartCount] | add'; }
before=$(restarts "${nodes[2]}")
container=$(agent_of "${nodes[2]}" | jq -r '.items[0].status.containerStatuses[0].containerID | sub("^containerd://"; "")')
agent_pid=$(on "${nodes[2]}" ctr -n k8s.io tasks list | awk -v id="$container" '$1 == id && $3 == "RUNNING" { print $2 }')
on "${nodes[2]}" kill -9 "$agent_pid"
wait "$pinger" || printf '  ping ended with an error\n'
sed -n '/transmitted/p' "$pings" | sed 's/^/  /'
if grep -q ' 0% packet loss' "$pings"; then
  result ok 'no packet lost'
else
  result FAILED 'packets were lost while the agent was dead'
fi
rm -f "$pings"
if kubectl -n braid-system wait pods -l app.kubernetes.io/name=braid-node --for=condition=Ready --timeout=60s >/dev/null &&
  [ "$(restarts "${nodes[2]}")" -gt "$before" ]; then
  result ok "the agent on ${nodes[2]} is back"
else
  result FAILED "the agent on ${nodes[2]} was not restarted"
fi

title 'Summary'
printf '  %s\n' "${results[@]}"
printf '\n  %d checks in %dm%02ds\n' "${#results[@]}" $((SECONDS / 60)) $((SECONDS % 60))
cat <<END

The cluster stays up. To go on, with a kubectl of your own or with the sandbox's:
  export KUBECONFIG=$("$sandbox" status --name "$name" --output json | jq -r .kubeconfig)
  e2e/sandbox kubectl --name $name -- get net,subnet,ipi -A -o wide
  e2e/sandbox exec --name $name node2 -- ip route show table 40000
  e2e/sandbox down --name $name
END
exit "$failed"
