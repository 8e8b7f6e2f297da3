#!/usr/bin/env bash
# Creates .venv-pytorch with the projects whose networks deeplab_tf loads: torchvision,
# segmentation_models_pytorch, MMSegmentation, transformers and timm. Only
# tests/pytorch_networks.py runs there; it needs 8 GB of disk space.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv-pytorch/bin/python
[[ -x "$python" ]] || "${PYTHON:-python3}" -m venv .venv-pytorch
install=("$python" -m pip install --quiet --disable-pip-version-check --no-input)
# torch first: the rest would bring a different build.
"${install[@]}" torch==2.14.1 torchvision==0.29.1
"${install[@]}" safetensors==0.8.0 segmentation-models-pytorch==0.6.0 timm==1.0.31 \
  transformers==5.24.0
# The complete mmcv needs a compiler; DeepLab does not need its operations.
"${install[@]}" mmcv-lite==2.1.0 mmengine==0.10.7 mmsegmentation==1.2.2 ftfy regex
