#!/bin/sh
# Training on several machines without a scheduler.
#   usage: deploy/two_nodes.sh NODE ADDRESS pretrain --run d20 --depth 20 --data ...
#
# The same line on every machine, but for NODE: 0 on one of them, whose ADDRESS all others reach,
# 1, 2, ... on the others.  They wait for each other.  When a rank dies, all are started again from
# the last checkpoint, three times; a machine may be restarted meanwhile and given its line again.
# NANOCHAT_HOME has to be on a disk that all machines see.
#
#   NODES      how many machines (2)
#   RANKS      processes on this one (auto: one a GPU)
#   PORT       of ADDRESS, the one after it is used too (29400)
#   OWN        this machine's address, where the others do not know its name
#   INTERFACE  the network between them, where there are several (eth0)
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 NODE ADDRESS pretrain|midtrain|sft|eval ..." >&2
    exit 2
fi
node=$1 address=$2
shift 2
is_host=false
if [ "$node" = 0 ]; then is_host=true; fi
if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME="$INTERFACE" NCCL_SOCKET_IFNAME="$INTERFACE"
fi
# A machine that comes back finds the others only where each start has a store of its own (PyTorch 2.11
# to 2.13); what is to be remembered from start to start is kept where the launchers meet.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT="$address:${PORT:-29400}"
# Without -- torchrun of Python 3.11 takes our --run for an unfinished word of its own.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-2}" --nproc-per-node "${RANKS:-auto}" --max-restarts 3 \
    --rdzv-id nanochat --rdzv-conf "is_host=$is_host" ${OWN:+--local-addr "$OWN"} -m -- nanochat "$@"
