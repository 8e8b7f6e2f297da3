"""Factories of works of a turn, each for a process of its own.

Every function here is a factory of `benchmarks.measuring.Contender`. It imports what it
needs itself: in the process of one framework the others need not be installed. Weights
are random, which does not matter for speed, and images are noise. `batch` is the number
of images at once, `size` their height and width, `times` the batches or steps of a
turn.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_SEED = 0
_NUM_CLASSES = 21


def noise(batch: int, size: Sequence[int]) -> np.ndarray:
    """Returns uint8 images `[batch, *size, 3]`."""
    return np.random.default_rng(_SEED).integers(0, 256, (batch, *size, 3), np.uint8)


def noise_labels(batch: int, size: Sequence[int]) -> np.ndarray:
    """Returns class ids, uint8 `[batch, *size]`."""
    shape = (batch, *size)
    return np.random.default_rng(_SEED).integers(0, _NUM_CLASSES, shape, np.uint8)


def make_config(model: Mapping):
    """Returns the `ModelConfig` of official model flags."""
    from deeplab_tf.config import ModelConfig

    model = dict(model)
    config = ModelConfig(model.pop("model_variant"), num_classes=_NUM_CLASSES)
    return config.with_official_flags(model)


def make_model(model: Mapping, precision: str = "float32"):
    """Returns a model of official model flags, with random weights.

    Its normalisations move their features, as trained ones do: engines leave out what
    adds nothing.
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
    """Returns TensorFlow, started as the programs start it."""
    import benchmarks.quiet_tensorflow  # noqa: F401

    # isort: split
    import tensorflow

    return tensorflow


