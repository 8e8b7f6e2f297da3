"""What is measured: works of one turn, each for a process of its own.

Every function here is a factory of `benchmarks.measuring.Contender`: it imports what it
needs itself, for in the process of one framework the others need not even be installed.
Weights are random, which does not matter for speed, and images are noise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_SEED = 0


def noise(batch: int, size: Sequence[int]) -> np.ndarray:
    """Returns uint8 images `[batch, *size, 3]`."""
    return np.random.default_rng(_SEED).integers(0, 256, (batch, *size, 3), np.uint8)


def noise_labels(batch: int, size: Sequence[int], num_classes: int) -> np.ndarray:
    """Returns class ids, uint8 `[batch, *size]`."""
    shape = (batch, *size)
    return np.random.default_rng(_SEED).integers(0, num_classes, shape, np.uint8)


class _WithFacts:
    """A work that tells something of itself."""

    def __init__(self, work: Callable[[], object], facts: dict):
        self._work, self.facts = work, facts

    def __call__(self) -> None:
        self._work()


def make_config(model: Mapping):
    """Returns the `ModelConfig` of official model flags."""
    from deeplab_tf.config import ModelConfig

    model = dict(model)
    config = ModelConfig(model.pop("model_variant"), model.pop("num_classes", 21))
    return config.with_official_flags(model)


def make_model(model: Mapping, precision: str = "float32"):
    """Returns a model of official model flags, with random weights."""
    import keras

    from deeplab_tf.models.deeplab import build_model
    from deeplab_tf.models.precision import use_precision

    keras.utils.set_random_seed(_SEED)
    use_precision(precision)
    return build_model(make_config(model))


def _repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            function()

    return work


# --- Labels of images.


def saved_model(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Labels by an export of ours."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    images = tf.constant(noise(batch, size))

    def label() -> np.ndarray:
        return serve(ImageTensor=images)["SemanticPredictions"].numpy()

    # A signature alone does not keep its variables.
    return functools.partial(lambda _, work: work(), loaded, _repeated(label, times))


def openvino(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Labels by OpenVINO from an ONNX file of ours, compiled for this size."""
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    network.reshape([batch, *size, 3])
    compiled = core.compile_model(
        network,
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )
    images = noise(batch, size)
    return _repeated(lambda: compiled(images), times)


def onnxruntime(path: str, batch: int, size: Sequence[int], times: int) -> Callable:
    """Labels by ONNX Runtime from an ONNX file of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    images = noise(batch, size)
    return _repeated(lambda: session.run(None, {given.name: images}), times)


def torch_inference(
    model: Mapping, batch: int, size: Sequence[int], times: int
) -> Callable:
    """Labels by the same network in PyTorch."""
    import torch

    from benchmarks.peers.pytorch import TorchDeepLab

    twin = TorchDeepLab(make_model(model), tuple(size)).eval()
    twin = twin.to(memory_format=torch.channels_last)
    images = torch.tensor(noise(batch, size))

    @torch.inference_mode()
    def label() -> np.ndarray:
        x = images.permute(0, 3, 1, 2).float()
        return twin(x).argmax(1).numpy()

    return _repeated(label, times)


def keras_hub_size(size: Sequence[int]) -> list[int]:
    """Returns the next smaller size that keras-hub takes."""
    return [side // 32 * 32 for side in size]


def keras_hub_model(size: Sequence[int], num_classes: int = 21):
    """Returns keras-hub's DeepLabv3+ with ResNet-50, untrained; its stride is 32."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(_SEED)
    shape = (*keras_hub_size(size), 3)
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
        backbone=backbone, num_classes=num_classes, activation=None
    )


def keras_hub_multiply_adds(size: Sequence[int]) -> int:
    """Returns the multiply-adds of an image of keras-hub's DeepLabv3+."""
    from deeplab_tf.models.complexity import convolution_multiply_adds

    return convolution_multiply_adds(keras_hub_model(size))


def keras_hub_inference(
    batch: int, size: Sequence[int], times: int, jit: bool = False
) -> Callable:
    """Labels by keras-hub's DeepLabv3+."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    import tensorflow as tf

    model = keras_hub_model(size)
    images = tf.constant(noise(batch, keras_hub_size(size)))

    @functools.partial(tf.function, jit_compile=jit)
    def label(images):
        logits = model(tf.cast(images, tf.float32), training=False)
        return tf.argmax(logits, -1, output_type=tf.int32)

    work = _repeated(lambda: label(images).numpy(), times)
    return _WithFacts(work, {"multiply_adds": keras_hub_multiply_adds(size)})


def keras_hub_jit_inference(**task) -> Callable:
    """Labels by keras-hub's DeepLabv3+, compiled by XLA."""
    return keras_hub_inference(**task, jit=True)


