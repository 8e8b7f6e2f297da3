#!/usr/bin/env bash
# Lints, checks types and tests: ./test.sh [--all] [pytest options]
# With --all also the slow tests and those that need the extras. Without it the tests run
# in several processes; -n0 is for -s, --pdb and slow tests that measure.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
source tools/venv.sh

extras=dev
# A file's tests stay together, for what they share is made once. At most four, because
# each process takes up to 4 GB.
selection=(--numprocesses=auto --maxprocesses=4 --dist=loadfile)
if [[ "${1:-}" == --all ]]; then
  shift
  # Not gpu and peers: gigabytes that only benchmarks/ and machines with a GPU use.
  extras=hub,export,coco,cityscapes,tiff,robustness,tensorboard,jax,dev
  # One by one: some measure time or memory, or start several processes of their own.
  selection=(-m "")
fi

ensure_venv "$extras"
if [[ "$extras" == *robustness* ]]; then
  # Without what it asks for: opencv-python would replace the headless build of cv2.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --constraint constraints.txt imagecorruptions-imaug
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
exec .venv/bin/python -m pytest "${selection[@]}" "$@"
