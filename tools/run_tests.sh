#!/usr/bin/env bash
# Makes the environment if need be, then runs the linters and the test suite.
# Usage: bash tools/run_tests.sh [--stack NAME] [--full] [pytest arguments]
#   --stack NAME   with that set of packages; see tools/setup_env.sh, also for
#                  PYTHON=python3.12 bash tools/run_tests.sh
#   --full         also what takes minutes; writes docs/reliability.md, or
#                  docs/reliability-NAME.md where the set is not openmmlab
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
full=
setup=()
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --stack) setup=(--stack "${2-}"); shift ;;
    # Tests with any mark: pyproject.toml leaves those marked "full" out.
    --full) full=1; arguments+=(-m "") ;;
    *) arguments+=("$1") ;;
  esac
  shift || break
done
# Sets python, stack and venv, and has cores. It stops the whole script where it fails.
source tools/setup_env.sh "${setup[@]}"
[ -z "$full" ] || export MM_ACON_REPORT=$PWD/docs/reliability${venv#"$PWD/.venv"}.md
# The formatters are pinned for one stack.
if [ "$stack" = openmmlab ]; then
  PATH=$venv/bin:$PATH bash tools/dev/lint.sh
fi
# One process per core with one thread each; a test file stays in one process.
OMP_NUM_THREADS=1 exec "$python" -m pytest -n "$(cores)" --dist loadfile "${arguments[@]}"
