"""The ablations: what is run, what is kept, and what follows of the numbers."""

import dataclasses
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from narrow_ablations import NARROW, NARROW_EVALUATION
from program_runs import assert_refused, run

from benchmarks import ablation_report, ablations
from benchmarks.ablation_rows import BASE, BASE_ROW, CLAIMS, ROWS
from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.config import DecoderConfig
from deeplab_tf.data.info import dataset_info
from deeplab_tf.models.deeplab import build_model

PROGRAM = "benchmarks.ablations"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The flag of a checkpoint like the official one: no 3x3 branch, no decoder."""
    context = dataclasses.replace(NARROW.model.context, rates=())
    config = dataclasses.replace(
        NARROW.model, context=context, decoder=DecoderConfig(output_strides=())
    )
    prefix = str(tmp_path_factory.mktemp("official") / "model.ckpt")
    save_tf1_checkpoint(build_model(config), prefix)
    return f"--tf_initial_checkpoint={prefix}"


@pytest.fixture
def places(tiny_records, tmp_path):
    """The required flags, but for the checkpoint."""
    return f"--dataset_dir={tiny_records}", f"--output_dir={tmp_path}"


@pytest.fixture
def program(monkeypatch, places, checkpoint):
    """A function of flags that runs the narrow program and returns what it prints."""
    monkeypatch.setattr(ablations, "BASE", NARROW)
    monkeypatch.setattr(ablations, "BASE_EVALUATION", NARROW_EVALUATION)
    return functools.partial(run, PROGRAM, *places, checkpoint, "--seeds=1")


BENCH = ablations.Bench(
    ablations.make_base(
        "records",
        dataset_info("camvid"),
        dataclasses.replace(
            BASE.train,
            training_number_of_steps=600,
            tf_initial_checkpoint="model.ckpt",
            ignore_label=11,
        ),
    ),
    checksum="0a",
    output_dir="out",
    seeds=3,
)


def runs_of(tmp_path, name):
    return json.loads((tmp_path / f"{name}.json").read_text())["runs"]


# --- Rows and claims.


def claim_of(row):
    return next(claim for claim in CLAIMS if claim.row == row)


def test_claims_agree_with_the_published_figures():
    assert {claim.row for claim in CLAIMS} == ROWS.keys() - {BASE_ROW}
    for claim in CLAIMS:
        assert claim.reference in ROWS and claim.reference != claim.row
        assert claim.expected in ("better", "worse", "alike")
        assert claim.source
        if claim.published is not None and claim.expected != "alike":
            assert (claim.published > 0) == (claim.expected == "better"), claim
    projection = claim_of("projection_8")
    assert projection.published == pytest.approx(77.61 - 78.21)
    assert projection.source == "1802.02611, Table 1"
    stride = claim_of("eval_stride_32")
    assert (stride.published, stride.source) == (None, "1706.05587, Sec. 4.1")


def test_every_row_differs_from_the_others():
    settings = {row.name: ablations.make_settings(row, BENCH) for row in ROWS.values()}
    assert len({json.dumps(own) for own in settings.values()}) == len(ROWS)
    # Only these rows begin with nothing, and share a batch.
    scratch = [name for name, own in settings.items() if not own["checkpoint"]]
    shared = [name for name, own in settings.items() if own["replicas"] == 2]
    assert scratch == ["from_scratch"]
    assert shared == ["batch_norm_per_replica", "synchronised_batch_norm"]


def test_a_row_leaves_the_base_where_it_says():
    base = ablations.make_experiment(ROWS[BASE_ROW], 1, BENCH)
    assert base.train.base_learning_rate == BASE.train.base_learning_rate == 0.001
    assert (base.model.num_classes, base.train.ignore_label) == (11, 11)
    assert (base.data.seed, base.train.train_logdir) == (1, "out/decoder/seed1")
    assert ROWS["train_stride_8"].model == {"output_stride": 8}
    strided = ablations.make_experiment(ROWS["train_stride_8"], 1, BENCH)
    assert strided.model == base.model.at_output_stride(8)
    frozen = ablations.make_experiment(ROWS["frozen_batch_norm"], 1, BENCH)
    assert (frozen.train.normalization, base.train.normalization) == ("freeze", "train")


def test_rows_of_evaluation_share_a_model():
    base = ablations.make_experiment(ROWS[BASE_ROW], 0, BENCH)
    for row in ROWS.values():
        own = ablations.make_experiment(row, 0, BENCH)
        assert (own == base) == (BASE_ROW in (row.name, row.trained_by)), row.name
        assert not (row.trained_by and ROWS[row.trained_by].trained_by)
    scales = ablations.make_evaluation(ROWS["multi_scale_flips"], BENCH)
    assert scales.add_flipped_images and len(scales.eval_scales) == 6


@pytest.mark.parametrize(
    "part, change, is_setting",
    [
        ("data", {"dataset_dir": "there"}, False),
        ("train", {"tf_initial_checkpoint": "moved/model.ckpt"}, False),
        (None, {"output_dir": "else"}, False),
        (None, {"checksum": "1b"}, True),
        ("train", {"training_number_of_steps": 300}, True),
        ("train", {"label_weights": (1.0,) * 11}, True),
    ],
)
def test_places_are_no_settings(part, change, is_setting):
    if part:
        changed = dataclasses.replace(getattr(BENCH.experiment, part), **change)
        change = {
            "experiment": dataclasses.replace(BENCH.experiment, **{part: changed})
        }
    before, after = (
        ablations.make_settings(ROWS[BASE_ROW], bench)
        for bench in (BENCH, dataclasses.replace(BENCH, **change))
    )
    assert (before != after) == is_setting


# --- What follows of the numbers.


@pytest.mark.parametrize(
    ("expected", "difference", "noise", "holds"),
    [
        ("better", 1.0, 0.5, "yes"),
        ("better", -1.0, 0.5, "no"),
        ("worse", -1.0, 0.5, "yes"),
        ("worse", 1.0, 0.5, "no"),
        ("worse", -0.4, 0.5, "unclear"),
        ("better", -0.4, 0.5, "unclear"),
        ("better", 0.1, 0.0, "yes"),
        ("better", 0.0, 0.0, "unclear"),
        ("better", 5.0, None, "unclear"),
        ("better", math.nan, 0.5, "unclear"),
        ("alike", -0.4, 0.5, "yes"),
        ("alike", 0.6, 0.5, "no"),
        ("alike", 0.0, None, "unclear"),
    ],
)
def test_verdicts(expected, difference, noise, holds):
    assert ablation_report.judge(expected, difference, noise) == holds


def made(*mious, narrow=(0.0, 0.0, 0.0)):
    """Returns runs of some mIoU; those of trimaps of width 1 are lower by `narrow`."""
    return [
        {
            "seed": seed,
            "miou": miou,
            "steps": 300,
            "train_seconds": 90.0,
            "code": "0a1b",
            "hardware": "2 of 2 cores of a processor",
            "versions": {"keras": "3.15.1"},
            "trimap": {"widths": [1, 40], "miou": [miou - narrow[seed], miou]},
        }
        for seed, miou in enumerate(mious)
    ]


@pytest.fixture
def results():
    """Three seeds of two rows, one of two others; the rest was not run."""
    return {name: [] for name in ROWS} | {
        "decoder": made(0.60, 0.61, 0.62, narrow=(0.2, 0.2, 0.2)),
        "bilinear": made(0.56, 0.60, 0.58, narrow=(0.25, 0.27, 0.26)),
        "dense": made(0.63),
        "multi_scale": made(0.605),
    }


def test_noise_is_that_of_seeds(results):
    # Squares: 1 + 0 + 1 of the one, 4 + 4 + 0 of the other, 2 + 2 degrees of freedom.
    deviation = math.sqrt((2 + 8) / 4)
    assert ablation_report.seed_deviation(results) == pytest.approx(deviation)
    found = ablation_report.compare(claim_of("dense"), results)
    # One run against the mean of three, 61.
    assert found == pytest.approx((2.0, 2 * deviation * math.sqrt(1 + 1 / 3)))
    del results["decoder"][1:], results["bilinear"][1:]
    assert ablation_report.seed_deviation(results) is None


def test_rows_of_one_model_are_compared_seed_by_seed(results):
    found = ablation_report.compare(claim_of("multi_scale"), results)
    assert found == pytest.approx((0.5, 0.0))  # of seed 0 alone: 60.5 and 60


def test_the_trimap_gain_is_taken_by_seed(results):
    gains = ablation_report.trimap_gains(results)
    # Full images: 60 - 56, 61 - 60, 62 - 58; 5, 7 and 6 more in the narrowest band.
    np.testing.assert_allclose(gains, [[9, 4, 4], [8, 1, 1], [10, 4, 4]])
    results["bilinear"] = results["bilinear"][1:]
    assert ablation_report.trimap_gains(results).shape == (2, 3)


def test_the_tables_have_claims_and_spread(results):
    lines = ablation_report.markdown(results).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    claims = {(row[0], row[2]): row[3:] for row in cells if len(row) == 6}
    # 58 - 61, and 2 * 1.58 * sqrt(2 / 3).
    assert claims["bilinear", "1802.02611, Table 3"] == [
        *("-1.64", "-3.00 ± 2.58", "yes")
    ]
    assert claims["dense", "1802.02611, Table 5"] == ["+0.14", "+2.00 ± 3.65", "yes"]
    assert claims["multi_scale", "1802.02611, Table 3"] == ["+1.24", "+0.50", "yes"]
    assert claims["from_scratch", "1802.02611, Table 5"] == ["-2.41", "not run", ""]
    # 4.8 - 1.64 as published; 5, 7 and 6 here, whose deviation is 1.
    assert claims["decoder", "1802.02611, Fig. 5"] == ["+3.16", "+6.00 ± 1.15", "yes"]
    assert "| decoder | 61.00 ± 1.00 | 3 | 4.5 |" in lines
    assert "| dense | 63.00 | 1 | 1.5 |" in lines
    assert "| 1 | 41.00 ± 1.00 | 32.00 ± 1.00 | 9.00 ± 1.00 |" in lines
    assert lines[-3].startswith("| full image | 61.00 ± 1.00 | 58.00 ± 2.00 | 3.00")
    provenance = "commit 0a1b, 2 of 2 cores of a processor; keras 3.15.1."
    assert lines[-1] == f"All rows: 300 steps, {provenance}"


def test_decoder_and_bilinear_can_be_reported_alone(results):
    complete = ablation_report.markdown(results).splitlines()
    lines = ablation_report.trimap_markdown(results).splitlines()
    assert [line for line in lines if line in complete] == lines
    claims = [line for line in lines if "1802.02611" in line]
    assert len(claims) == 1 and "+6.00 ± 1.15" in claims[0]
    assert "dense" not in "".join(lines[:-1])


def test_rows_of_another_machine_are_told_apart(results):
    results["dense"][0]["hardware"] = "1 core"
    *_, first, second = ablation_report.markdown(results).splitlines()
    assert first.startswith("Of decoder, bilinear, multi_scale: 300 steps, ")
    assert second.startswith("Of dense: 300 steps, commit 0a1b, 1 core")


def test_the_trimap_plot_has_both_curves(results):
    plot = ablation_report.plot_trimaps(results)
    assert plot.dtype == np.uint8 and plot.ndim == 3
    colors = {tuple(color) for color in plot.reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # of Matplotlib's first curves


def test_files_of_rows_are_read(tmp_path):
    (tmp_path / "dense.json").write_text(json.dumps({"runs": made(0.63)}))
    found = ablation_report.read_results(str(tmp_path))
    assert list(found) == list(ROWS)
    assert (found["dense"], found["decoder"]) == (made(0.63), [])


# --- Running.


@pytest.mark.slow
def test_a_finished_row_is_kept_until_its_settings_change(program, tmp_path):
    out = program("--rows=bilinear", "--steps=1")
    (done,) = runs_of(tmp_path, "bilinear")
    assert (done["seed"], done["steps"], done["first_step"]) == (0, 1, 0)
    assert done["images"] == 2 and 0 <= done["miou"] <= 1
    assert len(done["iou_per_class"]) == 21
    assert len(done["trimap"]["miou"]) == len(done["trimap"]["widths"])
    assert done["versions"]["tensorflow"] == tf.__version__
    assert "cores of " in done["hardware"]
    assert done["code"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", done["code"])
    assert f"| bilinear | {100 * done['miou']:.2f} | 1 |" in out
    assert out.endswith((tmp_path / "ablations.md").read_text())
    before = (tmp_path / "bilinear.json").read_text()
    assert "bilinear, seed 0: kept" in program("--rows=bilinear", "--steps=1")
    assert (tmp_path / "bilinear.json").read_text() == before
    # A second seed is added.
    out = program("--rows=bilinear", "--steps=1", "--seeds=2")
    assert "bilinear, seed 0: kept" in out
    first, second = runs_of(tmp_path, "bilinear")
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["miou"] != second["miou"]
    # Nothing of any row was finished with other settings.
    out = program("--rows=bilinear", "--steps=2")
    assert "kept" not in out and "resuming" not in out
    (done,) = runs_of(tmp_path, "bilinear")
    assert (done["steps"], done["first_step"]) == (2, 0)
    assert out.count("not run") == len(CLAIMS)


@pytest.mark.parametrize(
    "message, wrong",
    [
        (
            "--rows=flips is not an ablation; choose from decoder, bilinear",
            "--rows=dense,flips",
        ),
        ("no checkpoint .*none", "--rows=dense"),
        ("no train-", "--dataset_dir=."),
    ],
)
def test_mistakes_are_reported(places, tmp_path, message, wrong):
    start = "--tf_initial_checkpoint=none"
    assert_refused(message, PROGRAM, *places, start, "--rows=dense", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_row_goes_on(program, tmp_path, monkeypatch):
    load = ablations.load_dataset

    def killed(*arguments, **options):
        """Returns real batches, the third of which comes with SIGTERM."""

        def kill(number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return number

        batches = load(*arguments, **options)
        numbers = tf.data.Dataset.counter().map(
            lambda i: tf.numpy_function(kill, [i], tf.int64)
        )
        return tf.data.Dataset.zip(batches, numbers).map(lambda batch, _: batch)

    monkeypatch.setattr(ablations, "load_dataset", killed)
    with pytest.raises(SystemExit) as ended:
        program("--rows=bilinear", "--steps=60")
    assert ended.value.code == 143
    assert not (tmp_path / "bilinear.json").exists()
    monkeypatch.setattr(ablations, "load_dataset", load)
    out = program("--rows=bilinear", "--steps=60")
    (done,) = runs_of(tmp_path, "bilinear")
    assert 1 <= done["first_step"] < 60
    assert f"resuming from {tmp_path}/bilinear/seed0/model.ckpt-" in out


@pytest.mark.slow
def test_a_row_of_evaluation_trains_the_shared_model_once(program, tmp_path):
    program("--rows=eval_stride_8", "--steps=1")
    assert runs_of(tmp_path, "eval_stride_8")[0]["first_step"] == 0
    # The score of the model itself is not there yet, but its weights are.
    assert not (tmp_path / "decoder.json").exists()
    out = program("--rows=decoder,multi_scale_flips", "--steps=1")
    for name in ("decoder", "multi_scale_flips"):
        assert runs_of(tmp_path, name)[0]["first_step"] == 1
    assert f"| {claim_of('eval_stride_8').published:+.2f} | " in out


@pytest.mark.slow
def test_every_row_runs(places, checkpoint, tmp_path):
    command = [sys.executable, "-m", "tests.narrow_ablations", *places, checkpoint]
    command += ["--steps=1", "--seeds=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ROWS:
        assert len(runs_of(tmp_path, name)) == 1
    assert "not run" not in done.stdout
    assert sum("unclear" in line for line in done.stdout.splitlines()) >= 10
    # As many trainings as there are rows that share no model.
    folders = [name for name in os.listdir(tmp_path) if (tmp_path / name).is_dir()]
    assert sorted(folders) == sorted(n for n, r in ROWS.items() if not r.trained_by)
