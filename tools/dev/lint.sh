#!/usr/bin/env bash
# Says what linters and formatters find, and changes nothing.
# Usage: bash tools/dev/lint.sh   in the environment of tools/setup_env.sh
# CONTRIBUTING.md has the commands that put it right.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
failed=0
run() { echo "lint: $*"; "$@" || failed=1; }
run python -m ruff check .
# The library of Python 3.8, as ruff sees to its syntax; "long" is torch's, not
# that of Python 2.
run vermin --quiet --target=3.8- --violations --no-tips \
  --exclude long setup.py docs mm_acon tests tools
run python -m isort --check-only --diff --quiet .
run python -m yapf --parallel --recursive --diff mm_acon tools tests configs setup.py docs/conf.py
run find mm_acon tests -regex '.*\.\(cpp\|h\|cu\|cuh\)' \
  -exec clang-format --dry-run --Werror {} +
# bash -n would read the first file alone.
run find tools .ci \( -name '*.sh' -o -path .ci/run \) \
  -exec bash -c 'for file; do bash -n "$file" || exit; done' -- {} +
exit $failed
