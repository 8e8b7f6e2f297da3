"""The programs with official flags, from records to predictions, and their errors."""

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import shutil
import sys
import types

import numpy as np
import program_runs
import pytest
import tensorflow as tf
from conftest import ROOT
from listing import list_outputs
from PIL import Image
from record_files import make_record, write_shards
from small_zoo import add_tiny_checkpoint

from deeplab_tf.checkpoints.tf1 import read_variables
from deeplab_tf.config import (
    ContextConfig,
    DecoderConfig,
    EvalConfig,
    Experiment,
    ModelConfig,
)
from deeplab_tf.data import records
from deeplab_tf.data.info import generic_info
from deeplab_tf.evaluation.confusion import confusion_matrix
from deeplab_tf.presets import PRESETS, describe, find_preset
from deeplab_tf.programs import suggest_commands
from deeplab_tf.serving import exporting
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.training.resume import read_experiment, write_experiment

pytestmark = pytest.mark.usefixtures("shallow")

# As in the official scripts, but narrow, and with a decoder and two rates.
MODEL = (
    "--logtostderr",
    "--model_variant=mobilenet_v2",
    "--depth_multiplier=0.1",
    "--atrous_rates=6",
    "--atrous_rates=12",
    "--output_stride=16",
    "--decoder_output_stride=4",
)
TRAINING = (
    *MODEL,
    "--training_number_of_steps=3",
    "--save_interval_steps=2",
    "--train_split=train",
    "--train_crop_size=33",
    "--train_crop_size=33",
    "--train_batch_size=2",
    "--num_clones=1",
    "--fine_tune_batch_norm=true",
    "--dataset=pascal_voc_seg",
    "--batch_norm_momentum=0.1",  # ours: usable statistics after three steps
)


def run(name, *arguments):
    """Runs a program in this process and returns what it prints."""
    return program_runs.run(f"deeplab_tf.programs.{name}", *arguments)


def assert_refused(message, name, *arguments):
    """Checks that a program exits with a one-line error that matches a message."""
    program = f"deeplab_tf.programs.{name}"
    program_runs.assert_refused(f"^{name}.py: .*{message}", program, *arguments)


def train(dataset_dir, logs):
    paths = (f"--dataset_dir={dataset_dir}", f"--train_logdir={logs}")
    return run("train", *TRAINING, *paths)


@pytest.fixture(scope="module")
def logs(shallow, tiny_records, tmp_path_factory):
    """A `train_logdir` with checkpoints after two and three steps."""
    logs = tmp_path_factory.mktemp("trained") / "logs"
    tf.config.run_functions_eagerly(True)  # `pipeline` compiles
    train(tiny_records, logs)
    tf.config.run_functions_eagerly(False)
    return logs


