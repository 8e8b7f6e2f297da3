"""Networks of PyTorch projects: configs, logits and round trips."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER, zero_kernels
from pytorch_networks import (
    CLASSIFIERS,
    GOLDEN,
    NETWORKS,
    SMALL_ODD,
    STEP,
    image,
    labels,
    procedural_weights,
    read_case,
)

import deeplab_tf
from deeplab_tf import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.checkpoints.pytorch.layouts import (
    convert_state_dict,
    identify_network,
    torch_state_dict,
)
from deeplab_tf.checkpoints.restore import load_tf1_variables
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = ROOT / ".venv-pytorch" / "bin" / "python"
SCRIPT = ROOT / "tests" / "pytorch_networks.py"
# Of the standard deviation of the logits.
TOLERANCE = 1e-4


def adapt(name, config):
    """Returns the config with what a state dict does not tell."""
    if "_d16_mg124" in name:
        conventions = dataclasses.replace(config.conventions, absolute_multi_grid=True)
        return dataclasses.replace(
            config.at_output_stride(16), multi_grid=(1, 2, 4), conventions=conventions
        )
    stride = NETWORKS.get(name, (None, {}))[1]
    stride = stride.get("output_stride", stride.get("encoder_output_stride"))
    return dataclasses.replace(config, output_stride=stride or config.output_stride)


def load(name, state):
    """Returns a model with the weights of a state dict."""
    network = convert_state_dict(state, {}, name)
    with zero_kernels():
        model = build_model(adapt(name, network.config))
    report = load_tf1_variables(model, network.arrays)
    assert report.complete, report
    return model, network.unused


def logits_of(model, size):
    """Returns the logits of our model, like `pytorch_networks.logits_of`."""
    return np.array(model(image(size)[None], training=False)[0])


def assert_equal_logits(logits, expected):
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= TOLERANCE * expected.std()
    equal = logits.argmax(-1) == expected.argmax(-1)
    assert equal.mean() >= 0.9999


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_the_project(name):
    shapes, expected = read_case(FOLDER / "pytorch" / f"{name}.npz")
    state = procedural_weights(shapes)
    model, unused = load(name, state)
    for size, logits in expected.items():
        assert_equal_logits(logits_of(model, size)[::STEP, ::STEP], logits)
    back = torch_state_dict(model)
    assert back.keys() == state.keys() - set(unused)
    assert all(np.array_equal(back[key], state[key]) for key in back)
    # Auxiliary heads, and the last convolution that transformers does not use either.
    kinds = ("aux_classifier.", "mobilenet_v2.conv_1x1.")
    assert all(key.startswith(kinds) for key in unused)


def test_hub_description_sets_the_output_stride_and_the_rates():
    shapes, _ = read_case(FOLDER / "pytorch" / "smp_v3plus_resnet18_16.npz")
    state = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    description = {"encoder_output_stride": 8, "decoder_atrous_rates": [6, 12, 18]}
    config = convert_state_dict(state, description, "folder").config
    assert (config.output_stride, config.atrous_rates) == (8, (6, 12, 18))


def test_images_with_other_channels_are_scaled_to_one():
    shapes, _ = read_case(FOLDER / "pytorch" / "smp_v3plus_resnet18_16.npz")
    shapes["encoder.conv1.weight"] = (64, 4, 7, 7)
    state = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    config = convert_state_dict(state, {}, "x.pth").config
    assert config.channels == 4
    assert config.conventions.pixel_deviation == (255.0, 255.0, 255.0, 255.0)


def test_unknown_network_is_refused_with_what_is_supported():
    state = {"encoder.weight": np.zeros((1, 1)), "encoder.bias": np.zeros(1)}
    with pytest.raises(UserError, match=r"^unet.pth has .* \(encoder.weight.*timm$"):
        convert_state_dict(state, {}, "unet.pth")


@pytest.mark.parametrize("name", GOLDEN)
def test_missing_and_misshapen_variables_raise_no_other_error(name):
    shapes, _ = read_case(FOLDER / "pytorch" / f"{name}.npz")
    for key in shapes:
        others = {n: shape for n, shape in shapes.items() if n != key}
        for variables in (others, *(others | {key: x} for x in ((), (3,), (1, 2, 3)))):
            with contextlib.suppress(UserError):
                identify_network(variables, {})


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "mobilenet_v2"},
        # Named as in torchvision, but with other conventions.
        {
            "backbone": "resnet_v1_18",
            "context": ContextConfig((12, 24, 36), separable=False, convolutions=1),
            "decoder": DecoderConfig(()),
        },
    ],
)
def test_model_of_no_project_has_no_torch_state_dict(options):
    with zero_kernels():
        model = build_model(ModelConfig(**options))
    with pytest.raises(UserError, match=r"^no network of a PyTorch project"):
        torch_state_dict(model)


@pytest.fixture(scope="module")
def run_pytorch():
    """Runs tests/pytorch_networks.py in its environment."""
    if not PYTHON.exists():
        pytest.skip(f"no {PYTHON}; run tools/pytorch_venv.sh")

    def run(*arguments):
        command = [PYTHON, SCRIPT, *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_full_size_logits_are_those_of_the_project(name, tmp_path, run_pytorch):
    run_pytorch(tmp_path, name)
    shapes, expected = read_case(tmp_path / f"{name}.npz")
    model, _ = load(name, procedural_weights(shapes))
    for size, logits in expected.items():
        assert_equal_logits(logits_of(model, size), logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_our_weights_give_our_logits_in_the_project(name, tmp_path, run_pytorch):
    run_pytorch(tmp_path, name)
    shapes, _ = read_case(tmp_path / f"{name}.npz")
    model, _ = load(name, procedural_weights(shapes))
    random = np.random.default_rng(1)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(variable * random.uniform(0.8, 1.2, variable.shape))
    np.savez(tmp_path / "ours.npz", **torch_state_dict(model))
    run_pytorch(tmp_path, name, f"--weights={tmp_path / 'ours.npz'}")
    _, theirs = read_case(tmp_path / f"{name}.npz")
    for size, logits in theirs.items():
        assert_equal_logits(logits_of(model, size), logits)


@pytest.mark.slow
def test_training_has_the_gradients_of_torchvision(tmp_path, run_pytorch):
    name, size = "torchvision_resnet50", SMALL_ODD[0]
    run_pytorch(tmp_path, name, "--gradients")
    run_pytorch(tmp_path, name)
    shapes, _ = read_case(tmp_path / f"{name}.npz")
    state = procedural_weights(shapes)
    model, _ = load(name, state)
    images, truth = image(size)[None], labels(size, model.output_shape[-1])[None]
    loss = deeplab_tf.SegmentationLoss(ignore_label=255)
    variables = official_variables(model)
    trained = {n: v for n, v in variables.items() if v.trainable}
    with tf.GradientTape() as tape:
        value = loss(truth, model(images, training=False))
    ours = tape.gradient(value, [v.value for v in trained.values()])
    theirs = dict(np.load(tmp_path / f"{name}_gradients.npz"))
    expected, _ = convert_state_dict(state, {}, name).layout.read_variables(
        model.model_config, theirs
    )
    assert expected.keys() == trained.keys()
    for key, gradient in zip(trained, ours, strict=True):
        error = np.linalg.norm(gradient - expected[key])
        assert error <= 1e-3 * np.linalg.norm(expected[key]), key
    config = deeplab_tf.TrainConfig(
        training_number_of_steps=20, base_learning_rate=1e-3, fine_tune_batch_norm=False
    )
    trainer = deeplab_tf.Trainer(model, config)
    losses = [trainer.train_step(images, truth)["data_loss"] for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_starts_a_model(name, tmp_path, run_pytorch):
    run_pytorch(tmp_path, name, "--save")
    path = tmp_path / f"{name}.pth"
    model = deeplab_tf.from_pretrained(path, num_classes=5, output_stride=32)
    assert model.output_shape[-1] == 5
    _, expected = read_case(tmp_path / f"{name}.npz")
    odd = {size: x for size, x in expected.items() if size[0] % 2 and size[1] % 2}
    assert odd
    for size, features in odd.items():
        pixels = model.get_layer("normalize")(image(size)[None])
        ours = model.backbone(pixels)[0][0].numpy()
        assert np.abs(ours - features).max() <= TOLERANCE * features.std()
