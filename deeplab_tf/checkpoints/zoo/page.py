"""Generates docs/zoo.md, the page of the model zoo.

Counts and CPU times are results of `benchmarks.zoo_time`.
"""

import json
import pathlib
from collections.abc import Iterator

from deeplab_tf import presets
from deeplab_tf.checkpoints import zoo
from deeplab_tf.checkpoints.zoo import ZooCheckpoint, describe_protocol
from deeplab_tf.checkpoints.zoo.pytorch import PYTORCH_ZOO, PyTorchCheckpoint
from deeplab_tf.errors import UserError
from deeplab_tf.presets import Preset

PAGE = "docs/zoo.md"
_RESULTS = "benchmarks/results/zoo_time.json"
# What the tests compare with the official code; "outputs" for all others.
VERIFIED = {
    "mobilenetv2_coco_voc_trainval": "scores",
    "mobilenetv2_ade20k_train": "variables",
    "xception71_dpc_cityscapes_trainfine": "variables",
    "xception71_dpc_cityscapes_trainval": "variables",
    "EdgeTPU-DeepLab": "no",
    "EdgeTPU-DeepLab-slim": "no",
}
_TEXT = """# The official model zoo

`python -m deeplab_tf.checkpoints.zoo --markdown` generates this page.

`deeplab_tf.from_pretrained("NAME")` downloads and loads a checkpoint
([pretrained models](pretrained.md)). In a checkout, this command downloads it, evaluates it with
its protocols and prints our scores next to the published ones:

```text
python -m benchmarks.model_zoo --dataset_dir=tfrecord --checkpoints=NAME
```

Without `--checkpoints`, it evaluates all checkpoints for the dataset in `tfrecord`, which is PASCAL
VOC, Cityscapes or ADE20K ([conversion](data.md)). Test splits have no labels; `--eval_split` names
a different split. For a quick trial, add `--images=20`.

{table}

- **protocol**: dataset, split, output stride, scales and mirrored images of the evaluation. Images
  are padded to the size in the next column. A row without a name is another protocol for the
  checkpoint above it. Checkpoints without a protocol are backbones to start training from.
- **mIoU**: as published, in %. For 8-bit checkpoints, it is that of the quantised network; this
  package loads their weights as floating point.
- **verified**: what our tests compare with the official code.
  - scores: with the official weights, the mIoU on 60 real images (`tests/test_real_images.py`)
  - outputs: with other weights, logits or labels (`tests/models/test_golden.py`, for MobileNetV3
    small `tests/checkpoints/test_official_files.py`); of a backbone, in a model that contains it
  - variables: names and shapes of all variables (`tests/models/test_manifests.py`)
- **parameters**: trainable ones, in millions. Backbones have a DeepLabv3+ head with 21 classes.
- **multiply-adds**: billions for one image at scale 1, not mirrored; the exact count
  ([published counts](complexity.md) use a different convention).
- **CPU s**: processor time for the same image, summed over cores. Exported
  models are faster ([performance](performance.md#inference)).

`python -m benchmarks.zoo_time` measured the CPU times
with {machine}.

## Checkpoints of PyTorch projects

`from_pretrained` also downloads and converts these by name, without PyTorch
([pretrained models](pretrained.md)). Names, addresses, figures and licences are as stated by
torchvision 0.29.1, MMSegmentation 1.2.2 and Hugging Face's model card.

{pytorch}

- **protocol**: dataset, split and image size of the published evaluation, at one scale. Compare
  figures only between rows with the same protocol: torchvision evaluates on COCO.
- **classes**: those of the dataset; for ADE20K without the background, so that class 0 is `wall`.
- **6 scales**: mIoU with scales 0.5 to 1.75 and mirrored images.
- **licence**: torchvision and MMSegmentation state it for their code; weights may also be subject
  to the terms of their training data.
- **download**: whether we tried it. Our tests load files with the same variables and random values.
  The file names of torchvision and MMSegmentation end in the first 8 digits of the SHA-256, which
  are verified.
"""  # noqa: E501


def _iterate_evaluations(checkpoint: ZooCheckpoint) -> Iterator[tuple[str, Preset]]:
    """Yields the name cell and preset of each row; only the first row has a name."""
    name = f"`{checkpoint.name}`"
    for preset in checkpoint.evaluations:
        yield name, preset
        name = ""


def _make_result_key(preset: Preset) -> tuple:
    return preset.eval_model, preset.evaluation.eval_crop_size


def _read_results(path: pathlib.Path) -> tuple[dict, str]:
    """Reads results by model and image size, and a description of the machine."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--markdown needs a checkout; there is no {path}") from None
    rows = {
        _make_result_key(presets.PRESETS[row["preset"]]): row for row in content["rows"]
    }
    versions = content["versions"]
    machine = f"TensorFlow {versions['tensorflow']} on {content['hardware']}"
    return rows, f"{machine}; commit {content['code'][:7]}"


def _format_row(checkpoint: ZooCheckpoint, preset: Preset, results: dict) -> list[str]:
    """Returns the cells of a row for an evaluation, without the name."""
    published, measured = preset.published, results[_make_result_key(preset)]
    protocol = describe_protocol(preset)
    if checkpoint.is_pretrained_backbone:
        protocol = f"none; pretrained on {preset.start}"
    miou = "" if published.miou is None else f"{published.miou:g}"
    if published.pixel_accuracy:
        miou += f" (pixel accuracy {published.pixel_accuracy:g})"
    return [
        protocol,
        "x".join(map(str, preset.evaluation.eval_crop_size)),
        miou,
        VERIFIED.get(checkpoint.name, "outputs"),
        f"{measured['parameters'] / 1e6:.2f}",
        f"{measured['multiply_adds'] / 1e9:.2f}",
        f"{measured['processor_seconds']:.2g}",
    ]


def _format_pytorch_row(row: PyTorchCheckpoint) -> list[str]:
    """Returns the cells of a row for a PyTorch checkpoint."""
    figures = (row.miou, row.miou_multi_scale, row.mebibytes)
    return [
        f"`{row.name}`",
        row.project,
        row.licence,
        row.trained_on,
        row.protocol,
        str(len(row.class_names)),
        *("" if x is None else f"{x:.4g}" for x in figures),
        "not tried",
    ]


def _format_table(rows: list[list[str]]) -> str:
    header, *_ = rows
    rows = [header, len(header) * ["---"], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def format_page(root: pathlib.Path) -> str:
    """Returns the text of the page for a checkout."""
    results, machine = _read_results(root / _RESULTS)
    columns = "checkpoint,protocol,size,mIoU,verified,parameters,multiply-adds,CPU s"
    rows = [columns.split(",")]
    for checkpoint in zoo.ZOO.values():
        for name, preset in _iterate_evaluations(checkpoint):
            rows.append([name, *_format_row(checkpoint, preset, results)])
    columns = "checkpoint,project,licence,trained on,protocol,classes,mIoU,6 scales,MiB"
    pytorch = [[*columns.split(","), "download"]]
    pytorch += map(_format_pytorch_row, PYTORCH_ZOO.values())
    tables = {"table": _format_table(rows), "pytorch": _format_table(pytorch)}
    return _TEXT.format(machine=machine, **tables)


def write_page(root: pathlib.Path) -> None:
    """Writes the page into a checkout."""
    (root / PAGE).write_text(format_page(root), encoding="utf-8")
