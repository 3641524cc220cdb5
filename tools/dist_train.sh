#!/usr/bin/env bash
# Usage: bash tools/dist_train.sh CONFIG GPUS [train.py options]
# Over several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=host PORT=29500 bash ...
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash tools/dist_train.sh CONFIG GPUS [train.py options]" >&2; exit 2; }

CONFIG=$1
GPUS=$2

python -m torch.distributed.run \
  --nnodes="${NNODES:-1}" \
  --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" \
  --master_port="${PORT:-29500}" \
  --nproc_per_node="$GPUS" \
  "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
