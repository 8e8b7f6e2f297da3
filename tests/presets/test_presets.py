"""Presets of the papers' tables and of the model zoo, and their descriptions.

Presets of training stages are tested in test_stages.py.
"""

import dataclasses
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from deeplab_tf import UserError
from deeplab_tf.config import (
    RELEASED_CELL,
    ContextConfig,
    DecoderConfig,
    EvalConfig,
    ModelConfig,
)
from deeplab_tf.data.info import dataset_info
from deeplab_tf.presets import PRESETS, describe, describe_run, find_preset
from deeplab_tf.presets.preset import list_deviations

PRINTED = {n: preset for n, preset in PRESETS.items() if not n.startswith("camvid_")}
ROWS = {name: preset for name, preset in PRINTED.items() if "_stage" not in name}


def rows(prefix):
    """Returns the presets of a table, in its order."""
    return [preset for name, preset in PRESETS.items() if name.startswith(prefix)]


# Mean IoU as printed, from left to right and downwards.
TABLES = {
    "deeplabv3_table1_": (75.18, 73.88, 70.06, 59.99, 42.34, 20.29),
    "deeplabv3_table2_resnet50_": (64.81, 72.14, 74.29, 73.88),
    "deeplabv3_table2_resnet101_": (68.39, 73.21, 75.34, 75.76),
    "deeplabv3_table3_mg111_": (68.39, 73.21, 75.34, 75.76),
    "deeplabv3_table3_mg121_": (70.23, 75.67, 76.09, 76.66),
    "deeplabv3_table3_mg123_": (73.14, 75.78, 75.96, 76.11),
    "deeplabv3_table3_mg124_": (73.45, 75.74, 75.85, 76.02),
    "deeplabv3_table3_mg222_": (71.45, 74.30, 74.70, 74.62),
    "deeplabv3_table4_": (76.66, 78.05, 78.93, 79.35),
    "deeplabv3_table5_": (75.36, 75.93, 76.58, 76.46, 77.21),
    "deeplabv3_table6_": (77.21, 78.51, 79.45, 79.77, 82.7),
    "deeplabv3_table7_": (85.7, 86.9),
    "deeplabv3plus_table1_": (77.61, 77.92, 78.16, 78.21, 77.94),
    "deeplabv3plus_table2_": (78.21, 78.85, 78.02, 77.25, 78.07, 78.61),
    "deeplabv3plus_table6_": (87.8, 89.0),
    "deeplabv3plus_table7_": (77.33, 78.79, 79.14, 79.55, 82.1),
}


@pytest.mark.parametrize("table", TABLES)
def test_table_rows_are_complete_and_in_order(table):
    assert tuple(preset.published.miou for preset in rows(table)) == TABLES[table]


# (backbone, evaluated at, decoder, "SC", scales, flip) -> Multiply-Adds in billions, of
# the tables 3 and 5 of DeepLabv3+.
R101, X65 = "resnet_v1_101_beta", "xception_65"
COSTS = {
    (R101, 32, False, False, 1, False): 52.43,
    (R101, 16, False, False, 1, False): 81.02,
    (R101, 8, False, False, 1, False): 276.18,
    (R101, 32, True, False, 1, False): 74.20,
    (R101, 16, True, False, 1, False): 101.28,
    (R101, 8, True, False, 1, False): 297.92,
    (R101, 8, False, False, 6, False): 2435.37,
    (R101, 8, False, False, 6, True): 4870.59,
    (R101, 16, True, False, 6, False): 898.69,
    (R101, 16, True, False, 6, True): 1797.23,
    (R101, 8, True, False, 6, False): 2623.61,
    (R101, 8, True, False, 6, True): 5247.07,
    (X65, 16, False, False, 1, False): 68.00,
    (X65, 8, False, False, 1, False): 240.85,
    (X65, 16, True, False, 1, False): 89.76,
    (X65, 8, True, False, 1, False): 262.59,
    (X65, 16, True, True, 1, False): 54.17,
    (X65, 8, True, True, 1, False): 177.10,
    (X65, 16, False, False, 6, False): 601.74,
    (X65, 16, False, False, 6, True): 1203.34,
    (X65, 8, False, False, 6, False): 2149.91,
    (X65, 8, False, False, 6, True): 4299.68,
    (X65, 16, True, False, 6, False): 790.12,
    (X65, 16, True, False, 6, True): 1580.10,
    (X65, 8, True, False, 6, False): 2338.15,
    (X65, 8, True, False, 6, True): 4676.16,
    (X65, 16, True, True, 6, True): 928.81,
    (X65, 8, True, True, 6, True): 3055.35,
}


