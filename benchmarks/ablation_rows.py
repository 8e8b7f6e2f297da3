"""What `benchmarks.ablations` repeats in small: rows, and what the papers claim.

DeepLabv3 is arXiv:1706.05587, DeepLabv3+ arXiv:1802.02611. Their figures are those of
the presets.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping

from deeplab_tf.config import (
    DataConfig,
    DecoderConfig,
    EvalConfig,
    Experiment,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.presets import PRESETS
from deeplab_tf.presets.recipes import VOC_SCALES

BASE_ROW = "decoder"


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says of one row compared with another.

    Attributes:
        row: Name of the row.
        expected: "better", "worse" or "alike".
        reference: Name of the other row.
        preset: Preset with the published figure of the row; "" where there is none.
        reference_preset: Preset with that of the other row.
        section: Where the sentence is from if there is no figure.
        text: A sentence, the row being its subject.
    """

    row: str
    expected: str
    reference: str
    preset: str
    reference_preset: str
    section: str
    text: str

    @property
    def source(self) -> str:
        """Paper and table or section."""
        return PRESETS[self.preset].source if self.preset else self.section

    @property
    def published(self) -> float | None:
        """Difference of the published mIoU, in points."""
        if not self.preset:
            return None
        names = self.preset, self.reference_preset
        own, other = (PRESETS[name].published.miou for name in names)
        return own - other


@dataclasses.dataclass(frozen=True)
class Row:
    """A model, and how its training or evaluation differs from the base.

    Attributes:
        name: What `--rows` takes.
        model: Official model flags.
        train: Fields of `TrainConfig`.
        from_checkpoint: Whether it begins at the official checkpoint.
        replicas: Logical CPU devices that share a batch.
        trained_by: Row whose trained model it evaluates; "" trains its own.
        evaluation: Fields of `EvalConfig`.
        eval_output_stride: Output stride of the evaluation; None is that of training.
        has_several_seeds: Whether it is trained once for each of `--seeds`.
    """

    name: str
    model: Mapping[str, object] = dataclasses.field(default_factory=dict)
    train: Mapping[str, object] = dataclasses.field(default_factory=dict)
    from_checkpoint: bool = True
    replicas: int = 1
    trained_by: str = ""
    evaluation: Mapping[str, object] = dataclasses.field(default_factory=dict)
    eval_output_stride: int | None = None
    has_several_seeds: bool = False


# What all rows have in common. The official recipe of fine-tuning teaches a new decoder
# too little in few steps: on val AdamW was 8 points ahead after 300. For the decay of
# the moving statistics 0.9997 is too slow as well. Sides are k * 32 + 1, so that the
# cells of every output stride meet the corners of an image: the crop of 193x257 is the
# one next to 180x240, and 385x481 holds an image of 360x480.
BASE = Experiment(
    model=ModelConfig(
        backbone="mobilenet_v2",
        output_stride=16,
        batch_norm_momentum=0.97,
        decoder=DecoderConfig(output_strides=(4,)),
    ),
    data=DataConfig(crop_size=(193, 257), batch_size=8),
    train=TrainConfig(
        optimizer="adamw",
        base_learning_rate=0.001,
        weight_decay=0.01,
        batch_norm="train",
        save_interval_steps=200,
        log_steps=50,
    ),
)
BASE_EVALUATION = EvalConfig(eval_crop_size=(385, 481))

_ALL_SCALES = {"eval_scales": VOC_SCALES}
_ALL_ROWS = (
    Row(BASE_ROW, has_several_seeds=True),
    Row("bilinear", {"decoder_output_stride": ()}, has_several_seeds=True),
    Row("projection_8", {"decoder_projection_filters": 8}),
    Row("one_convolution", {"decoder_convolutions": 1}),
    Row("three_convolutions", {"decoder_convolutions": 3}),
    # Of MobileNetV2 the features of stride 8 stand for Conv3, those of 4 for Conv2. The
    # paper compares levels with a single convolution.
    Row("conv3_conv2", {"decoder_output_stride": (8, 4), "decoder_convolutions": 1}),
    Row(
        "dense",
        {"aspp_with_separable_conv": False, "decoder_use_separable_conv": False},
    ),
    Row("no_image_level", {"add_image_level_feature": False}),
    Row("eval_stride_8", trained_by=BASE_ROW, eval_output_stride=8),
    Row("eval_stride_32", trained_by=BASE_ROW, eval_output_stride=32),
    Row("train_stride_8", {"output_stride": 8}),
    Row("train_stride_32", {"output_stride": 32}),
    Row("train_stride_32_eval_16", trained_by="train_stride_32", eval_output_stride=16),
    Row("train_stride_32_eval_8", trained_by="train_stride_32", eval_output_stride=8),
    Row("multi_scale", trained_by=BASE_ROW, evaluation=_ALL_SCALES),
    Row(
        "multi_scale_flips",
        trained_by=BASE_ROW,
        evaluation=_ALL_SCALES | {"add_flipped_images": True},
    ),
    Row("frozen_batch_norm", train={"batch_norm": "freeze"}),
    Row("batch_norm_per_replica", replicas=2),
    Row("synchronised_batch_norm", train={"batch_norm": "sync"}, replicas=2),
    Row("from_scratch", from_checkpoint=False),
)
ROWS = {row.name: row for row in _ALL_ROWS}


def _read_claims() -> tuple[Claim, ...]:
    """Returns the claims of ablation_claims.csv, in the order of the rows."""
    path = pathlib.Path(__file__).with_name("ablation_claims.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(Claim(**line) for line in csv.DictReader(file))


CLAIMS = _read_claims()
