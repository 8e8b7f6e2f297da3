"""Configuration of evaluation."""

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
    """Configuration of evaluation; fields have the official flag names.

    Raises:
        UserError: for an invalid value or combination; names the field.
    """

    eval_scales: tuple[float, ...] = option(
        (1.0,),
        SCALES,
        "Image scales over which probabilities are averaged. The papers use 1.0 only, "
        "or 0.5 to 1.75 in steps of 0.25 (DeepLabv3, Sec. 4).",
        export_flag="inference_scales",
    )
    add_flipped_images: bool = option(
        False, help="Also average over horizontally flipped images."
    )
    prediction_with_upsampled_logits: bool = option(
        True,
        help="Resize the logits to the image and take the most probable classes; "
        "otherwise, resize the labels, which is faster but makes blocks. The latter "
        "only applies to eval_scales=1.0 without flipped images.",
    )
    eval_crop_size: tuple[int, int] | None = option(
        None,
        SIDE,
        "Height and width, in pixels, that images are padded to, as in the official "
        "protocol; they grow to fit larger images. Default: for each image, the "
        "smallest k * output_stride + 1 that fits it, or 513,513 for a TFLite export.",
        export_flag="crop_size",
        vis_flag="vis_crop_size",
    )
    eval_batch_size: int = option(
        1,
        Range(at_least=1, at_most=10**6),
        "Images per forward pass.",
        vis_flag="vis_batch_size",
    )
    ignore_label: int = option(
        255, help="Label of pixels that are not scored.", flag=""
    )
    window_size: tuple[int, int] | None = ours(
        None,
        SIDE,
        "Height and width of the sliding window for larger images. Default: no "
        "windows.",
    )
    memory_limit_mb: int | None = ours(
        None,
        COUNT,
        "Memory limit of inference per image, in MiB, not counting the model; larger "
        "images are predicted in sliding windows. Default: no limit.",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            bool(self.eval_scales),
            "eval_scales must have at least one scale; received ()",
        )
        require(
            self.window_size is None or self.memory_limit_mb is None,
            "window_size and memory_limit_mb are mutually exclusive; give only one",
        )
        has_windows = self.window_size is not None or self.memory_limit_mb is not None
        require(
            self.prediction_with_upsampled_logits or not has_windows,
            "window_size and memory_limit_mb need prediction_with_upsampled_logits",
        )
