#!/usr/bin/env bash
# Train on the GPUs of one machine. The same line again goes on from the last checkpoint.
#
#   bash launch/local.sh                                      the paper's smallest model, on every GPU that CUDA_VISIBLE_DEVICES allows
#   PRESET=imagenet64 DATA=data/imagenet-64 bash launch/local.sh --steps 1000      what follows goes to `farmer train`
#
# Ctrl-C, SIGTERM, SIGHUP: the run saves, then ends. It may be moved to another number of GPUs, 1, 2, 4 or 8.
set -euo pipefail

PRESET=${PRESET:-imagenet256-1.1b-p16}                # farmer train --help lists them
DATA=${DATA:-data/imagenet-256}                       # made by: farmer prepare IMAGENET data/imagenet-256
FOLDER=${FOLDER:-runs/$PRESET}                        # log, samples, checkpoints, model
GPUS=${GPUS:-$(python -c "import torch; print(torch.cuda.device_count())")}
ACCUMULATION=${ACCUMULATION:-$((32 / GPUS))}          # 1024 images of a step / GPUS / 32 images at once: of this preset they fit into 80 GB

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300             # seconds that a save may take, from torch 2.12 on; torchrun's own patience is 30

exec torchrun --standalone --nproc-per-node "$GPUS" \
    -m farmer train "$PRESET" --data "$DATA" --folder "$FOLDER" --accumulation "$ACCUMULATION" "$@"
