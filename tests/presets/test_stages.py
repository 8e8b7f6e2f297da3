"""Presets of the papers' training stages, each starting from the previous one."""

import re

import pytest
from conftest import ROOT

from deeplab_tf.presets import PRESETS, describe, find_preset

# Family -> backbone, decoder, weight decay, and the mean IoU as printed: on val from
# ImageNet and from COCO, and on test.
FAMILIES = {
    "deeplabv3_mobilenet_v2": ("mobilenet_v2", (), 4e-5, (None, 75.32, 80.25)),
    "deeplabv3_resnet_v1_101_beta": (
        *("resnet_v1_101_beta", (), 1e-4, (77.21, 82.7, 85.7)),
    ),
    "deeplabv3plus_xception_65": ("xception_65", (4,), 4e-5, (79.79, 82.20, 87.8)),
}
COCO = "stage1_coco"
IMAGENET = "stage2_train_aug_from_imagenet"
TRAIN_AUG = "stage2_train_aug_from_coco"
TRAINVAL = "stage3_trainval"
STAGES = (COCO, IMAGENET, TRAIN_AUG, TRAINVAL)
# Stage -> data, split, steps, learning rate, output stride, batch normalisation
# trained, split of the evaluation. DeepLabv3, Sec. 4.1 and 4.3; COCO's rate and steps
# are of github.com/tensorflow/models/issues/4234.
RECIPES = {
    COCO: ("coco_voc", "train", 500000, 0.007, 16, True, "val"),
    IMAGENET: ("pascal_voc_seg", "train_aug", 30000, 0.007, 16, True, "val"),
    TRAIN_AUG: ("pascal_voc_seg", "train_aug", 30000, 1e-4, 16, True, "val"),
    TRAINVAL: ("pascal_voc_seg", "trainval", 30000, 0.001, 8, False, "test"),
}


def stage(family, name):
    """Returns the preset of a stage of a model family."""
    return find_preset(f"{family}_{name}")


def test_stages_are_complete_and_in_order():
    names = [f"{family}_{name}" for family in FAMILIES for name in STAGES]
    assert [name for name in PRESETS if "_stage" in name] == names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RECIPES)
def test_stages_have_the_recipe_of_the_paper(family, name):
    preset = stage(family, name)
    model, data, train = preset.model, preset.data, preset.train
    backbone, decoder, weight_decay, _ = FAMILIES[family]
    assert (model.backbone, model.num_classes) == (backbone, 21)
    assert model.decoder.output_strides == decoder
    assert RECIPES[name] == (
        data.dataset,
        preset.train_split,
        train.training_number_of_steps,
        train.base_learning_rate,
        model.output_stride,
        train.fine_tune_batch_norm,
        preset.eval_split,
    )
    assert (data.batch_size, data.crop_size) == (16, (513, 513))
    policy = (train.learning_policy, train.learning_power)
    assert policy == ("poly", 0.9)
    assert train.weight_decay == weight_decay


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_starts_from_the_previous_stage(family):
    first, direct, second, third = (stage(family, name) for name in STAGES)
    assert first.start == direct.start == "ImageNet"
    assert (second.start, third.start) == (first.name, second.name)
    assert first.model == direct.model == second.model
    assert third.model == second.model.at_output_stride(8)


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_have_a_published_miou_or_a_remark(family):
    figures = FAMILIES[family][-1]
    published = [stage(family, name).published for name in STAGES]
    assert tuple(p.miou for p in published) == (None, *figures)
    assert all(p.multiply_adds is p.pixel_accuracy is None for p in published)
    # A missing figure is explained by a remark.
    assert [bool(p.remark) for p in published] == [p.miou is None for p in published]


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_use_the_published_protocol(family):
    protocols = {
        name: (
            stage(family, name).eval_output_stride,
            len(stage(family, name).evaluation.eval_scales),
            stage(family, name).evaluation.add_flipped_images,
        )
        for name in STAGES
    }
    expected = dict.fromkeys(STAGES, (16, 1, False)) | {TRAINVAL: (8, 6, True)}
    if family == "deeplabv3_resnet_v1_101_beta":  # printed for this protocol only
        expected[TRAIN_AUG] = (8, 6, True)
    assert protocols == expected


def test_description_of_a_stage_names_its_start():
    lines = describe(stage("deeplabv3plus_xception_65", COCO)).splitlines()
    assert lines == [
        "deeplabv3plus_xception_65_stage1_coco (1706.05587, Sec. 4.3): no figure, "
        "learning rate and steps are from the authors in tensorflow/models#4234, who "
        "say 300000 steps are enough",
        "  model: xception_65, 21 classes, output stride 16, from ImageNet",
        "  training: coco_voc train, 500000 steps of 16 crops 513x513, "
        "learning rate 0.007 poly 0.9, weight decay 4e-05, batch normalisation trained",
        "  evaluation: val, output stride 16, crop 641x641, scales 1.0",
    ]
    lines = describe(stage("deeplabv3plus_xception_65", TRAINVAL)).splitlines()
    assert lines[:2] == [
        "deeplabv3plus_xception_65_stage3_trainval (1802.02611, Table 6): mIoU 87.8%",
        "  model: xception_65, 21 classes, output stride 8, from "
        "deeplabv3plus_xception_65_stage2_train_aug_from_coco",
    ]


def documented_commands():
    """Returns the flags of the documented commands that train a stage."""
    text = (ROOT / "docs/training.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python train\.py (.*_stage.*)", text, re.M)
    return [dict(flag.split("=") for flag in command.split()) for command in commands]


def test_documented_commands_run_the_stages_in_order():
    # tests/test_documentation.py runs them.
    commands = documented_commands()
    names = [flags["--preset"] for flags in commands]
    family = "deeplabv3_mobilenet_v2"
    assert names == [f"{family}_{name}" for name in (COCO, TRAIN_AUG, TRAINVAL)]
    starts = [flags["--tf_initial_checkpoint"] for flags in commands]
    assert starts[1:] == [flags["--train_logdir"] for flags in commands[:-1]]
    for flags in commands:
        # Flags that repeat the preset agree with it.
        preset = find_preset(flags["--preset"])
        steps = int(flags["--training_number_of_steps"])
        assert steps == preset.train.training_number_of_steps
        assert int(flags["--train_batch_size"]) == preset.data.batch_size


def test_documented_recipe_without_coco_is_a_preset():
    text = (ROOT / "docs/training.md").read_text()
    suffixes = re.findall(r"`<model>_(\w+)`", text)
    assert suffixes == [IMAGENET]
    for family in FAMILIES:
        assert family in text
