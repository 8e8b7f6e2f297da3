"""Loads pretrained models and weights by name, path or URL."""

import dataclasses
import functools
import os
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints import hub, tf1
from deeplab_tf.checkpoints.cache import cache_folder
from deeplab_tf.checkpoints.handles import is_handle
from deeplab_tf.checkpoints.pytorch.weights import is_torch_file
from deeplab_tf.checkpoints.restore import (
    RestoreReport,
    class_count,
    is_model_variable,
    last_layer_scopes,
    load_tf1_variables,
    require_complete,
)
from deeplab_tf.checkpoints.sources import find_in_zoo, locate_source, normalize_source
from deeplab_tf.checkpoints.zoo import (
    ZOO,
    ZooModel,
)
from deeplab_tf.config import (
    EXPERIMENT_FILE,
    ContextConfig,
    Experiment,
    ModelConfig,
)
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files
from deeplab_tf.models.complexity import build_uninitialized
from deeplab_tf.models.deeplab import DeepLab, build_model
from deeplab_tf.models.variables import official_variables

_SAVED_MODEL = "saved_model.pb"
# The ModelConfig of an export, as in an experiment.json, and its weights.
_EXPORTED_MODEL = os.path.join("assets.extra", "model.json")
_EXPORTED_WEIGHTS = os.path.join("assets.extra", tf1.NAME)
# Accepts every output stride that any model accepts.
_MOST_STRIDES = ModelConfig(
    "resnet_v1_50_beta", cascade_blocks=3, context=ContextConfig(rates=())
)


@check_arguments()
def from_pretrained(
    name_path_or_url: str | os.PathLike,
    num_classes: int | None = None,
    output_stride: int | None = None,
    cache_dir: str | None = None,
) -> DeepLab:
    """Returns a trainable, uncompiled DeepLab model with pretrained weights.

    The architecture, `model_config`, comes from the zoo, the `experiment.json` next to
    the checkpoint, the export, the `.keras` file, or the graph of a TFLite file or
    frozen graph; otherwise, it is that of the zoo model with the same variables.
    PyTorch weights get the architecture and conventions of their project.
    Pretrained backbones get a new head. Re-initialised layers are printed.

    Args:
        name_path_or_url: Name of a zoo checkpoint (`python -m
            deeplab_tf.checkpoints.zoo` lists them), a `train_logdir`, the folder or
            prefix of a checkpoint (official or ours), a frozen graph, a TFLite file, a
            `.keras` file, the folder of an export, an archive of one of these, or its
            URL; or a model on a hub: `hf://user/repo` or
            `kaggle://user/model/keras/variation`. An existing path takes precedence
            over a zoo name. Also PyTorch weights (a `.pth`, `.pt`, `.bin` or
            `.safetensors` file, or a Hugging Face folder): DeepLabv3 and LR-ASPP of
            torchvision, DeepLabV3 and DeepLabV3Plus of segmentation_models_pytorch and
            MMSegmentation, MobileNetV2 of transformers, and ImageNet classifiers of
            torchvision and timm.
        num_classes: Number of classes; None uses that of the checkpoint, or the 21 of
            PASCAL VOC for a backbone. If it differs from the checkpoint's, only the
            logits layer is re-initialised.
        output_stride: Output stride for the same weights; None uses that of the
            checkpoint or the zoo preset.
        cache_dir: Folder for downloaded and extracted files, which are reused without a
            network. None uses the environment variable DEEPLAB_TF_CACHE, else
            `~/.cache/deeplab_tf`. For a model on a hub, None uses the cache of the
            client; Kaggle supports only None.

    Raises:
        UserError: if the model does not exist, cannot be downloaded, is damaged, or
            does not match its description.
    """
    source = normalize_source(name_path_or_url)
    known = find_in_zoo(source)
    config = known.preset.model if known else None
    # Check the arguments before downloading.
    _adapt_config(config or _MOST_STRIDES, num_classes, output_stride)
    exported, path = _locate_checkpoint(source, known, cache_dir)
    checkpoint = tf1.read_checkpoint(path)
    prefix, arrays = checkpoint.prefix, checkpoint.arrays
    config = exported or checkpoint.config or config
    config = config or _identify_config(prefix, arrays)
    model = build_model(_adapt_config(config, num_classes, output_stride))
    report = load_tf1_variables(model, arrays, source=prefix)
    is_backbone = known is not None and known.checkpoint.is_pretrained_backbone
    if is_backbone or checkpoint.is_classifier:
        _require_backbone(report, prefix)
    elif report.complete and (checkpoint.graph or is_torch_file(path)):
        print(f"{prefix}: {report}")
    else:
        _require_all_but_logits(report, prefix, model, config.num_classes)
    return model


def find_weights(
    name_path_or_url: str | os.PathLike, cache_dir: str | None = None
) -> str:
    """Returns a checkpoint prefix for `load_tf1_checkpoint`, downloading if needed.

    Arguments and errors are those of `from_pretrained`.
    """
    source = normalize_source(name_path_or_url)
    _, path = _locate_checkpoint(source, find_in_zoo(source), cache_dir)
    return tf1.find_checkpoint(path)


def _locate_checkpoint(
    source: str, known: ZooModel | None, cache_dir: str | None
) -> tuple[ModelConfig | None, str]:
    """Returns the model config of an export (else None) and a checkpoint path."""
    if is_handle(source):
        return None, hub.download(source, cache_dir)
    path, config = locate_source(source, known, cache_folder(cache_dir)), None
    if tf.io.gfile.exists(os.path.join(path, _SAVED_MODEL)):
        config, path = _read_export(path)
    return config, path


