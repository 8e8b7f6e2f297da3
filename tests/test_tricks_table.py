"""The table of tricks: its rows, gains and a short run."""

import dataclasses
import json

import pytest
from narrow_ablations import NARROW, NARROW_SUITE
from program_runs import run

from benchmarks import short_runs, tricks
from benchmarks.tricks import BASE_ROW, ROWS, SUITE
from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.data.info import dataset_info
from deeplab_tf.models.deeplab import build_model

BENCH = short_runs.Bench(
    SUITE,
    short_runs.make_base(
        SUITE,
        "records",
        dataset_info("camvid"),
        dataclasses.replace(
            SUITE.base.train,
            ignore_label=11,
            label_weights=(0.5,) * 11,
            tf_initial_checkpoint="model.ckpt",
        ),
    ),
    checksum="0a",
    output_dir="out",
    seeds=3,
)


def test_every_trick_changes_the_recipe_in_its_own_way():
    settings = [short_runs.make_settings(row, BENCH) for row in ROWS.values()]
    assert len({json.dumps(own) for own in settings}) == len(ROWS) >= 9
    teacher = short_runs.make_experiment(ROWS["teacher"], 2, BENCH).train.teacher
    assert teacher.startswith(f"out/{BASE_ROW}/seed2/model.ckpt-")


def make_runs(*scores):
    """Returns a run for each pair of mIoUs on val and on the unseen drive."""
    return [
        {
            "miou": val,
            "other_splits": {"drive": {"miou": drive}},
            "steps": 300,
            "train_cpu_seconds": 120.0,
            "code": "0a1b",
            "hardware": "1 core",
            "versions": {"keras": "3.15.1"},
        }
        for val, drive in scores
    ]


def test_gains_are_clear_beyond_twice_their_standard_error():
    results = {name: [] for name in ROWS} | {
        BASE_ROW: make_runs((0.50, 0.40), (0.51, 0.42), (0.52, 0.44)),
        "ema": make_runs((0.53, 0.41), (0.54, 0.43), (0.55, 0.45)),
        "jitter": make_runs((0.50, 0.40)),
    }
    lines = tricks.format_markdown(results).splitlines()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in lines if "|" in x]
    # Standard errors: sqrt(1 / 3 + 1 / 3) and sqrt(4 / 3 + 4 / 3).
    assert rows[2:] == [
        ["base", "51.00 ± 1.00", "", "42.00 ± 2.00", "", "", "2.0"],
        ["jitter", "50.00", "-1.00", "40.00", "-2.00", "", "2.0"],
        [
            *("ema", "54.00 ± 1.00", "+3.00 ± 1.63", "43.00 ± 2.00", "+1.00 ± 3.27"),
            *("val", "2.0"),
        ],
    ]
    assert lines[-1] == "All rows: 300 steps, commit 0a1b, 1 core; keras 3.15.1."


@pytest.mark.slow
def test_tricks_are_trained_and_scored_on_both_splits(
    tiny_records, tmp_path, monkeypatch
):
    suite = dataclasses.replace(
        NARROW_SUITE,
        rows={name: ROWS[name] for name in (BASE_ROW, "uniform_classes", "teacher")},
        eval_splits=("val", "train"),
    )
    monkeypatch.setattr(tricks, "SUITE", suite)
    monkeypatch.setattr(tricks, "_UNSEEN", "train")
    prefix = str(tmp_path / "official/model.ckpt")
    save_tf1_checkpoint(build_model(NARROW.model), prefix)
    out = run(
        "benchmarks.tricks",
        f"--dataset_dir={tiny_records}",
        f"--output_dir={tmp_path}/tricks",
        f"--tf_initial_checkpoint={prefix}",
        *("--steps=1", "--seeds=1"),
    )
    for name in suite.rows:
        (result,) = json.loads((tmp_path / f"tricks/{name}.json").read_text())["runs"]
        assert (result["images"], result["other_splits"]["train"]["images"]) == (2, 3)
    assert "| teacher |" in out
    assert f"{tmp_path}/tricks/base/seed0/model.ckpt-1: " in out
