"""What an experiment is: model, data, training and evaluation, as frozen values.

The official flag names are spelled here once (`MODEL_FLAGS`), so that a command
line, a golden case and an `experiment.json` describe a model in the same words.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

OUTPUT_STRIDES = (8, 16, 32)
# DeepLabv3 (1706.05587) Sec. 3.3: (6, 12, 18) at output stride 16, doubled at 8.
_PAPER_RATES = (6, 12, 18)
_PAPER_RATES_STRIDE = 16
# 127.5 becomes 0 after the scaling to [-1, 1]; the two original ResNets subtract
# the ImageNet mean instead.
_MEAN_PIXEL = (127.5, 127.5, 127.5)
_IMAGENET_MEAN_PIXEL = (123.15, 115.90, 103.06)
_MEAN_SUBTRACTING = ("resnet_v1_50", "resnet_v1_101")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_output_stride(output_stride: int) -> None:
    _require(
        output_stride in OUTPUT_STRIDES,
        f"output_stride must be 8, 16 or 32; received {output_stride}",
    )


def _scaled_rates(rates: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    """Returns atrous rates that cover the same pixels at another output stride."""
    _require(
        all(rate * old % new == 0 for rate in rates),
        f"atrous rates {list(rates)} of output_stride {old} have no whole "
        f"counterpart at output_stride {new}; give atrous_rates",
    )
    return tuple(rate * old // new for rate in rates)


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """Atrous spatial pyramid pooling (DeepLabv3, Sec. 3.3).

    Attributes:
        rates: Atrous rates of the 3x3 branches, at the model's output stride.
            None takes the papers' (6, 12, 18) at output stride 16, scaled to
            the model's; () leaves the 1x1 branch and the image-level features.
        filters: Depth of every branch and of the projection.
        separable: Whether the 3x3 branches are depthwise separable.
        image_level: Whether image-level features take part (Fig. 5b).
        image_pooling_crop_size: Height and width in image pixels of the window
            that image-level pooling averages; None averages the whole image.
        image_pooling_stride: Steps of that window, in feature cells.
        dropout: Fraction dropped after the projection, in training only.
    """

    rates: tuple[int, ...] | None = None
    filters: int = 256
    separable: bool = True
    image_level: bool = True
    image_pooling_crop_size: tuple[int, int] | None = None
    image_pooling_stride: tuple[int, int] = (1, 1)
    dropout: float = 0.1

    def __post_init__(self):
        _require(
            all(rate > 0 for rate in self.rates or ()),
            f"atrous_rates must be positive; received {self.rates}",
        )
        _require(
            self.filters > 0, f"aspp filters must be positive; received {self.filters}"
        )
        _require(
            0 <= self.dropout < 1, f"dropout must be in [0, 1); received {self.dropout}"
        )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The decoder of DeepLabv3+ (1802.02611, Sec. 3.1 and 4.1).

    Attributes:
        output_strides: Strides of the low-level features taken up, descending;
            the papers use (4,). () is DeepLabv3, without a decoder.
        filters: Depth of the 3x3 convolutions.
        projection_filters: Depth to which low-level features are reduced
            (Table 1).
        separable: Whether the 3x3 convolutions are depthwise separable.
    """

    output_strides: tuple[int, ...] = (4,)
    filters: int = 256
    projection_filters: int = 48
    separable: bool = True

    def __post_init__(self):
        strides = list(self.output_strides)
        _require(
            strides == sorted(set(strides), reverse=True)
            and set(strides) <= {4, 8, 16},
            "decoder_output_stride takes 4, 8 and 16 in descending order; "
            f"received {strides}",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A DeepLab model.

    Attributes:
        backbone: Name in `deeplab_tf.models.backbones.BACKBONES`.
        num_classes: Number of classes; an ignored label is not one.
        output_stride: Image pixels per feature cell of the backbone: 8, 16, 32.
        depth_multiplier: Width of a MobileNet relative to the paper's.
        divisible_by: Channel counts of a MobileNet are rounded to a multiple of
            this; None is the official rule (8 at depth_multiplier 1, else 1).
        image_pyramid: Scales at which the network sees the image; their logits
            are merged. The papers use (1.0,).
        merge_method: "max" or "avg" of the logits over `image_pyramid`.
        batch_norm_momentum: Decay of every moving statistic; None takes the
            official constant of each part (0.9997, 0.997, 0.95), which is far
            too slow for runs of some hundred steps from scratch.
        context: The ASPP.
        decoder: The decoder.
    """

    backbone: str = "mobilenet_v2"
    num_classes: int = 21
    output_stride: int = 16
    depth_multiplier: float = 1.0
    divisible_by: int | None = None
    image_pyramid: tuple[float, ...] = (1.0,)
    merge_method: str = "max"
    batch_norm_momentum: float | None = None
    context: ContextConfig = ContextConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self):
        _require_output_stride(self.output_stride)
        _require(
            self.num_classes > 0,
            f"num_classes must be positive; received {self.num_classes}",
        )
        _require(
            self.depth_multiplier > 0,
            f"depth_multiplier must be positive; received {self.depth_multiplier}",
        )
        _require(
            bool(self.image_pyramid) and min(self.image_pyramid) > 0,
            f"image_pyramid takes positive scales; received {self.image_pyramid}",
        )
        _require(
            self.merge_method in ("max", "avg"),
            f"merge_method must be max or avg; received {self.merge_method!r}",
        )
        momentum = self.batch_norm_momentum
        _require(
            momentum is None or 0 <= momentum < 1,
            f"batch_norm_momentum must be in [0, 1); received {momentum}",
        )
        _require(
            max(self.decoder.output_strides, default=0) <= self.output_stride,
            f"decoder_output_stride {list(self.decoder.output_strides)} must not "
            f"exceed output_stride {self.output_stride}",
        )
        if self.context.rates is None:
            rates = _scaled_rates(_PAPER_RATES, _PAPER_RATES_STRIDE, self.output_stride)
            context = dataclasses.replace(self.context, rates=rates)
            object.__setattr__(self, "context", context)

    @property
    def mean_pixel(self) -> tuple[float, float, float]:
        """RGB value, 0..255, that the network sees as nothing: the padding."""
        if self.backbone in _MEAN_SUBTRACTING:
            return _IMAGENET_MEAN_PIXEL
        return _MEAN_PIXEL

    def at_output_stride(self, output_stride: int) -> "ModelConfig":
        """Returns the same weights computing features at another stride.

        Args:
            output_stride: 8, 16 or 32; atrous rates scale along.
        """
        rates = self._rates_at(output_stride)
        context = dataclasses.replace(self.context, rates=rates)
        return dataclasses.replace(self, output_stride=output_stride, context=context)

    def _rates_at(self, output_stride: int) -> tuple[int, ...]:
        _require_output_stride(output_stride)
        return _scaled_rates(self.context.rates, self.output_stride, output_stride)

    @classmethod
    def from_official_flags(cls, flags: Mapping[str, object]) -> "ModelConfig":
        """Returns the config that the official code builds from these flags.

        Flags that are absent have the official defaults: no atrous rates (only
        the 1x1 branch and image-level features) and no decoder.

        Args:
            flags: Official names to values; numbers may be strings and lists.

        Raises:
            UserError: for a name or value that is not known.
        """
        official = cls(
            context=ContextConfig(rates=()), decoder=DecoderConfig(output_strides=())
        )
        return official.with_official_flags(flags)

    def with_official_flags(self, flags: Mapping[str, object]) -> "ModelConfig":
        """Returns this config with the given official flags laid over it.

        A new output stride scales the atrous rates along unless they are given.
        """
        fields: dict = {}
        for name, value in flags.items():
            if name in _FIXED_FLAGS:
                _check_fixed_flag(name, value)
            elif name not in MODEL_FLAGS:
                raise UserError(
                    f"unknown model flag {name!r}; known: "
                    f"{', '.join(sorted([*MODEL_FLAGS, *_FIXED_FLAGS]))}"
                )
            else:
                field, parse = MODEL_FLAGS[name]
                fields[field] = _parsed(name, value, parse)
        if "output_stride" in fields and "context.rates" not in fields:
            fields["context.rates"] = self._rates_at(fields["output_stride"])
        return self._with_fields(fields)

    def _with_fields(self, fields: Mapping[str, object]) -> "ModelConfig":
        """Returns a copy with dotted field names replaced all at once."""
        own = {k: v for k, v in fields.items() if "." not in k}
        for part in ("context", "decoder"):
            inner = {
                k.removeprefix(part + "."): v
                for k, v in fields.items()
                if k.startswith(part + ".")
            }
            own[part] = dataclasses.replace(getattr(self, part), **inner)
        return dataclasses.replace(self, **own)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the records are and how a sample is made of them.

    Attributes:
        dataset_dir: Folder of the TFRecord shards.
        dataset: Name of the dataset, for its classes; None reads the
            `dataset_info.json` beside the shards.
        crop_size: Height and width of a training crop.
        batch_size: Images per batch, over all replicas.
        min_resize_value: Shorter side to which every image is resized first.
        max_resize_value: Bound of the longer side in that resizing.
        resize_factor: Resized sides are raised to a multiple of this, plus 1.
        min_scale_factor: Smallest random scale in training.
        max_scale_factor: Largest random scale in training.
        scale_factor_step_size: Distance of the random scales; 0 is continuous.
        mean_pixel: RGB value, 0..255, of the padding.
        seed: Seed of the order and of the augmentation.
    """

    dataset_dir: str = ""
    dataset: str | None = None
    crop_size: tuple[int, int] = (513, 513)
    batch_size: int = 8
    min_resize_value: int | None = None
    max_resize_value: int | None = None
    resize_factor: int | None = None
    min_scale_factor: float = 0.5
    max_scale_factor: float = 2.0
    scale_factor_step_size: float = 0.25
    mean_pixel: tuple[float, float, float] = _MEAN_PIXEL
    seed: int = 0

    def __post_init__(self):
        _require(
            min(self.crop_size) > 0,
            f"crop size must be positive; received {self.crop_size}",
        )
        _require(
            self.batch_size > 0,
            f"batch size must be positive; received {self.batch_size}",
        )
        _require(
            0 < self.min_scale_factor <= self.max_scale_factor,
            "min_scale_factor must be positive and at most max_scale_factor; "
            f"received {self.min_scale_factor} and {self.max_scale_factor}",
        )
        _require(
            self.scale_factor_step_size >= 0,
            f"scale_factor_step_size must not be negative; received "
            f"{self.scale_factor_step_size}",
        )
        _require(
            self.min_resize_value is not None
            or (self.max_resize_value is None and self.resize_factor is None),
            "max_resize_value and resize_factor need min_resize_value",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the fields carry the official flag names.

    Attributes:
        training_number_of_steps: Optimiser steps in all.
        optimizer: "momentum" (TF1's, as the papers) or "adam".
        learning_policy: "poly" or "step"; Adam ignores it.
        base_learning_rate: Learning rate at step 0; the papers' 0.007 goes with
            batch 16 and trained batch normalisation.
        end_learning_rate: Learning rate at the end of the poly policy.
        learning_power: Exponent of the poly policy.
        decay_steps: Length of the poly policy; 0 is all steps after slow start.
        learning_rate_decay_factor: Factor of the step policy.
        learning_rate_decay_step: Steps between two decays of the step policy.
        slow_start_step: Steps at `slow_start_learning_rate` before the policy.
        slow_start_learning_rate: Constant rate of the slow start.
        momentum: Momentum.
        adam_learning_rate: Learning rate of Adam.
        adam_epsilon: Epsilon of Adam.
        weight_decay: L2 coefficient, on convolution kernels but depthwise ones.
        last_layer_gradient_multiplier: Factor on gradients of the last layers.
        last_layers_contain_logits_only: Whether the last layers are the logits
            alone, or the whole head.
        fine_tune_batch_norm: Whether batch statistics normalise, and update the
            moving ones. False still trains gamma and beta.
        upsample_logits: Whether the loss is taken at label resolution; False
            shrinks the labels instead.
        hard_example_mining_step: Steps over which mining grows to its share.
        top_k_percent_pixels: Share (0..1] of the hardest pixels in the loss.
        label_weights: One weight per class; () weighs all alike.
        ignore_label: Label of pixels without loss.
        initialize_last_layer: Whether last layers are taken from
            `tf_initial_checkpoint`; a logits layer of another class count never
            is.
        tf_initial_checkpoint: Checkpoint to start from.
        train_logdir: Folder of checkpoints; None keeps none.
        log_steps: Steps between two reports.
        save_interval_secs: Seconds between two checkpoints.
        save_interval_steps: Steps between two checkpoints; 0 is by time only.
    """

    training_number_of_steps: int = 30000
    optimizer: str = "momentum"
    learning_policy: str = "poly"
    base_learning_rate: float = 1e-4
    end_learning_rate: float = 0.0
    learning_power: float = 0.9
    decay_steps: int = 0
    learning_rate_decay_factor: float = 0.1
    learning_rate_decay_step: int = 2000
    slow_start_step: int = 0
    slow_start_learning_rate: float = 1e-4
    momentum: float = 0.9
    adam_learning_rate: float = 1e-3
    adam_epsilon: float = 1e-8
    weight_decay: float = 4e-5
    last_layer_gradient_multiplier: float = 1.0
    last_layers_contain_logits_only: bool = False
    fine_tune_batch_norm: bool = True
    upsample_logits: bool = True
    hard_example_mining_step: int = 0
    top_k_percent_pixels: float = 1.0
    label_weights: tuple[float, ...] = ()
    ignore_label: int = 255
    initialize_last_layer: bool = True
    tf_initial_checkpoint: str | None = None
    train_logdir: str | None = None
    log_steps: int = 10
    save_interval_secs: float = 1200.0
    save_interval_steps: int = 0

    def __post_init__(self):
        _require(
            self.training_number_of_steps > 0,
            "training_number_of_steps must be positive; received "
            f"{self.training_number_of_steps}",
        )
        _require(
            self.optimizer in ("momentum", "adam"),
            f"optimizer must be momentum or adam; received {self.optimizer!r}",
        )
        _require(
            self.learning_policy in ("poly", "step"),
            f"learning_policy must be poly or step; received {self.learning_policy!r}",
        )
        _require(
            0 < self.top_k_percent_pixels <= 1,
            "top_k_percent_pixels is a share in (0, 1]; received "
            f"{self.top_k_percent_pixels}",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How a model is scored; the fields carry the official flag names.

    Attributes:
        eval_scales: Scales whose probabilities are averaged.
        add_flipped_images: Whether every scale is also seen mirrored.
        eval_crop_size: Height and width to which every image is padded, as the
            official protocol does; larger images enlarge it. None pads each
            image to the next `k * output_stride + 1`.
        eval_batch_size: Images per forward pass.
        ignore_label: Label of pixels that are not scored.
    """

    eval_scales: tuple[float, ...] = (1.0,)
    add_flipped_images: bool = False
    eval_crop_size: tuple[int, int] | None = None
    eval_batch_size: int = 1
    ignore_label: int = 255

    def __post_init__(self):
        _require(
            bool(self.eval_scales) and min(self.eval_scales) > 0,
            f"eval_scales takes positive scales; received {self.eval_scales}",
        )
        _require(
            min(self.eval_crop_size or (1,)) > 0,
            f"eval_crop_size must be positive; received {self.eval_crop_size}",
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that `train.py` was told; the text of `experiment.json`."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    split: str = "train"
    info: DatasetInfo | None = None
    format_version: int = 1

    def __post_init__(self):
        _require(
            self.format_version == 1,
            f"format_version {self.format_version} is of a newer deeplab_tf; "
            "this one reads 1",
        )

    def to_json(self) -> str:
        """Returns the text of `experiment.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "experiment.json") -> "Experiment":
        """Returns the experiment that `to_json` wrote.

        Raises:
            UserError: if the text is something else; names `source`.
        """
        try:
            return _from_dict(cls, json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{source} describes no experiment: {error}") from error


def _from_dict(cls, values):
    """Returns a dataclass of the nested dictionaries that `asdict` made of it."""
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise TypeError(f"unknown fields {sorted(unknown)}")
    return cls(**{k: _from_value(hints[k], v) for k, v in values.items()})


def _from_value(hint, value):
    if value is None:
        return None
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return _from_dict(hint, value)
    return tuple(value) if typing.get_origin(hint) is tuple else value


def parse_numbers(value: object, number: Callable = int) -> tuple:
    """Returns the numbers in `"513,513"`, `["513", 513]`, `[513, 513]` or None."""
    if value is None:
        return ()
    parts = value if isinstance(value, list | tuple) else [value]
    words = [w for part in parts for w in str(part).split(",")]
    return tuple(number(word) for word in words if word.strip())


def parse_size(value: object) -> tuple[int, int] | None:
    """Returns height and width of `"513,513"`, `["513", "513"]` or None."""
    numbers = parse_numbers(value)
    if len(numbers) not in (0, 2):
        raise ValueError("expected height and width, such as 513,513")
    return numbers or None


def _parse_bool(value: object) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    return words[str(value).lower()]


def _parse_floats(value: object) -> tuple[float, ...]:
    return parse_numbers(value, float)


def _parse_pyramid(value: object) -> tuple[float, ...]:
    return _parse_floats(value) or (1.0,)


def _optional_int(value: object) -> int | None:
    return None if value is None else int(value)


def _optional_float(value: object) -> float | None:
    return None if value is None else float(value)


def _parsed(name, value, parse):
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{name} cannot be {value!r}: {error}") from error


# Official model flags (and batch_norm_momentum, ours) -> field and parser.
MODEL_FLAGS: dict[str, tuple[str, Callable]] = {
    "model_variant": ("backbone", str),
    "num_classes": ("num_classes", int),
    "output_stride": ("output_stride", int),
    "depth_multiplier": ("depth_multiplier", float),
    "divisible_by": ("divisible_by", _optional_int),
    "image_pyramid": ("image_pyramid", _parse_pyramid),
    "merge_method": ("merge_method", str),
    "batch_norm_momentum": ("batch_norm_momentum", _optional_float),
    "atrous_rates": ("context.rates", parse_numbers),
    "add_image_level_feature": ("context.image_level", _parse_bool),
    "image_pooling_crop_size": ("context.image_pooling_crop_size", parse_size),
    "image_pooling_stride": ("context.image_pooling_stride", parse_size),
    "aspp_with_separable_conv": ("context.separable", _parse_bool),
    "aspp_convs_filters": ("context.filters", int),
    "decoder_output_stride": ("decoder.output_strides", parse_numbers),
    "decoder_filters": ("decoder.filters", int),
    "decoder_use_separable_conv": ("decoder.separable", _parse_bool),
}

# Official model flags of which one value is supported. `crop_size` is free: the
# size at hand decides, as the official graph is always fed its crop size.
_FIXED_FLAGS: dict[str, object] = {
    "crop_size": None,
    "multi_grid": (),
    "logits_kernel_size": 1,
    "aspp_with_batch_norm": True,
    "aspp_with_concat_projection": True,
    "aspp_with_squeeze_and_excitation": False,
    "decoder_use_sum_merge": False,
    "decoder_output_is_logits": False,
    "image_se_uses_qsigmoid": False,
    "use_bounded_activation": False,
    "dense_prediction_cell_json": "",
    "prediction_with_upsampled_logits": True,
}


def _check_fixed_flag(name: str, value: object) -> None:
    if name == "crop_size":
        _parsed(name, value, parse_size)
        return
    fixed = _FIXED_FLAGS[name]
    same = str(value).lower() == str(fixed).lower() or (not value and not fixed)
    _require(same, f"{name} supports only {fixed!r} so far; received {value!r}")
