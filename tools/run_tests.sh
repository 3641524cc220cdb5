#!/usr/bin/env bash
# Makes the environment if need be, then runs the test suite.
# Usage: bash tools/run_tests.sh [--full] [pytest arguments]
#   --full   also what takes minutes; writes docs/reliability.md
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
arguments=()
for argument in "$@"; do
  # Tests with any mark: pyproject.toml leaves those marked "full" out.
  if [ "$argument" = --full ]; then arguments+=(-m ""); else arguments+=("$argument"); fi
done
bash tools/setup_env.sh
.venv/bin/python -m ruff check .
# One process per core with one thread each; a test file stays in one process.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n "$(nproc)" --dist loadfile "${arguments[@]}"