def columns(preset):
    """Returns the columns of the inference tables for a preset."""
    model, evaluation = preset.model, preset.evaluation
    return (
        model.backbone,
        preset.eval_output_stride,
        model.decoder.output_strides == (4,),
        model.context.separable,
        len(evaluation.eval_scales),
        evaluation.add_flipped_images,
    )


def test_deeplabv3plus_inference_tables_have_all_costs():
    presets = rows("deeplabv3plus_table3_") + rows("deeplabv3plus_table5_")
    assert {columns(preset): preset.published.multiply_adds for preset in presets} == (
        COSTS
    )
    # "SC" applies to both ASPP and decoder.
    decoders = [p.model for p in presets if p.model.decoder.output_strides]
    assert all(m.decoder.separable == m.context.separable for m in decoders)
    # 14 rows of ResNet-101 and 24 of Xception-65; rows that differ only in the output
    # stride of training or in the pre-training share a cost.
    assert len(presets) == 14 + 24
    for name, miou in (
        # From DeepLabv3's Table 6, from Table 2, and from the zoo.
        ("table3_train16_eval16", 77.21),
        ("table3_train16_eval8_ms", 79.45),
        ("table3_train16_eval8_ms_flip", 79.77),
        ("table3_train16_eval16_decoder", 78.85),
        ("table5_eval16_decoder_sc_coco", 82.20),
        ("table5_eval8_decoder_sc_coco_ms_flip", 83.58),
    ):
        assert find_preset(f"deeplabv3plus_{name}").published.miou == miou


def test_figures_that_contradict_their_table_have_a_remark():
    def remarks(text):
        return [n for n, p in PRESETS.items() if text in p.published.remark]

    assert remarks("102.78") == [
        "deeplabv3plus_table3_train16_eval16_decoder",
        "deeplabv3plus_table3_train32_eval16_decoder",
    ]
    assert remarks("78.45") == ["deeplabv3plus_table3_train16_eval8_ms"]
    assert remarks("twice") == [
        "mobilenetv3_large_cityscapes_trainfine",
        "mobilenetv3_small_cityscapes_trainfine",
    ]


# name -> (Multiply-Adds in billions, mean IoU, evaluated at, scales, flip, split).
VOC_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
ONE, THREE = (1.0,), (0.75, 1.0, 1.25)
ALL = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
ZOO = {
    "mobilenetv2_dm05_coco_voc_trainaug": (0.88, 70.19, 16, ONE, False, "val"),
    "mobilenetv2_dm05_coco_voc_trainval": (2.84, 71.83, 8, ONE, False, "test"),
    "mobilenetv2_dm05_coco_voc_trainaug_8bit": (0.88, 69.65, 16, ONE, False, "val"),
    "mobilenetv2_coco_voc_trainaug": (2.75, 75.32, 16, ONE, False, "val"),
    "mobilenetv2_coco_voc_trainaug_os8_ms_flip": (
        *(152.59, 77.33, 8, VOC_SCALES, True, "val"),
    ),
    "mobilenetv2_coco_voc_trainaug_8bit": (2.75, 74.26, 16, ONE, False, "val"),
    "mobilenetv2_coco_voc_trainval": (152.59, 80.25, 8, VOC_SCALES, True, "test"),
    "xception65_coco_voc_trainaug": (54.17, 82.20, 16, ONE, False, "val"),
    "xception65_coco_voc_trainaug_os8_ms_flip": (
        *(3055.35, 83.58, 8, VOC_SCALES, True, "val"),
    ),
    "xception65_coco_voc_trainval": (3055.35, 87.80, 8, VOC_SCALES, True, "test"),
    "mobilenetv2_coco_cityscapes_trainfine": (21.27, 70.71, 16, ONE, False, "val_fine"),
    "mobilenetv2_coco_cityscapes_trainfine_os8_ms_flip": (
        *(433.24, 73.57, 8, THREE, True, "val_fine"),
    ),
    "mobilenetv3_large_cityscapes_trainfine": (
        *(15.95, 72.41, 32, ONE, False, "val_fine"),
    ),
    "mobilenetv3_small_cityscapes_trainfine": (
        *(4.63, 68.99, 32, ONE, False, "val_fine"),
    ),
    "xception65_cityscapes_trainfine": (418.64, 78.79, 16, ONE, False, "val_fine"),
    "xception65_cityscapes_trainfine_os8_ms_flip": (
        *(8677.92, 80.42, 8, THREE, True, "val_fine"),
    ),
    "xception71_dpc_cityscapes_trainfine": (502.07, 80.31, 16, ONE, False, "val_fine"),
    "xception71_dpc_cityscapes_trainval": (None, 82.66, 8, ALL, True, "test_fine"),
    "edgetpu_deeplab_os32": (5.6, 70.6, 32, ONE, False, "val_fine"),
    "edgetpu_deeplab_os16": (7.1, 74.1, 16, ONE, False, "val_fine"),
    "edgetpu_deeplab_slim_os32": (3.5, 70.0, 32, ONE, False, "val_fine"),
    "edgetpu_deeplab_slim_os16": (4.3, 73.2, 16, ONE, False, "val_fine"),
    "mobilenetv2_ade20k_train": (None, 32.04, 16, ONE, False, "val"),
    "xception65_ade20k_train": (None, 45.65, 8, VOC_SCALES, True, "val"),
}


