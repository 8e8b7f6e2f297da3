"""Contender factories: each returns a function that runs one turn.

`benchmarks.measuring.Contender` names them. Each factory imports its own framework, so
no other one needs to be installed. Weights are random and images are noise, which does
not change the speed. `batch` is the number of images per batch,
`size` their height and width, `times` the batches or steps per turn.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_SEED = 0
_NUM_CLASSES = 21


def make_noise(batch: int, size: Sequence[int]) -> np.ndarray:
    """Returns uint8 images `[batch, *size, 3]`."""
    return np.random.default_rng(_SEED).integers(0, 256, (batch, *size, 3), np.uint8)


def make_noise_labels(batch: int, size: Sequence[int]) -> np.ndarray:
    """Returns class ids, uint8 `[batch, *size]`."""
    shape = (batch, *size)
    return np.random.default_rng(_SEED).integers(0, _NUM_CLASSES, shape, np.uint8)


def make_config(model: Mapping):
    """Returns the `ModelConfig` for official model flags."""
    from deeplab_tf.config import ModelConfig

    model = dict(model)
    config = ModelConfig(model.pop("model_variant"), num_classes=_NUM_CLASSES)
    return config.with_official_flags(model)


def make_model(model: Mapping, precision: str = "float32"):
    """Returns a model with random weights for official model flags.

    Batch normalisation gets non-zero offsets, because engines drop operations that add
    zero.
    """
    import keras

    from deeplab_tf.models.deeplab import build_model
    from deeplab_tf.models.precision import use_precision
    from deeplab_tf.models.variables import batch_normalizations

    keras.utils.set_random_seed(_SEED)
    use_precision(precision)
    built = build_model(make_config(model))
    random = np.random.default_rng(_SEED)
    for layer in batch_normalizations(built):
        for variable in (layer.beta, layer.moving_mean):
            variable.assign(random.uniform(-0.5, 0.5, variable.shape))
    return built


def _start_tensorflow():
    """Imports TensorFlow with the settings of our programs."""
    import benchmarks.quiet_tensorflow  # noqa: F401

    # isort: split
    import tensorflow

    return tensorflow


def _repeat(function: Callable[[], object], times: int) -> Callable[[], None]:
    """Returns a turn that calls a function several times."""

    def run_turn() -> None:
        for _ in range(times):
            function()

    return run_turn


def _with_properties(run_turn: Callable, **properties: object) -> Callable:
    """Attaches properties, which the worker reports after the warm-up."""
    run_turn.properties = properties
    return run_turn


# --- Inference.


def saved_model(
    path: str, batch: int, size: Sequence[int], times: int, calls_all: bool = False
) -> Callable:
    """Returns a function that runs one of our SavedModels `times` times.

    With `calls_all`, it calls all signatures for images. The property
    `first_label_seconds` is the time from loading to the first label.
    """
    # As our programs do; 0 measures the default.
    os.environ.setdefault("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    tf = _start_tensorflow()
    images = tf.constant(make_noise(batch, size))
    start = time.perf_counter()
    loaded = tf.saved_model.load(path)

    def label() -> np.ndarray:
        # Holding the signature alone would free the variables.
        serve = loaded.signatures["serving_default"]
        return serve(ImageTensor=images)["SemanticPredictions"].numpy()

    label()
    seconds = time.perf_counter() - start
    if calls_all:
        encoded = tf.stack([tf.io.encode_jpeg(image) for image in images])
        for name, signature in loaded.signatures.items():
            is_encoded = name == "encoded"
            signature(encoded if is_encoded else images)
    return _with_properties(_repeat(label, times), first_label_seconds=seconds)


def openvino(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Returns a function that runs an ONNX or OpenVINO file in OpenVINO.

    The model is compiled for this image size.
    """
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    network.reshape([batch, *size, 3])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(network, "CPU", hints)
    images = make_noise(batch, size)
    return _repeat(lambda: compiled(images), times)


def onnxruntime(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Returns a function that runs one of our ONNX files in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: make_noise(batch, size)}
    return _repeat(lambda: session.run(None, feed), times)


def torch_inference(
    model: Mapping, batch: int, size: Sequence[int], times: int
) -> Callable:
    """Returns a function that runs the same network in PyTorch."""
    import torch

    from benchmarks.peers.pytorch import TorchDeepLab

    network = TorchDeepLab(make_model(model), tuple(size)).eval()
    network = network.to(memory_format=torch.channels_last)
    images = torch.tensor(make_noise(batch, size))

    @torch.inference_mode()
    def label() -> np.ndarray:
        return network(images.permute(0, 3, 1, 2).float()).argmax(1).numpy()

    return _repeat(label, times)


