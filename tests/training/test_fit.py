"""Training with Keras' `compile` and `fit` instead of the trainer."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value
from shallow_network import shallow_mobilenet_v2

import deeplab_tf
from deeplab_tf import ContextConfig, DecoderConfig, ModelConfig

CLASSES = 5
CONFIG = ModelConfig(
    num_classes=CLASSES,
    context=ContextConfig(aspp=False, rates=(1, 2)),
    decoder=DecoderConfig(output_strides=()),
)
RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.uniform(0, 255, (8, 33, 33, 3)).astype("float32")
LABELS = np.kron(RANDOM.randint(0, CLASSES, (8, 11, 11)), np.ones((1, 3, 3), int))
LABELS[:, :4] = 255
WEIGHTS = (1.0, 0.0, 2.0, 0.5, 3.0)


def build(config=CONFIG):
    """Returns a model in which every weight affects the output."""
    with shallow_mobilenet_v2():
        model = deeplab_tf.build_model(config)
    shapes = {n: a.shape for n, a in deeplab_tf.tf1_variables(model).items()}
    weights = {name: value(name, shape) for name, shape in shapes.items()}
    deeplab_tf.load_tf1_variables(model, weights)
    return model


def fit(model, epochs=1, **options):
    return model.fit(
        IMAGES,
        LABELS,
        batch_size=2,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        **options,
    ).history


@pytest.mark.parametrize(
    ("options", "optimizer", "loss"),
    [
        pytest.param({}, {}, {}, marks=pytest.mark.slow),
        (
            {
                "optimizer": "nesterov",
                "slow_start_step": 3,
                "slow_start_learning_rate": 0.02,
                "last_layer_gradient_multiplier": 3.0,
                "last_layers_contain_logits_only": True,
                "label_weights": WEIGHTS,
            },
            {"nesterov": True, "gradient_multipliers": {"bias": 2.0, "logits": 3.0}},
            {"class_weights": WEIGHTS},
        ),
    ],
    ids=["momentum", "nesterov"],
)
def test_fit_matches_the_trainer(options, optimizer, loss):
    steps, decay = 20, 1e-3
    trained = build()
    config = deeplab_tf.TrainConfig(
        base_learning_rate=0.05,
        training_number_of_steps=steps,
        weight_decay=decay,
        batch_norm="freeze",
        **options,
    )
    trainer = deeplab_tf.Trainer(trained, config)
    tf.config.run_functions_eagerly(True)  # `fit` compiles
    for step in range(steps):
        rows = slice(2 * step % 8, 2 * step % 8 + 2)
        metrics = trainer.train_step(IMAGES[rows], LABELS[rows])
    tf.config.run_functions_eagerly(False)
    model = build()
    model.freeze_batch_norm()
    model.set_weight_decay(decay)
    schedule = deeplab_tf.PolySchedule(
        0.05,
        steps,
        slow_start_steps=config.slow_start_step,
        slow_start_learning_rate=config.slow_start_learning_rate,
    )
    optimizer = {"gradient_multipliers": {"bias": 2.0}, **optimizer}
    model.compile(
        deeplab_tf.Momentum(schedule, **optimizer),
        deeplab_tf.SegmentationLoss(**loss),
    )
    fit(model, epochs=steps * 2 // len(IMAGES))
    assert model.optimizer.iterations == steps
    start = deeplab_tf.tf1_variables(build())
    expected = deeplab_tf.tf1_variables(trained)
    for name, array in deeplab_tf.tf1_variables(model).items():
        np.testing.assert_allclose(array, expected[name], 1e-5, 1e-5, err_msg=name)
    kernel = "logits/semantic/weights"
    assert np.abs(expected[kernel] - start[kernel]).max() > 0.01
    assert np.isfinite(list(metrics.values())).all()


def tiny_data(records, split, training):
    config = deeplab_tf.DataConfig(
        dataset_dir=records, crop_size=(33, 33), batch_size=2
    )
    return deeplab_tf.load_dataset(config, split, training)


def read_images(folder):
    """Returns the images of the only event file of a folder, by (step, tag)."""
    (path,) = folder.glob("events.out.tfevents.*")
    images = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for summary in event.summary.value:
            *_, png = tf.make_ndarray(summary.tensor)
            images[event.step, summary.tag] = tf.io.decode_png(png).numpy()
    return images


def test_fit_runs_on_records_with_callbacks(tiny_records, tmp_path):
    model = build(dataclasses.replace(CONFIG, num_classes=21))
    model.freeze_batch_norm()
    model.set_weight_decay(1e-4)
    loss = deeplab_tf.SegmentationLoss(class_weights=[2.0] * 21, share=0.5)
    optimizer = deeplab_tf.Momentum(
        deeplab_tf.PolySchedule(0.01, steps=10), gradient_multipliers={"bias": 2.0}
    )
    metrics = [deeplab_tf.MeanIoU(21)]
    model.compile(optimizer, loss, metrics=metrics, run_eagerly=True)
    path = tmp_path / "best.keras"
    validation = tiny_data(tiny_records, "val", False)
    samples = list(validation)
    info = deeplab_tf.dataset_info("pascal_voc_seg")
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            path, monitor="val_miou", mode="max", save_best_only=True
        ),
        deeplab_tf.PredictionImages(str(tmp_path), samples, info),
    ]
    history = model.fit(
        tiny_data(tiny_records, "train", True),
        validation_data=validation,
        callbacks=callbacks,
        steps_per_epoch=2,
        verbose=0,
    ).history

    loaded = keras.saving.load_model(path)
    assert loaded.model_config == model.model_config
    assert loaded.optimizer.get_config() == optimizer.get_config()
    assert loaded.optimizer.iterations == 2
    for slot, expected in zip(
        loaded.optimizer.accumulators, optimizer.accumulators, strict=True
    ):
        np.testing.assert_array_equal(slot, expected)
    rate = 0.01 * (1 - 2 / 10) ** 0.9
    np.testing.assert_allclose(loaded.optimizer.learning_rate, rate, rtol=1e-6)
    assert loaded.loss.get_config() == loss.get_config()
    first, _ = samples[0]
    best = np.argmax(loaded(first)[0], -1)
    loaded.run_eagerly = True
    scores = loaded.evaluate(validation, verbose=0, return_dict=True)
    assert scores["miou"] == pytest.approx(history["val_miou"][0])
    assert scores["loss"] == pytest.approx(history["val_loss"][0], rel=1e-5)
    for resumed in (model, loaded):
        resumed.fit(IMAGES[:2], LABELS[:2], verbose=0)
    for weights, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-7)

    images = read_images(tmp_path)
    assert [*images] == [(0, f"predictions/image_{i}") for i in range(2)]
    drawn = deeplab_tf.overlay(first[0].numpy(), best, info)
    np.testing.assert_array_equal(images[0, "predictions/image_0"], drawn)
