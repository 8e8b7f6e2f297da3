"""Exact parameter counts of every backbone and every preset."""

import dataclasses
from math import prod

import pytest

from deeplab_tf.config import BACKBONES as TRAITS, ModelConfig
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.complexity import count_parameters
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables
from deeplab_tf.presets import PRESETS

# Trained parameters, and all with moving statistics, of `ModelConfig(backbone)`, that
# is of DeepLabv3+ with 21 classes. MobileNetEdgeTPU has no decoder: without the heads
# (two of 1280 x 256 + 512, three of 9 x 1280 + 2560 + 1280 x 256 + 512, 1280 x 256 +
# 512, 256 x 21 + 21) its 2 810 432 and a classifier of 1280 x 1001 + 1001 are the
# 4 092 713 of slim's. Backbones of PyTorch differ from those by known amounts: the
# features of torchvision's ResNet-152 have 58 143 808 and of its ResNet-50 23 508 032,
# of its ResNet-34 21 284 672 and of its ResNet-18 11 176 512, and of its
# MobileNetV3-large 2 971 952; the root of "v1c" has 28 768 and a 7x7 one 9 536.
BACKBONE_COUNTS = {
    "mobilenet_v2": (2_725_573, 2_764_357),
    "mobilenet_v2_classifier": (4_398_213, 4_445_317),
    "mobilenet_v3_large_classifier": (4_722_293, 4_757_765),
    "mobilenet_v3_large_seg": (2_499_669, 2_525_637),
    "mobilenet_v3_small_seg": (1_256_277, 1_271_685),
    "mobilenet_edgetpu": (4_827_221, 4_876_853),
    "resnet_v1_18": (12_338_629, 12_356_613),
    "resnet_v1_18_beta": (12_320_309, 12_338_421),
    "resnet_v1_34": (22_446_789, 22_472_197),
    "resnet_v1_50": (26_696_133, 26_766_853),
    "resnet_v1_50_beta": (26_819_909, 26_891_013),
    "resnet_v1_101": (45_688_261, 45_811_205),
    "resnet_v1_101_beta": (45_812_037, 45_935_365),
    "resnet_v1_152": (61_331_909, 61_500_933),
    "resnet_v1c_50": (26_715_365, 26_786_213),
    "resnet_v1c_101": (45_707_493, 45_830_565),
    "xception_41": (28_108_661, 28_241_573),
    "xception_65": (41_055_413, 41_258_213),
    "xception_71": (43_477_837, 43_694_413),
}
# Counts of the presets, which often share a model. In millions the official ones are
# 41.055 and 41.258 (Xception-65, 21 classes), 41.089 and 41.292 (151 classes), 41.609
# and 41.819 (Xception-71 with the cell), 2.114 and 2.147 (MobileNetV2), 0.697 and 0.714
# (at half the width), 2.305 and 2.340 (with a decoder), 1.507 and 1.525, 0.469 and
# 0.477 (MobileNetV3), 45.812 and 45.935 (ResNet-101 beta).
PRESET_COUNTS = {
    (63_838_165, 63_946_965): (
        "deeplabv3_table1_resnet50_block7_os8",
        "deeplabv3_table1_resnet50_block7_os16",
        "deeplabv3_table1_resnet50_block7_os32",
        "deeplabv3_table1_resnet50_block7_os64",
        "deeplabv3_table1_resnet50_block7_os128",
        "deeplabv3_table1_resnet50_block7_os256",
        "deeplabv3_table2_resnet50_block7",
    ),
    (23_674_837, 23_728_341): ("deeplabv3_table2_resnet50_block4",),
    (37_062_613, 37_134_549): ("deeplabv3_table2_resnet50_block5",),
    (50_450_389, 50_540_757): ("deeplabv3_table2_resnet50_block6",),
    (42_666_965, 42_772_693): (
        "deeplabv3_table2_resnet101_block4",
        "deeplabv3_table3_mg111_block4",
        "deeplabv3_table3_mg121_block4",
        "deeplabv3_table3_mg123_block4",
        "deeplabv3_table3_mg124_block4",
        "deeplabv3_table3_mg222_block4",
    ),
    (56_054_741, 56_178_901): (
        "deeplabv3_table2_resnet101_block5",
        "deeplabv3_table3_mg111_block5",
        "deeplabv3_table3_mg121_block5",
        "deeplabv3_table3_mg123_block5",
        "deeplabv3_table3_mg124_block5",
        "deeplabv3_table3_mg222_block5",
    ),
    (69_442_517, 69_585_109): (
        "deeplabv3_table2_resnet101_block6",
        "deeplabv3_table3_mg111_block6",
        "deeplabv3_table3_mg121_block6",
        "deeplabv3_table3_mg123_block6",
        "deeplabv3_table3_mg124_block6",
        "deeplabv3_table3_mg222_block6",
    ),
    (82_830_293, 82_991_317): (
        "deeplabv3_table2_resnet101_block7",
        "deeplabv3_table3_mg111_block7",
        "deeplabv3_table3_mg121_block7",
        "deeplabv3_table3_mg123_block7",
        "deeplabv3_table3_mg124_block7",
        "deeplabv3_table3_mg222_block7",
        "deeplabv3_table4_os16",
        "deeplabv3_table4_os8",
        "deeplabv3_table4_os8_ms",
        "deeplabv3_table4_os8_ms_flip",
    ),
    (57_574_101, 57_682_389): (
        "deeplabv3_table5_mg111",
        "deeplabv3_table5_mg121",
        "deeplabv3_table5_mg124",
    ),
    (62_358_741, 62_467_541): ("deeplabv3_table5_mg124_rate24",),
    (58_164_437, 58_273_237): (
        "deeplabv3_table5_mg124_image_pooling",
        "deeplabv3_table6_os16",
        "deeplabv3_table6_os8",
        "deeplabv3_table6_os8_ms",
        "deeplabv3_table6_os8_ms_flip",
        "deeplabv3_table6_os8_ms_flip_coco",
        "deeplabv3_table7_test",
        "deeplabv3_table7_test_jft",
        "deeplabv3plus_table3_train16_eval16",
        "deeplabv3plus_table3_train16_eval8",
        "deeplabv3plus_table3_train16_eval8_ms",
        "deeplabv3plus_table3_train16_eval8_ms_flip",
        "deeplabv3plus_table3_train32_eval32",
        "deeplabv3_resnet_v1_101_beta_stage1_coco",
        "deeplabv3_resnet_v1_101_beta_stage2_train_aug_from_imagenet",
        "deeplabv3_resnet_v1_101_beta_stage2_train_aug_from_coco",
        "deeplabv3_resnet_v1_101_beta_stage3_trainval",
    ),
    (58_775_269, 58_884_597): ("deeplabv3plus_table1_projection8",),
    (58_795_765, 58_905_109): ("deeplabv3plus_table1_projection16",),
    (58_836_757, 58_946_133): ("deeplabv3plus_table1_projection32",),
    (58_877_749, 58_987_157): (
        "deeplabv3plus_table1_projection48",
        "deeplabv3plus_table2_conv2_3x3_256",
    ),
    (58_918_741, 59_028_181): ("deeplabv3plus_table1_projection64",),
    (59_468_085, 59_578_005): (
        "deeplabv3plus_table2_conv2_3x3_256_x2",
        "deeplabv3plus_table3_train16_eval16_decoder",
        "deeplabv3plus_table3_train16_eval16_decoder_ms",
        "deeplabv3plus_table3_train16_eval16_decoder_ms_flip",
        "deeplabv3plus_table3_train16_eval8_decoder",
        "deeplabv3plus_table3_train16_eval8_decoder_ms",
        "deeplabv3plus_table3_train16_eval8_decoder_ms_flip",
        "deeplabv3plus_table3_train32_eval32_decoder",
        "deeplabv3plus_table3_train32_eval16_decoder",
        "deeplabv3plus_table3_train32_eval8_decoder",
    ),
    (60_058_421, 60_168_853): ("deeplabv3plus_table2_conv2_3x3_256_x3",),
    (58_524_597, 58_633_749): ("deeplabv3plus_table2_conv2_3x3_128",),
    (58_255_157, 58_364_565): ("deeplabv3plus_table2_conv2_1x1_256",),
    (59_603_349, 59_713_365): ("deeplabv3plus_table2_conv3_conv2_3x3_256",),
    (53_407_813, 53_596_085): (
        "deeplabv3plus_table5_eval16",
        "deeplabv3plus_table5_eval16_ms",
        "deeplabv3plus_table5_eval16_ms_flip",
        "deeplabv3plus_table5_eval8",
        "deeplabv3plus_table5_eval8_ms",
        "deeplabv3plus_table5_eval8_ms_flip",
    ),
    (54_711_461, 54_900_853): (
        "deeplabv3plus_table5_eval16_decoder",
        "deeplabv3plus_table5_eval16_decoder_ms",
        "deeplabv3plus_table5_eval16_decoder_ms_flip",
        "deeplabv3plus_table5_eval8_decoder",
        "deeplabv3plus_table5_eval8_decoder_ms",
        "deeplabv3plus_table5_eval8_decoder_ms_flip",
    ),
    (41_055_413, 41_258_213): (
        "deeplabv3plus_table5_eval16_decoder_sc",
        "deeplabv3plus_table5_eval16_decoder_sc_ms_flip",
        "deeplabv3plus_table5_eval8_decoder_sc",
        "deeplabv3plus_table5_eval8_decoder_sc_ms_flip",
        "deeplabv3plus_table5_eval16_decoder_sc_coco",
        "deeplabv3plus_table5_eval16_decoder_sc_coco_ms_flip",
        "deeplabv3plus_table5_eval8_decoder_sc_coco",
        "deeplabv3plus_table5_eval8_decoder_sc_coco_ms_flip",
        "deeplabv3plus_table5_eval16_decoder_sc_jft",
        "deeplabv3plus_table5_eval16_decoder_sc_jft_ms_flip",
        "deeplabv3plus_table5_eval8_decoder_sc_jft",
        "deeplabv3plus_table5_eval8_decoder_sc_jft_ms_flip",
        "deeplabv3plus_table6_test",
        "deeplabv3plus_table6_test_jft",
        "xception65_coco_voc_trainaug",
        "xception65_coco_voc_trainaug_os8_ms_flip",
        "xception65_coco_voc_trainval",
        "xception_65_imagenet",
        "xception_65_coco",
        "deeplabv3plus_xception_65_stage1_coco",
        "deeplabv3plus_xception_65_stage2_train_aug_from_imagenet",
        "deeplabv3plus_xception_65_stage2_train_aug_from_coco",
        "deeplabv3plus_xception_65_stage3_trainval",
    ),
    (40_891_971, 41_092_531): ("deeplabv3plus_table7_x65_no_decoder",),
    (41_054_899, 41_257_699): (
        "deeplabv3plus_table7_x65",
        "xception65_cityscapes_trainfine",
        "xception65_cityscapes_trainfine_os8_ms_flip",
    ),
    (40_464_563, 40_666_851): ("deeplabv3plus_table7_x65_no_image_level",),
    (42_886_987, 43_103_051): (
        "deeplabv3plus_table7_x71_no_image_level",
        "deeplabv3plus_table7_x71_test",
    ),
    (697_013, 714_325): (
        "mobilenetv2_dm05_coco_voc_trainaug",
        "mobilenetv2_dm05_coco_voc_trainval",
        "mobilenetv2_dm05_coco_voc_trainaug_8bit",
    ),
    (2_113_557, 2_146_645): (
        "mobilenetv2_coco_voc_trainaug",
        "mobilenetv2_coco_voc_trainaug_os8_ms_flip",
        "mobilenetv2_coco_voc_trainaug_8bit",
        "mobilenetv2_coco_voc_trainval",
        "deeplabv3_mobilenet_v2_stage1_coco",
        "deeplabv3_mobilenet_v2_stage2_train_aug_from_imagenet",
        "deeplabv3_mobilenet_v2_stage2_train_aug_from_coco",
        "deeplabv3_mobilenet_v2_stage3_trainval",
    ),
    (2_113_043, 2_146_131): (
        "mobilenetv2_coco_cityscapes_trainfine",
        "mobilenetv2_coco_cityscapes_trainfine_os8_ms_flip",
    ),
    (1_507_198, 1_525_230): ("mobilenetv3_large_cityscapes_trainfine",),
    (468_830, 477_454): ("mobilenetv3_small_cityscapes_trainfine",),
    (41_608_523, 41_818_955): (
        "xception71_dpc_cityscapes_trainfine",
        "xception71_dpc_cityscapes_trainval",
    ),
    (3_603_283, 3_643_699): (
        "edgetpu_deeplab_os32",
        "edgetpu_deeplab_os16",
    ),
    (2_070_827, 2_101_723): (
        "edgetpu_deeplab_slim_os32",
        "edgetpu_deeplab_slim_os16",
    ),
    (2_304_519, 2_339_847): ("mobilenetv2_ade20k_train",),
    # 11 classes instead of 151, each with 257 parameters.
    (2_268_539, 2_303_867): ("camvid_mobilenetv2",),
    (41_088_823, 41_291_623): ("xception65_ade20k_train",),
    (28_108_661, 28_241_573): ("xception_41_imagenet",),
    (43_477_837, 43_694_413): ("xception_71_imagenet",),
    (26_819_909, 26_891_013): ("resnet_v1_50_beta_imagenet",),
    (45_812_037, 45_935_365): ("resnet_v1_101_beta_imagenet",),
}