def test_zoo_presets_have_official_figures_and_protocols():
    scored = [p for p in ROWS.values() if p.source == "model zoo" and p.published.miou]
    found = {
        preset.name: (
            preset.published.multiply_adds,
            preset.published.miou,
            preset.eval_output_stride,
            preset.evaluation.eval_scales,
            preset.evaluation.add_flipped_images,
            preset.eval_split,
        )
        for preset in scored
    }
    assert found == ZOO
    accuracies = {n: p.published.pixel_accuracy for n, p in PRESETS.items()}
    assert accuracies.pop("mobilenetv2_ade20k_train") == 75.41
    assert accuracies.pop("xception65_ade20k_train") == 82.52
    assert set(accuracies.values()) == {None}


def test_pretraining_presets_have_no_published_miou():
    unscored = [n for n, p in ROWS.items() if p.published.miou is None]
    assert unscored == [
        *("xception_41_imagenet", "xception_65_imagenet", "xception_71_imagenet"),
        *("resnet_v1_50_beta_imagenet", "resnet_v1_101_beta_imagenet"),
        "xception_65_coco",
    ]
    for name in unscored[3:5]:  # their checkpoints were trained with this grid
        assert PRESETS[name].model.multi_grid == (1, 2, 4)


def test_names_are_unique():
    # A duplicate name would replace a row. There are 14 and 24 rows of the inference
    # tables, 6 pretrained backbones, 4 stages of 3 models, and CamVid.
    tables = sum(map(len, TABLES.values())) + 14 + 24
    assert len(ROWS) == tables + len(ZOO) + 6 == 136
    assert len(PRESETS) == len(ROWS) + 4 * 3 + 1
    for name, preset in PRESETS.items():
        assert name == preset.name and re.fullmatch("[a-z0-9_]+", name)


def test_presets_name_their_table():
    for name, preset in ROWS.items():
        paper = {"deeplabv3": "1706.05587", "deeplabv3plus": "1802.02611"}
        family, _, table = name.partition("_table")
        if table:
            assert preset.source.startswith(f"{paper[family]}, Table {table[0]}"), name
        else:
            assert preset.source == "model zoo"


@pytest.mark.parametrize("name", PRESETS)
def test_eval_model_differs_only_in_output_stride(name):
    preset = PRESETS[name]
    model, scored = preset.model, preset.eval_model
    assert scored.output_stride == preset.eval_output_stride
    # A rate of 6 at output stride 16 is 12 at output stride 8.
    pixels = [rate * model.output_stride for rate in model.context.rates]
    assert [r * scored.output_stride for r in scored.context.rates] == pixels
    context = dataclasses.replace(scored.context, rates=model.context.rates)
    trained = {"output_stride": model.output_stride, "context": context}
    assert dataclasses.replace(scored, **trained) == model


def test_test_set_rows_use_stride_8_and_frozen_batch_norm():
    # DeepLabv3, Sec. 4.1 and 4.3: 30k more steps on trainval.
    tests = rows("deeplabv3_table7_") + rows("deeplabv3plus_table6_")
    assert len(tests) == 4
    for preset in tests:
        assert preset.model.output_stride == preset.eval_output_stride == 8
        assert preset.model.context.rates == (12, 24, 36)
        assert (preset.train_split, preset.eval_split) == ("trainval", "test")
        assert preset.train.base_learning_rate == 0.001
        assert preset.train.training_number_of_steps == 30000
        assert not preset.train.fine_tune_batch_norm
        assert preset.evaluation.eval_scales == VOC_SCALES
        assert preset.evaluation.add_flipped_images


