#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces joined by a virtual cable, a torchrun in each, one run of two
# processes (gloo, CPU). Needs root and `ip`. usage: examples/two_nodes.sh RUN [settings]
set -euo pipefail
run=${1:?usage: examples/two_nodes.sh RUN [settings]}; shift
tag=equimid$$; a=$tag-a; b=$tag-b; cable=eq$((RANDOM % 1000))

cleanup() {
    kill "${first:-}" "${second:-}" 2>/dev/null || true
    for node in $a $b; do ip netns del $node 2>/dev/null || true; done
}
if ! ip netns add $a 2>/dev/null; then
    echo "skipped: this user may not make network namespaces" >&2
    exit 77
fi
trap cleanup EXIT
ip netns add $b
ip link add ${cable}a type veth peer name ${cable}b
for side in a b; do
    node=$tag-$side
    [ $side = a ] && address=10.77.0.1 || address=10.77.0.2
    ip link set ${cable}$side netns $node
    ip -n $node address add $address/24 dev ${cable}$side
    ip -n $node link set ${cable}$side up
    ip -n $node link set lo up
done

node() { # side, address, whether it is where the nodes meet, settings
    local side=$1 address=$2 host=$3; shift 3
    exec ip netns exec $tag-$side env GLOO_SOCKET_IFNAME=${cable}$side OMP_NUM_THREADS=1 \
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
        "${PYTHON:-python}" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --local-addr $address \
        --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29400 --rdzv-id $tag --rdzv-conf is_host=$host --max-restarts 3 \
        -m equimid pretrain digits --recipe ser-tiny --out "$run" train.batch_size=64 train.steps=20 \
        backbone.embed_dim=24 backbone.depth=3 backbone.num_heads=2 backbone.image_size=16 backbone.patch_size=4 \
        method.hidden=16 method.dim=8 ser.hidden=8 runtime.accelerator=cpu runtime.precision=fp32 \
        evaluation.linear_epochs=2 evaluation.equivariance_images=8 "$@"
}
(node a 10.77.0.1 1 "$@") & first=$!
(node b 10.77.0.2 0 "$@") & second=$!
wait $first
wait $second
