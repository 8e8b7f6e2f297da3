"""A model with its weights from a name, a path or a URL."""

import dataclasses
import hashlib
import json
import os
import urllib.parse
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_tf.archives import extract
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.download import cache_folder, fetch, is_web, locked
from deeplab_tf.checkpoints.restore import (
    RestoreReport,
    class_count,
    last_layer_scopes,
    load_tf1_variables,
    require_complete,
)
from deeplab_tf.checkpoints.zoo import (
    ZOO,
    ZooCheckpoint,
    find_checkpoint,
    require_checkpoint,
)
from deeplab_tf.config import Experiment, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.presets import Preset

_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_SAVED_MODEL = "saved_model.pb"
_EXPERIMENT = "experiment.json"
# A ModelConfig, in the form that it has in an experiment.json, and its weights.
_EXPORTED_MODEL = os.path.join("assets.extra", "model.json")
_EXPORTED_WEIGHTS = os.path.join("assets.extra", tf1.NAME)

_Known = tuple[ZooCheckpoint, Preset]


def from_pretrained(
    name_path_or_url: str,
    num_classes: int | None = None,
    output_stride: int | None = None,
    cache_dir: str | None = None,
) -> keras.Model:
    """Returns a functional model, trainable as it is, with weights from elsewhere.

    Its `model_config` tells what it is; of a checkpoint that says nothing of its model
    it is that of the zoo's model which has the same variables. Of the zoo's backbones
    the model has a new head. What was renewed is printed.

    Args:
        name_path_or_url: Name of a checkpoint of the zoo (`python -m
            deeplab_tf.checkpoints.zoo` lists them); a `train_logdir`; folder or prefix
            of a checkpoint, official or ours, or a frozen graph; folder of an export;
            an archive of one of these, or its URL.
        num_classes: Number of classes; another one than the checkpoint's renews the
            layer of the logits, nothing else. None is the checkpoint's.
        output_stride: Output stride for the same weights; None is the checkpoint's.
        cache_dir: Folder for what is downloaded and extracted; None takes the
            environment variable DEEPLAB_TF_CACHE, else `~/.cache/deeplab_tf`. What is
            there is used without a network.

    Raises:
        UserError: if there is no such thing, it cannot be fetched, or it is damaged or
            of another model than it says.
    """
    path, known = _located(name_path_or_url, cache_folder(cache_dir))
    config = known[1].model if known else None
    if tf.io.gfile.exists(os.path.join(path, _SAVED_MODEL)):
        config, path = _of_export(path)
    prefix = tf1.resolve(path)
    arrays = tf1.read_variables(prefix)
    config = config or _described(prefix, arrays)
    model = _build(config, num_classes, output_stride)
    report = load_tf1_variables(model, arrays, source=prefix)
    if known and known[0].is_pretrained_backbone:
        _require_backbone(report, prefix)
    else:
        _require_all_but_logits(report, prefix, model, config.num_classes)
    return model


def _build(
    config: ModelConfig, num_classes: int | None, output_stride: int | None
) -> keras.Model:
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    if output_stride is not None:
        config = config.at_output_stride(output_stride)
    return build_model(config)


def _located(what: str, cache: str) -> tuple[str, _Known | None]:
    """Returns a path to load, and what it is in the zoo, if it is from there."""
    known = find_checkpoint(what)
    if known:
        return _unpacked(fetch(known[0].url, cache, known[0].sha256), cache), known
    name = os.path.basename(urllib.parse.urlsplit(what).path)
    if is_web(what) or name.endswith(_ARCHIVES):
        known = next(
            (find_checkpoint(n) for n, c in ZOO.items() if c.archive == name), None
        )
        return _opened(what, cache, known), known
    if not (os.path.dirname(what) or _exists(what)):
        require_checkpoint(what)
    return what, None


def _exists(path: str) -> bool:
    return tf.io.gfile.exists(path) or tf.io.gfile.exists(f"{path}.index")


def _opened(archive: str, cache: str, known: _Known | None) -> str:
    """Returns the folder of what is in an archive of the user's."""
    # Archives of one name from several places do not get in each other's way.
    is_url = "://" in archive
    place = archive if is_url else os.path.abspath(archive)
    own = os.path.join(cache, hashlib.sha256(place.encode()).hexdigest()[:16])
    if is_url:
        archive = fetch(archive, own, known[0].sha256 if known else "")
    elif not os.path.exists(archive):
        raise UserError(f"there is no archive {archive}")
    return _unpacked(archive, own)