def test_only_trainval_and_test_set_presets_freeze_batch_norm():
    frozen = [p.name for p in PRESETS.values() if not p.train.fine_tune_batch_norm]
    assert len(frozen) == 7 + 3
    ends = ("voc_trainval", "stage3_trainval")
    assert all("_test" in name or name.endswith(ends) for name in frozen)


# dataset -> classes, ignored label, steps, crops, crops of the evaluation, splits.
PROTOCOLS = {
    "pascal_voc_seg": (
        *(21, 255, 30000, {(513, 513)}, {(513, 513)}),
        {("train_aug", "val"), ("trainval", "test")},
    ),
    "cityscapes": (
        *(19, 255, 90000, {(769, 769)}, {(1025, 2049)}),
        {
            ("train_fine", "val_fine"),
            ("trainval_fine", "test_fine"),
            ("trainval_coarse", "test_fine"),
        },
    ),
    "coco_voc": (
        *(21, 255, 500000, {(513, 513)}, {(641, 641)}),
        {("train", "val")},
    ),
    "ade20k": (
        *(151, 0, 150000, {(257, 257), (513, 513)}, {(257, 257), (513, 513)}),
        {("train", "val")},
    ),
}


@pytest.mark.parametrize("dataset", PROTOCOLS)
def test_recipes_follow_the_dataset(dataset):
    classes, ignored, steps, crops, eval_crops, splits = PROTOCOLS[dataset]
    presets = [p for p in PRESETS.values() if p.data.dataset == dataset]
    assert {p.data.crop_size for p in presets} == crops
    assert {p.evaluation.eval_crop_size for p in presets} == eval_crops
    assert {(p.train_split, p.eval_split) for p in presets} == splits
    for preset in presets:
        train = preset.train
        assert train.training_number_of_steps == steps
        assert preset.data.batch_size == 16
        assert (train.learning_policy, train.learning_power) == ("poly", 0.9)
        assert (train.optimizer, train.momentum) == ("momentum", 0.9)
        assert preset.model.num_classes == classes
        assert train.ignore_label == preset.evaluation.ignore_label == ignored
        # Images are scaled to [-1, 1], so that 127.5 becomes 0.
        assert preset.data.mean_pixel == 3 * (127.5,)


def test_all_presets_use_a_known_dataset():
    assert {preset.data.dataset for preset in PRINTED.values()} == set(PROTOCOLS)


def test_camvid_recipe_fits_its_classes_and_image_size():
    preset, info = find_preset("camvid_mobilenetv2"), dataset_info("camvid")
    assert preset.model.num_classes == len(preset.train.label_weights) == 11
    ignored = preset.train.ignore_label, preset.evaluation.ignore_label
    assert ignored == 2 * (info.ignore_label,)
    evaluation = preset.evaluation
    for side, image in zip(evaluation.eval_crop_size, (360, 480), strict=True):
        assert image <= side < image + 64
        for scale in evaluation.eval_scales:
            assert (side - 1) * scale % preset.eval_output_stride == 0
    # Expected scores need an evaluation at their step.
    every = preset.train.eval_interval_steps
    assert all(step % every == 0 for step, _ in preset.expected_miou)
    *_, expected = describe(preset).splitlines()
    assert "mIoU 0.36 at step 100, 0.54 at step 500" in expected


def test_weight_decay_is_larger_for_resnets():
    for preset in PRINTED.values():
        resnet = preset.model.backbone.startswith("resnet")
        assert preset.train.weight_decay == (1e-4 if resnet else 4e-5)