def _round_keras_hub_size(size: Sequence[int]) -> list[int]:
    """Rounds a size down to multiples of 32, as keras-hub requires."""
    return [side // 32 * 32 for side in size]


def make_keras_hub_model(size: Sequence[int]):
    """Returns keras-hub's DeepLabv3+ with ResNet-50 at output stride 32, untrained."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(_SEED)
    shape = (*_round_keras_hub_size(size), 3)
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=shape,
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        projection_filters=48,
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        image_shape=shape,
    )
    return keras_hub.models.DeepLabV3ImageSegmenter(
        backbone=backbone, num_classes=_NUM_CLASSES, activation=None
    )


def _count_keras_hub_multiply_adds(size: Sequence[int]) -> int:
    from deeplab_tf.models.complexity import convolution_multiply_adds

    return convolution_multiply_adds(make_keras_hub_model(size))


def keras_hub_inference(
    batch: int, size: Sequence[int], times: int, jit: bool = False
) -> Callable:
    """Returns a function that runs keras-hub's DeepLabv3+, with XLA if `jit`."""
    tf = _start_tensorflow()
    model = make_keras_hub_model(size)
    images = tf.constant(make_noise(batch, _round_keras_hub_size(size)))

    @functools.partial(tf.function, jit_compile=jit)
    def label(images):
        logits = model(tf.cast(images, tf.float32), training=False)
        return tf.argmax(logits, -1, output_type=tf.int32)

    run_turn = _repeat(lambda: label(images).numpy(), times)
    return _with_properties(
        run_turn, multiply_adds=_count_keras_hub_multiply_adds(size)
    )


def scaled_inference(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    scales: Sequence[float],
    is_combined: bool,
) -> Callable:
    """Returns a function that predicts at several scales, each also mirrored.

    The passes are in one graph if `is_combined`, else they run one by one.
    """
    tf = _start_tensorflow()
    from deeplab_tf.inference import Predictor

    network = make_model(model)
    images = tf.constant(make_noise(batch, size), tf.float32)
    if is_combined:
        combined = tf.function(Predictor(network, scales, flip=True).labels)
        return lambda: combined(images).numpy()
    labels = [tf.function(Predictor(network, (scale,)).labels) for scale in scales]

    def run_turn() -> None:
        for label in labels:
            for _ in range(2):  # stands for the original and the mirrored image
                label(images).numpy()

    return run_turn


def preset_inference(preset: str) -> Callable:
    """Returns a function that labels an image as a preset's evaluation does.

    Model, size and output stride are the preset's; it is one pass at scale 1, whatever
    the scales of the protocol.
    """
    tf = _start_tensorflow()
    from deeplab_tf.inference import Predictor
    from deeplab_tf.models.deeplab import build_model
    from deeplab_tf.presets import PRESETS

    network = build_model(PRESETS[preset].eval_model)
    images = tf.constant(make_noise(1, PRESETS[preset].evaluation.eval_crop_size))
    label = tf.function(Predictor(network).labels)
    return lambda: label(images).numpy()


# --- Training steps.


def training_step(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    precision: str = "float32",
    strategy: str = "one_device",
    recompute: bool = False,
    records: Sequence[str] = (),
) -> Callable:
    """Returns a function that runs `times` optimiser steps of our trainer.

    `batch` counts the images of all workers. `records` is a folder and a split; without
    it one batch in memory is repeated.
    """
    _start_tensorflow()
    from deeplab_tf.config import TrainConfig
    from deeplab_tf.training import distribution
    from deeplab_tf.training.trainer import Trainer

    # The strategy must be made before any device is used.
    with distribution.make_strategy(strategy).scope():
        network = make_model(model, precision)
    config = TrainConfig(
        training_number_of_steps=10**6, batch_norm="train", recompute=recompute
    )
    trainer = Trainer(network, config)
    mean_pixel = network.model_config.mean_pixel
    dataset = _training_batches(records, batch, tuple(size), mean_pixel)
    # One iterator for all turns, as in a real training: a new one first fills its
    # buffers, takes seconds with several workers, and may leave all threads of a step
    # on one core.
    run_turn = functools.partial(trainer.train_steps, trainer.iterate(dataset), times)
    return _with_properties(run_turn, jit=trainer.compiles)


def _training_batches(records: Sequence[str], batch: int, size, mean_pixel):
    """Returns the training pipeline of the records, else one batch, repeated."""
    import tensorflow as tf

    from deeplab_tf.config import DataConfig
    from deeplab_tf.data.pipeline import load_dataset

    if records:
        data = DataConfig(
            records[0], crop_size=size, batch_size=batch, mean_pixel=mean_pixel
        )
        return load_dataset(data, records[1], training=True)
    noisy = make_noise(batch, size).astype(np.float32), make_noise_labels(batch, size)
    return tf.data.Dataset.from_tensors(noisy).repeat()


def torch_training_step(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    channels_last: bool = True,
) -> Callable:
    """Returns a function that trains the same network in PyTorch.

    It runs `times` optimiser steps, with momentum and L2.
    """
    import torch
    from torch.nn import functional

    from benchmarks.peers.pytorch import TorchDeepLab

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = TorchDeepLab(make_model(model), tuple(size)).train()
    network = network.to(memory_format=layout)
    images = torch.tensor(make_noise(batch, size)).permute(0, 3, 1, 2).float()
    images = images.contiguous(memory_format=layout)
    labels = torch.tensor(make_noise_labels(batch, size)).long()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-4, momentum=0.9, weight_decay=4e-5
    )

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels, ignore_index=255)
        loss.backward()
        optimizer.step()

    return _repeat(step, times)


def keras_hub_training_step(
    batch: int, size: Sequence[int], times: int, jit: bool = False
) -> Callable:
    """Returns a function that trains keras-hub's DeepLabv3+ with `fit`."""
    tf = _start_tensorflow()
    import keras

    model = make_keras_hub_model(size)
    model.compile(
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        jit_compile=jit,
    )
    size_taken = _round_keras_hub_size(size)
    images = make_noise(batch, size_taken).astype(np.float32)
    labels = make_noise_labels(batch, size_taken)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    run_turn = functools.partial(
        model.fit, dataset, steps_per_epoch=times, epochs=1, verbose=0
    )
    return _with_properties(
        run_turn, multiply_adds=_count_keras_hub_multiply_adds(size)
    )
