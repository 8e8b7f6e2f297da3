"""Measures the CPU time of one image with each model of the official zoo.

    python -m benchmarks.zoo_time --json=benchmarks/results/zoo_time.json

Runs the image size and output stride of each evaluation, at one scale. Each model runs
in its own process, with random weights, which do not change the speed. docs/zoo.md
shows the CPU times, which are summed over all cores.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import numpy as np
from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.measuring import Contender
from deeplab_tf.checkpoints.zoo import ZOO
from deeplab_tf.errors import UserError
from deeplab_tf.presets import PRESETS
from deeplab_tf.programs import run_program


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=3, presets=([], "Presets of zoo checkpoints; default: all.")
    )


def select_presets(names: list[str]) -> list[str]:
    """Returns presets of the zoo, one per model, output stride and image size."""
    models: dict[tuple, str] = {}
    for checkpoint in ZOO.values():
        for preset in checkpoint.evaluations:
            key = preset.eval_model, preset.evaluation.eval_crop_size
            models.setdefault(key, preset.name)
    known = list(models.values())
    for name in names:
        if name not in known:
            raise UserError(f"--presets={name} must be one of {', '.join(known)}")
    return names or known


def measure(preset: str, turns: int) -> dict:
    """Returns the median seconds of a preset's model."""
    contender = Contender(preset, "preset_inference", {"preset": preset})
    series = measuring.measure([contender], turns)
    clock, processors = np.median(series[preset], 0)
    return {
        "preset": preset,
        "seconds": float(clock),
        "processor_seconds": float(processors),
        "mebibytes": series.mebibytes[preset],
    }


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    rows = [measure(name, values.turns) for name in select_presets(values.presets)]
    cells = []
    for row in rows:
        size = "x".join(map(str, PRESETS[row["preset"]].evaluation.eval_crop_size))
        times = (f"{row[name]:.3g}" for name in ("seconds", "processor_seconds"))
        cells.append([row["preset"], size, *times, f"{row['mebibytes']:.0f}"])
    names = ["preset", "image", "s", "CPU s", "MiB"]
    table = measuring.markdown_table(names, cells)
    measuring.report(values, "Time of one image", {"rows": rows}, table)


if __name__ == "__main__":
    run_program(__name__)
