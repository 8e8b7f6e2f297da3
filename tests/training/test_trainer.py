"""The trainer: parity with the official graph, resuming, evaluation and errors."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import GoldenCase, zero_kernels
from toy_model import NUM_CLASSES, toy_model

import deeplab_tf
from deeplab_tf import (
    ContextConfig,
    DataConfig,
    DatasetInfo,
    DecoderConfig,
    ModelConfig,
    TrainConfig,
    Trainer,
    UserError,
    build_model,
    load_dataset,
    load_tf1_variables,
    tf1_variables,
)
from deeplab_tf.files.lock_file import Owner
from deeplab_tf.files.locks import TRAINING_LOCK
from deeplab_tf.models.normalization import normalize_batch
from deeplab_tf.models.variables import batch_normalizations, official_variables
from deeplab_tf.training import summaries
from deeplab_tf.training.distribution import Worker
from deeplab_tf.training.history import History
from deeplab_tf.training.interruption import Interrupted
from deeplab_tf.training.losses import (
    regularization_loss,
    segmentation_loss,
)
from deeplab_tf.training.reporter import Validation

NARROW = ModelConfig(
    depth_multiplier=0.1,
    context=ContextConfig(rates=(), filters=16),
    decoder=DecoderConfig(output_strides=()),
)


@dataclasses.dataclass
class GoldenRun:
    """Results of the trainer on a golden training case."""

    golden: dict
    norms: dict
    results: list
    after: dict


def gradient_norms(model, images, labels, weight_decay):
    """Returns the norms of the gradients, including L2, before the multipliers."""
    trained = {n: v for n, v in official_variables(model).items() if v.trainable}
    with tf.GradientTape() as tape:
        loss = segmentation_loss(labels, model(images, training=True))
        loss += regularization_loss(trained, weight_decay)
    gradients = tape.gradient(loss, [v.value for v in trained.values()])
    return {n: float(tf.norm(g)) for n, g in zip(trained, gradients, strict=True)}


@pytest.fixture(
    scope="module",
    params=["train_mobilenet_v2", "train_xception_41_decoder_hard_mining"],
)
def golden_run(request):
    case = GoldenCase.load(request.param)
    settings = case.content["train"]
    config = ModelConfig.from_official_flags(case.flags)
    context = dataclasses.replace(config.context, dropout=settings["dropout"])
    with zero_kernels():
        model = build_model(dataclasses.replace(config, context=context))
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    options = {name: value for name, value in settings.items() if name in fields}
    images, labels = (f(settings["batch"]) for f in (case.images, case.labels))
    for layer in batch_normalizations(model):
        layer.frozen = not settings["fine_tune_batch_norm"]
    weights = case.weights()
    load_tf1_variables(model, weights)
    norms = gradient_norms(model, images, labels, settings["weight_decay"])
    load_tf1_variables(model, weights)  # resets the moving statistics
    trainer = Trainer(model, TrainConfig(**options))
    # A compiled step is compared for the smaller network.
    tf.config.run_functions_eagerly("xception" in request.param)
    results = [trainer.train_step(images, labels) for _ in range(settings["steps"])]
    after = tf1_variables(model)
    results.append(trainer.train_step(images, labels))
    tf.config.run_functions_eagerly(False)
    return GoldenRun(case.content, norms, results, after)


# How far rounding moves the loss of each step. The last bit of every weight, changed at
# random five times, moves the losses by 1e-6, 7e-6, 4e-4 and 6e-4 in the case with hard
# pixels, each of which is in the loss or is not, and by less in the other case. Another
# processor has the same effect.
LOSS_TOLERANCES = (1e-5, 3e-5, 1e-3, 1.5e-3)


def test_losses_match_official_code(golden_run):
    found = [result["data_loss"] for result in golden_run.results]
    expected = golden_run.golden["data_loss"]
    for loss, golden, tolerance in zip(found, expected, LOSS_TOLERANCES, strict=True):
        assert loss == pytest.approx(golden, rel=tolerance)
    decays = [result["regularization_loss"] for result in golden_run.results]
    assert decays == pytest.approx(golden_run.golden["regularization_loss"], rel=1e-6)
    rates = [result["learning_rate"] for result in golden_run.results[:3]]
    assert rates == pytest.approx(golden_run.golden["learning_rate"], rel=1e-6)


def test_gradients_match_official_gradients(golden_run):
    golden = golden_run.golden["gradient_norms_step0"]
    assert set(golden_run.norms) == set(golden)
    # Gradients that batch norm cancels are rounding noise. So is up to 0.4% of those
    # of the first layers, after fifty kinks of ReLU6; the median is 0.015%.
    noise = 1e-3 * np.median(list(golden.values()))
    assert golden_run.norms == pytest.approx(golden, rel=1e-2, abs=noise)
    errors = [abs(golden_run.norms[n] / g - 1) for n, g in golden.items() if g > noise]
    assert np.median(errors) < 1e-3


def test_variables_after_three_steps_match_official_code(golden_run):
    golden = golden_run.golden["variables_after"]
    assert set(golden_run.after) == set(golden)
    for name, (mean, rms) in golden.items():
        array = golden_run.after[name]
        # The last bit of every weight, changed at random three times, moves the worst
        # (betas) by 1.3e-5. The biases of the logits start at 0 and are sums over the
        # picked pixels: they move by 6.7e-5 and are within 1.1e-4 of the official ones.
        rel = 2e-4 if name == "logits/semantic/biases" else 5e-5
        assert np.sqrt(np.mean(array**2)) == pytest.approx(rms, rel=rel), name
        assert np.mean(array) == pytest.approx(mean, abs=5e-5 * rms), name


def batch(count=2, num_classes=NUM_CLASSES):
    random = np.random.RandomState(0)
    images = random.uniform(0, 255, (count, 33, 33, 3)).astype("float32")
    return images, random.randint(0, num_classes, (count, 33, 33, 1), np.uint8)


def test_frozen_batch_norm_trains_gamma_and_beta(eager_execution):
    model = toy_model()
    before = tf1_variables(model)
    config = TrainConfig(fine_tune_batch_norm=False, base_learning_rate=0.1)
    Trainer(model, config).train_step(*batch())
    for name, array in tf1_variables(model).items():
        kept = np.array_equal(array, before[name])
        assert kept == name.endswith(("moving_mean", "moving_variance")), name


def test_loss_is_computed_at_logits_resolution(eager_execution):
    model = toy_model()
    images, labels = batch()
    logits = keras.Model(model.input, model.get_layer("logits").output)(images)
    # At output stride 8, 33 pixels are 5 cells, at pixels 0, 8, 16, 24 and 32.
    expected = float(segmentation_loss(labels[:, ::8, ::8], logits))
    config = TrainConfig(
        upsample_logits=False, fine_tune_batch_norm=False, base_learning_rate=0.5
    )
    before = tf1_variables(model)["logits/biases"]
    result = Trainer(model, config).train_step(images, labels)
    assert result["data_loss"] == pytest.approx(expected, rel=1e-5)
    # The gradient of a bias is the mean of softmax - one_hot, with multiplier 2.
    shares = tf.reduce_mean(tf.nn.softmax(logits), (0, 1, 2))
    truth = np.bincount(labels[:, ::8, ::8].ravel(), minlength=NUM_CLASSES) / 50
    after = tf1_variables(model)["logits/biases"]
    np.testing.assert_allclose(after, before - 0.5 * 2 * (shares - truth), rtol=1e-4)


def test_weight_decay_and_gradient_multipliers_are_applied(eager_execution):
    model = toy_model()
    before = tf1_variables(model)
    config = TrainConfig(
        base_learning_rate=0.5,
        weight_decay=0.1,
        last_layer_gradient_multiplier=10.0,
        last_layers_contain_logits_only=True,
        fine_tune_batch_norm=False,
    )
    images, labels = batch()
    result = Trainer(model, config).train_step(images, np.full_like(labels, 255))
    kernels = [a for n, a in before.items() if n.endswith("/weights")]
    assert result["data_loss"] == 0.0
    # 0.1 / 2 times the sum of squares.
    decay = 0.05 * sum(np.sum(np.square(a)) for a in kernels)
    assert result["regularization_loss"] == pytest.approx(decay, rel=1e-5)
    for name, array in tf1_variables(model).items():
        # Ignored pixels have no gradient: w - 0.5 * 0.1 w, and ten times the decay for
        # the logits.
        factor = 0.95 if name.endswith("/weights") else 1.0
        factor = 0.5 if name == "logits/weights" else factor
        np.testing.assert_allclose(array, factor * before[name], rtol=1e-6)


def test_broken_training_stops_with_reason():
    trainer = Trainer(toy_model(), TrainConfig(training_number_of_steps=3))
    images, labels = batch()
    with pytest.raises(UserError, match="dataset ended after 1 step;"):
        trainer.train([(images, labels)])
    assert trainer.step == trainer.samples / 2 == 1
    # A ReLU may hide the NaN, but the gradients do not.
    message = r"^image 0 of the batch at step 1 \(2, 1\) has pixels that are not finite"
    with pytest.raises(UserError, match=message):
        trainer.train(
            [(images * np.nan, labels)], describe_samples=lambda *args: f"{args}"[1:-1]
        )
    message = r"^the model contains values that are not finite \(first: conv/"
    with pytest.raises(UserError, match=message):
        trainer.train([(images, labels)])


def test_label_weights_of_wrong_length_are_refused():
    with pytest.raises(UserError, match="each of the 5 classes; received 2"):
        Trainer(toy_model(), TrainConfig(label_weights=(1.0, 2.0)))


def train(folder, records):
    """Trains or resumes up to four steps; saves after two and four."""
    config = TrainConfig(
        train_logdir=str(folder),
        training_number_of_steps=4,
        base_learning_rate=0.1,
        save_interval_steps=2,
    )
    trainer = Trainer(toy_model(dropout=0.5), config)
    restored = trainer.restore_latest()
    data = DataConfig(dataset_dir=records, crop_size=(33, 33), batch_size=2)
    trainer.train(load_dataset(data, "train", training=True, start=trainer.samples))
    assert (trainer.step, trainer.samples) == (4, 8)
    return restored, tf1_variables(trainer.model)


@pytest.fixture(scope="module")
def interrupted_training(tiny_records, tmp_path_factory):
    """A folder of a training stopped after two of four steps, and its final weights."""
    folder = tmp_path_factory.mktemp("logs")
    restored, weights = train(folder, tiny_records)
    assert restored is None
    for path in folder.glob("model.ckpt-4*"):
        path.unlink()
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-2"\n')
    return folder, weights


def test_resume_is_bit_exact(interrupted_training, tiny_records):
    folder, weights = interrupted_training
    restored, resumed = train(folder, tiny_records)
    assert restored == str(folder / "model.ckpt-2")
    different = [n for n, a in weights.items() if not np.array_equal(a, resumed[n])]
    assert not different


def test_checkpoint_keys_are_official_names(interrupted_training):
    folder, weights = interrupted_training
    reader = tf.train.load_checkpoint(str(folder / "model.ckpt-2"))
    keys = {
        key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").replace(".S", "/")
        for key in reader.get_variable_to_shape_map()
    }
    assert {f"model/{name}" for name in weights} <= keys
    trained = {name for name in weights if "moving" not in name}
    assert {f"optimizer/{name}/Momentum" for name in trained} <= keys
    assert {
        "step",
        "samples",
        "format_version",
        "seeds/dropout",
    } <= keys


@pytest.mark.parametrize(
    ("model", "train"),
    [
        (lambda: build_model(NARROW), {}),
        (lambda: toy_model(num_classes=NUM_CLASSES + 1), {}),
        (toy_model, {"optimizer": "adam"}),
    ],
)
def test_folder_of_a_different_training_run_is_refused(
    model, train, interrupted_training, shallow
):
    folder, _ = interrupted_training
    config = TrainConfig(train_logdir=str(folder), **train)
    with pytest.raises(UserError, match=r"does not match this") as error:
        Trainer(model(), config).restore_latest()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype, rounding",
    [("float32", 2e-5), ("bfloat16", 2**-8), ("float16", 2**-11)],
)
def test_fused_batch_norm_equals_composed_one(dtype, rounding):
    model = toy_model()
    Trainer(model, TrainConfig())
    (fused,) = {layer.normalize_batch for layer in batch_normalizations(model)}
    assert fused is not normalize_batch
    random = np.random.RandomState(0)
    x = tf.cast(random.normal(3, 2, (2, 5, 7, 4)), dtype)
    upstream = tf.constant(random.normal(0, 1, x.shape), tf.float32)
    gamma, beta = (
        keras.Variable(random.normal(1, 0.5, 4).astype("float32")) for _ in range(2)
    )

    def run_with_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, mean, variance = function(x, gamma, beta, 1e-3)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) * upstream)
        assert y.dtype == x.dtype and mean.dtype == variance.dtype == tf.float32
        return y, mean, variance, *tape.gradient(loss, [x, gamma.value, beta.value])

    for a, b in zip(
        run_with_gradients(fused), run_with_gradients(normalize_batch), strict=True
    ):
        # Sums are computed in float32, so only single numbers are rounded.
        scale = max(1.0, float(np.abs(np.asarray(b, np.float32)).max()))
        np.testing.assert_allclose(
            *(np.asarray(value, np.float32) for value in (a, b)),
            atol=2 * rounding * scale,
            rtol=0,
        )


def validation_with_scores(model, images, correct_shares, expected_miou=None):
    """Returns a validation with a given share of correct labels at each evaluation."""
    predicted = deeplab_tf.predict_labels(model, images).astype(np.uint8)[..., None]
    shares = iter(correct_shares)

    def dataset(worker, num_workers):
        labels = predicted.copy()
        wrong = int(33 * (1 - next(shares)))
        labels[:, :wrong] = (labels[:, :wrong] + 1) % 5
        return tf.data.Dataset.from_tensors((images, labels))

    return Validation(dataset, expected_miou=expected_miou or {})


@pytest.fixture
def skip_drawings(monkeypatch):
    """Replaces slow drawings of an evaluation with a black pixel."""
    for name in ("plot_confusion", "draw_panel"):
        black = np.zeros((1, 1, 3), np.uint8)
        monkeypatch.setattr(summaries, name, lambda *_, black=black: black)


def test_expected_miou_is_reported(capsys, eager_execution):
    model = toy_model()
    config = TrainConfig(
        training_number_of_steps=6,
        base_learning_rate=0.0,
        fine_tune_batch_norm=False,
        eval_interval_steps=2,
    )
    images, labels = batch()
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    # All labels are correct, then none, then all.
    validation = validation_with_scores(
        model, images, [1.0, 0.0, 1.0], {2: 0.9, 4: 0.5}
    )
    Trainer(model, config).train(data, validation)
    first, second, third = re.findall("step .: mIoU.*", capsys.readouterr().err)
    assert first.endswith("mIoU 1.0000, the best so far, as expected (0.90)")
    assert "mIoU 0.0000, warning: expected 0.50 at this step; check" in second
    assert third == "step 6: mIoU 1.0000"


def test_best_checkpoint_is_kept_and_training_stops_early(
    skip_drawings, tmp_path, eager_execution
):
    model = toy_model()
    config = TrainConfig(
        train_logdir=str(tmp_path),
        training_number_of_steps=100,
        base_learning_rate=0.0,
        fine_tune_batch_norm=False,
        log_steps=1,
        eval_interval_steps=2,
        early_stop_evals=3,
    )
    images, labels = batch()
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    # The second is the best; a tie is no progress.
    validation = validation_with_scores(model, images, [0.5, 0.8, 0.7, 0.8, 0.2, 0.9])
    Trainer(model, config).train(data, validation)
    history = History(str(tmp_path))
    history.restart(100)
    steps, mious = history.values("miou")
    assert list(steps) == [2, 4, 6, 8, 10]
    assert mious[1] == mious[3] > mious[2] > mious[0] > mious[4]
    best = tmp_path / "best"
    assert tf.train.latest_checkpoint(str(best)) == str(best / "model.ckpt-4")
    metrics = json.loads((best / "metrics.json").read_text())
    assert (metrics["step"], metrics["miou"]) == (4, mious[1])
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    assert (tmp_path / "curves.png").exists()
    tags = {
        value.tag
        for path in tmp_path.glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"train/data_loss", "train/learning_rate", "train/images_per_second"} <= tags
    assert {"eval/miou", "eval/confusion_matrix", "eval/example_0"} <= tags
    # A finished training that is resumed does nothing.
    resumed = Trainer(model, config)
    assert resumed.restore_latest() == str(tmp_path / "model.ckpt-10")
    resumed.train(data, validation_with_scores(model, images, []))
    assert resumed.step == 10
    # The best is not replaced by an evaluation that is better than the rest only.
    patient = dataclasses.replace(config, early_stop_evals=0)
    patient = dataclasses.replace(patient, training_number_of_steps=14)
    resumed = Trainer(model, patient)
    resumed.restore_latest()
    resumed.train(data, validation_with_scores(model, images, [0.75, 0.95]))
    assert tf.train.latest_checkpoint(str(best)) == str(best / "model.ckpt-14")


@pytest.mark.parametrize(("ema_decay", "count"), [(0.0, 2), (0.5, 4)])
def test_evaluation_uses_statistics_of_chief(
    ema_decay, count, monkeypatch, eager_execution
):
    config = TrainConfig(
        training_number_of_steps=1, eval_interval_steps=1, ema_decay=ema_decay
    )
    trainer = Trainer(toy_model(), config)
    trainer.worker, copied = Worker(0, 2), []
    monkeypatch.setattr(trainer._replicas, "copy_from_chief", copied.extend)
    images, labels = batch()
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    trainer.train(data, validation_with_scores(trainer.model, images, [1.0]))
    # Mean and variance of the only batch normalisation, and their averages.
    assert [variable.shape for variable in copied] == count * [(8,)]


def test_collapsed_predictions_are_reported(capsys):
    model = toy_model()
    biases = official_variables(model)["logits/biases"]
    biases.assign(np.eye(5)[3] * 1000)
    images, labels = batch()
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    steps = {"training_number_of_steps": 200, "steps_per_call": 50}
    config = TrainConfig(base_learning_rate=0.0, **steps)
    info = DatasetInfo("toys", ("sky", "road", "tree", "car", "pole"))
    Trainer(model, config).train(data, info=info)
    err = capsys.readouterr().err
    # Not in the first hundred steps, in which every model collapses.
    assert err.count("warning: ") == 1
    assert "warning: step 200: 100% of the predictions are 'car'" in err


def batches_with_signal(number, at):
    """Yields batches and sends a signal before one of them."""
    for i in range(10):
        if i == at:
            os.kill(os.getpid(), number)
        yield batch()


def toy_trainer(folder, **options):
    folder = None if folder is None else str(folder)
    return Trainer(toy_model(), TrainConfig(train_logdir=folder, **options))


def signature():
    return tuple(tf.TensorSpec(a.shape, a.dtype) for a in batch())


@pytest.mark.parametrize(
    ("number", "status", "has_folder"),
    [
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, True),
        (signal.SIGHUP, 129, True),
        (signal.SIGTERM, 143, False),
    ],
)
def test_signal_saves_and_reports_step(number, status, has_folder, tmp_path, capsys):
    trainer = toy_trainer(tmp_path if has_folder else None)
    data = tf.data.Dataset.from_generator(
        lambda: batches_with_signal(number, at=2), output_signature=signature()
    )
    with pytest.raises(Interrupted) as error:
        trainer.train(data)
    checkpoint = f"{tmp_path}/model.ckpt-{trainer.step}" if has_folder else None
    assert 0 < trainer.step < 10
    assert (error.value.code, error.value.checkpoint) == (status, checkpoint)
    outcome = f"saved {checkpoint}" if has_folder else "nothing was saved"
    line = f"interrupted after step {trainer.step}; {outcome}\n"
    assert line in capsys.readouterr().err
    if has_folder:
        assert tf.train.latest_checkpoint(str(tmp_path)) == checkpoint
    assert not (tmp_path / TRAINING_LOCK).exists()


@pytest.mark.parametrize("moment", ["save", "end"])
def test_removed_folder_raises_error(moment, tmp_path, capsys, eager_execution):
    folder = tmp_path / "logs"

    def batches():
        for i in range(4):
            if i == 3:
                shutil.rmtree(folder)
            yield batch()

    steps = {"training_number_of_steps": 4, "save_interval_steps": 1}
    trainer = toy_trainer(folder, **steps)
    if moment == "end":
        trainer._save = lambda reporter: None
    data = tf.data.Dataset.from_generator(batches, output_signature=signature())
    with pytest.raises(UserError, match=f"^--train_logdir={folder} was removed during"):
        trainer.train(data)
    assert not folder.exists()


def test_folder_in_use_is_refused(tmp_path):
    trainer = toy_trainer(tmp_path)
    other = dataclasses.replace(Owner.this_process(), token="other", pid=os.getppid())
    path = tmp_path / TRAINING_LOCK
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(other.to_bytes())
        file.flush()
        message = rf"^--train_logdir={tmp_path} is in use by .*process {other.pid} on "
        with pytest.raises(UserError, match=message):
            trainer.train([batch()])
    assert trainer.step == 0
    assert os.listdir(tmp_path) == [TRAINING_LOCK]
