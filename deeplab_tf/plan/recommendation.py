"""Measures training steps and recommends flags for them."""

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
# Without a preset: PASCAL VOC's classes, the official crop and batch size.
_NUM_CLASSES, _CROP, _BATCH = 21, (513, 513), 16


@dataclasses.dataclass(frozen=True)
class _Request:
    """The steps to measure, and the memory of the device."""

    model: ModelConfig
    train: TrainConfig
    crop_sizes: tuple[tuple[int, int], ...]
    output_strides: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    batch: int
    mebibytes: float
    steps: int

    def measure(self, cell: Cell) -> Measurement | None:
        """Measures a step in a new process; returns None if it ran out of memory."""
        return measuring.measure_in_new_process(
            cell, self.model, self.train, self.steps
        )


def _parse_crop(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise UserError(
            f"--crop_sizes takes sides in pixels such as 513 or 769x1025; received "
            f"{text!r}"
        )
    height, width = int(sides[0]), int(sides[-1])
    return height, width


def _read_request(values: absl_flags.FlagValues, preset: Preset | None) -> _Request:
    """Returns the steps to measure, from the flags or else from the preset."""
    model = flags.read_model_config(
        values,
        preset and preset.model,
        num_classes=preset.model.num_classes if preset else _NUM_CLASSES,
    )
    crops = tuple(map(_parse_crop, values.crop_sizes or ()))
    strides = flags.read_integers(values, "output_strides")
    batches = flags.read_integers(values, "batch_sizes")
    if not batches or min(batches) < 1:
        raise UserError(f"--batch_sizes needs positive numbers; received {batches}")
    preset_crop = (preset and preset.data.crop_size) or _CROP
    preset_batch = preset.data.batch_size if preset else _BATCH
    for stride in strides:
        model.at_output_stride(stride)  # validates the stride
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


def _measure_grid(
    request: _Request, precision: str, log: Callable
) -> Iterator[Measurement]:
    """Logs every step to measure; yields the measurements that succeeded."""
    limit = measuring.usable_mebibytes(request.mebibytes)
    for crop in request.crop_sizes:
        for stride in request.output_strides:
            row: list[Measurement] = []
            for images in request.batch_sizes:
                cell = Cell(crop, stride, images, precision)
                expected = measuring.predict_mebibytes(row, images)
                if expected is not None and expected > limit:
                    log(_format_line(cell, f"needs about {expected:.0f} MiB"))
                    break
                one = request.measure(cell)
                if one is None:
                    log(_format_line(cell, "out of memory"))
                    break
                log(_format_measurement(one, limit))
                row.append(one)
                yield one


def _list_alternatives(best: Measurement) -> Iterator[Cell]:
    """Yields the best step with each other precision and XLA setting."""
    for precision in _PRECISIONS:
        # XLA makes depthwise convolutions about 20 times slower on CPU.
        for jit in ("on", "off") if distribution.has_gpu() else ("auto",):
            cell = dataclasses.replace(best.cell, precision=precision, jit=jit)
            if cell != best.cell:
                yield cell


def _recommend(
    request: _Request, measured: Sequence[Measurement], log: Callable
) -> Measurement | None:
    """Returns the fastest step that fits, at the first crop and output stride."""
    first = (request.crop_sizes[0], request.output_strides[0])
    # Training batch normalisation needs two images.
    least = 1 if request.train.normalization == "freeze" else 2
    candidates = [
        one
        for one in measured
        if (one.cell.crop_size, one.cell.output_stride) == first
        and one.cell.images >= least
    ]
    limit = measuring.usable_mebibytes(request.mebibytes)
    best = measuring.select_largest(candidates, request.batch, request.mebibytes)
    if best is None:
        # The smallest batch that can train, with recomputed activations.
        images = 2 if request.batch % 2 == 0 else request.batch
        one = request.measure(Cell(*first, images, recompute=True))
        if one is None or one.mebibytes > limit:
            return None
        log(_format_measurement(one, limit))
        return one
    for cell in _list_alternatives(best):
        one = request.measure(cell)
        if one is None:
            continue
        log(_format_measurement(one, limit))
        if one.mebibytes <= limit and one.step_seconds < best.step_seconds:
            best = one
    return best


def _format_line(cell: Cell, result: str) -> str:
    height, width = cell.crop_size
    variant = cell.precision + ("" if cell.jit == "auto" else f", jit {cell.jit}")
    variant += ", recompute" if cell.recompute else ""
    crop = f"{height}x{width}"
    return f"{crop:>10} {cell.output_stride:>6} {cell.images:>6}  {variant:<18}{result}"


def _format_measurement(one: Measurement, limit: float) -> str:
    """Formats a measured step as a line of the table, marked if it is too large."""
    result = (
        f"{one.mebibytes:>8.0f} {one.step_seconds:>8.2f} {one.images_per_second:>8.1f} "
        f"{one.compile_seconds:>8.1f}"
    )
    return _format_line(
        one.cell, result + ("" if one.mebibytes <= limit else "  too large")
    )


def main(values: absl_flags.FlagValues) -> None:
    """Measures every step, then prints the recommended flags."""
    flags.check_flags(values, "train")
    request = _read_request(values, flags.read_preset(values))
    if values.json:
        folder, name = outputs.split_path(values.json)
        outputs.claim(folder, [name], values.overwrite)
    limit = measuring.usable_mebibytes(request.mebibytes)

    log = functools.partial(print, flush=True)
    log(f"{limit:.0f} of {request.mebibytes:.0f} MiB may be used")
    log(
        f"{'crop':>10} {'stride':>6} {'images':>6}  {'precision':<18}{'MiB':>8} "
        f"{'s/step':>8} {'images/s':>8} {'compile':>8}"
    )
    measured = list(_measure_grid(request, values.precision, log))
    best = _recommend(request, measured, log)
    if best is None:
        height, width = request.crop_sizes[0]
        raise UserError(
            f"training on {height}x{width} crops at output stride "
            f"{request.output_strides[0]} does not fit into {limit:.0f} MiB, even with "
            "--recompute; use a smaller crop, a larger output stride or a smaller model"
        )
    recommended = measuring.training_flags(best, request.batch)
    log(f"\n{' '.join(recommended)}")
    log(
        f"{best.images_per_second:.1f} images/s, "
        f"{request.batch / best.images_per_second:.2f} s per step of "
        f"{request.batch} images, {best.mebibytes:.0f} MiB"
    )
    if values.json:
        best_row = {**_to_json(best), "flags": recommended}
        _write_json(values.json, request, measured, best_row)


def _write_json(
    path: str, request: _Request, measured: Sequence[Measurement], recommended: dict
) -> None:
    content = {
        "mebibytes": request.mebibytes,
        "measured": [_to_json(one) for one in measured],
        "recommended": recommended,
    }
    outputs.write_text(f"{json.dumps(content, indent=2)}\n", path)


def _to_json(measurement: Measurement) -> dict:
    values = dataclasses.asdict(measurement)
    return values | {"images_per_second": measurement.images_per_second}
