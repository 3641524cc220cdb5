#!/usr/bin/env bash
# Makes the environment if need be, then runs the test suite.
# Usage: bash tools/run_tests.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
