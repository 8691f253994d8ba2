#!/usr/bin/env bash
# Checks what the project cannot install by itself, and installs the rest: Debian packages for building.
set -euo pipefail

die() { printf '%s\n' "$1" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "Braid's sandbox needs Linux: run this on a Linux machine or VM."
[ "$(id -u)" = 0 ] || die "The sandbox makes network namespaces: run this as root (for example with sudo -E)."
command -v cargo >/dev/null || die "Rust is missing: install it with rustup from https://rustup.rs, then run this again."
"$(dirname "$0")/tools/build" go >/dev/null || exit 1

# package:file that shows it is there
needed=(gcc:/usr/bin/gcc libc6-dev:/usr/include/stdlib.h shellcheck:/usr/bin/shellcheck jq:/usr/bin/jq curl:/usr/bin/curl bsdextrautils:/usr/bin/column
  iproute2:/usr/sbin/ip nftables:/usr/sbin/nft iputils-ping:/usr/bin/ping procps:/usr/sbin/sysctl util-linux:/usr/bin/nsenter)
missing=()
for entry in "${needed[@]}"; do
  [ -e "${entry#*:}" ] || missing+=("${entry%%:*}")
done
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || die "Missing: ${missing[*]}. Install them with your package manager, then run this again."
  printf 'installing Debian packages: %s\n' "${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt-get could not install ${missing[*]}; its last lines are above."; }
  rm -f "$log"
fi

"$(dirname "$0")/deps.sh" restore
