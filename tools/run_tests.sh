#!/usr/bin/env bash
# Makes the environment if need be, then runs the linters and the test suite.
# Usage: bash tools/run_tests.sh [--stack NAME] [--full] [pytest arguments]
#   --stack onedl   with that set of packages (tools/setup_env.sh)
#   --full          also what takes minutes; writes docs/reliability.md, or
#                   docs/reliability-onedl.md
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stack=openmmlab
suffix=
full=
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --stack) stack=${2-}; shift ;;
    # Tests with any mark: pyproject.toml leaves those marked "full" out.
    --full) full=1; arguments+=(-m "") ;;
    *) arguments+=("$1") ;;
  esac
  shift || break
done
bash tools/setup_env.sh --stack "$stack"
[ "$stack" = openmmlab ] || suffix=-$stack
python=.venv$suffix/bin/python
[ -z "$full" ] || export MM_ACON_REPORT=$PWD/docs/reliability$suffix.md
# The formatters are pinned for one stack.
if [ "$stack" = openmmlab ]; then
  PATH=$PWD/.venv/bin:$PATH bash tools/dev/lint.sh
fi
# One process per core with one thread each, which nproc would take for one core;
# a test file stays in one process.
cores=$(nproc)
OMP_NUM_THREADS=1 exec "$python" -m pytest -n "$cores" --dist loadfile "${arguments[@]}"