def test_learning_rates_depend_on_the_initial_weights():
    # Networks pre-trained on COCO segmentation need a small rate; on trainval the
    # papers continue from their best model.
    rates = {"ImageNet": 0.007}
    rates |= dict.fromkeys(("ImageNet, COCO", "ImageNet, JFT-300M, COCO"), 1e-4)
    rates |= dict.fromkeys(
        (
            *(
                "deeplabv3_table6_os8_ms_flip_coco",
                "ImageNet, JFT-300M, COCO, train_aug",
            ),
            "deeplabv3plus_table5_eval16_decoder_sc_coco",
            "deeplabv3plus_table5_eval16_decoder_sc_jft",
            *("mobilenetv2_dm05_coco_voc_trainaug", "mobilenetv2_coco_voc_trainaug"),
            "xception65_coco_voc_trainaug",
        ),
        0.001,
    )
    presets = [p for p in ROWS.values() if p.data.dataset == "pascal_voc_seg"]
    found = {p.name: p.train.base_learning_rate for p in presets}
    expected = {p.name: rates[p.start] for p in presets}
    expected["xception_65_coco"] = 0.007  # independent of its start
    assert found == expected
    assert {p.start for p in presets} == set(rates)


def test_presets_start_from_existing_presets():
    for preset in PRESETS.values():
        named = any(part in preset.start for part in ("table", "voc", "stage"))
        assert not named or preset.start in PRESETS


def test_ade20k_images_are_resized_to_the_crop():
    for name, size in (("mobilenetv2", 257), ("xception65", 513)):
        data = find_preset(f"{name}_ade20k_train").data
        resizing = (data.min_resize_value, data.max_resize_value, data.resize_factor)
        assert (data.crop_size, resizing) == ((size, size), (size, size, 16))


NO_DECODER = DecoderConfig(output_strides=())
CASCADE = {"context": ContextConfig(aspp=False), "decoder": NO_DECODER}


def test_cascades_end_with_the_block_in_their_name():
    for table, backbone in (
        ("table2_resnet50", "resnet_v1_50_beta"),
        ("table2_resnet101", "resnet_v1_101_beta"),
        ("table3_mg111", "resnet_v1_101_beta"),
    ):
        for block in (4, 5, 6, 7):
            model = find_preset(f"deeplabv3_{table}_block{block}").model
            assert model == ModelConfig(backbone, cascade_blocks=block - 4, **CASCADE)
    grids = {p.model.multi_grid for p in rows("deeplabv3_table3_")}
    assert grids == {(), (1, 2, 1), (1, 2, 3), (1, 2, 4), (2, 2, 2)}
    best = find_preset("deeplabv3_table3_mg121_block7").model
    assert {p.model for p in rows("deeplabv3_table4_")} == {best}
    assert best == ModelConfig(
        "resnet_v1_101_beta", multi_grid=(1, 2, 1), cascade_blocks=3, **CASCADE
    )


@pytest.mark.parametrize("output_stride", [8, 16, 32, 64, 128, 256])
def test_deeplabv3_table_1_varies_the_output_stride(output_stride):
    preset = find_preset(f"deeplabv3_table1_resnet50_block7_os{output_stride}")
    assert preset.eval_output_stride == output_stride
    assert preset.model == ModelConfig(
        "resnet_v1_50_beta",
        output_stride=output_stride,
        cascade_blocks=3,
        **CASCADE,
    )


@pytest.mark.parametrize(
    ("suffix", "grid", "rates", "image_level"),
    [
        ("mg111", (), (6, 12, 18), False),
        ("mg121", (1, 2, 1), (6, 12, 18), False),
        ("mg124", (1, 2, 4), (6, 12, 18), False),
        ("mg124_rate24", (1, 2, 4), (6, 12, 18, 24), False),
        ("mg124_image_pooling", (1, 2, 4), (6, 12, 18), True),
    ],
)
def test_deeplabv3_table_5_varies_multi_grid_and_aspp(suffix, grid, rates, image_level):
    context = ContextConfig(rates, separable=False, image_level=image_level)
    model = ModelConfig(
        "resnet_v1_101_beta", multi_grid=grid, context=context, decoder=NO_DECODER
    )
    assert find_preset(f"deeplabv3_table5_{suffix}").model == model


def test_deeplabv3plus_decoders_extend_the_best_deeplabv3():
    deeplabv3 = find_preset("deeplabv3_table6_os16").model
    one = DecoderConfig(separable=False, convolutions=1)
    decoders = {
        **{f"1_projection{d}": {"projection_filters": d} for d in (8, 16, 32, 48, 64)},
        "2_conv2_3x3_256": {},
        "2_conv2_3x3_256_x2": {"convolutions": 2},
        "2_conv2_3x3_256_x3": {"convolutions": 3},
        "2_conv2_3x3_128": {"filters": 128},
        "2_conv2_1x1_256": {"kernel_size": 1},
        "2_conv3_conv2_3x3_256": {"output_strides": (8, 4)},
    }
    for name, options in decoders.items():
        decoder = dataclasses.replace(one, **options)
        model = find_preset(f"deeplabv3plus_table{name}").model
        assert model == dataclasses.replace(deeplabv3, decoder=decoder), name
    two = find_preset("deeplabv3plus_table3_train16_eval8_decoder").model
    assert two == find_preset("deeplabv3plus_table2_conv2_3x3_256_x2").model
    coarse = find_preset("deeplabv3plus_table3_train32_eval8_decoder").model
    assert coarse == two.at_output_stride(32)
    assert coarse.context.rates == (3, 6, 9)


