r"""Repeats the papers' ablations on CamVid at a small scale.

    python -m benchmarks.ablations --dataset_dir=tfrecord/camvid \
      --tf_initial_checkpoint=deeplabv3_mnv2_pascal_trainval/model.ckpt \
      --output_dir=ablations

A row (`benchmarks/ablation_rows.py`) trains a MobileNetV2 on `train` for 300 steps of
small crops, or evaluates the model of another row differently; scores are on `val`.
--rows=dense,bilinear runs only these and, if missing, the training that they share.
`decoder` and `bilinear` are trained with several seeds, to estimate the noise of a
score; all other rows with one.

Results go to <output_dir>/<row>.json and are reused until the settings change. Killed
runs resume from <output_dir>/<row>/seed<n>. <output_dir>/ablations.md compares
all finished rows with the papers.

On one CPU core, a step of the base takes about a second; all 18 training runs and
the evaluations take two and a half hours. Checkpoints take 1.1 GB.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import os

from absl import flags as absl_flags

from benchmarks import ablation_report, short_runs
from benchmarks.ablation_rows import SUITE
from deeplab_tf.files import outputs
from deeplab_tf.programs import run_program
from deeplab_tf.visualize import encode_png

_REPORT, _CURVES = "ablations.md", "trimap.png"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return short_runs.define_flags(SUITE, "Seeds of decoder and bilinear.")


def main(values: absl_flags.FlagValues) -> None:
    """Runs missing rows, then compares all finished rows with the papers."""
    results = short_runs.run_suite(SUITE, values, [_REPORT, _CURVES])
    text = ablation_report.format_markdown(results)
    outputs.write_text(text, os.path.join(values.output_dir, _REPORT))
    if ablation_report.has_trimaps(results):
        plot = encode_png(ablation_report.plot_trimaps(results))
        outputs.write_bytes(plot, os.path.join(values.output_dir, _CURVES))
    print(text, end="")


if __name__ == "__main__":
    run_program(__name__)
