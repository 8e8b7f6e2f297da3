r"""Measures what each trick of the training adds on CamVid, under one short protocol.

    python -m benchmarks.tricks --dataset_dir=tfrecord/camvid \
      --tf_initial_checkpoint=deeplabv3_mnv2_pascal_trainval/model.ckpt \
      --output_dir=tricks

Each row changes the base recipe in one way: 300 steps of 8 crops of 193x257, three
seeds. Training uses the split `fit`, the drives 0016E5 and 0001TP of CamVid's training
images; scores are on `val`, other frames of 0016E5, and on `drive`, the training images
of the drive 0006R0, which the model never sees. To make these splits:

    mkdir fit fitannot drive driveannot
    ln -rs camvid/train/00{01,16}* fit && ln -rs camvid/trainannot/00{01,16}* fitannot
    ln -rs camvid/train/0006* drive && ln -rs camvid/trainannot/0006* driveannot
    for split in fit drive; do
      python -m datasets.folder --image_dir=$split --label_dir=${split}annot \
        --classes=camvid.txt --ignore_label=11 --split=$split \
        --output_dir=tfrecord/camvid
    done

--rows=ema,jitter runs only these rows. Results are kept and killed runs resume as in
`benchmarks.short_runs`; <output_dir>/tricks.md compares all finished rows. On one CPU
core, a run takes 5 to 12 minutes.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import flags as absl_flags

from benchmarks import short_runs
from benchmarks.ablation_report import describe_origin
from benchmarks.ablation_rows import BASE, BASE_EVALUATION
from benchmarks.measuring import markdown_table
from benchmarks.short_runs import Row, Suite
from deeplab_tf.config import ContextConfig
from deeplab_tf.files import outputs
from deeplab_tf.programs import run_program

_REPORT = "tricks.md"
BASE_ROW = "base"
_UNSEEN = "drive"
_SIGNIFICANT = 2.0  # standard errors
_NOTE = (
    "mIoU in %: mean and standard deviation over seeds. A gain is the mean difference\n"
    "from the base, followed by twice its standard error; it is clear if it is larger."
)
_COLUMNS = ("trick", "val", "gain", "unseen drive", "gain", "clear", "CPU minutes")


def _row(name: str, **changes) -> Row:
    return Row(name, has_several_seeds=True, **changes)


_ROWS = (
    _row(BASE_ROW),
    _row("unweighted", train={"label_weights": ()}),
    # A third of the learning rate for the backbone.
    _row(
        "slow_backbone",
        train={"base_learning_rate": 0.0003, "last_layer_gradient_multiplier": 10 / 3},
    ),
    _row("jitter", data={"photometric_jitter": 0.5}),
    _row("ema", train={"ema_decay": 0.97}),
    _row("focal", train={"focal_gamma": 1.0}),
    _row(
        "mining", train={"top_k_percent_pixels": 0.25, "hard_example_mining_step": 100}
    ),
    _row("relaxed_border", train={"relaxed_border": 1}),
    _row("lovasz", train={"region_loss": "lovasz"}),
    _row("dice", train={"region_loss": "dice"}),
    _row("rmi", train={"region_loss": "rmi"}),
    _row("uniform_classes", data={"uniform_class_crops": 0.5}),
    _row("copy_paste", data={"copy_paste": 0.5}),
    _row("cutmix", data={"cutmix": 0.5}),
    _row("teacher", teacher=BASE_ROW),
)
ROWS = {row.name: row for row in _ROWS}
SUITE = Suite(
    ROWS,
    dataclasses.replace(
        BASE, model=dataclasses.replace(BASE.model, context=ContextConfig(rates=()))
    ),
    BASE_EVALUATION,
    train_split="fit",
    eval_splits=("val", _UNSEEN),
)


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return short_runs.define_flags(SUITE, "Seeds of every row.")


def format_markdown(results: Mapping[str, Sequence[dict]]) -> str:
    """Returns the table of all rows that have runs."""
    rows = markdown_table(_COLUMNS, _table_rows(results))
    return "\n\n".join([rows, _NOTE, describe_origin(results)]) + "\n"


def _table_rows(results: Mapping[str, Sequence[dict]]) -> Iterator[list[str]]:
    """Yields a row per trick: mIoU by split, and differences from the base."""
    base = _scores(results[BASE_ROW]) if results[BASE_ROW] else None
    for name, runs in results.items():
        if not runs:
            continue
        cells, are_clear = [], []
        for split, own in _scores(runs).items():
            cells.append(_mean_and_deviation(own))
            gain, error = compare(own, base[split]) if base else (math.nan, math.nan)
            is_base = name == BASE_ROW or not base
            noise = "" if math.isnan(error) else f" ± {error:.2f}"
            cells.append("" if is_base else f"{gain:+.2f}{noise}")
            are_clear.append(abs(gain) > error)
        splits = [s for s, c in zip(("val", _UNSEEN), are_clear, strict=True) if c]
        minutes = np.mean([run["train_cpu_seconds"] for run in runs]) / 60
        yield [name, *cells, ", ".join(splits), f"{minutes:.1f}"]


def _scores(runs: Sequence[dict]) -> dict[str, np.ndarray]:
    """Returns the mIoU in % of each seed by split."""
    unseen = [run["other_splits"][_UNSEEN] for run in runs]
    return {
        split: 100 * np.array([run["miou"] for run in each])
        for split, each in (("val", runs), (_UNSEEN, unseen))
    }


def compare(own: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Returns the difference of two means, and twice its standard error."""
    if len(own) < 2 or len(base) < 2:
        return own.mean() - base.mean(), math.nan
    error = math.sqrt(own.var(ddof=1) / len(own) + base.var(ddof=1) / len(base))
    return own.mean() - base.mean(), _SIGNIFICANT * error


def _mean_and_deviation(scores: np.ndarray) -> str:
    deviation = f" ± {scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
    return f"{scores.mean():.2f}{deviation}"


def main(values: absl_flags.FlagValues) -> None:
    """Runs missing rows, then compares all finished rows with the base."""
    results = short_runs.run_suite(SUITE, values, [_REPORT])
    text = format_markdown(results)
    outputs.write_text(text, os.path.join(values.output_dir, _REPORT))
    print(text, end="")


if __name__ == "__main__":
    run_program(__name__)
