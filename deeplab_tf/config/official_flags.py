"""The official flag names, and what their values mean."""

import pathlib
from collections.abc import Callable
from typing import TypeVar

from deeplab_tf import strict_json
from deeplab_tf.config.heads import RELEASED_CELL, CellBranch
from deeplab_tf.errors import UserError

_Value = TypeVar("_Value")
_RELEASED_CELL_FILE = "dense_prediction_cell_branch5_top1_cityscapes.json"


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


def _parse_strides(value: object) -> tuple[int, int]:
    return parse_size(value) or (1, 1)


def _parse_int(value: object) -> int:
    # As text, or 1.5 would be 1 and True would be 1.
    return int(str(value))


def _optional_int(value: object) -> int | None:
    return None if value is None else _parse_int(value)


def _optional_float(value: str | float | None) -> float | None:
    return None if value is None else float(value)


def parsed(name: str, value: object, parse: Callable[..., _Value]) -> _Value:
    """Returns `parse(value)`.

    Raises:
        UserError: if it cannot be; names the flag.
    """
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{name} cannot be {value!r}: {error}") from error


def parse_cell(value: object) -> tuple[CellBranch, ...]:
    """Returns the branches of a dense prediction cell.

    Args:
        value: A list of dictionaries with the official keys, such a list as JSON
            text, or the path of a file of it. The official name of the released
            cell will do without a file. "" and None are no cell.
    """
    if not value:
        return ()
    if isinstance(value, list | tuple):
        return tuple(_cell_branch(dict(branch)) for branch in value)
    text = str(value)
    content: str | bytes = text
    if not text.lstrip().startswith("["):
        path = pathlib.Path(text)
        if path.name == _RELEASED_CELL_FILE and not path.exists():
            return RELEASED_CELL
        content = path.read_bytes()
    branches = strict_json.parse(content, "the cell")
    if not isinstance(branches, list):
        raise ValueError("the cell must be a list of branches")
    if not branches:
        raise ValueError("it holds no branches")
    return parse_cell(branches)


def _cell_branch(keys: dict) -> CellBranch:
    # The official files write 3 or [3, 3].
    for name in ("kernel", "rate", "grid_size"):
        if name in keys:
            side = keys[name]
            keys[name] = (side, side) if isinstance(side, int) else tuple(side)
    return CellBranch(**keys)


# Official model flags, and a few of ours in their manner -> field and parser.
MODEL_FLAGS: dict[str, tuple[str, Callable]] = {
    "model_variant": ("backbone", str),
    "num_classes": ("num_classes", _parse_int),
    "output_stride": ("output_stride", _parse_int),
    "multi_grid": ("multi_grid", parse_numbers),
    "use_bounded_activation": ("bounded_activation", _parse_bool),
    "depth_multiplier": ("depth_multiplier", float),
    "divisible_by": ("divisible_by", _optional_int),
    "logits_kernel_size": ("logits_kernel_size", _parse_int),
    "image_pyramid": ("image_pyramid", _parse_pyramid),
    "merge_method": ("merge_method", str),
    "aspp_with_batch_norm": ("context.aspp", _parse_bool),
    "atrous_rates": ("context.rates", parse_numbers),
    "aspp_convs_filters": ("context.filters", _parse_int),
    "aspp_with_separable_conv": ("context.separable", _parse_bool),
    "aspp_with_concat_projection": ("context.projection", _parse_bool),
    "add_image_level_feature": ("context.image_level", _parse_bool),
    "image_pooling_crop_size": ("context.image_pooling_crop_size", parse_size),
    "image_pooling_stride": ("context.image_pooling_stride", _parse_strides),
    "aspp_with_squeeze_and_excitation": ("context.squeeze_and_excitation", _parse_bool),
    "image_se_uses_qsigmoid": ("context.hard_sigmoid", _parse_bool),
    "dense_prediction_cell_json": ("context.dense_prediction_cell", parse_cell),
    "decoder_output_stride": ("decoder.output_strides", parse_numbers),
    "decoder_filters": ("decoder.filters", _parse_int),
    "decoder_use_separable_conv": ("decoder.separable", _parse_bool),
    "decoder_use_sum_merge": ("decoder.sum_merge", _parse_bool),
    "decoder_output_is_logits": ("decoder.outputs_logits", _parse_bool),
    # Ours.
    "cascade_blocks": ("cascade_blocks", _parse_int),
    "depthwise_activation": ("depthwise_activation", _parse_bool),
    "decoder_projection_filters": ("decoder.projection_filters", _parse_int),
    "decoder_convolutions": ("decoder.convolutions", _parse_int),
    "decoder_kernel_size": ("decoder.kernel_size", _parse_int),
    "batch_norm_momentum": ("batch_norm_momentum", _optional_float),
}


def _parse_upsampled(value: object) -> None:
    if not _parse_bool(value):
        raise ValueError("labels are taken of up-sampled logits only, so far")


# Official model flags that are no part of a model, and their checks. The size at
# hand decides instead of `crop_size`, with which the official graph was always fed.
FREE_FLAGS: dict[str, Callable] = {
    "crop_size": parse_size,
    "prediction_with_upsampled_logits": _parse_upsampled,
}
