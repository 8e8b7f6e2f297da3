"""Models have exactly the variables of the official checkpoints."""

import pytest
from golden_case import FOLDER, manifest

from deeplab_tf.config import ModelConfig
from deeplab_tf.models.complexity import build_uninitialized
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables
from deeplab_tf.presets import PRESETS

# Complete models, and the presets that build them.
MODELS = {
    "mobilenetv2_voc": "mobilenetv2_coco_voc_trainaug",
    "mobilenetv2_dm05_voc": "mobilenetv2_dm05_coco_voc_trainaug",
    "mobilenetv2_cityscapes": "mobilenetv2_coco_cityscapes_trainfine",
    "mobilenetv2_ade20k_dec4": "mobilenetv2_ade20k_train",
    "mobilenetv3_large_cityscapes": "mobilenetv3_large_cityscapes_trainfine",
    "mobilenetv3_small_cityscapes": "mobilenetv3_small_cityscapes_trainfine",
    "xception65_voc": "xception65_coco_voc_trainaug",
    "xception65_cityscapes": "xception65_cityscapes_trainfine",
    "xception65_ade20k": "xception65_ade20k_train",
    "xception71_dpc_cityscapes": "xception71_dpc_cityscapes_trainfine",
    "resnet_v1_101_beta_full": "resnet_v1_101_beta_imagenet",
    "resnet_v1_101_beta_full_dense": "deeplabv3plus_table3_train16_eval16_decoder",
}
# Classifiers; a model uses all variables but those of the head.
BACKBONES = {
    *("resnet_v1_18", "resnet_v1_18_beta", "resnet_v1_50", "resnet_v1_50_beta"),
    *("resnet_v1_101", "resnet_v1_101_beta"),
    *("xception_41", "xception_65", "xception_71"),
}


def build_without_values(config):
    """Builds a model without initialising its variables."""
    return build_uninitialized(lambda: build_model(config))


def shapes_of(model):
    variables = official_variables(model)
    return {name: tuple(variable.shape) for name, variable in variables.items()}


def test_every_manifest_is_tested():
    names = {path.stem for path in (FOLDER / "manifests").glob("*.tsv")}
    assert names == set(MODELS) | BACKBONES


@pytest.mark.parametrize("name", MODELS)
def test_model_has_variables_of_official_checkpoint(name):
    model = build_without_values(PRESETS[MODELS[name]].model)
    assert shapes_of(model) == manifest(name)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbone_has_variables_of_official_classifier(name):
    model = build_without_values(ModelConfig(backbone=name))
    assert shapes_of(model.get_layer("backbone")) == manifest(name)
