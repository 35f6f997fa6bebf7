#!/usr/bin/env bash
# The README's Kubernetes example on one machine: a one-node cluster, Kafka and a registry of its own, the chart, a
# module, records in and out. Needs root, and 10 minutes of CPU the first time, when the cluster's programs are built. Leaves nothing
# running and nothing behind, also when it fails. COPROC_PROGRAM names a program that is built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/coproc-cluster.XXXXXXXX")
readonly work

step() { printf '\n== %s\n' "$*"; }

clean_up() {
    local status=$?
    trap - EXIT INT TERM
    if [ "$status" -ne 0 ] && [ -n "${KUBECONFIG:-}" ]; then
        kubectl -n coproc-system get pods,runtimepools,coprocessors -o wide || true
        kubectl -n coproc-system get events || true
        kubectl -n coproc-system logs -l app.kubernetes.io/name=coproc --tail=20 --prefix || true
    fi >&2
    tests/env/cluster stop "$work" || true
    case $work in
        */coproc-cluster.????????) rm -rf -- "$work" ;;
    esac
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

coproc=${COPROC_PROGRAM:-}
if [ -z "$coproc" ]; then
    step "building coproc"
    cargo build --release --bin coproc
    coproc=${CARGO_TARGET_DIR:-$PWD/target}/release/coproc
fi
coproc=$(realpath "$coproc")

step "starting a cluster, Kafka and a registry"
env=$(COPROC_KUBE_OWNER=$$ tests/env/cluster start "$work" "$coproc")
echo "$env"
get() { sed -n "s/^$1=//p" <<<"$env"; }
KUBECONFIG=$(get KUBECONFIG)
PATH=$(get BIN):$PATH
export KUBECONFIG PATH
bootstrap=$(get BOOTSTRAP) registry=$(get REGISTRY)
export COPROC_BROKERS=$bootstrap

step "a module, built and pushed"
(cd "$work" && "$coproc" init shout -l wat && cd shout && "$coproc" build)
"$coproc" push "$work/shout/shout.wasm" "$registry/shout:1.0.0" --insecure "$registry"

step "topics"
"$coproc" topic create orders orders-loud --partitions 3

step "helm install"
helm install coproc charts/coproc -n coproc-system --create-namespace --wait --timeout 3m \
    --set "image.repository=$(get REPOSITORY),image.tag=$(get TAG)" \
    --set "pool.bootstrapServers={$bootstrap}" \
    --set "pool.spec.registry.insecure={$registry},pool.spec.registry.privateHosts={${registry%:*}}"
kubectl -n coproc-system wait --for=condition=Ready runtimepool/default --timeout=120s

step "kubectl apply of the README's example"
awk '/^```yaml$/ { inside = 1; next } /^```$/ { inside = 0 } inside' README.md | sed "s/registry\.example/$registry/" |
    tee "$work/shout.yaml"
kubectl -n coproc-system apply -f "$work/shout.yaml"
kubectl -n coproc-system wait --for=condition=Ready coprocessor/shout --timeout=120s

step "records in, with kcat"
records=$(printf '%s\n' 'one espresso' 'two flat whites' 'three cups of tea')
echo "$records"
kcat -b "$bootstrap" -P -t orders <<<"$records"

step "records out, with Kafka's own console consumer"
loud=$(tests/env/kafka tool "$work/kafka" org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$bootstrap" \
    --topic orders-loud --from-beginning --isolation-level read_committed --max-messages 3 --timeout-ms 60000)
echo "$loud"
[ "$(sort <<<"$loud")" = "$(printf '%s\n' 'ONE ESPRESSO' 'THREE CUPS OF TEA' 'TWO FLAT WHITES')" ]

step "what the cluster says"
kubectl -n coproc-system get runtimepools,coprocessors,pods
kubectl -n coproc-system get coprocessor shout -o jsonpath='{.status.module}{"\n"}'

step "kubectl delete: the group goes, the topics stay"
kubectl -n coproc-system delete coprocessor shout --timeout=60s
"$coproc" topic list
step "done"
