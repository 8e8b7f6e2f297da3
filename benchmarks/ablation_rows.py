"""Rows of `benchmarks.ablations`, and the claims of the papers about them.

DeepLabv3 is arXiv:1706.05587, DeepLabv3+ arXiv:1802.02611. Published figures come from
the presets.
"""

import csv
import dataclasses
import pathlib

from benchmarks.short_runs import Row, Suite
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
    """A paper's claim about one row compared with a reference row."""

    row: str
    expected: str  # "better", "worse" or "alike"
    reference: str
    preset: str  # has the published figure of the row; "" if there is none
    reference_preset: str
    section: str  # source of the claim if there is no published figure
    text: str

    @property
    def source(self) -> str:
        """Paper and table or section."""
        return PRESETS[self.preset].source if self.preset else self.section

    @property
    def published(self) -> float | None:
        """Difference in published mIoU, in points."""
        if not self.preset:
            return None
        names = self.preset, self.reference_preset
        own, other = (PRESETS[name].published.miou for name in names)
        return own - other


# The base of all rows. The official fine-tuning recipe is too slow for a new decoder:
# after 300 steps AdamW was 8 points ahead on val. Moving statistics need a faster decay
# than 0.9997, too. Sides are k * 32 + 1, so that features and image share corners at
# every output stride: 193x257 is next to 180x240, and 385x481 holds 360x480.
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

_SEPARABLE = ("aspp_with_separable_conv", "decoder_use_separable_conv")
_ALL_SCALES = {"eval_scales": VOC_SCALES}
_ROWS = (
    Row(BASE_ROW, has_several_seeds=True),
    Row("bilinear", {"decoder_output_stride": ()}, has_several_seeds=True),
    Row("projection_8", {"decoder_projection_filters": 8}),
    Row("one_convolution", {"decoder_convolutions": 1}),
    Row("three_convolutions", {"decoder_convolutions": 3}),
    # MobileNetV2 features of stride 8 and 4 stand for the paper's Conv3 and Conv2. The
    # paper compares levels with a single convolution.
    Row("conv3_conv2", {"decoder_output_stride": (8, 4), "decoder_convolutions": 1}),
    Row("dense", dict.fromkeys(_SEPARABLE, False)),
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
ROWS = {row.name: row for row in _ROWS}
SUITE = Suite(ROWS, BASE, BASE_EVALUATION)
_CSV = pathlib.Path(__file__).with_name("ablation_claims.csv").read_text()
CLAIMS = tuple(Claim(**line) for line in csv.DictReader(_CSV.splitlines()))