@pytest.fixture(scope="module")
def pipeline(shallow, logs, tiny_records, tiny_voc, tmp_path_factory):
    """Folder and outputs of: resume at step two, evaluate, export, predict.

    `err` is the stderr of training and export.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    ignore = shutil.ignore_patterns("model.ckpt-3.*")
    shutil.copytree(logs, folder / "logs", ignore=ignore)
    latest = 'model_checkpoint_path: "model.ckpt-2"\n'
    (folder / "logs/checkpoint").write_text(latest)
    out, err = {}, {name: io.StringIO() for name in ("train", "export")}
    with contextlib.redirect_stderr(err["train"]):
        out["train"] = train(tiny_records, folder / "logs")
    out["eval"] = run(
        *("eval", *MODEL, "--eval_split=val", "--dataset=pascal_voc_seg"),
        *(
            "--eval_crop_size=65",
            "--eval_crop_size=65",
            "--max_number_of_evaluations=1",
        ),
        *(f"--checkpoint_dir={folder}/logs", f"--eval_logdir={folder}/eval"),
        f"--dataset_dir={tiny_records}",
    )
    with contextlib.redirect_stderr(err["export"]):
        out["export"] = run(
            *("export", *MODEL, f"--checkpoint_path={folder}/logs/model.ckpt-3"),
            *("--num_classes=21", "--crop_size=65", "--crop_size=65"),
            *("--inference_scales=1.0", f"--export_path={folder}/frozen_graph.pb"),
        )
    out["predict"] = run(
        *("predict", f"--model={folder}/frozen_graph.pb", f"--output_dir={folder}/out"),
        f"--images={tiny_voc}/JPEGImages",
    )
    err = {name: text.getvalue() for name, text in err.items()}
    return types.SimpleNamespace(folder=folder, out=out, err=err)


def test_training_saves_checkpoint_and_experiment(logs, tiny_records):
    assert tf.train.latest_checkpoint(str(logs)) == str(logs / "model.ckpt-3")
    experiment = read_experiment(str(logs))
    model = {
        "depth_multiplier": 0.1,
        "num_classes": 21,
        "output_stride": 16,
        "atrous_rates": [6, 12],
        "decoder_output_stride": [4],
        "batch_norm_momentum": 0.1,
    }
    assert experiment.model == ModelConfig.from_official_flags(model)
    assert experiment.data.dataset_dir == tiny_records
    assert experiment.data.crop_size == (33, 33)
    assert experiment.data.batch_size == 2
    assert experiment.train.training_number_of_steps == 3
    assert experiment.info.split_sizes == {"train": 3, "val": 2, "trainval": 5}


def test_training_resumes_from_latest_checkpoint(pipeline, logs):
    assert f"resuming from {pipeline.folder}/logs/model.ckpt-2" in pipeline.out["train"]
    reader = tf.train.load_checkpoint(f"{pipeline.folder}/logs/model.ckpt-3")
    assert reader.get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE") == 3
    assert reader.get_tensor("samples/.ATTRIBUTES/VARIABLE_VALUE") == 6
    # The statistics of the first layer show which images were read.
    name = "MobilenetV2/Conv/BatchNorm/moving_mean"
    before = read_variables(f"{pipeline.folder}/logs/model.ckpt-2")[name]
    after = read_variables(f"{pipeline.folder}/logs/model.ckpt-3")[name]
    uninterrupted = read_variables(f"{logs}/model.ckpt-3")[name]
    np.testing.assert_allclose(after, uninterrupted, atol=1e-6)
    assert np.abs(after - before).max() > 1e-3


def test_training_describes_the_run_before_it_starts(pipeline):
    lines = pipeline.out["train"].splitlines()
    start = lines.index(
        "data: pascal_voc_seg train, 3 images, batches of 2 crops of 33x33"
    )
    model, *rest, devices = lines[start + 1 : start + 7]
    assert re.fullmatch(
        r"model: mobilenet_v2, 21 classes, output stride 16, [\d,]+ parameters", model
    )
    assert rest == [
        f"initial weights: {pipeline.folder}/logs/model.ckpt-2",
        "steps: 2 to 3, 2.0 epochs in total",
        "evaluation: none while training; --eval_interval_steps=N adds it",
        f"results: {pipeline.folder}/logs",
    ]
    assert "; strategy: DefaultDistributionStrategy, replicas: 1, " in devices


def find_suggestions(err):
    """Returns the programs and flags of the commands that a program suggests."""
    _, _, commands = err.partition("next:\n")
    pattern = r"^  python (?:-m deeplab_tf )?(\w+)(?:\.py)? (.*)$"
    return [
        (name, flags.split()) for name, flags in re.findall(pattern, commands, re.M)
    ]


def test_programs_suggest_what_to_run_next(pipeline, tiny_records):
    folder = pipeline.folder
    logs = f"{folder}/logs"
    assert find_suggestions(pipeline.err["train"]) == [
        ("eval", [f"--checkpoint_dir={logs}", f"--eval_logdir={logs}/eval"]),
        (
            "export",
            [
                *(f"--checkpoint_path={logs}", f"--export_path={logs}/exported"),
                f"--dataset_dir={tiny_records}",
            ],
        ),
        ("predict", [f"--model={logs}", "--images=IMAGES", "--output_dir=OUT"]),
    ]
    model = f"--model={folder}/frozen_graph.pb"
    assert find_suggestions(pipeline.err["export"]) == [
        ("predict", [model, "--images=IMAGES", "--output_dir=OUT"])
    ]


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("/bin/deeplab", "deeplab eval"),
        ("/bin/deeplab-train", "deeplab-eval"),
        ("train.py", "python -m deeplab_tf eval"),
        ("checkout/train.py", "python eval.py"),
    ],
)
def test_suggestions_start_like_the_running_program(
    called, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.chdir(ROOT if called.startswith("checkout") else tmp_path)
    suggest_commands([("eval", "--checkpoint_dir=my logs")])
    assert (
        capsys.readouterr().err == f"next:\n  {expected} '--checkpoint_dir=my logs'\n"
    )


def test_evaluation_writes_metrics_json(pipeline, tiny_records):
    assert list_outputs(pipeline.folder / "eval") == ["metrics.json", "report.html"]
    metrics = json.loads((pipeline.folder / "eval/metrics.json").read_text())
    assert set(metrics) == {
        *("images", "miou", "pixel_accuracy", "frequency_weighted_iou"),
        *("iou_per_class", "accuracy_per_class", "f_score_per_class"),
        *("confusion_matrix", "class_names", "never_predicted", "protocol"),
        "miou_per_image",
    }
    assert metrics["images"] == 2
    assert np.shape(metrics["confusion_matrix"]) == (21, 21)
    assert len(metrics["iou_per_class"]) == len(metrics["class_names"]) == 21
    assert metrics["protocol"] == {
        "checkpoint": f"{pipeline.folder}/logs/model.ckpt-3",
        "dataset": "pascal_voc_seg",
        "split": "val",
        "output_stride": 16,
        "atrous_rates": [6, 12],
        "eval_scales": [1.0],
        "add_flipped_images": False,
        "prediction_with_upsampled_logits": True,
        "eval_crop_size": [65, 65],
        "eval_batch_size": 1,
        "min_resize_value": None,
        "max_resize_value": None,
        "ignore_label": 255,
        "window_size": None,
        "memory_limit_mb": None,
        "precision": "float32",
        "resize_factor": None,
    }
    assert f"written: {pipeline.folder}/eval/metrics.json" in pipeline.out["eval"]
    assert "aeroplane" in pipeline.out["eval"]


def test_flags_equal_to_the_experiment_print_no_note(pipeline):
    assert "note:" not in "".join(pipeline.out.values())


def test_export_has_frozen_graph_and_class_names(pipeline):
    path = pipeline.folder / "frozen_graph.pb"
    frozen = tf.compat.v1.GraphDef()
    frozen.ParseFromString(path.read_bytes())
    assert {"ImageTensor", "SemanticPredictions"} < {node.name for node in frozen.node}
    assert load_artefact(str(path)).info.class_names[1] == "aeroplane"
    assert "mobilenet_v2, 21 classes, output stride 16" in pipeline.out["export"]


def test_predictions_match_the_evaluation(pipeline, tiny_voc):
    counts = 0
    for stem in (tiny_voc / "ImageSets/Segmentation/val.txt").read_text().split():
        with (
            Image.open(tiny_voc / f"SegmentationClass/{stem}.png") as truth,
            Image.open(pipeline.folder / f"out/{stem}_label.png") as predicted,
        ):
            truth, predicted = np.array(truth), np.array(predicted)
        counts = counts + np.array(confusion_matrix(truth, predicted, 21, 255))
    metrics = json.loads((pipeline.folder / "eval/metrics.json").read_text())
    np.testing.assert_array_equal(metrics["confusion_matrix"], counts)
    assert (counts.sum(0) > 0).sum() > 1


REQUIRED = {
    "train": ("--train_logdir=l", "--dataset_dir=d"),
    "eval": ("--checkpoint_dir=c", "--eval_logdir=l", "--dataset_dir=d"),
    "vis": ("--checkpoint_dir=c", "--vis_logdir=l", "--dataset_dir=d"),
    "export": ("--checkpoint_path=c", "--export_path=e"),
    "predict": ("--model=m", "--images=i", "--output_dir=o"),
}


def test_every_program_checks_its_flags(tmp_path, capsys):
    for name, required in REQUIRED.items():
        required_flags = [
            f"{flag}={tmp_path}/nowhere" for flag in map(flag_name, required)
        ]
        with pytest.raises(SystemExit):
            run(name, *required_flags, "--alsologtostderr")
        err = capsys.readouterr().err
        assert err.startswith("warning: --alsologtostderr has no effect: "), name


def flag_name(flag):
    return flag.partition("=")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--train_crop_siz=33"],
            "no flag --train_crop_siz; similar: --train_crop_size",
        ),
        (["train"], "unexpected argument 'train'"),
        (["--model_variant=resnet_v9"], r"no backbone \(--model_variant\) 'resnet_v9'"),
        (
            ["--output_stride=12"],
            "output_stride must be 2, 4, 8, 16 or 32; received 12",
        ),
        (["--output_stride=sixteen"], "flag --output_stride=sixteen: "),
        (["--atrous_rates=6,x"], r"atrous_rates cannot be \['6,x'\]"),
        (["--multi_grid=1"], "multi_grid is not supported by mobilenet_v2"),
        (
            ["--tf_initial_checkpoint=nowhere/model.ckpt"],
            "no checkpoint nowhere/model.c",
        ),
        (
            ["--train_split=test"],
            "no records named test-.*; its splits are train, trainval, val",
        ),
        (
            ["--dataset_dir=nowhere"],
            "nowhere has no records named train-.; it has no records",
        ),
        (
            ["--dataset=cityscapes"],
            "--dataset=cityscapes contradicts .*json, which names pascal_voc_seg",
        ),
        (
            ["--train_batch_size=1"],
            r"batch normalisation cannot be trained \(train\) on one image at a time; "
            ".* --batch_norm=freeze",
        ),
        (
            ["--num_clones=3", "--distribution_strategy=one_device"],
            "num_clones=3 needs",
        ),
        (["--accumulate_steps=3"], "2 images cannot be divided evenly .*=3; 3 can"),
        (["--distribution_strategy=all"], "it must be auto, one_device, "),
        (["--precision=float8"], "it must be float32, bfloat16 or float16"),
        (
            ["--batch_norm=freeze"],
            "--batch_norm=freeze and --fine_tune_batch_norm=true",
        ),
        (
            ["--batch_norm=off"],
            "--batch_norm=off: it must be auto, train, sync or freeze",
        ),
        (["--ema_decay=1"], "ema_decay must be at least 0 and below 1; received 1.0"),
        (["--early_stop_evals=2"], "early_stop_evals=2 needs eval_interval_steps"),
        (
            ["--eval_interval_steps=1", "--eval_split=nowhere"],
            "no records named nowhere-.*; its splits are train, trainval, val",
        ),
        (
            ["--train_batch_size=0"],
            r"\(--train_batch_size\) .* least 1 .* received 0$",
        ),
        (["--train_crop_size=33,33,33"], "expected height and width, such as 513,513"),
        (
            ["--train_crop_size=-33,33"],
            r"--train_crop_size\) must be two integers, ",
        ),
        (["--label_weights=1,2"], "one weight for each of the 21 classes; received 2"),
        (
            ["--learning_policy=cosine"],
            "--learning_policy=cosine: it must be poly or step",
        ),
        (
            ["--base_learning_rate=nan"],
            "base_learning_rate must be a finite number, at least 0; received nan",
        ),
        (["--momentum=1.5"], "momentum must be at least 0 and below 1; received 1.5"),
        (
            ["--label_weights=nan,1"],
            r"label_weights must be finite numbers, each at least 0; .*\(nan, 1.0\)",
        ),
        (
            ["--quantize_delay_step=0"],
            "--quantize_delay_step=0 needs --fine_tune_batch_norm=false",
        ),
        (["--min_scale_factor=3"], "min_scale_factor must be at most max_scale_factor"),
    ],
)
def test_invalid_training_flags_are_refused_before_writing(
    tiny_records, tmp_path, arguments, message
):
    # Crop sizes given twice are combined, so each flag is given only once.
    base = [flag for flag in TRAINING if flag_name(flag) != flag_name(arguments[0])]
    paths = [f"--dataset_dir={tiny_records}", f"--train_logdir={tmp_path}/logs"]
    assert_refused(message, "train", *base, *paths, *arguments)
    assert os.listdir(tmp_path) == []


def test_missing_path_flags_are_reported():
    assert_refused(
        "--dataset_dir is required: the folder of the TFRecords",
        "train",
        "--train_logdir=l",
    )
    assert_refused("--train_logdir is required: ", "train", "--dataset_dir=d")
    assert_refused("--checkpoint_dir is required: ", "eval", "--dataset_dir=d")
    assert_refused("--export_path is required: ", "export", "--checkpoint_path=c")


def test_train_logdir_of_a_different_model_is_kept(logs, tiny_records):
    before = sorted(os.listdir(logs))
    paths = (f"--dataset_dir={tiny_records}", f"--train_logdir={logs}")
    message = "has a different model: --output_stride was 16 and is 8"
    assert_refused(message, "train", *TRAINING, *paths, "--output_stride=8")
    assert sorted(os.listdir(logs)) == before
    assert read_experiment(str(logs)).model.output_stride == 16


def test_resuming_with_a_different_optimizer_is_refused(logs, tiny_records):
    before = sorted(os.listdir(logs))
    paths = (f"--dataset_dir={tiny_records}", f"--train_logdir={logs}")
    message = "model.ckpt-3 does not match this model and optimiser; use a different"
    assert_refused(message, "train", *TRAINING, *paths, "--optimizer=adam")
    assert sorted(os.listdir(logs)) == before
    assert read_experiment(str(logs)).train.optimizer == "momentum"


def test_checkpoint_of_a_different_width_is_refused(logs, tiny_records, tmp_path):
    wide, data = "--depth_multiplier=0.2", f"--dataset_dir={tiny_records}"
    assert_refused(
        "model.ckpt-3 differs in architecture from mobilenet_v2 .*0.2",
        *("train", *TRAINING, data, wide, f"--train_logdir={tmp_path}/logs"),
        f"--tf_initial_checkpoint={logs}",
    )
    assert_refused(
        "model.ckpt-3 differs in architecture from mobilenet_v2 .*0.2",
        *(
            "eval",
            data,
            wide,
            f"--checkpoint_dir={logs}",
            f"--eval_logdir={tmp_path}/e",
        ),
    )
    assert os.listdir(tmp_path) == []


def test_invalid_evaluation_flags_are_refused_before_writing(
    logs, tiny_records, tmp_path
):
    data, out = f"--dataset_dir={tiny_records}", f"--eval_logdir={tmp_path}/eval"
    checkpoint = f"--checkpoint_dir={logs}"
    for arguments, message in (
        (
            [f"--checkpoint_dir={logs}/model.ckpt-9"],
            "no file .*index.*: model.ckpt-2, model",
        ),
        (
            [checkpoint, "--eval_split=test"],
            "no records named test-.*are train, trainval",
        ),
        ([checkpoint, "--eval_scales=0"], "eval_scales .* at least 0.01"),
        ([checkpoint, "--eval_crop_size=65"], "expected height and width"),
        ([checkpoint, "--eval_split=val", "x"], "unexpected argument 'x'"),
    ):
        assert_refused(message, "eval", data, out, *arguments)
        assert os.listdir(tmp_path) == []


def test_checkpoint_without_experiment_needs_model_flags(logs, tiny_records, tmp_path):
    for path in logs.glob("model.ckpt-3.*"):
        shutil.copy(path, tmp_path)
    (official,) = {str(path.with_suffix("")) for path in tmp_path.iterdir()}
    before = sorted(os.listdir(tmp_path))
    data, checkpoint = f"--dataset_dir={tiny_records}", f"--checkpoint_dir={official}"
    no_decoder = [flag for flag in MODEL if "decoder" not in flag]
    assert_refused(
        "is not a checkpoint of this mobilenet_v2 .* model .other classes, atrous_rat"
        "es or decoder flags.*: .* not in the model .decoder/",
        *("eval", *no_decoder, data, checkpoint, f"--eval_logdir={tmp_path}/eval"),
    )
    assert sorted(os.listdir(tmp_path)) == before


def test_invalid_export_flags_are_refused_before_writing(logs, tmp_path):
    checkpoint, path = f"--checkpoint_path={logs}", f"--export_path={tmp_path}/export"
    for arguments, message in (
        (["--checkpoint_path=nowhere"], "no checkpoint nowhere"),
        (
            [checkpoint, "--output_stride=12"],
            "output_stride must be 2, 4, 8, 16 or 32; .* 12",
        ),
        ([checkpoint, "--dataset=camvid"], "camvid has 11 classes, but .* has 21"),
        ([checkpoint, "--inference_scales=0"], "--inference_scales .* 0.01"),
        (
            [checkpoint, "--num_classes=19"],
            "is not a checkpoint of .* 2 skipped because",
        ),
    ):
        assert_refused(message, "export", path, *arguments)
        assert os.listdir(tmp_path) == []


def write_records(folder, label, info):
    """Writes two records with the same label."""
    image = np.random.RandomState(0).randint(0, 256, (*np.shape(label), 3))
    write_shards(folder, *[make_record(image, label, "bad")] * 2)
    records.write_info(info, str(folder))


def test_label_out_of_range_is_refused_before_training(tmp_path):
    write_records(tmp_path / "data", np.full((33, 33), 77), generic_info(21))
    # An experiment without a checkpoint does not restrict this one.
    write_experiment(Experiment(), str(tmp_path / "logs"))
    assert_refused(
        "train is not safe to train on: it has label values that are not classes: "
        r"record 0 of .*/train-00000-of-00001.tfrecord \(bad\): value 77 "
        r"\(first at x 0, y 0\)",
        *("train", *[flag for flag in TRAINING if "--dataset=" not in flag]),
        *(f"--dataset_dir={tmp_path}/data", f"--train_logdir={tmp_path}/logs"),
    )
    assert tf.train.latest_checkpoint(str(tmp_path / "logs")) is None


def test_training_starts_from_a_zoo_checkpoint(
    monkeypatch, tiny_records, tmp_path, eager_execution
):
    monkeypatch.setenv("DEEPLAB_TF_CACHE", str(tmp_path / "cache"))
    published = add_tiny_checkpoint(monkeypatch, tmp_path)
    command = (
        *("train", *TRAINING[:2], "--depth_multiplier=0.1", "--atrous_rates=6"),
        *("--aspp_convs_filters=16", "--decoder_output_stride=4"),
        *("--decoder_filters=16", "--tf_initial_checkpoint=tiny"),
        *("--train_crop_size=33,33", "--train_batch_size=2", "--base_learning_rate=0"),
        *("--training_number_of_steps=1", "--fine_tune_batch_norm=false"),
        *(f"--dataset_dir={tiny_records}", f"--train_logdir={tmp_path}/logs"),
    )
    assert f"tiny: {len(published)} restored" in run(*command)
    tuned = read_variables(f"{tmp_path}/logs/model.ckpt-1")
    assert all(np.array_equal(tuned[name], a) for name, a in published.items())
    assert read_experiment(str(tmp_path / "logs")).train.tf_initial_checkpoint == "tiny"
    # Resuming needs neither zoo nor cache.
    shutil.rmtree(tmp_path / "zoo")
    shutil.rmtree(tmp_path / "cache")
    assert "resuming from" in run(*command)


def make_toy_preset():
    """Returns a small preset in which no value is the default of its flag."""
    row = find_preset("deeplabv3plus_table5_eval8_decoder_sc_ms_flip")
    model = ModelConfig(
        depth_multiplier=0.1,
        output_stride=32,
        context=ContextConfig((3, 6), filters=16),
        decoder=DecoderConfig(filters=16),
        batch_norm_momentum=0.1,
    )
    train = {"training_number_of_steps": 1, "base_learning_rate": 0.05}
    return dataclasses.replace(
        row,
        name="toy",
        model=model,
        data=dataclasses.replace(row.data, crop_size=(33, 33), batch_size=2),
        train=dataclasses.replace(row.train, weight_decay=0.001, **train),
        train_split="trainval",
        evaluation=EvalConfig((0.5, 1.0), True, eval_crop_size=(65, 65)),
        eval_output_stride=16,
        eval_split="trainval",
    )


@pytest.fixture(scope="module")
def toy():
    """A preset that is registered as `toy`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "toy", make_toy_preset())
        yield PRESETS["toy"]