def views(
    model: Mapping, batch: int, size: Sequence[int], scales: Sequence[float], times: int
) -> Callable:
    """Labels by several scales, each mirrored, too."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    import tensorflow as tf

    from deeplab_tf.inference import Predictor

    predictor = Predictor(make_model(model), scales, flip=True)
    images = tf.constant(noise(batch, size), tf.float32)
    label = tf.function(predictor.labels)
    return _repeated(lambda: label(images).numpy(), times)


def separate_views(
    model: Mapping, batch: int, size: Sequence[int], scales: Sequence[float], times: int
) -> Callable:
    """Labels by each of these views alone, one after the other."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    import tensorflow as tf

    from deeplab_tf.inference import Predictor

    network = make_model(model)
    images = tf.constant(noise(batch, size), tf.float32)
    labels = [tf.function(Predictor(network, (scale,)).labels) for scale in scales]

    def each() -> None:
        for label in labels:
            for _ in range(2):  # as it is, and mirrored
                label(images).numpy()

    return _repeated(each, times)


# --- Steps of training.


def training_step(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    precision: str = "float32",
    jit: str = "auto",
    strategy: str = "one_device",
) -> Callable:
    """Optimiser steps of our trainer on one batch in memory."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    import tensorflow as tf

    from deeplab_tf.config import TrainConfig
    from deeplab_tf.training import distribution
    from deeplab_tf.training.trainer import Trainer

    # Before any device is used.
    made = distribution.make_strategy(strategy)
    with made.scope():
        network = make_model(model, precision)
    config = TrainConfig(training_number_of_steps=10**6, jit=jit, batch_norm="train")
    trainer = Trainer(network, config)
    images = noise(batch, size).astype(np.float32)
    labels = noise_labels(batch, size, network.model_config.num_classes)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    work = functools.partial(trainer.train_steps, dataset, times)
    return _WithFacts(work, {"jit": trainer.compiles})


def worker_training_step(**task) -> Callable:
    """Optimiser steps of a worker's share, together with the other workers."""
    return training_step(**task, strategy="multi_worker_mirrored")


def training_on_records(
    dataset_dir: str, model: Mapping, batch: int, size: Sequence[int], times: int
) -> Callable:
    """Optimiser steps of our trainer on the records of a split `train`."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    from deeplab_tf.config import DataConfig, TrainConfig
    from deeplab_tf.data.pipeline import load_dataset
    from deeplab_tf.training.trainer import Trainer

    network = make_model(model)
    config = TrainConfig(training_number_of_steps=10**6, batch_norm="train")
    trainer = Trainer(network, config)
    data = DataConfig(
        dataset_dir,
        crop_size=tuple(size),
        batch_size=batch,
        mean_pixel=network.model_config.mean_pixel,
    )
    # One iterator for all turns: every new one would fill its buffers first.
    batches = iter(load_dataset(data, "train", training=True))
    return functools.partial(trainer.train_steps, lambda *worker: batches, times)


def torch_training_step(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    channels_last: bool = True,
) -> Callable:
    """Optimiser steps of the same network in PyTorch: momentum, L2, poly, as ours."""
    import torch
    from torch.nn import functional

    from benchmarks.peers.pytorch import TorchDeepLab

    network = make_model(model)
    num_classes = network.model_config.num_classes
    twin = TorchDeepLab(network, tuple(size)).train()
    if channels_last:
        twin = twin.to(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.tensor(noise(batch, size)).permute(0, 3, 1, 2).float()
    images = images.contiguous(memory_format=layout)
    labels = torch.tensor(noise_labels(batch, size, num_classes)).long()
    optimizer = torch.optim.SGD(
        twin.parameters(), lr=1e-4, momentum=0.9, weight_decay=4e-5
    )

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(twin(images), labels, ignore_index=255)
        loss.backward()
        optimizer.step()

    return _repeated(step, times)


def keras_hub_training_step(
    batch: int, size: Sequence[int], times: int, jit: bool = False
) -> Callable:
    """Optimiser steps of keras-hub's DeepLabv3+ by its own `fit`'s step."""
    import deeplab_tf.programs  # noqa: F401

    # isort: split
    import keras
    import tensorflow as tf

    num_classes = 21
    model = keras_hub_model(size, num_classes)
    model.compile(
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        jit_compile=jit,
    )
    images = noise(batch, keras_hub_size(size)).astype(np.float32)
    labels = noise_labels(batch, keras_hub_size(size), num_classes)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    work = functools.partial(
        model.fit, dataset, steps_per_epoch=times, epochs=1, verbose=0
    )
    return _WithFacts(work, {"multiply_adds": keras_hub_multiply_adds(size)})
