#!/usr/bin/env bash
# Lints, checks types and runs tests: ./test.sh [--all] [pytest options]
# --all also runs slow tests and tests that need extras, in one process. Without it tests
# run in several processes; add -n0 for -s, --pdb and slow tests that measure.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
source tools/venv.sh

extras=dev
# Tests of one file share fixtures, so they stay together. At most four processes, because
# each takes up to 4 GB.
selection=(--numprocesses=auto --maxprocesses=4 --dist=loadfile)
if [[ "${1:-}" == --all ]]; then
  shift
  extras=all,dev
  # Sequential: some tests measure time or memory, or start several processes.
  selection=(-m "")
fi

ensure_venv "$extras"
if [[ "$extras" == all,* ]]; then
  # Without dependencies: opencv-python would overwrite the headless build of cv2.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --constraint constraints.txt imagecorruptions-imaug
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
exec .venv/bin/python -m pytest "${selection[@]}" "$@"