def _unpacked(archive: str, folder: str) -> str:
    """Returns the folder with the files of an archive, extracted into another one."""
    name = os.path.basename(archive)
    for suffix in _ARCHIVES:
        name = name.removesuffix(suffix)
    path = os.path.join(folder, f"{name}.extracted")
    with locked(path):
        try:
            extract(epath.Path(archive), epath.Path(path))
        except UserError as error:
            raise UserError(
                f"{error}; if it was downloaded, remove {archive}* to fetch it again"
            ) from error
    for here, _, files in os.walk(path):
        # A Mac's archives have a hidden companion of each file.
        shown = [file for file in files if not file.startswith(".")]
        if any(file.endswith((".index", ".pb")) for file in shown):
            return here
    raise UserError(f"{archive} holds no checkpoint, frozen graph or SavedModel")


def _described(prefix: str, arrays: Mapping[str, np.ndarray]) -> ModelConfig:
    """Returns the model of a checkpoint: as its training tells it, else by its names.

    Raises:
        UserError: if there is no `experiment.json`, and no model of the zoo that has
            the same variables.
    """
    path = os.path.join(os.path.dirname(prefix), _EXPERIMENT)
    if tf.io.gfile.exists(path):
        return Experiment.from_json(_text(path), source=path).model
    for preset in _candidates(arrays):
        config = dataclasses.replace(
            preset.model, num_classes=class_count(arrays) or preset.model.num_classes
        )
        try:
            complete = load_tf1_variables(build_model(config), arrays).complete
        except UserError:
            continue
        if complete:
            print(
                f"note: {prefix} has no {_EXPERIMENT}; it has the variables of "
                f"{preset.name} and is taken for that model"
            )
            return config
    raise UserError(
        f"{prefix} has no {_EXPERIMENT} beside it and the variables of no model of the "
        "zoo; load_tf1_checkpoint takes it into a model of build_model"
    )


def _candidates(arrays: Mapping[str, np.ndarray]) -> list[Preset]:
    """Returns presets of the zoo of each model that may be a checkpoint's."""
    scopes = {_plain(name.partition("/")[0]) for name in arrays}
    has_decoder = "decoder" in scopes
    models: dict[ModelConfig, Preset] = {}
    for checkpoint in ZOO.values():
        config = dataclasses.replace(checkpoint.preset.model, num_classes=1)
        # A scope is xception_65, or resnet_v1_50 of resnet_v1_50_beta too.
        same_backbone = _plain(config.backbone).startswith(tuple(scopes))
        if same_backbone and bool(config.decoder.output_strides) == has_decoder:
            models.setdefault(config, checkpoint.preset)
    return list(models.values())


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _text(path: str) -> str:
    with tf.io.gfile.GFile(path) as file:
        return file.read()


def _of_export(path: str) -> tuple[ModelConfig, str]:
    """Returns the model that a SavedModel was made from, and its checkpoint.

    The variables of the SavedModel itself will not do: its batch normalisations are
    folded into convolutions.
    """
    described = os.path.join(path, _EXPORTED_MODEL)
    prefix = os.path.join(path, _EXPORTED_WEIGHTS)
    for needed, what in ((described, "its model"), (f"{prefix}.index", "its weights")):
        if not tf.io.gfile.exists(needed):
            raise UserError(
                f"{path} was exported without {what} ({needed} is missing); give the "
                "checkpoint that it was made from"
            )
    try:
        text = json.dumps({"model": json.loads(_text(described))})
    except ValueError as error:
        raise UserError(f"{described} describes no model: {error}") from error
    return Experiment.from_json(text, source=described).model, prefix


def _require_all_but_logits(
    report: RestoreReport, source: str, model: keras.Model, num_classes: int
) -> None:
    """Refuses a model that is not wholly restored, but for logits of other classes.

    Args:
        report: What became of the variables.
        source: Where they are from.
        model: The model.
        num_classes: Number of classes in the source.

    Raises:
        UserError: naming what differs.
    """
    wanted = model.model_config.num_classes
    others = tuple(
        (name, was, now)
        for name, was, now in report.skipped
        if wanted == num_classes or now != (*was[:-1], wanted)
    )
    require_complete(dataclasses.replace(report, skipped=others), source, model)
    if report.skipped:
        print(f"{source}: {report}")


def _require_backbone(report: RestoreReport, source: str) -> None:
    """Refuses a checkpoint that lacks some of the backbone.

    Raises:
        UserError: naming what is missing.
    """
    head = last_layer_scopes(logits_only=False)
    if not all(name.startswith(head) for name in report.missing):
        raise UserError(f"{source} has not all of the backbone: {report}")
    print(f"{source}: {report}")