def test_deeplabv3plus_table_7_models():
    models = [preset.model for preset in rows("deeplabv3plus_table7_")]
    first = ModelConfig(X65, 19, decoder=NO_DECODER)
    second = ModelConfig(X65, 19)
    no_image_level = ContextConfig(image_level=False)
    third = dataclasses.replace(second, context=no_image_level)
    deep = dataclasses.replace(third, backbone="xception_71")
    assert models == [first, second, third, deep, deep]
    last = find_preset("deeplabv3plus_table7_x71_test")
    assert (last.train_split, last.eval_split) == ("trainval_coarse", "test_fine")


def test_zoo_models_match_their_official_flags():
    # Section 2.5 of the reference; the layers that merge features are dense.
    mobilenet_v3 = {
        "model_variant": "mobilenet_v3_large_seg",
        "num_classes": 19,
        "output_stride": 32,
        "image_pooling_crop_size": "769,769",
        "image_pooling_stride": "4,5",
        "aspp_convs_filters": 128,
        "aspp_with_concat_projection": 0,
        "aspp_with_squeeze_and_excitation": 1,
        "image_se_uses_qsigmoid": 1,
        "decoder_output_stride": 8,
        "decoder_use_sum_merge": 1,
        "decoder_filters": 19,
        "decoder_output_is_logits": 1,
        "decoder_use_separable_conv": 0,
    }
    small = mobilenet_v3 | {"model_variant": "mobilenet_v3_small_seg"}
    searched = {
        "model_variant": "xception_71",
        "num_classes": 19,
        "dense_prediction_cell_json": (
            "dense_prediction_cell_branch5_top1_cityscapes.json"
        ),
        "decoder_output_stride": 4,
    }
    edgetpu = {"model_variant": "mobilenet_edgetpu", "num_classes": 19}
    for name, flags in {
        "mobilenetv2_coco_voc_trainaug": {},
        "mobilenetv2_dm05_coco_voc_trainaug": {"depth_multiplier": 0.5},
        "mobilenetv2_coco_voc_trainval": {"output_stride": 8},
        "mobilenetv2_coco_cityscapes_trainfine": {"num_classes": 19},
        "mobilenetv2_ade20k_train": {"num_classes": 151, "decoder_output_stride": 4},
        "mobilenetv3_large_cityscapes_trainfine": mobilenet_v3,
        "mobilenetv3_small_cityscapes_trainfine": small,
        "xception71_dpc_cityscapes_trainval": searched,
        "edgetpu_deeplab_os16": edgetpu,
        "edgetpu_deeplab_slim_os32": edgetpu
        | {"depth_multiplier": 0.75, "aspp_convs_filters": 128, "output_stride": 32},
        "xception65_coco_voc_trainval": {
            "model_variant": X65,
            "output_stride": 8,
            "atrous_rates": "12,24,36",
            "decoder_output_stride": 4,
        },
    }.items():
        assert find_preset(name).model == ModelConfig.from_official_flags(flags), name
    context = find_preset("xception71_dpc_cityscapes_trainfine").model.context
    assert context.dense_prediction_cell == RELEASED_CELL


