"""What `benchmarks.ablations` repeats in small: rows, and what the papers say of them.

DeepLabv3 is arXiv:1706.05587, DeepLabv3+ arXiv:1802.02611. Their figures are those of
the presets.
"""

import dataclasses
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
    """What a paper says of a row beside another one.

    Attributes:
        text: A sentence, the row being its subject.
        expected: "better", "worse" or "alike".
        reference: Name of the other row.
        presets: Presets with the published figures of this row and the other one; ()
            where there is no figure.
        section: Where the sentence is from if there is no figure.
    """

    text: str
    expected: str
    reference: str = BASE_ROW
    presets: tuple[str, ...] = ()
    section: str = ""

    @property
    def source(self) -> str:
        """Paper and table or section."""
        return PRESETS[self.presets[0]].source if self.presets else self.section

    @property
    def published(self) -> float | None:
        """Difference of the published mIoU, in points."""
        if not self.presets:
            return None
        own, other = (PRESETS[name].published.miou for name in self.presets)
        return own - other


@dataclasses.dataclass(frozen=True)
class Row:
    """A model, and where it leaves the base in training or in evaluation.

    Attributes:
        name: What `--rows` takes.
        claims: What is said of it.
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
    claims: tuple[Claim, ...] = ()
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

_TABLE2 = "deeplabv3plus_table2_conv2_3x3_256"
_TABLE3 = "deeplabv3plus_table3_train{}_eval{}_decoder"
_OS16 = _TABLE3.format(16, 16)
_TABLE5 = "deeplabv3plus_table5_eval16_decoder"
_TABLE7 = "deeplabv3plus_table7_x65"
_TRAINING = "1706.05587, Sec. 4.1"

_UPSAMPLING = (
    Row(BASE_ROW, has_several_seeds=True),
    Row(
        "bilinear",
        (
            Claim(
                "Without the decoder naive up-sampling loses on VOC.",
                "worse",
                presets=("deeplabv3plus_table3_train16_eval16", _OS16),
            ),
            Claim(
                "Without the decoder naive up-sampling loses on Cityscapes.",
                "worse",
                presets=(f"{_TABLE7}_no_decoder", _TABLE7),
            ),
        ),
        model={"decoder_output_stride": ()},
        has_several_seeds=True,
    ),
)

# The papers compare depths of the projection and levels with a single convolution.
_DECODERS = (
    Row(
        "projection_8",
        (
            Claim(
                "8 filters for the low-level features are too few; 48 are best.",
                "worse",
                presets=(
                    "deeplabv3plus_table1_projection8",
                    "deeplabv3plus_table1_projection48",
                ),
            ),
        ),
        model={"decoder_projection_filters": 8},
    ),
    Row(
        "one_convolution",
        (
            Claim(
                "One 3x3 convolution is worse than two.",
                "worse",
                presets=(_TABLE2, f"{_TABLE2}_x2"),
            ),
        ),
        model={"decoder_convolutions": 1},
    ),
    Row(
        "three_convolutions",
        (
            Claim(
                "Three 3x3 convolutions are worse than two.",
                "worse",
                presets=(f"{_TABLE2}_x3", f"{_TABLE2}_x2"),
            ),
        ),
        model={"decoder_convolutions": 3},
    ),
    # Of MobileNetV2 the features of stride 8 stand for Conv3, those of 4 for Conv2.
    Row(
        "conv3_conv2",
        (
            Claim(
                "Conv3 before Conv2 adds little to one convolution on Conv2.",
                "better",
                reference="one_convolution",
                presets=("deeplabv3plus_table2_conv3_conv2_3x3_256", _TABLE2),
            ),
            Claim(
                "Conv3 and Conv2, one convolution each, are worse than two on Conv2.",
                "worse",
                presets=("deeplabv3plus_table2_conv3_conv2_3x3_256", f"{_TABLE2}_x2"),
            ),
        ),
        model={"decoder_output_stride": (8, 4), "decoder_convolutions": 1},
    ),
)

_CONTEXTS = (
    Row(
        "dense",
        (
            Claim(
                "Dense convolutions in ASPP and decoder are no better than separable.",
                "alike",
                presets=(_TABLE5, f"{_TABLE5}_sc"),
            ),
        ),
        model={"aspp_with_separable_conv": False, "decoder_use_separable_conv": False},
    ),
    Row(
        "no_image_level",
        (
            Claim(
                "Without image-level features it is worse on VOC.",
                "worse",
                presets=(
                    "deeplabv3_table5_mg124",
                    "deeplabv3_table5_mg124_image_pooling",
                ),
            ),
            Claim(
                "Without image-level features it is better on Cityscapes.",
                "better",
                presets=(f"{_TABLE7}_no_image_level", _TABLE7),
            ),
        ),
        model={"add_image_level_feature": False},
    ),
)

_OUTPUT_STRIDES = (
    Row(
        "eval_stride_8",
        (
            Claim(
                "Evaluated at output stride 8, the model of 16 is better.",
                "better",
                presets=(_TABLE3.format(16, 8), _OS16),
            ),
        ),
        trained_by=BASE_ROW,
        eval_output_stride=8,
    ),
    Row(
        "eval_stride_32",
        (
            Claim(
                "Evaluated at output stride 32, the model of 16 is worse.",
                "worse",
                section=_TRAINING,
            ),
        ),
        trained_by=BASE_ROW,
        eval_output_stride=32,
    ),
    Row(
        "train_stride_8",
        (
            Claim(
                "Trained at output stride 8 it is better there, at a far higher cost.",
                "better",
                reference="eval_stride_8",
                section=_TRAINING,
            ),
        ),
        model={"output_stride": 8},
    ),
    Row(
        "train_stride_32",
        (
            Claim(
                "Trained and evaluated at output stride 32 it is worse than at 16.",
                "worse",
                presets=(_TABLE3.format(32, 32), _OS16),
            ),
        ),
        model={"output_stride": 32},
    ),
    Row(
        "train_stride_32_eval_16",
        (
            Claim(
                "Evaluated at output stride 16, the model of 32 is better.",
                "better",
                reference="train_stride_32",
                presets=(_TABLE3.format(32, 16), _TABLE3.format(32, 32)),
            ),
        ),
        trained_by="train_stride_32",
        eval_output_stride=16,
    ),
    Row(
        "train_stride_32_eval_8",
        (
            Claim(
                "Evaluated at output stride 8, the model of 32 is better.",
                "better",
                reference="train_stride_32",
                presets=(_TABLE3.format(32, 8), _TABLE3.format(32, 32)),
            ),
        ),
        trained_by="train_stride_32",
        eval_output_stride=8,
    ),
)

_VIEWS = (
    Row(
        "multi_scale",
        (
            Claim(
                "Several scales are better than one.",
                "better",
                presets=(f"{_OS16}_ms", _OS16),
            ),
        ),
        trained_by=BASE_ROW,
        evaluation={"eval_scales": VOC_SCALES},
    ),
    Row(
        "multi_scale_flips",
        (
            Claim(
                "Mirrored images help several scales a little.",
                "better",
                reference="multi_scale",
                presets=(f"{_OS16}_ms_flip", f"{_OS16}_ms"),
            ),
        ),
        trained_by=BASE_ROW,
        evaluation={"eval_scales": VOC_SCALES, "add_flipped_images": True},
    ),
)

_BATCH_NORM = (
    Row(
        "frozen_batch_norm",
        (
            Claim(
                "Frozen batch normalisation is worse than trained.",
                "worse",
                section=_TRAINING,
            ),
        ),
        train={"batch_norm": "freeze"},
    ),
    Row(
        "batch_norm_per_replica",
        (
            Claim(
                "Statistics of 4 images are worse than those of 8.",
                "worse",
                section=_TRAINING,
            ),
        ),
        replicas=2,
    ),
    Row(
        "synchronised_batch_norm",
        (
            Claim(
                "Two devices that share statistics do what one does.",
                "alike",
                section="no paper: by definition",
            ),
            Claim(
                "Statistics of 8 images are better than those of 4.",
                "better",
                reference="batch_norm_per_replica",
                section=_TRAINING,
            ),
        ),
        train={"batch_norm": "sync"},
        replicas=2,
    ),
)

_STARTS = (
    Row(
        "from_scratch",
        (
            Claim(
                "Without pre-training on such objects (the paper's: COCO) it is worse.",
                "worse",
                presets=(f"{_TABLE5}_sc", f"{_TABLE5}_sc_coco"),
            ),
        ),
        from_checkpoint=False,
    ),
)

ROWS = {
    row.name: row
    for rows in (
        *(_UPSAMPLING, _DECODERS, _CONTEXTS, _OUTPUT_STRIDES, _VIEWS),
        *(_BATCH_NORM, _STARTS),
    )
    for row in rows
}
