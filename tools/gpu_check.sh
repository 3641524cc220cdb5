#!/usr/bin/env bash
# On a machine with a GPU: builds the operators for it, runs their tests, the sanitizer and the benchmarks
# on it, and writes what they print to docs/benchmarks/. Within 25 minutes; exits non-zero if a step fails.
# Needs torch 2.1: the benchmarks' torch.compile of meta-ACON does.
# Usage: bash tools/gpu_check.sh [--dry-run]    (PYTHON=... if it is not .venv's)
#   --dry-run  without a GPU: lists the steps, and tries each on the CPU, or on the emulated GPU, in small
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=docs/benchmarks
device=cuda
if [ "${1:-}" = --dry-run ]; then
  device=cpu
  OUT=$(mktemp -d)
  trap 'rm -rf "$OUT"' EXIT
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu_check.sh: torch sees no GPU; bash tools/gpu_check.sh --dry-run tries the steps without one." >&2
  exit 1
fi

# What is done on a GPU only, which a dry run lists, or in a dry run only.
on() {
  if [ "$device" = "$1" ]; then
    "${@:2}"
  elif [ "$1" = cuda ]; then
    echo "gpu_check: on a GPU: ${*:2}"
  fi
}
failed=()
# FILE SECONDS COMMAND...: what it prints goes to the file too, behind device, versions and date.
step() {
  local file=$OUT/gpu_$1 limit=$2 start=$SECONDS
  shift 2
  echo "gpu_check: $* (at most $limit s)"
  { "$PYTHON" -m mm_acon.env; date +%F; echo "$*"; } > "$file"
  if timeout "$limit" "$@" 2>&1 | tee -a "$file"; then
    echo "gpu_check:   done in $((SECONDS - start)) s"
  else
    echo "gpu_check:   FAILED"
    failed+=("${file##*/}")
  fi
}
py() { step "$1" "$2" "$PYTHON" "${@:3}"; }

on cuda step build.txt 220 env FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace
on cpu py build.txt 600 -m pytest -q -m "" tests/test_ops/test_cuda_sources.py -k "sm_90 or emulated"

# More than 2^31 elements, too, which take a CPU minutes.
on cuda export PYTEST_ADDOPTS='-m ""'
py tests.txt 240 -m pytest -q tests/test_ops tests/test_activations -k "$device-compiled or test_gpu"
on cuda py cases.txt 120 -m pytest -q tests/test_ops/cuda_emulation/cases.py

# The caching allocator would hide what is written outside of a tensor.
sanitized=(-m pytest -q -p no:cacheprovider tests/test_ops/test_acon.py tests/test_ops/test_pwlu.py
  tests/test_ops/test_views.py -k "$device-compiled and (by_hand or shapes or views)")
on cpu py sanitizer.txt 120 "${sanitized[@]}"
for tool in memcheck racecheck synccheck initcheck; do
  on cuda step "sanitizer_$tool.txt" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" "${sanitized[@]}"
done

# Of every dtype the shapes in which it is used; two layouts each.
quick=() limit=120
# Compilers are slow where they share two cores with tests.
on cpu eval 'quick=(--rounds 1 --warmup 0) limit=600'
ops() {
  local file=$1 dtype=$2
  shift 2
  py "$file" "$limit" tools/analysis/benchmark_ops.py --device "$device" --forms compiled torch.compile \
    --activations ACONC MetaACON PWLU --layouts contiguous channels_last --dtypes "$dtype" --shapes "$@" "${quick[@]}"
}
on cuda ops ops_float16.md float16 64x256x56x56 64x2048x7x7
on cuda ops ops_float32.md float32 16x64x112x112
on cuda ops ops_bfloat16.md bfloat16 2x256x200x336
on cpu ops ops_bfloat16.md bfloat16 2x8x5x5
size=(--size 800 --rounds 15 --warmup 5)
on cpu eval 'size=(--size 64 "${quick[@]}")'
py retinanet.md "$((limit + 80))" tools/analysis/benchmark_model.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --whole --batch 2 \
  --device "$device" --activations PWLU ACONC MetaACON "${size[@]}"

if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu_check: failed: ${failed[*]}" >&2
  exit 1
fi
echo "gpu_check: all steps passed"