@pytest.fixture(scope="module")
def toy_pipeline(shallow, toy, tiny_records, tmp_path_factory):
    """Folder and output of: train, evaluate and export with a preset and some flags."""
    folder = tmp_path_factory.mktemp("toy")
    data = f"--dataset_dir={tiny_records}"
    tf.config.run_functions_eagerly(True)  # `pipeline` compiles
    out = {
        "train": run(
            *("train", "--preset=toy", data, f"--train_logdir={folder}/logs"),
            # The first equals the default of train.py, but counts as given.
            *("--base_learning_rate=0.0001", "--learning_power=0.5", "--seed=3"),
        ),
        "eval": run(
            *("eval", "--preset=toy", data, f"--checkpoint_dir={folder}/logs"),
            *(f"--eval_logdir={folder}/eval", "--eval_scales=1", "--eval_batch_size=1"),
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        # Records the options only: `pipeline` writes an export.
        exports = []

        def keep(_, path, **options):
            os.makedirs(path)
            exports.append(options)

        patch.setattr(exporting, "export_saved_model", keep)
        out["export"] = run(
            *("export", "--preset=toy", f"--checkpoint_path={folder}/logs"),
            *(f"--export_path={folder}/exported", "--crop_size=97,97"),
        )
    tf.config.run_functions_eagerly(False)
    return types.SimpleNamespace(folder=folder, out=out, export=exports[0])


def test_preset_fills_in_training_flags(toy, toy_pipeline, tiny_records):
    experiment = read_experiment(str(toy_pipeline.folder / "logs"))
    assert experiment.model == toy.model
    assert experiment.split == "trainval"
    given = {"dataset_dir": tiny_records, "seed": 3}
    assert experiment.data == dataclasses.replace(toy.data, **given)
    given = {"base_learning_rate": 1e-4, "learning_power": 0.5}
    given |= {"train_logdir": f"{toy_pipeline.folder}/logs", "batch_norm": "train"}
    assert experiment.train == dataclasses.replace(toy.train, **given)


def test_preset_fills_in_evaluation_flags(toy_pipeline):
    metrics = json.loads((toy_pipeline.folder / "eval/metrics.json").read_text())
    protocol = metrics["protocol"]
    assert protocol["output_stride"] == 16
    assert protocol["atrous_rates"] == [6, 12]
    assert protocol["eval_scales"] == [1.0]  # given as a flag
    assert protocol["add_flipped_images"] is True
    assert protocol["eval_crop_size"] == [65, 65]
    assert (protocol["split"], metrics["images"]) == ("trainval", 5)


def test_preset_fills_in_export_flags(toy_pipeline):
    # Without the preset it would be 8, the official default.
    assert "mobilenet_v2, 21 classes, output stride 16; " in toy_pipeline.out["export"]
    assert toy_pipeline.export["scales"] == (0.5, 1.0)
    assert toy_pipeline.export["flip"] is True
    assert toy_pipeline.export["crop_size"] == (97, 97)  # given as a flag


def test_preset_is_described_first(toy, toy_pipeline):
    for name, out in toy_pipeline.out.items():
        assert out.startswith(describe(toy) + "\n"), name


def test_deviations_from_a_preset_are_printed(toy_pipeline):
    deviations = {
        name: [text for text in out.splitlines() if "deviations" in text]
        for name, out in toy_pipeline.out.items()
    }
    assert deviations["train"] == [
        "  deviations: seed: 0 -> 3; base_learning_rate: 0.05 -> 0.0001; "
        "learning_power: 0.9 -> 0.5; "
        "start: ImageNet -> scratch (no tf_initial_checkpoint)"
    ]
    assert deviations["eval"] == ["  deviations: eval_scales: (0.5, 1.0) -> (1.0,)"]
    assert deviations["export"] == [
        "  deviations: eval_crop_size: (65, 65) -> (97, 97)"
    ]
    # No flag changes the model.
    assert "note:" not in "".join(toy_pipeline.out.values())


@pytest.mark.parametrize("name", REQUIRED)
def test_unknown_preset_is_refused(name, logs, tiny_records, tiny_voc, tmp_path):
    images = f"--images={tiny_voc}/JPEGImages"
    paths = {
        "train": (f"--dataset_dir={tiny_records}", f"--train_logdir={tmp_path}/l"),
        "eval": (f"--dataset_dir={tiny_records}", f"--checkpoint_dir={logs}"),
        "vis": (
            *(f"--dataset_dir={tiny_records}", f"--checkpoint_dir={logs}"),
            f"--vis_logdir={tmp_path}/v",
        ),
        "export": (f"--checkpoint_path={logs}", f"--export_path={tmp_path}/e"),
        "predict": (f"--model={logs}", images, f"--output_dir={tmp_path}/o"),
    }
    message = (
        "there is no preset 'edgetpu'; similar: edgetpu_deeplab_os32, .*; python -m "
        "deeplab_tf.presets lists the names"
    )
    assert_refused(message, name, *paths[name], "--preset=edgetpu")
    assert os.listdir(tmp_path) == []


def test_help_describes_the_program_and_its_flags():
    out = run("train", "--help")
    assert "Trains a model on TFRecords" in out and "--train_crop_size" in out


def test_script_prints_a_one_line_error(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train.py", "--no_such_flag"])
    with pytest.raises(SystemExit, match=r"^train.py: .*no_such_flag.*$") as error:
        runpy.run_path(f"{ROOT}/train.py", run_name="__main__")
    # Python prints it and exits with the status 1.
    assert "\n" not in error.value.code
    assert capfd.readouterr() == ("", "")
