#!/bin/sh
# Lints the chart, renders it with the values that change what is rendered, and checks that wrong values are refused.
# Needs helm on PATH, or HELM set to it.
set -eu
helm=${HELM:-helm}
chart=$(dirname "$0")/leno
failed=0

fail() { echo "helm/test.sh: $*" >&2; failed=1; }
render() { "$helm" template leno "$chart" --namespace leno-system "$@"; }
has() { # what, pattern, values...
    what=$1 pattern=$2; shift 2
    render "$@" | grep -q -- "$pattern" || fail "$what: no '$pattern' with $*"
}
lacks() {
    what=$1 pattern=$2; shift 2
    if render "$@" | sed "s/ *#.*//" | grep -q -- "$pattern"; then fail "$what: '$pattern' with $*"; fi
}
refuses() {
    if render "$@" >/dev/null 2>&1; then fail "these values are wrong and were taken: $*"; fi
}

"$helm" lint --quiet --strict "$chart" || fail "lint"
has "the image" 'image: "docker.io/leno/operator:0.1.0"'
has "another image" 'image: "registry.example.com/mesh/operator:1.2.3"' --set image.hub=registry.example.com/mesh/,image.tag=1.2.3
has "pull secrets" 'name: regcred' --set 'image.pullSecrets={regcred}'
has "definitions" 'name: virtualservices.networking.istio.io'
has "definitions are kept" 'helm.sh/resource-policy: keep'
lacks "Istio's definitions" 'name: virtualservices.networking.istio.io' --set crds.istio=false
has "our definition without Istio's" 'name: meshinstalls.mesh.leno.dev' --set crds.istio=false
lacks "definitions" 'kind: CustomResourceDefinition' --set crds.install=false
has "protection" 'leno-protect-mesh-in-use'
has "bounds of the operator" 'policyName: leno-hold-operator-pods'
lacks "protection" 'leno-protect-mesh-in-use' --set protectMeshInUse=false
lacks "wildcards in roles" "\[\"\*\"\]\|'\*'$" --set protectMeshInUse=false,crds.install=false
lacks "escalation" 'verbs:.*\(escalate\|bind\|impersonate\)' --set crds.install=false
refuses --set replicas=0
refuses --set image.pullPolicy=Sometimes
refuses --set crds.instal=false
refuses --set log.format=xml
[ "$failed" = 0 ] && echo "helm/test.sh: the chart is fine"
exit "$failed"
