"""Benchmarks a training step: ours, PyTorch and keras-hub.

    pip install 'deeplab_tf[peers]'
    python -m benchmarks.train_step --cases=mobilenet_v2:321:8,xception_65:257:2

A case is BACKBONE:CROP:BATCH. The model is DeepLabv3+ with separable convolutions at
output stride 16. A step is forward, loss on up-sampled logits, backward, L2 and
momentum on one batch in memory. PyTorch runs the same layers, in either memory layout.
keras-hub runs its DeepLabv3+ with ResNet-50 at output stride 32, also compared per
multiply-add. Frameworks that are not installed are skipped.

    python -m benchmarks.train_step --recompute --cases=xception_65:321:4

compares steps with and without recomputation of activations, and memory without the
model's.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

from collections.abc import Iterator
from typing import NamedTuple

from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.contenders import make_config
from benchmarks.measuring import Contender
from deeplab_tf.errors import UserError
from deeplab_tf.models.complexity import multiply_adds
from deeplab_tf.programs import run_program

# Required module, factory, and its arguments in addition to the task.
_CONTENDERS = {
    "float32": ("", "training_step", {}),
    "bfloat16": ("", "training_step", {"precision": "bfloat16"}),
    "pytorch": ("torch", "torch_training_step", {"channels_last": True}),
    "pytorch, NCHW": ("torch", "torch_training_step", {"channels_last": False}),
    "keras-hub": ("keras_hub", "keras_hub_training_step", {"jit": False}),
    "keras-hub with XLA": ("keras_hub", "keras_hub_training_step", {"jit": True}),
}
_RECOMPUTATION = {
    "float32": ("", "training_step", {}),
    "recomputed": ("", "training_step", {"recompute": True}),
}
_OTHER_NETWORK = "keras_hub"
_MODULES = sorted({module for module, *_ in _CONTENDERS.values()} - {""})


class Case(NamedTuple):
    """A model to train: backbone, crop side and images per step."""

    backbone: str
    side: int
    batch: int

    @property
    def model(self) -> dict:
        """Official model flags."""
        return {"model_variant": self.backbone, "output_stride": 16}

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass for one image."""
        return multiply_adds(make_config(self.model), (self.side, self.side))


def parse_case(text: str) -> Case:
    """Parses a value of `--cases`."""
    backbone, *numbers = text.split(":")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise UserError(f"--cases takes BACKBONE:CROP:BATCH; received {text!r}")
    return Case(backbone, *map(int, numbers))


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=9,
        cases=(
            ["mobilenet_v2:321:8", "xception_65:257:2"],
            "Backbone, crop side and images per batch of each case.",
        ),
        leave_out=([], f"Contenders to skip: {', '.join([*_MODULES, *_CONTENDERS])}."),
        steps=(2, "Steps per turn.", 1),
        recompute=(False, "Compare with recomputation of activations instead."),
    )


def make_contenders(case: Case, values: absl_flags.FlagValues) -> Iterator[Contender]:
    """Yields the contenders that are installed and not left out."""
    task = {"batch": case.batch, "size": [case.side, case.side], "times": values.steps}
    contenders = _RECOMPUTATION if values.recompute else _CONTENDERS
    for name, (module, factory, own) in contenders.items():
        is_left_out = {module, name} & set(values.leave_out)
        if is_left_out or not measuring.is_installed(module):
            continue
        model = {} if module == _OTHER_NETWORK else {"model": case.model}
        yield Contender(name, factory, task | own | model)


def compare(case: Case, values: absl_flags.FlagValues) -> tuple[list[dict], str]:
    """Measures a case; returns rows and table."""
    series = measuring.measure(make_contenders(case, values), values.turns)
    if values.recompute:
        for name, own in series.properties.items():
            series.mebibytes[name] -= own["ready_mebibytes"]
    rows = measuring.summarize(series, values.steps)
    others = measuring.add_multiply_adds(rows, case.multiply_adds)
    for row in rows:
        row["images_per_second"] = 1000 * case.batch / row["milliseconds"]
    return rows, measuring.table(rows, "step") + others


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    cases = [parse_case(text) for text in values.cases]
    result, texts = {}, []
    for text, case in zip(values.cases, cases, strict=True):
        result[text], rows = compare(case, values)
        texts.append(
            f"{case.backbone}, crop {case.side}x{case.side}, batch {case.batch}, "
            f"{case.multiply_adds / 1e9:.2f} billion multiply-adds per image\n\n{rows}"
        )
    result = {"cases": result, "packages": _MODULES}
    measuring.report(values, "A step of training", result, "\n\n".join(texts))


if __name__ == "__main__":
    run_program(__name__)
