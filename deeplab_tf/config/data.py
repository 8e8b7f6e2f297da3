"""Configuration of the dataset and its preprocessing."""

import dataclasses
import re

from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.config.options import (
    NOT_NEGATIVE,
    OPTIMISATION,
    SCALES,
    SIDE,
    START,
    Range,
    document_fields,
    option,
    ours,
)
from deeplab_tf.errors import UserError

# Training enumerates all scales between the smallest and the largest.
_SMALLEST_SCALE_STEP = 0.001


def parse_service_address(address: str, name: str) -> tuple[str, int]:
    """Returns host and port of `grpc://HOST:PORT`.

    Raises:
        UserError: for another form; `name` is the option that was given.
    """
    match = re.fullmatch(r"grpc://([^/\s:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise UserError(f"{name} must be grpc://HOST:PORT; received {address!r}")
    return match[1], int(match[2])


@document_fields
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Configuration of the dataset and its preprocessing.

    Raises:
        UserError: for an invalid value or combination; names the field.
    """

    dataset_dir: str = option(
        "",
        help="Folder of the TFRecord shards. For a tfds: dataset, the data folder of "
        "tensorflow-datasets (default: its own).",
        flag_default=None,
        group=START,
    )
    dataset: str | None = option(
        None,
        help="Name of the dataset, which determines its classes, or "
        "tfds:NAME[:image_key:label_key] for one from tensorflow-datasets. Default: "
        "read from dataset_info.json next to the records, else pascal_voc_seg.",
    )
    data_service: str | None = ours(
        None,
        help="Address of a tf.data service that makes the training batches, "
        "grpc://HOST:PORT (see deeplab-data-worker). Default: the trainer makes them.",
    )
    crop_size: tuple[int, int] = option(
        (513, 513),
        SIDE,
        "Height and width of training crops, in pixels, ideally of the form "
        "k * output_stride + 1. The papers use 513,513 for VOC and 769,769 for "
        "Cityscapes.",
        flag="train_crop_size",
        group=START,
    )
    batch_size: int = option(
        8,
        Range(at_least=1, at_most=10**6),
        "Images per batch, summed over all replicas.",
        flag="train_batch_size",
        group=START,
    )
    min_resize_value: int | None = option(
        None,
        SIDE,
        "Shorter side of resized images, in pixels. Default: no resizing.",
    )
    max_resize_value: int | None = option(
        None, SIDE, "Maximum longer side of resized images, in pixels."
    )
    resize_factor: int | None = option(
        None, SIDE, "Round resized sides up to a multiple of this, plus 1."
    )
    min_scale_factor: float = option(
        0.5,
        SCALES,
        "Smallest random scale in training. The papers use 0.5 to 2 (DeepLabv3, "
        "Sec. 4.1).",
    )
    max_scale_factor: float = option(2.0, SCALES, "Largest random scale in training.")
    scale_factor_step_size: float = option(
        0.25,
        Range(at_least=0, at_most=16),
        "Step between random scales; 0 draws from the continuous range.",
    )
    mean_pixel: tuple[float, ...] = option(
        ModelConfig().mean_pixel,
        Range(at_least=0, at_most=255),
        "Padding value of each channel, 0..255.",
        flag="",
    )
    photometric_jitter: float = ours(
        0.0,
        Range(at_least=0, at_most=1),
        "Maximum relative change of brightness, contrast and saturation in training, "
        "0..1; the papers use none.",
    )
    uniform_class_crops: float = ours(
        0.0,
        Range(at_least=0, at_most=1),
        "Fraction of training crops centred on a pixel of a class that is drawn "
        "uniformly (1812.01593, Sec. 3.4), 0..1.",
    )
    copy_paste: float = ours(
        0.0,
        Range(at_least=0, at_most=1),
        "Fraction of training crops into which objects of rare classes of another crop "
        "are pasted, 0..1.",
    )
    cutmix: float = ours(
        0.0,
        Range(at_least=0, at_most=1),
        "Fraction of training crops with a rectangle of another crop, 0..1.",
    )
    bootstrap_classes: tuple[str, ...] = ours(
        (),
        help="Show images with any of these classes twice per epoch. For VOC the paper "
        "uses bicycle,chair,diningtable,pottedplant,sofa (DeepLabv3, Sec. 4.3).",
    )
    seed: int = ours(
        0,
        NOT_NEGATIVE,
        "Random seed of weights, data order and augmentation.",
        group=OPTIMISATION,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.data_service is not None:
            parse_service_address(self.data_service, "data_service")
        require(
            self.min_scale_factor <= self.max_scale_factor,
            "min_scale_factor must be at most max_scale_factor; received "
            f"{self.min_scale_factor} and {self.max_scale_factor}",
        )
        step = self.scale_factor_step_size
        require(
            step == 0 or step >= _SMALLEST_SCALE_STEP,
            "scale_factor_step_size must be 0 (continuous) or at least "
            f"{_SMALLEST_SCALE_STEP}; received {step}",
        )
        require(
            self.min_resize_value is not None
            or (self.max_resize_value is None and self.resize_factor is None),
            "max_resize_value and resize_factor need min_resize_value",
        )