def _repeat(function: Callable[[], object], times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            function()

    return work


def _report(work: Callable, **properties: object) -> Callable:
    """Returns a work that reports something of itself, once it has warmed up."""
    work.properties = properties
    return work


# --- Labels of images.


def saved_model(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Labels by a SavedModel of ours."""
    tf = _start_tensorflow()
    loaded = tf.saved_model.load(path)
    images = tf.constant(noise(batch, size))

    def label() -> np.ndarray:
        # A signature alone does not keep its variables.
        serve = loaded.signatures["serving_default"]
        return serve(ImageTensor=images)["SemanticPredictions"].numpy()

    return _repeat(label, times)


def openvino(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Labels by OpenVINO from an ONNX file of ours, compiled for this size."""
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    network.reshape([batch, *size, 3])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(network, "CPU", hints)
    images = noise(batch, size)
    return _repeat(lambda: compiled(images), times)


def onnxruntime(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Labels by ONNX Runtime from an ONNX file of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    images = noise(batch, size)
    return _repeat(lambda: session.run(None, {given.name: images}), times)


def torch_inference(
    model: Mapping, batch: int, size: Sequence[int], times: int
) -> Callable:
    """Labels by the same network in PyTorch."""
    import torch

    from benchmarks.peers.pytorch import TorchDeepLab

    network = TorchDeepLab(make_model(model), tuple(size)).eval()
    network = network.to(memory_format=torch.channels_last)
    images = torch.tensor(noise(batch, size))

    @torch.inference_mode()
    def label() -> np.ndarray:
        return network(images.permute(0, 3, 1, 2).float()).argmax(1).numpy()

    return _repeat(label, times)


def _keras_hub_size(size: Sequence[int]) -> list[int]:
    """Returns the next smaller size that keras-hub takes."""
    return [side // 32 * 32 for side in size]


def keras_hub_model(size: Sequence[int]):
    """Returns keras-hub's DeepLabv3+ with ResNet-50, untrained; its stride is 32."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(_SEED)
    shape = (*_keras_hub_size(size), 3)
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


def _keras_hub_multiply_adds(size: Sequence[int]) -> int:
    from deeplab_tf.models.complexity import convolution_multiply_adds

    return convolution_multiply_adds(keras_hub_model(size))


def keras_hub_inference(
    batch: int, size: Sequence[int], times: int, jit: bool = False
) -> Callable:
    """Labels by keras-hub's DeepLabv3+, compiled by XLA or not."""
    tf = _start_tensorflow()
    model = keras_hub_model(size)
    images = tf.constant(noise(batch, _keras_hub_size(size)))

    @functools.partial(tf.function, jit_compile=jit)
    def label(images):
        logits = model(tf.cast(images, tf.float32), training=False)
        return tf.argmax(logits, -1, output_type=tf.int32)

    work = _repeat(lambda: label(images).numpy(), times)
    return _report(work, multiply_adds=_keras_hub_multiply_adds(size))


def scaled_inference(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    scales: Sequence[float],
    is_combined: bool,
) -> Callable:
    """Labels by several scales, each mirrored too, combined or one after the other."""
    tf = _start_tensorflow()
    from deeplab_tf.inference import Predictor

    network = make_model(model)
    images = tf.constant(noise(batch, size), tf.float32)
    if is_combined:
        combined = tf.function(Predictor(network, scales, flip=True).labels)
        return lambda: combined(images).numpy()
    labels = [tf.function(Predictor(network, (scale,)).labels) for scale in scales]

    def work() -> None:
        for label in labels:
            for _ in range(2):  # as it is, and mirrored
                label(images).numpy()

    return work


# --- Steps of training.


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
    """Optimiser steps of our trainer.

    Args:
        model: Official model flags.
        batch: Images of a step, of all workers together.
        size: Height and width of the crop.
        times: Steps of a turn.
        precision: Of convolutions.
        strategy: As `--distribution_strategy` has it.
        recompute: Whether activations are computed again in the backward pass.
        records: Folder and split to train on; () takes one batch in memory.
    """
    _start_tensorflow()
    from deeplab_tf.config import TrainConfig
    from deeplab_tf.training import distribution
    from deeplab_tf.training.trainer import Trainer

    # Before any device is used.
    with distribution.make_strategy(strategy).scope():
        network = make_model(model, precision)
    config = TrainConfig(
        training_number_of_steps=10**6, batch_norm="train", recompute=recompute
    )
    trainer = Trainer(network, config)
    mean_pixel = network.model_config.mean_pixel
    dataset = _training_batches(records, batch, tuple(size), mean_pixel)
    # One iterator for all turns, as a training has it: a new one fills its buffers
    # first, takes seconds of several workers, and may leave all threads of a step on
    # one core.
    work = functools.partial(trainer.train_steps, trainer.iterate(dataset), times)
    return _report(work, jit=trainer.compiles)


def _training_batches(records: Sequence[str], batch: int, size, mean_pixel):
    """Returns the training pipeline of records, or one batch of noise, repeated."""
    import tensorflow as tf

    from deeplab_tf.config import DataConfig
    from deeplab_tf.data.pipeline import load_dataset

    if records:
        folder, split = records
        data = DataConfig(
            folder, crop_size=size, batch_size=batch, mean_pixel=mean_pixel
        )
        return load_dataset(data, split, training=True)
    noisy = noise(batch, size).astype(np.float32), noise_labels(batch, size)
    return tf.data.Dataset.from_tensors(noisy).repeat()


def torch_training_step(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    channels_last: bool = True,
) -> Callable:
    """Optimiser steps of the same network in PyTorch: momentum and L2, as ours."""
    import torch
    from torch.nn import functional

    from benchmarks.peers.pytorch import TorchDeepLab

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = TorchDeepLab(make_model(model), tuple(size)).train()
    network = network.to(memory_format=layout)
    images = torch.tensor(noise(batch, size)).permute(0, 3, 1, 2).float()
    images = images.contiguous(memory_format=layout)
    labels = torch.tensor(noise_labels(batch, size)).long()
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
    """Optimiser steps of keras-hub's DeepLabv3+, by `fit`."""
    tf = _start_tensorflow()
    import keras

    model = keras_hub_model(size)
    model.compile(
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        jit_compile=jit,
    )
    size_taken = _keras_hub_size(size)
    images = noise(batch, size_taken).astype(np.float32)
    labels = noise_labels(batch, size_taken)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    work = functools.partial(
        model.fit, dataset, steps_per_epoch=times, epochs=1, verbose=0
    )
    return _report(work, multiply_adds=_keras_hub_multiply_adds(size))
