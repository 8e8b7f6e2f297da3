r"""Measures memory and time of each batch size before anything is trained.

    python -m deeplab_tf.plan --preset=camvid_mobilenetv2 --batch_sizes=2,4,8

Every batch, crop and output stride is a few steps of the trainer on noise, in a process
of its own: the first compiles, the others are timed. More images than fit by the line
through the last two are not tried. At the end train.py's flags for --train_batch_size
images with the first crop and output stride: the most images at once that fit, the rest
accumulated, in the fastest precision and with XLA or without. No data are needed.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.plan import measuring
from deeplab_tf.plan.measuring import Cell, Measurement
from deeplab_tf.presets import Preset
from deeplab_tf.training import distribution

_PRECISIONS = ("float32", "bfloat16")
# Of a model without a preset: PASCAL VOC's classes, the official crop and batch.
_NUM_CLASSES, _CROP, _BATCH = 21, (513, 513), 16

_FLAGS = {
    "batch_sizes": (
        *(flags.STRINGS, ["1", "2", "4", "8", "16"]),
        "Numbers of images at once.",
    ),
    "crop_sizes": (
        *(flags.STRINGS, None),
        "Crops, as 513 or 769x1025; default: the preset's.",
    ),
    "output_strides": (flags.STRINGS, None, "Output strides; default: the preset's."),
    "train_batch_size": (
        *(flags.at_least(1), None),
        "Images of an optimiser step; default: the preset's.",
    ),
    "steps": (flags.at_least(1), 2, "Steps that are timed."),
    "memory_gib": (
        *(functools.partial(flags.FLOAT, lower_bound=0), None),
        "Available memory; default: that of the GPU or the machine.",
    ),
    "json": (flags.STRING, None, "File for the results."),
}


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_model_flags(values, "train")
    flags.define_overwrite(values)
    flags.define_flags(values, _FLAGS)
    return values


@dataclasses.dataclass(frozen=True)
class _Request:
    """The steps to measure, and the device."""

    model: ModelConfig
    train: TrainConfig
    crop_sizes: tuple[tuple[int, int], ...]
    output_strides: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    batch: int
    mebibytes: float
    steps: int

    def measure(self, cell: Cell) -> Measurement | None:
        """Measures a step; returns None if memory ran out."""
        return measuring.measure_in_new_process(
            cell, self.model, self.train, self.steps
        )


def _crop(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise UserError(
            f"--crop_sizes takes sides in pixels such as 513 or 769x1025; received "
            f"{text!r}"
        )
    height, width = int(sides[0]), int(sides[-1])
    return height, width


def _request(values: absl_flags.FlagValues, preset: Preset | None) -> _Request:
    model = flags.model_config(
        values,
        preset and preset.model,
        num_classes=preset.model.num_classes if preset else _NUM_CLASSES,
    )
    crops = tuple(map(_crop, values.crop_sizes or ()))
    strides = flags.whole_numbers_value(values, "output_strides")
    batches = flags.whole_numbers_value(values, "batch_sizes")
    if not batches or min(batches) < 1:
        raise UserError(f"--batch_sizes needs positive numbers; received {batches}")
    preset_crop = (preset and preset.data.crop_size) or _CROP
    preset_batch = preset.data.batch_size if preset else _BATCH
    for stride in strides:
        model.at_output_stride(stride)  # refuses what cannot be
    if values.memory_gib is None:
        mebibytes = measuring.device_mebibytes()
    else:
        mebibytes = 1024 * values.memory_gib
    return _Request(
        model,
        preset.train if preset else TrainConfig(),
        crops or (preset_crop,),
        strides or (model.output_stride,),
        tuple(sorted(set(batches))),
        values.train_batch_size or preset_batch,
        mebibytes,
        values.steps,
    )


def _grid(request: _Request, precision: str, say: Callable) -> Iterator[Measurement]:
    """Yields the measurements that ran, and prints every one."""
    limit = measuring.usable_mebibytes(request.mebibytes)
    for crop in request.crop_sizes:
        for stride in request.output_strides:
            alike: list[Measurement] = []
            for images in request.batch_sizes:
                cell = Cell(crop, stride, images, precision)
                expected = measuring.predict_mebibytes(alike, images)
                if expected is not None and expected > limit:
                    say(_line(cell, f"would take about {expected:.0f} MiB"))
                    break
                one = request.measure(cell)
                if one is None:
                    say(_line(cell, "memory ran out"))
                    break
                say(_measured_line(one, limit))
                alike.append(one)
                yield one


def _alternatives(best: Measurement) -> Iterator[Cell]:
    """Yields the same step in other precisions, with XLA and without."""
    for precision in _PRECISIONS:
        # XLA makes depthwise convolutions some twenty times slower on CPU.
        for jit in ("on", "off") if distribution.uses_gpu() else ("auto",):
            cell = dataclasses.replace(best.cell, precision=precision, jit=jit)
            if cell != best.cell:
                yield cell


def _recommend(
    request: _Request, measured: Sequence[Measurement], say: Callable
) -> Measurement | None:
    """Returns the fastest step that fits, of the first crop and output stride."""
    first = (request.crop_sizes[0], request.output_strides[0])
    # One image has no statistics to train batch normalisation with.
    least = 1 if request.train.normalization == "freeze" else 2
    own = [
        one
        for one in measured
        if (one.cell.crop_size, one.cell.output_stride) == first
        and one.cell.images >= least
    ]
    limit = measuring.usable_mebibytes(request.mebibytes)
    best = measuring.select_largest(own, request.batch, request.mebibytes)
    if best is None:
        # The smallest batch that has statistics, with less memory.
        images = 2 if request.batch % 2 == 0 else request.batch
        one = request.measure(Cell(*first, images, recompute=True))
        if one is None or one.mebibytes > limit:
            return None
        say(_measured_line(one, limit))
        return one
    for cell in _alternatives(best):
        one = request.measure(cell)
        if one is None:
            continue
        say(_measured_line(one, limit))
        if one.mebibytes <= limit and one.step_seconds < best.step_seconds:
            best = one
    return best


def _line(cell: Cell, result: str) -> str:
    height, width = cell.crop_size
    how = cell.precision + ("" if cell.jit == "auto" else f", jit {cell.jit}")
    how += ", recomputed" if cell.recompute else ""
    crop = f"{height}x{width}"
    return f"{crop:>10} {cell.output_stride:>6} {cell.images:>6}  {how:<18}{result}"


def _measured_line(one: Measurement, limit: float) -> str:
    result = (
        f"{one.mebibytes:>8.0f} {one.step_seconds:>8.2f} {one.images_per_second:>8.1f} "
        f"{one.compile_seconds:>8.1f}"
    )
    return _line(one.cell, result + ("" if one.mebibytes <= limit else "  too much"))


def main(values: absl_flags.FlagValues) -> None:
    """Measures, prints and recommends."""
    flags.check_flags(values, "train")
    request = _request(values, flags.chosen_preset(values))
    if values.json:
        folder, name = outputs.split(values.json)
        outputs.claim(folder, [name], values.overwrite)
    limit = measuring.usable_mebibytes(request.mebibytes)

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"{limit:.0f} of {request.mebibytes:.0f} MiB may be taken")
    say(
        f"{'crop':>10} {'stride':>6} {'images':>6}  {'precision':<18}{'MiB':>8} "
        f"{'s/step':>8} {'images/s':>8} {'compile':>8}"
    )
    measured = list(_grid(request, values.precision, say))
    best = _recommend(request, measured, say)
    if best is None:
        height, width = request.crop_sizes[0]
        raise UserError(
            f"no step of {height}x{width} at output stride "
            f"{request.output_strides[0]} fits {limit:.0f} MiB, recomputed or not; "
            "take a smaller crop, a larger output stride or a smaller model"
        )
    recommended = measuring.training_flags(best, request.batch)
    say(f"\n{' '.join(recommended)}")
    say(
        f"{best.images_per_second:.1f} images a second, "
        f"{request.batch / best.images_per_second:.2f} s for a step of "
        f"{request.batch} images, {best.mebibytes:.0f} MiB"
    )
    if values.json:
        best_row = {**_row(best), "flags": recommended}
        _write_json(values.json, request, measured, best_row)


def _write_json(
    path: str, request: _Request, measured: Sequence[Measurement], recommended: dict
) -> None:
    content = {
        "mebibytes": request.mebibytes,
        "measured": [_row(one) for one in measured],
        "recommended": recommended,
    }
    outputs.write_text(f"{json.dumps(content, indent=2)}\n", path)


def _row(one: Measurement) -> dict:
    return dataclasses.asdict(one) | {"images_per_second": one.images_per_second}
