"""How a model is scored."""

import dataclasses

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import (
    COUNT,
    SCALES,
    SIDE,
    Range,
    document_fields,
    option,
    ours,
)


@document_fields
@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How a model is scored; the fields carry the official flag names.

    Raises:
        UserError: for an impossible value or combination; names the field.
    """

    eval_scales: tuple[float, ...] = option(
        (1.0,),
        SCALES,
        "Scales whose probabilities are averaged; the papers use 1.0, or 0.5 to "
        "1.75 in steps of 0.25 (DeepLabv3, Sec. 4).",
        export_flag="inference_scales",
    )
    add_flipped_images: bool = option(
        False, help="Whether every scale is also predicted mirrored."
    )
    eval_crop_size: tuple[int, int] | None = option(
        None,
        SIDE,
        "Height and width, in pixels, to which every image is padded, as in the "
        "official protocol; larger images enlarge it. Default: each to its own next "
        "k * output_stride + 1, in a TFLite file 513,513.",
        export_flag="crop_size",
    )
    eval_batch_size: int = option(
        1, Range(at_least=1, at_most=10**6), "Images per forward pass."
    )
    ignore_label: int = option(
        255, help="Label of pixels that are not scored.", flag=""
    )
    window_size: tuple[int, int] | None = ours(
        None,
        SIDE,
        "Height and width of the sliding windows for larger images; None predicts "
        "every image at once.",
    )
    memory_limit_mb: int | None = ours(
        None,
        COUNT,
        "MiB that the inference of an image may take in addition to the model; an "
        "image that needs more is predicted by sliding windows. None is no limit.",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            bool(self.eval_scales),
            "eval_scales must hold at least one scale; received ()",
        )
        require(
            self.window_size is None or self.memory_limit_mb is None,
            "window_size and memory_limit_mb exclude each other",
        )
