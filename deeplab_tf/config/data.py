"""Where the data are, and how a sample is made of them."""

import dataclasses

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.config.options import (
    NOT_NEGATIVE,
    SCALES,
    SIDE,
    Range,
    document_fields,
    option,
    ours,
)

# Every scale between the smallest and the largest is listed.
_SMALLEST_SCALE_STEP = 0.001


@document_fields
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the records are and how a sample is made of them.

    Raises:
        UserError: for an impossible value; names the field.
    """

    dataset_dir: str = option(
        "",
        help="Folder of the TFRecord shards, or of tensorflow-datasets; default: its "
        "own.",
        flag_default=None,
    )
    dataset: str | None = option(
        None,
        help="Name of the dataset, for its classes, or tfds:NAME[:image_key:label_key] "
        "for one of tensorflow-datasets; default: the dataset_info.json beside the "
        "records, else pascal_voc_seg.",
    )
    crop_size: tuple[int, int] = option(
        (513, 513),
        SIDE,
        "Height and width of a training crop, in pixels; the papers' 513,513 for "
        "VOC and 769,769 for Cityscapes are k * output_stride + 1.",
        flag="train_crop_size",
    )
    batch_size: int = option(
        8,
        Range(at_least=1, at_most=10**6),
        "Images per batch, over all replicas.",
        flag="train_batch_size",
    )
    min_resize_value: int | None = option(
        None, SIDE, "Shorter side, in pixels, of resized images; None: no resizing."
    )
    max_resize_value: int | None = option(
        None, SIDE, "Bound of the longer side of resized images, in pixels."
    )
    resize_factor: int | None = option(
        None, SIDE, "Resized sides are raised to a multiple of this, plus 1."
    )
    min_scale_factor: float = option(
        0.5,
        SCALES,
        "Smallest random scale in training; 0.5 and 2.0 are the papers' "
        "(DeepLabv3, Sec. 4.1).",
    )
    max_scale_factor: float = option(2.0, SCALES, "Largest random scale in training.")
    scale_factor_step_size: float = option(
        0.25, Range(at_least=0, at_most=16), "Distance of random scales; 0: continuous."
    )
    mean_pixel: tuple[float, ...] = option(
        ModelConfig().mean_pixel,
        Range(at_least=0, at_most=255),
        "Value of each channel, 0..255, of the padding.",
        flag="",
    )
    photometric_jitter: float = ours(
        0.0,
        Range(at_least=0, at_most=1),
        "Largest relative change of brightness, contrast and saturation in "
        "training, 0..1; 0 is none, as in the papers.",
    )
    bootstrap_classes: tuple[str, ...] = ours(
        (),
        help="Images with one of these classes come twice an epoch; the paper's for "
        "VOC are bicycle,chair,diningtable,pottedplant,sofa (DeepLabv3, Sec. 4.3).",
    )
    seed: int = ours(0, NOT_NEGATIVE, "Seed of weights, order and augmentation.")

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.min_scale_factor <= self.max_scale_factor,
            "min_scale_factor must be at most max_scale_factor; received "
            f"{self.min_scale_factor} and {self.max_scale_factor}",
        )
        step = self.scale_factor_step_size
        require(
            step == 0 or step >= _SMALLEST_SCALE_STEP,
            f"scale_factor_step_size must be 0, which is continuous, or at least "
            f"{_SMALLEST_SCALE_STEP}; received {step}",
        )
        require(
            self.min_resize_value is not None
            or (self.max_resize_value is None and self.resize_factor is None),
            "max_resize_value and resize_factor need min_resize_value",
        )
