#!/usr/bin/env bash
# Train on several machines that have no scheduler. Start it on each of them, with the address of one:
#
#   HEAD=10.0.0.1 NODES=8 bash launch/machines.sh
#
# If a process dies, all ranks are started again, RESTARTS times at most, and go on from the last checkpoint. If a machine
# dies, the others wait a day for it: start the same line there. If HEAD dies, all end: start the line everywhere. SIGTERM on one
# machine: all ranks save and end; start the line everywhere. DATA and FOLDER lie on a disk that all machines see.
set -euo pipefail

PRESET=${PRESET:-imagenet256-1.1b-p16}
DATA=${DATA:-data/imagenet-256}
FOLDER=${FOLDER:-runs/$PRESET}
NODES=${NODES:?number of machines}
HEAD=${HEAD:?address of one of them}
GPUS=${GPUS:-$(python -c "import torch; print(torch.cuda.device_count())")}       # of each machine
ACCUMULATION=${ACCUMULATION:-$((GPUS * NODES < 32 ? 32 / (GPUS * NODES) : 1))}   # so that a GPU has 32 images at once, or fewer

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300

exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "${RESTARTS:-10}" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id farmer --rdzv-conf join_timeout=86400,read_timeout=600 \
    -m farmer train "$PRESET" --data "$DATA" --folder "$FOLDER" --accumulation "$ACCUMULATION" "$@"
