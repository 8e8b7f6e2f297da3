"""Measures the models of the official zoo: parameters, multiply-adds, CPU time.

    python -m benchmarks.zoo_time --json=benchmarks/results/zoo_time.json

Predicts one image of the size and output stride of each evaluation, at one scale. Each
model runs in its own process, with random weights, which do not change the speed. CPU
times are summed over all cores. docs/zoo.md shows the results.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import numpy as np
from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.measuring import Contender
from deeplab_tf.checkpoints.zoo import ZOO
from deeplab_tf.errors import UserError
from deeplab_tf.models.complexity import count_parameters, multiply_adds
from deeplab_tf.presets import PRESETS, Preset
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


def count(preset: Preset) -> dict[str, int]:
    """Returns trainable parameters and multiply-adds."""
    size = preset.evaluation.eval_crop_size
    return {
        "parameters": count_parameters(preset.model)[0],
        "multiply_adds": multiply_adds(preset.eval_model, size),
    }


def measure(preset: str, turns: int) -> dict:
    """Returns counts and the median seconds of a preset's model."""
    contender = Contender(preset, "preset_inference", {"preset": preset})
    series = measuring.measure([contender], turns)
    clock, processors = np.median(series[preset], 0)
    return {
        "preset": preset,
        **count(PRESETS[preset]),
        "seconds": float(clock),
        "processor_seconds": float(processors),
        "mebibytes": series.mebibytes[preset],
    }


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    rows = [measure(name, values.turns) for name in select_presets(values.presets)]
    cells = [
        [name, *(f"{value:.4g}" for value in figures)]
        for name, *figures in (row.values() for row in rows)
    ]
    table = measuring.markdown_table(list(rows[0]), cells)
    measuring.report(values, "Models of the zoo", {"rows": rows}, table)


if __name__ == "__main__":
    run_program(__name__)