def test_description_has_four_lines():
    name = "deeplabv3plus_table5_eval8_decoder_sc_ms_flip"
    scales = "scales 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, flipped"
    assert describe(find_preset(name)).splitlines() == [
        f"{name} (1802.02611, Table 5): mIoU 81.39%, 3055.35 B multiply-adds",
        "  model: xception_65, 21 classes, output stride 16, from ImageNet",
        "  training: pascal_voc_seg train_aug, 30000 steps of 16 crops 513x513, "
        "learning rate 0.007 poly 0.9, weight decay 4e-05, batch normalisation trained",
        f"  evaluation: val, output stride 8, crop 513x513, {scales}",
    ]
    assert describe(find_preset("deeplabv3_table7_test")).splitlines()[2:] == [
        "  training: pascal_voc_seg trainval, 30000 steps of 16 crops 513x513, "
        "learning rate 0.001 poly 0.9, weight decay 0.0001, batch normalisation frozen",
        f"  evaluation: test, output stride 8, crop 513x513, {scales}",
    ]
    *_, last = describe(find_preset("xception65_cityscapes_trainfine")).splitlines()
    assert last == (
        "  evaluation: val_fine, output stride 16, crop 1025x2049, scales 1.0"
    )


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("xception_41_imagenet", "no figure"),
        ("mobilenetv2_ade20k_train", "mIoU 32.04%, pixel accuracy 75.41%"),
        (
            "edgetpu_deeplab_os32",
            "mIoU 70.6%, 5.6 B multiply-adds, multiply-adds seem to be for about "
            "513x513 pixels",
        ),
    ],
)
def test_description_shows_published_figures(name, figures):
    first, *_ = describe(find_preset(name)).splitlines()
    assert first == f"{name} (model zoo): {figures}"


def test_description_without_an_eval_crop_size():
    preset = find_preset("xception65_cityscapes_trainfine")
    preset = dataclasses.replace(preset, evaluation=EvalConfig())
    *_, last = describe(preset).splitlines()
    assert "crop of each image, scales 1.0" in last


def test_deviations_show_old_and_new_values():
    preset = find_preset("deeplabv3_table6_os8")
    model = dataclasses.replace(
        preset.model.at_output_stride(8), decoder=DecoderConfig()
    )
    assert list_deviations(preset.model, model) == [
        "output_stride: 16 -> 8",
        "context.rates: (6, 12, 18) -> (12, 24, 36)",
        "decoder.output_strides: () -> (4,)",
    ]
    train = dataclasses.replace(preset.train, weight_decay=0.0, label_weights=(2.0,))
    assert list_deviations(preset.train, train) == [
        "weight_decay: 0.0001 -> 0.0",
        "label_weights: () -> (2.0,)",
    ]
    assert list_deviations(preset.data, preset.data) == []


def test_paths_are_not_deviations():
    preset = find_preset("xception_65_coco")
    data = dataclasses.replace(preset.data, dataset_dir="records", seed=1)
    assert list_deviations(preset.data, data) == ["seed: 0 -> 1"]
    logs = {"train_logdir": "logs", "tf_initial_checkpoint": "model.ckpt"}
    assert (
        list_deviations(preset.train, dataclasses.replace(preset.train, **logs)) == []
    )


def test_presets_are_found_by_name():
    for name, preset in PRESETS.items():
        assert find_preset(name) is preset


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "xception65_voc_trainaug",
            "similar: xception65_coco_voc_trainaug, xception65_coco_voc_trainval, "
            "xception65_ade20k_train; ",
        ),
        ("edgetpu", "similar: edgetpu_deeplab_os32, edgetpu_deeplab_os16; "),
        ("?", ""),
        ("", ""),
    ],
)
def test_unknown_preset_error_names_the_nearest(name, hint):
    with pytest.raises(UserError) as raised:
        find_preset(name)
    lists = "python -m deeplab_tf.presets lists the names"
    assert str(raised.value) == f"there is no preset {name!r}; {hint}{lists}"


def test_program_lists_presets_without_tensorflow():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "deeplab_tf.presets"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines == "\n".join(map(describe, PRESETS.values())).splitlines()
    with_miou = [preset for preset in PRESETS.values() if preset.expected_miou]
    assert len(lines) == 4 * len(PRESETS) + len(with_miou)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "deeplab_tf.presets" in imported
    assert not {name.split(".")[0] for name in imported} & {"tensorflow", "keras"}


def test_report_lists_only_deviations():
    preset = find_preset("mobilenetv2_coco_voc_trainaug")
    train = dataclasses.replace(preset.train, train_logdir="logs", momentum=0.5)
    parts = [(preset.model, preset.model), (preset.train, train)]
    splits = {"train_split": "train_aug", "eval_split": "test"}
    changes = "momentum: 0.9 -> 0.5; eval_split: val -> test"
    expected = f"{describe(preset)}\n  deviations: {changes}"
    assert describe_run(preset, parts, **splits) == expected
    assert describe_run(preset, parts[:1]).endswith("\n  deviations: none")