COUNT_OF = {name: count for count, names in PRESET_COUNTS.items() for name in names}


def test_all_backbones_and_presets_have_counts():
    assert set(BACKBONE_COUNTS) == set(BACKBONES) == set(TRAITS)
    assert set(COUNT_OF) == set(PRESETS)


@pytest.mark.parametrize("backbone", sorted(BACKBONE_COUNTS))
def test_backbones_have_known_parameter_counts(backbone):
    assert count_parameters(ModelConfig(backbone)) == BACKBONE_COUNTS[backbone]


def drop_rates(config):
    """Returns a config with the same variables, without differences in rates."""
    config_at_16 = config.at_output_stride(16)
    return dataclasses.replace(config_at_16, multi_grid=())


@pytest.mark.slow
def test_presets_have_known_parameter_counts():
    configs = {name: drop_rates(preset.model) for name, preset in PRESETS.items()}
    counts = {config: count_parameters(config) for config in set(configs.values())}
    assert {name: counts[config] for name, config in configs.items()} == COUNT_OF


def test_parameter_counts_match_the_built_model():
    config = ModelConfig("mobilenet_v3_small_seg")
    model = build_model(config)
    total = sum(prod(v.shape) for v in official_variables(model).values())
    assert total == count_parameters(config)[1]
    trained = sum(prod(v.shape) for v in model.trainable_variables)
    assert trained == count_parameters(config)[0]
