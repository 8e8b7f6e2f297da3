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
    """A work that tells something of itself: facts, or a function that finds them."""

    def __init__(self, work: Callable[[], object], facts: dict | Callable[[], dict]):
        self._work, self._facts = work, facts

    def __call__(self) -> None:
        self._work()

    @property
    def facts(self) -> dict:
        """What is told once it has warmed up."""
        return self._facts() if callable(self._facts) else self._facts


def make_config(model: Mapping):
    """Returns the `ModelConfig` of official model flags."""
    from deeplab_tf.config import ModelConfig

    model = dict(model)
    config = ModelConfig(model.pop("model_variant"), model.pop("num_classes", 21))
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
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    device: str = "cpu",
    precision: str = "float32",
    compiled: bool = False,
) -> Callable:
    """Labels by the same network in PyTorch, or by torchvision's DeepLabv3.

    Args:
        model: Official flags, or `torchvision`: the name of a function there.
        batch: Images at once.
        size: Height and width.
        times: Batches of a turn.
        device: "cpu" or "cuda".
        precision: "float32" or "bfloat16", of convolutions.
        compiled: Whether torch.compile compiles it.
    """
    import torch

    network = _torch_network(model, size).eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    network = torch.compile(network) if compiled else network
    images = torch.tensor(noise(batch, size), device=device)

    @torch.inference_mode()
    def label() -> np.ndarray:
        x = images.permute(0, 3, 1, 2).float()
        return _torch_logits(network, x, device, precision).argmax(1).cpu().numpy()

    return _WithFacts(_repeated(label, times), lambda: _torch_memory(device))


def _torch_network(model: Mapping, size: Sequence[int]):
    if "torchvision" in model:
        import torchvision

        make = getattr(torchvision.models.segmentation, model["torchvision"])
        return make(weights=None, weights_backbone=None, num_classes=21)
    from benchmarks.peers.pytorch import TorchDeepLab

    return TorchDeepLab(make_model(model), tuple(size))


def _torch_logits(network, images, device: str, precision: str):
    import torch

    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = network(images)
    # Torchvision's give a dictionary.
    return logits["out"] if isinstance(logits, dict) else logits


def _torch_memory(device: str) -> dict:
    import torch

    if device == "cpu":
        return {}
    return {"device_mebibytes": torch.cuda.max_memory_allocated() / 2**20}


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
    # One iterator for all turns, as a training has it: a new one takes seconds of
    # several workers, and behind it a step may have all its threads on one core.
    work = functools.partial(trainer.train_steps, trainer.iterate(dataset), times)
    return _WithFacts(work, {"jit": trainer.compiles})


def worker_training_step(**task) -> Callable:
    """Optimiser steps of a worker's share, together with the other workers."""
    return training_step(**task, strategy="multi_worker_mirrored")


def training_on_records(
    dataset_dir: str,
    split: str,
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
) -> Callable:
    """Optimiser steps of our trainer on the records of a split."""
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
    batches = trainer.iterate(load_dataset(data, split, training=True))
    return functools.partial(trainer.train_steps, batches, times)


def torch_training_step(
    model: Mapping,
    batch: int,
    size: Sequence[int],
    times: int,
    channels_last: bool = True,
    device: str = "cpu",
    precision: str = "float32",
    compiled: bool = False,
) -> Callable:
    """Optimiser steps of a network in PyTorch: momentum and L2, as ours.

    Args:
        model: As `torch_inference` takes it.
        batch: Images of a step.
        size: Height and width of the crop.
        times: Steps of a turn.
        channels_last: Memory layout.
        device: "cpu" or "cuda".
        precision: "float32" or "bfloat16", of convolutions.
        compiled: Whether torch.compile compiles it.
    """
    import torch
    from torch.nn import functional

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = _torch_network(model, size).train().to(device, memory_format=layout)
    weights = list(network.parameters())
    network = torch.compile(network) if compiled else network
    images = torch.tensor(noise(batch, size), device=device).permute(0, 3, 1, 2)
    images = images.float().contiguous(memory_format=layout)
    labels = torch.tensor(noise_labels(batch, size, 21), device=device).long()
    optimizer = torch.optim.SGD(weights, lr=1e-4, momentum=0.9, weight_decay=4e-5)

    def step():
        optimizer.zero_grad()
        logits = _torch_logits(network, images, device, precision).float()
        loss = functional.cross_entropy(logits, labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss

    def work() -> None:
        for _ in range(times):
            loss = step()
        loss.item()  # a GPU is still at work until then

    return _WithFacts(work, lambda: _torch_memory(device))


def jax_inference(
    model: Mapping, batch: int, size: Sequence[int], times: int, precision: str
) -> Callable:
    """Labels by our model on JAX; the environment sets KERAS_BACKEND=jax."""
    import jax
    import jax.numpy as jnp

    network = make_model(model, precision)
    learned, state = _jax_values(network)
    images = jnp.asarray(noise(batch, size))

    @jax.jit
    def label(learned, state, images):
        x = images.astype("float32")
        logits, _ = network.stateless_call(learned, state, x, training=False)
        return logits.argmax(-1)

    work = _repeated(lambda: np.asarray(label(learned, state, images)), times)
    return _WithFacts(work, _jax_memory)


def _jax_values(network) -> tuple[list, list]:
    return (
        [v.value for v in network.trainable_variables],
        [v.value for v in network.non_trainable_variables],
    )


def _jax_memory() -> dict:
    import jax

    found = jax.devices()[0].memory_stats() or {}
    peak = found.get("peak_bytes_in_use")
    return {} if peak is None else {"device_mebibytes": peak / 2**20}


def jax_training_step(
    model: Mapping, batch: int, size: Sequence[int], times: int, precision: str
) -> Callable:
    """Optimiser steps of our model and loss on JAX: momentum and L2."""
    import jax
    import jax.numpy as jnp

    from deeplab_tf.training.losses import segmentation_loss

    network = make_model(model, precision)
    learned, state = _jax_values(network)
    momentum = [jnp.zeros_like(value) for value in learned]
    images = jnp.asarray(noise(batch, size), "float32")
    labels = jnp.asarray(noise_labels(batch, size, 21))

    def loss_of(learned, state):
        logits, state = network.stateless_call(learned, state, images, training=True)
        return segmentation_loss(labels, logits), state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(learned, state, momentum):
        gradients = jax.value_and_grad(loss_of, has_aux=True)
        (loss, state), found = gradients(learned, state)
        moved = [
            0.9 * m + g + 4e-5 * w
            for m, g, w in zip(momentum, found, learned, strict=True)
        ]
        learned = [w - 1e-4 * m for w, m in zip(learned, moved, strict=True)]
        return learned, state, moved, loss

    values = [learned, state, momentum]

    def work() -> None:
        for _ in range(times):
            *values[:], loss = step(*values)
        float(loss)  # an accelerator is still at work until then

    return _WithFacts(work, _jax_memory)


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
