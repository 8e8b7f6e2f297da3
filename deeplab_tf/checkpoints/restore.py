"""Assigns arrays to the variables of a model by official name, and extracts them."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from deeplab_tf.arguments import check_arguments
from deeplab_tf.errors import UserError
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.quantization import quantize_model
from deeplab_tf.models.variables import official_variables

# Scopes outside the backbone, officially called "last layers".
_HEAD_SCOPES = (
    "logits",
    "image_pooling",
    "aspp",
    "concat_projection",
    "decoder",
    "meta_architecture",
)
# Official files also contain variables of the optimiser, the schedule and quantisation.
_SLOTS = ("/Momentum", "/Adam", "/Adam_1", "/RMSProp", "/ExponentialMovingAverage")
_BOOKKEEPING = ("global_step", "beta1_power", "beta2_power")


def last_layer_scopes(logits_only: bool) -> tuple[str, ...]:
    """Returns the scopes of the "last layers" in the sense of the official flags."""
    return _HEAD_SCOPES[:1] if logits_only else _HEAD_SCOPES


def _is_in_head(name: str) -> bool:
    return name.startswith(_HEAD_SCOPES)


def is_model_variable(name: str) -> bool:
    """Returns whether a checkpoint's variable is a weight.

    Others are an optimiser's slots, counters and the ranges of quantisation.
    """
    return not (
        name in _BOOKKEEPING
        or name.endswith(_SLOTS)
        or name.split("/")[-1] == "_quant"
        # Fake quantisation saves ranges as `.../act_quant/min`.
        or "_quant/" in name
    )


def has_quantization_ranges(arrays: Mapping[str, np.ndarray]) -> bool:
    """Returns whether a checkpoint of ours was trained with quantisation."""
    batches = [x for name, x in arrays.items() if name.endswith("/act_quant/batches")]
    return bool(batches) and bool(min(batches) > 0)


def quantize_with_ranges(
    model: keras.Model, arrays: Mapping[str, np.ndarray], source: str
) -> keras.Model:
    """Returns a quantised model, with the ranges of a checkpoint, sharing all weights.

    Raises:
        UserError: if `has_quantization_ranges` is false or a range is missing; names
            `source`.
    """
    quantized = quantize_model(model)
    variables = official_variables(quantized)
    ranges = {n: v for n, v in variables.items() if not is_model_variable(n)}
    missing = [n for n in ranges if n not in arrays]
    if missing or not has_quantization_ranges(arrays):
        reason = f"it has no {missing[0]}" if missing else "it was saved before that"
        raise UserError(
            f"{source} was not trained with quantisation ({reason}); train with "
            "--quantize_delay_step=0, or use --quantize_delay_step=-1"
        )
    for name, variable in ranges.items():
        variable.assign(arrays[name])
    return quantized


def class_count(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Returns the number of classes of a checkpoint, or None if it has no logits."""
    # Without a logits layer, the decoder outputs the logits and has biases.
    scopes = ("logits/", "decoder/decoder_conv")
    for scope in scopes:
        biases = [n for n in arrays if n.startswith(scope) and n.endswith("/biases")]
        if biases:
            return len(arrays[max(biases)])
    return None


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """Lists the variables that were restored, and those that were not.

    Attributes:
        restored: Names of restored variables.
        skipped: `(name, shape in the source, shape in the model)` where shapes differ.
        missing: Names that are only in the model.
        unexpected: Names that are only in the source.
        inflated: `(name, channels of the model)` of the first convolution if its RGB
            weights were adapted to a different number of channels, else empty.
    """

    restored: tuple[str, ...]
    skipped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    inflated: tuple[tuple[str, int], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether source and model have the same variables."""
        return not (self.skipped or self.missing or self.unexpected or self.inflated)

    def __str__(self) -> str:
        shapes = [
            f"{n} {_format_shape(a)} into {_format_shape(b)}"
            for n, a, b in self.skipped
        ]
        parts = [
            f"{len(self.restored)} restored",
            *(f"{name} inflated to {n} channels" for name, n in self.inflated),
            format_names("skipped because of their shape", shapes),
            format_names("missing in the checkpoint", self.missing),
            format_names("not in the model", self.unexpected),
        ]
        return ", ".join(part for part in parts if part)


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def format_names(what: str, names: Sequence[str], examples: int = 3) -> str:
    """Returns the number of names, what they are, and the first of them; "" if none."""
    if not names:
        return ""
    more = ", ..." if len(names) > examples else ""
    return f"{len(names)} {what} ({', '.join(names[:examples])}{more})"


def _inflate_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts an RGB kernel `[height, width, 3, depth]` to a number of channels.

    Extra channels get the mean of red, green and blue. If there are fewer than three
    channels, each gets an equal part of the sum, so greyscale images give the same
    activations (except for the mean subtraction of ResNets without beta).
    """
    if channels < 3:
        share = kernel.sum(axis=2, keepdims=True) / channels
        return np.repeat(share, channels, axis=2)
    mean = kernel.mean(axis=2, keepdims=True)
    return np.concatenate([kernel, np.repeat(mean, channels - 3, axis=2)], axis=2)


def _inflate_first_kernel(
    first: str, channels: int, given: dict
) -> tuple[tuple[str, int], ...]:
    """Adapts RGB weights to a model in place; returns `RestoreReport.inflated`."""
    shape = np.shape(given.get(first, ()))
    if channels == 3 or len(shape) != 4 or shape[2] != 3:
        return ()
    given[first] = _inflate_kernel(np.asarray(given[first]), channels)
    return ((first, channels),)


@check_arguments(model=BUILT)
def load_tf1_variables(
    model: keras.Model,
    arrays: Mapping[str, np.ndarray],
    exclude: tuple[str, ...] = (),
    source: str = "the arrays",
) -> RestoreReport:
    """Assigns arrays to the variables of a model by official name.

    Optimiser slots and `global_step` are ignored. Head variables with a different
    shape, such as logits for different classes, are skipped. RGB weights of the first
    convolution are adapted to models with other channels.

    Args:
        model: A model of `build_model`.
        arrays: Maps official names to values, with the shapes of TF1.
        exclude: Scopes (prefixes of names) to skip.
        source: Name of the arrays, for errors.

    Returns:
        Names that were restored, skipped, missing and unexpected.

    Raises:
        UserError: if nothing in the backbone matches, or a backbone variable has
            a different shape; the model is left unchanged.
    """
    given = {n: a for n, a in arrays.items() if is_model_variable(n)}
    variables = official_variables(model)
    wanted = {
        n: v for n, v in variables.items() if not (exclude and n.startswith(exclude))
    }
    first = next(iter(variables))
    channels = model.model_config.channels
    inflated = _inflate_first_kernel(first, channels, given) if first in wanted else ()
    report = _compare_variables(given, wanted, variables)
    report = dataclasses.replace(report, inflated=inflated)
    _require_backbone(report, source, model)
    for name in report.restored:
        wanted[name].assign(given[name])
    return report


def _compare_variables(
    given: Mapping, wanted: Mapping, variables: Mapping
) -> RestoreReport:
    """Matches arrays with the wanted variables, a subset of all `variables`."""
    common = [name for name in wanted if name in given]
    shapes = {n: (tuple(np.shape(given[n])), tuple(wanted[n].shape)) for n in common}
    return RestoreReport(
        restored=tuple(n for n, (source, model) in shapes.items() if source == model),
        skipped=tuple((n, *pair) for n, pair in shapes.items() if pair[0] != pair[1]),
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(name for name in given if name not in variables),
    )


def _require_backbone(report: RestoreReport, source: str, model: keras.Model) -> None:
    is_empty = all(map(_is_in_head, report.restored))
    if is_empty or not all(_is_in_head(name) for name, *_ in report.skipped):
        what = "nothing" if is_empty else "not all"
        raise UserError(
            f"{source} differs in architecture from {_describe_architecture(model)}: "
            f"{what} of the backbone matches; {report}"
        )


def _describe_architecture(model: keras.Model) -> str:
    config = model.model_config
    width = config.depth_multiplier
    return config.backbone + (f" (depth_multiplier {width})" if width != 1 else "")


def require_complete(report: RestoreReport, source: str, model: keras.Model) -> None:
    """Raises UserError unless the checkpoint and the model match completely."""
    if not report.complete:
        raise UserError(
            f"{source} is not a checkpoint of this {_describe_architecture(model)} "
            f"model (other classes, atrous_rates or decoder flags?): {report}"
        )


@check_arguments(model=BUILT)
def tf1_variables(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns `{official name: array}` of a model, for `load_tf1_variables`.

    Arrays are float32 and have the shapes of TF1: kernels `[height, width, channels,
    filters]`, depthwise kernels `[height, width, channels, 1]`.
    """
    return {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable in official_variables(model).items()
    }
