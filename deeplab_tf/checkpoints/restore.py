"""Arrays by official name into a model, and out of it, with a report."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from deeplab_tf.errors import UserError
from deeplab_tf.models.variables import official_variables

# Scopes that are not the backbone's: the official list of "last layers".
_HEAD_SCOPES = (
    "logits",
    "image_pooling",
    "aspp",
    "concat_projection",
    "decoder",
    "meta_architecture",
)
# What an optimiser, its schedule or quantisation leave in an official file.
_SLOTS = ("/Momentum", "/Adam", "/Adam_1", "/RMSProp", "/ExponentialMovingAverage")
_BOOKKEEPING = ("global_step", "beta1_power", "beta2_power")


def last_layer_scopes(logits_only: bool) -> tuple[str, ...]:
    """Returns the scopes that the official flags call the last layers."""
    return _HEAD_SCOPES[:1] if logits_only else _HEAD_SCOPES


def _in_head(name: str) -> bool:
    return name.startswith(_HEAD_SCOPES)


def is_model_variable(name: str) -> bool:
    """Whether an official name is a weight, not a slot or a counter."""
    return not (
        name in _BOOKKEEPING
        or name.endswith(_SLOTS)
        or name.split("/")[-1] == "_quant"
        # Fake quantisation keeps its ranges under `.../act_quant/min`.
        or "_quant/" in name
    )


def class_count(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Returns the number of classes of a checkpoint, None if it has no logits.

    Args:
        arrays: Official name to value.
    """
    # Without a logits layer the decoder gives the logits, and has biases.
    scopes = ("logits/", "decoder/decoder_conv")
    for scope in scopes:
        biases = [n for n in arrays if n.startswith(scope) and n.endswith("/biases")]
        if biases:
            return len(arrays[max(biases)])
    return None


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """Which variables an import restored, and why not the others.

    Attributes:
        restored: Names taken over.
        skipped: `(name, shape in the source, shape in the model)` that differ.
        missing: Names of the model that the source lacks.
        unexpected: Names of the source that the model lacks.
        inflated: `(name, channels of the model)` of the first convolution, where
            RGB weights were taken over for other images; empty if not.
    """

    restored: tuple[str, ...]
    skipped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    inflated: tuple[tuple[str, int], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether source and model hold the same variables."""
        return not (self.skipped or self.missing or self.unexpected or self.inflated)

    def __str__(self) -> str:
        shapes = [f"{n} {_shape(a)} into {_shape(b)}" for n, a, b in self.skipped]
        parts = [
            f"{len(self.restored)} restored",
            *(f"{name} inflated to {n} channels" for name, n in self.inflated),
            _count("skipped for their shape", shapes),
            _count("missing in the checkpoint", self.missing),
            _count("not in the model", self.unexpected),
        ]
        return ", ".join(part for part in parts if part)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _count(what: str, names: Sequence[str], examples: int = 3) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > examples else ""
    return f"{len(names)} {what} ({', '.join(names[:examples])}{more})"


def _inflated(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns an RGB kernel for images of other channels, `[h, w, channels, depth]`.

    New channels begin with the mean of red, green and blue. With fewer than
    three, each takes its share of all, so that grey looks as it did (but for the
    means that the ResNets without beta subtract).
    """
    if channels < 3:
        share = kernel.sum(axis=2, keepdims=True) / channels
        return np.repeat(share, channels, axis=2)
    mean = kernel.mean(axis=2, keepdims=True)
    return np.concatenate([kernel, np.repeat(mean, channels - 3, axis=2)], axis=2)


def _inflate(first: str, channels: int, given: dict) -> tuple[tuple[str, int], ...]:
    """Fits RGB weights to the channels of a model; returns what was inflated."""
    shape = np.shape(given.get(first, ()))
    if channels == 3 or len(shape) != 4 or shape[2] != 3:
        return ()
    given[first] = _inflated(np.asarray(given[first]), channels)
    return ((first, channels),)


def load_tf1_variables(
    model: keras.Model,
    arrays: Mapping[str, np.ndarray],
    exclude: tuple[str, ...] = (),
    source: str = "the arrays",
) -> RestoreReport:
    """Assigns arrays to the variables of a model by their official names.

    Optimiser slots and `global_step` are passed over. Variables of another
    shape in the head (logits of another class count) are left as they are. RGB
    weights of the first convolution are inflated to a model of other channels.

    Args:
        model: A model of `build_model`.
        arrays: Official name to value; shapes as TF1 keeps them.
        exclude: Scopes (prefixes of names) to leave as they are.
        source: What to call the arrays in an error.

    Returns:
        Which names were restored, skipped, missing and unexpected.

    Raises:
        UserError: if nothing of the backbone matches, or a variable of it has
            another shape; the model is unchanged.
    """
    given = {n: a for n, a in arrays.items() if is_model_variable(n)}
    variables = official_variables(model)
    wanted = {
        n: v for n, v in variables.items() if not (exclude and n.startswith(exclude))
    }
    first = next(iter(variables))
    channels = model.model_config.channels
    inflated = _inflate(first, channels, given) if first in wanted else ()
    report = _match(given, wanted, variables)
    report = dataclasses.replace(report, inflated=inflated)
    _require_backbone(report, source, model)
    for name in report.restored:
        wanted[name].assign(given[name])
    return report


def _match(given: Mapping, wanted: Mapping, variables: Mapping) -> RestoreReport:
    """Reports which arrays fit which variables.

    Args:
        given: Official name to array.
        wanted: Official name to variable, of those to be restored.
        variables: The same of the entire model.
    """
    common = [name for name in wanted if name in given]
    shapes = {n: (tuple(np.shape(given[n])), tuple(wanted[n].shape)) for n in common}
    return RestoreReport(
        restored=tuple(n for n, (source, model) in shapes.items() if source == model),
        skipped=tuple((n, *pair) for n, pair in shapes.items() if pair[0] != pair[1]),
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(name for name in given if name not in variables),
    )


def _require_backbone(report: RestoreReport, source: str, model: keras.Model) -> None:
    """Refuses arrays that do not hold the backbone of a model."""
    is_empty = all(map(_in_head, report.restored))
    if is_empty or not all(_in_head(name) for name, *_ in report.skipped):
        what = "nothing" if is_empty else "not all"
        raise UserError(
            f"{source} holds another architecture than {_architecture(model)}: "
            f"{what} of the backbone matches; {report}"
        )


def _architecture(model: keras.Model) -> str:
    config = model.model_config
    width = config.depth_multiplier
    return config.backbone + (f" (depth_multiplier {width})" if width != 1 else "")


def require_complete(report: RestoreReport, source: str, model: keras.Model) -> None:
    """Refuses a model that is not wholly the one in the checkpoint.

    Raises:
        UserError: naming what differs.
    """
    if not report.complete:
        raise UserError(
            f"{source} is not a checkpoint of this {_architecture(model)} model "
            f"(other classes, atrous_rates or decoder flags?): {report}"
        )


def tf1_variables(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns `{official name: array}` of a model; undoes `load_tf1_variables`.

    Args:
        model: A model of `build_model`.

    Returns:
        Float32 arrays in the shapes that TF1 keeps, which are Keras': kernels `[height,
        width, channels, filters]`, depthwise ones `[height, width, channels, 1]`.
    """
    return {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable in official_variables(model).items()
    }
