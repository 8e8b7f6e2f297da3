#!/usr/bin/env bash
# Lints and tests: ./test.sh [--all] [pytest options]
# With --all also the slow tests and those that need the extras.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
source tools/venv.sh

extras=dev
selection=()
if [[ "${1:-}" == --all ]]; then
  shift
  # Not gpu and peers: gigabytes that only benchmarks/ and machines with a GPU use.
  extras=hub,export,coco,cityscapes,tiff,tensorboard,jax,dev
  selection=(-m "")
fi

ensure_venv "$extras"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest ${selection[@]+"${selection[@]}"} "$@"
