"""DeepLab as a Keras model that keeps its configuration."""

import copy
import functools
from typing import Any

import keras
from keras import layers

import deeplab_tf
from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.config import ModelConfig
from deeplab_tf.config.options import COUNT, SIDE
from deeplab_tf.errors import UserError, suggest_similar
from deeplab_tf.models.network import (
    PART_NAMES,
    feature_tensors,
    find_model_config,
    full_size_logits,
)
from deeplab_tf.models.tensors import Tensor
from deeplab_tf.models.variables import (
    batch_normalizations,
    layers_by_name,
    leaf_layers,
)

# Entries of `get_config` that Keras' own `from_config` does not take.
_DESCRIPTIVE = ("requires", "model_config")


@keras.saving.register_keras_serializable("deeplab_tf")
class DeepLab(keras.Model):
    """A DeepLab network (1802.02611, Fig. 2).

    A functional model: the input is raw RGB, float32 0..255 `[batch, height, width,
    channels]`; the output is float32 logits `[batch, height, width, num_classes]`; the
    layer "logits" returns them before the last resize. With image
    sizes of `k * output_stride + 1`, features and pixels are aligned; other sizes also
    work.

    Args:
        inputs: The symbolic image.
        outputs: The symbolic logits; see `build_model`.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        model_config: The `ModelConfig` of the network.
    """

    # The signature of `keras.Model`, which `clone_model` needs to keep the class.
    def __init__(
        self, inputs: Tensor, outputs: Tensor, name: str | None = None, **kwargs: Any
    ):
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.model_config = find_model_config(self)
        names = [layer.name for layer in leaf_layers(self) if layer.weights]
        if len(set(names)) < len(names):
            raise UserError(
                "clone_model cannot share layers between the scales of an image "
                "pyramid; use build_model(model.model_config)"
            )
        # In a function, because Keras saves models that are attributes.
        self._backbone = functools.cache(self._make_backbone)

    @property
    def backbone(self) -> keras.Model:
        """The backbone as a separate model that shares its layers with this one.

        Its input is normalised images, the output of the layer "normalize". Its outputs
        are the high-level features, then the low-level features for the decoder.
        """
        return self._backbone()

    def _make_backbone(self) -> keras.Model:
        part = self.get_layer("backbone")
        return keras.Model(part.inputs, part.outputs, name=part.name)

    def get_layer(
        self, name: str | None = None, index: int | None = None
    ) -> keras.Layer:
        """Returns any layer by name, even a nested one, or a top-level layer by index.

        The parts are "backbone", "context" (the ASPP or its replacement, also called
        "aspp") and "decoder". Their `output` belongs to this model; the `output` of a
        layer inside a part belongs to the graph of that part. Other layers are named
        after their scope in the official graph, with `.` instead of `/`, such as
        "logits.semantic".

        Raises:
            UserError: if the layer does not exist.
        """
        if index is not None or name is None:
            return super().get_layer(name, index)
        found = layers_by_name(self)
        layer = found.get(PART_NAMES.get(name, name))
        if layer is None:
            parts = ", ".join(x.name for x in self.layers)
            raise UserError(
                f"the model has no layer {name!r}; "
                f"{suggest_similar(name, found)}top-level layers: {parts}"
            )
        return layer

    def features(self, *names: str) -> keras.Model:
        """Returns a model that shares all layers and outputs intermediate features.

        It has the input of this model. Its output is a dictionary of features, each
        `[batch, height, width, channels]`:

        - "backbone": high-level features of the backbone
        - "low_level_<stride>": low-level features that the decoder uses
        - "aspp": output of the ASPP or its replacement
        - "decoder": output of the decoder
        - "logits": logits before the last resize

        Args:
            *names: Names of features; none means all that the model has.

        Raises:
            UserError: if the model does not have a feature; with an image pyramid,
                "logits" is the only one.
        """
        available = feature_tensors(self)
        for name in names:
            if name not in available:
                raise UserError(
                    f"the model has no features {name!r}; it has {', '.join(available)}"
                )
        outputs = {name: available[name] for name in names or available}
        return keras.Model(self.input, outputs, name="features")

    def predict_labels(self, images: Any, **options: Any) -> Any:
        """Returns the class of each pixel; see `deeplab_tf.predict_labels`."""
        return deeplab_tf.predict_labels(self, images, **options)

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Makes batch normalisation use the moving statistics in training as well.

        Unlike with `trainable = False`, gamma and beta are still trained, as with the
        official `fine_tune_batch_norm=False`. Call this before `compile`;
        `frozen=False` undoes it.
        """
        for layer in batch_normalizations(self):
            layer.frozen = frozen

    def set_weight_decay(self, weight_decay: float) -> None:
        """Adds the official L2 loss to `fit`.

        It is half of the decay times the sum of the squared weights of all kernels.

        Depthwise kernels, biases, gamma and beta are not decayed. `Trainer` has its own
        `TrainConfig.weight_decay` instead. Call this before `compile`.

        Args:
            weight_decay: The papers use 4e-5, and 1e-4 for ResNets; 0 removes the loss.
        """
        l2 = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
        for layer in self._convolutions():
            layer.kernel_regularizer = layer.kernel.regularizer = l2

    def _convolutions(self) -> list[layers.Conv2D]:
        return [x for x in leaf_layers(self) if isinstance(x, layers.Conv2D)]

    def compile(
        self, *args: Any, jit_compile: bool | str = "auto", **kwargs: Any
    ) -> None:
        """Configures training like `keras.Model.compile`, except for `jit_compile`.

        With TensorFlow on a CPU, "auto" does not use XLA, which would make depthwise
        convolutions about 20 times slower there.
        """
        if jit_compile == "auto" and keras.backend.backend() == "tensorflow":
            devices = keras.distribution.list_devices()
            if all(device.startswith("cpu") for device in devices):
                jit_compile = False
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model with the settings it was saved with."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """Returns the layers and their connections, and the `model_config`."""
        return {
            # Keras prints the config if it does not know the class.
            "requires": "import deeplab_tf",
            "model_config": strict_json.to_values(self.model_config),
            **super().get_config(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "DeepLab":
        """Builds the model that `get_config` describes, with new weights."""
        described = strict_json.build_dataclass(
            ModelConfig, config["model_config"], "the config of a DeepLab model"
        )
        if (
            described.context.image_pooling_crop_size
            and len(described.image_pyramid) > 1
        ):
            # Keras would not share layers between the scales.
            batch_size, *image_size, _ = config["layers"][0]["config"]["batch_shape"]
            size = tuple(image_size) if any(image_size) else None
            return build_model(described, size, batch_size)
        graph = {n: v for n, v in config.items() if n not in _DESCRIPTIVE}
        # A copy, because Keras empties the configs of nested models.
        return super().from_config(copy.deepcopy(graph), custom_objects)


@check_arguments(image_size=SIDE, batch_size=COUNT)
def build_model(
    config: ModelConfig,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> DeepLab:
    """Builds an untrained DeepLab network under the global Keras dtype policy.

    Args:
        config: The model configuration, kept as `model.model_config`.
        image_size: Fixed height and width, in pixels; None accepts any.
        batch_size: Fixed batch size; None accepts any.

    Raises:
        UserError: if an argument has the wrong type or is out of range.
    """
    shape = (batch_size, *(image_size or (None, None)), config.channels)
    image = keras.Input(batch_shape=shape, dtype="float32", name="image")
    return DeepLab(image, full_size_logits(image, config), name="deeplab")