def _adapt_config(
    config: ModelConfig, num_classes: int | None, output_stride: int | None
) -> ModelConfig:
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    if output_stride is not None:
        config = config.at_output_stride(output_stride)
    return config


def _identify_config(prefix: str, arrays: Mapping[str, np.ndarray]) -> ModelConfig:
    """Returns the config of a checkpoint.

    It comes from `experiment.json`, else from a zoo model with the same variables,
    which is printed. Raises UserError if there is neither.
    """
    path = os.path.join(os.path.dirname(prefix), EXPERIMENT_FILE)
    if tf.io.gfile.exists(path):
        return Experiment.from_json(text_files.read_content(path), source=path).model
    shapes = {n: np.shape(a) for n, a in arrays.items() if is_model_variable(n)}
    for candidate in find_candidate_configs(arrays):
        config = dataclasses.replace(
            candidate, num_classes=class_count(arrays) or candidate.num_classes
        )
        model = build_uninitialized(functools.partial(build_model, config))
        if shapes == {n: v.shape for n, v in official_variables(model).items()}:
            print(
                f"note: {prefix} has no {EXPERIMENT_FILE}; its variables match "
                f"{config.backbone} with output_stride "
                f"{config.output_stride} and atrous_rates {list(config.atrous_rates)}"
            )
            return config
    backbones = _find_backbones(arrays)
    hint = "create the model with build_model and load it with load_tf1_checkpoint"
    if backbones:
        hint = f"for a backbone in the zoo, give its name: {' or '.join(backbones)}"
    raise UserError(
        f"{prefix} has no {EXPERIMENT_FILE} next to it, and its variables match no "
        f"model in the zoo; {hint}"
    )


def find_candidate_configs(arrays: Mapping[str, np.ndarray]) -> list[ModelConfig]:
    """Returns the configs of zoo models that may have the variables of a checkpoint.

    Of models with equal variables, only the first is returned.

    Args:
        arrays: Maps official names to values; only the names matter.
    """
    has_decoder = any(name.startswith("decoder/") for name in arrays)
    models: dict[ModelConfig, ModelConfig] = {}
    for checkpoint in ZOO.values():
        model = checkpoint.preset.model
        same_decoder = bool(model.decoder_output_strides) == has_decoder
        if same_decoder and _has_backbone_scope(arrays, model):
            models.setdefault(_reset_unsaved_fields(model), model)
    return list(models.values())


def _reset_unsaved_fields(config: ModelConfig) -> ModelConfig:
    """Resets fields that do not affect variables: strides, rates and classes."""
    rates = tuple(1 for _ in config.atrous_rates)
    context = dataclasses.replace(config.context, rates=rates)
    return dataclasses.replace(config, num_classes=1, output_stride=16, context=context)


def _find_backbones(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the zoo backbones that match a checkpoint without a head."""
    if any(name.startswith(last_layer_scopes(logits_only=False)) for name in arrays):
        return []
    return [
        name
        for name, checkpoint in ZOO.items()
        if checkpoint.is_pretrained_backbone
        and _has_backbone_scope(arrays, checkpoint.preset.model)
    ]


def _has_backbone_scope(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> bool:
    """Returns whether the variables have the scope of the config's backbone."""
    # The scope can be shorter than the name: resnet_v1_50 for resnet_v1_50_beta.
    scopes = {_normalize_name(name.partition("/")[0]) for name in arrays}
    return _normalize_name(config.backbone).startswith(tuple(scopes))


def _normalize_name(name: str) -> str:
    """Returns a name in lower case, without underscores."""
    return name.replace("_", "").lower()


def _read_export(path: str) -> tuple[ModelConfig, str]:
    """Returns the model config and the checkpoint that are saved with a SavedModel.

    The SavedModel's own variables cannot be used because batch normalisation is folded
    into its convolutions.
    """
    described = os.path.join(path, _EXPORTED_MODEL)
    prefix = os.path.join(path, _EXPORTED_WEIGHTS)
    for needed, what in (
        (described, "its model config"),
        (f"{prefix}.index", "its weights"),
    ):
        if not tf.io.gfile.exists(needed):
            raise UserError(
                f"{path} was exported without {what} ({needed} is missing); give the "
                "checkpoint it was exported from"
            )
    content = text_files.read_content(described)
    required = ("backbone", "num_classes")
    return strict_json.from_json(ModelConfig, content, described, required), prefix


def _require_all_but_logits(
    report: RestoreReport, source: str, model: keras.Model, num_classes: int
) -> None:
    """Raises UserError unless everything but logits of other classes was restored.

    `num_classes` is the number of classes of the checkpoint.
    """
    wanted = model.model_config.num_classes
    unexpected = tuple(
        (name, was, now)
        for name, was, now in report.skipped
        if wanted == num_classes or now != (*was[:-1], wanted)
    )
    require_complete(dataclasses.replace(report, skipped=unexpected), source, model)
    if report.skipped:
        print(f"{source}: {report}")


def _require_backbone(report: RestoreReport, source: str) -> None:
    """Prints the report; raises UserError unless all of the backbone was restored."""
    head = last_layer_scopes(logits_only=False)
    if not all(name.startswith(head) for name in report.missing):
        raise UserError(f"{source} lacks part of the backbone: {report}")
    print(f"{source}: {report}")
