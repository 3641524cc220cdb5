#!/usr/bin/env bash
# On a machine with a GPU: builds the operators for it, runs the tests on it and
# the benchmarks, and writes what they print to docs/benchmarks/.
# Usage: bash tools/gpu_check.sh    (PYTHON=... if it is not .venv's)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=docs/benchmarks
"$PYTHON" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "gpu_check.sh: torch sees no GPU.")'

FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace
"$PYTHON" -m mm_acon.env | tee "$OUT/gpu_environment.txt"
"$PYTHON" -m pytest -q tests/test_ops tests/test_activations -k cuda- | tee "$OUT/gpu_tests.txt"
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest -q tests/test_ops/test_acon.py tests/test_ops/test_pwlu.py \
    -k "cuda- and (shapes or by_hand)" | tail -n 5 | tee "$OUT/gpu_sanitizer.txt"
fi
{
  "$PYTHON" tools/analysis/benchmark_ops.py --device cuda --shapes 64x256x56x56 --forms compiled \
    --dtypes float32 float16 bfloat16 --layouts contiguous channels_last --rounds 51 --warmup 10
  for model in 50 18; do
    "$PYTHON" tools/analysis/benchmark_model.py "mmpretrain::resnet/resnet${model}_8xb32_in1k.py" --device cuda --batch 64 \
      --dtype float16 --layout channels_last --activations PWLU ACONC MetaACON --rounds 31 --warmup 10
  done
} | tee "$OUT/gpu.md"
