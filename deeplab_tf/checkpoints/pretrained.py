"""A model with its weights, or these alone, from a name, a path or a URL."""

import dataclasses
import hashlib
import numbers
import os
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.checkpoints import tf1
from deeplab_tf.checkpoints.cache import CACHE_HINT, cache_folder, make_private
from deeplab_tf.checkpoints.download import (
    fetch,
    file_name,
    is_web,
    local_path,
)
from deeplab_tf.checkpoints.restore import (
    RestoreReport,
    class_count,
    last_layer_scopes,
    load_tf1_variables,
    require_complete,
)
from deeplab_tf.checkpoints.zoo import (
    ZOO,
    ZooModel,
    find_checkpoint,
    require_checkpoint,
)
from deeplab_tf.config import (
    EXPERIMENT_FILE,
    ContextConfig,
    Experiment,
    ModelConfig,
)
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files
from deeplab_tf.files.archives import UnusableFolderError, extract, find_damage
from deeplab_tf.files.locks import path_lock
from deeplab_tf.models.deeplab import build_model

_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_SAVED_MODEL = "saved_model.pb"
# A ModelConfig, in the form that it has in an experiment.json, and its weights.
_EXPORTED_MODEL = os.path.join("assets.extra", "model.json")
_EXPORTED_WEIGHTS = os.path.join("assets.extra", tf1.NAME)
# It takes every output stride that any model does.
_MOST_STRIDES = ModelConfig(
    "resnet_v1_50_beta", cascade_blocks=3, context=ContextConfig(rates=())
)


def from_pretrained(
    name_path_or_url: str | os.PathLike,
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
            an archive of one of these, or its URL. What is there by that name is taken
            before a name of the zoo.
        num_classes: Number of classes; another one than the checkpoint's renews the
            layer of the logits, nothing else. None is the checkpoint's; for a backbone,
            which has none of ours, the 21 of PASCAL VOC.
        output_stride: Output stride for the same weights; None is the checkpoint's, or
            that of the preset in the zoo.
        cache_dir: Folder for what is downloaded and extracted; None takes the
            environment variable DEEPLAB_TF_CACHE, else `~/.cache/deeplab_tf`. What is
            there is used without a network.

    Raises:
        UserError: if there is no such thing, it cannot be fetched, or it is damaged or
            of another model than it says.
    """
    what = _spelled(name_path_or_url)
    known = _known(what)
    config = known.preset.model if known else None
    # Before anything is fetched.
    _adapted(config or _MOST_STRIDES, num_classes, output_stride)
    told, path = _found(what, known, cache_dir)
    checkpoint = tf1.read_checkpoint(path)
    prefix, arrays = checkpoint.prefix, checkpoint.arrays
    config = told or config or _described(prefix, arrays)
    model = build_model(_adapted(config, num_classes, output_stride))
    report = load_tf1_variables(model, arrays, source=prefix)
    if known and known.checkpoint.is_pretrained_backbone:
        _require_backbone(report, prefix)
    else:
        _require_all_but_logits(report, prefix, model, config.num_classes)
    return model


def find_weights(
    name_path_or_url: str | os.PathLike, cache_dir: str | None = None
) -> str:
    """Returns what `load_tf1_checkpoint` takes: the prefix of a checkpoint.

    Args:
        name_path_or_url: As `from_pretrained` takes it; what has to be fetched is.
        cache_dir: As in `from_pretrained`.

    Raises:
        UserError: if there is no such thing, it cannot be fetched, or it is damaged.
    """
    what = _spelled(name_path_or_url)
    _, path = _found(what, _known(what), cache_dir)
    return tf1.find_checkpoint(path)


def _found(
    what: str, known: ZooModel | None, cache_dir: str | None
) -> tuple[ModelConfig | None, str]:
    """Returns the model that an export describes, if it is one, and its checkpoint.

    The checkpoint is a prefix or a folder.
    """
    path, config = _located(what, known, cache_folder(cache_dir)), None
    if tf.io.gfile.exists(os.path.join(path, _SAVED_MODEL)):
        config, path = _of_export(path)
    return config, path


def _adapted(
    config: ModelConfig, num_classes: int | None, output_stride: int | None
) -> ModelConfig:
    asked = {"num_classes": num_classes, "output_stride": output_stride}
    for name, value in asked.items():
        if not (value is None or isinstance(value, numbers.Integral)):
            raise UserError(f"{name} must be a whole number; received {value!r}")
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    if output_stride is not None:
        config = config.at_output_stride(output_stride)
    return config


def _spelled(what: str | os.PathLike) -> str:
    """Returns a name, a URL, or a path that is there for `tf.io.gfile` to look at."""
    if not isinstance(what, str | os.PathLike) or not os.fspath(what):
        raise UserError(
            f"expected a name of the zoo, a path or a URL; received {what!r}"
        )
    what = local_path(os.fspath(what))
    try:
        if not is_web(what):
            tf.io.gfile.exists(what)
    except tf.errors.OpError as error:
        raise UserError(f"{what} cannot be read: {error.message}") from error
    return what


def _known(what: str) -> ZooModel | None:
    """Returns what a name is in the zoo, or an archive by its official name."""
    if _is_archive(what):
        name = file_name(what)
        found = (find_checkpoint(n) for n, c in ZOO.items() if c.archive == name)
        return next(found, None)
    known = find_checkpoint(what)
    if known and _exists(what):
        print(f"note: the zoo has a {what} too; {os.path.abspath(what)} is taken")
        return None
    return known


def _is_archive(what: str) -> bool:
    """Whether something has to be extracted, and maybe fetched before."""
    return is_web(what) or (
        file_name(what).lower().endswith(_ARCHIVES) and not tf.io.gfile.isdir(what)
    )


def _located(what: str, known: ZooModel | None, cache: str) -> str:
    """Returns a path to load."""
    if _is_archive(what):
        return _opened(what, known, cache)
    if known:
        archive = _fetched(known.checkpoint.url, known, make_private(cache))
        return _unpacked(archive, cache)
    if not (os.path.dirname(what) or _exists(what)):
        require_checkpoint(what)
    return what


def _fetched(url: str, known: ZooModel | None, folder: str) -> str:
    published = known.checkpoint.sha256 if known else ""
    return fetch(url, folder, published, lambda path: find_damage(epath.Path(path)))


def _exists(path: str) -> bool:
    return tf.io.gfile.exists(path) or tf.io.gfile.exists(f"{path}.index")


def _opened(archive: str, known: ZooModel | None, cache: str) -> str:
    """Returns the folder of what is in an archive of the user's."""
    # Archives of one name from several places do not get in each other's way.
    is_url = "://" in archive
    place = archive if is_url else os.path.abspath(archive)
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    if not is_url and not os.path.isfile(archive):
        raise UserError(f"there is no archive {archive}")
    own = make_private(os.path.join(make_private(cache), name))
    if is_url:
        archive = _fetched(archive, known, own)
    return _unpacked(archive, own)


def _unpacked(archive: str, folder: str) -> str:
    """Returns the folder with the files of an archive, extracted into another one."""
    name = os.path.basename(archive)
    for suffix in _ARCHIVES:
        name = name.removesuffix(suffix)
    path = os.path.join(folder, f"{name}.extracted")
    with path_lock(path):
        try:
            extract(epath.Path(archive), epath.Path(path))
        except UnusableFolderError as error:
            raise UserError(f"{error}; {CACHE_HINT}") from error
    return _folder_of_weights(archive, path)


def _folder_of_weights(archive: str, path: str) -> str:
    """Returns the folder that has the weights of an extracted archive."""
    found = []
    for here, folders, files in os.walk(path):
        # A Mac's archives have a hidden companion of each file.
        shown = [file for file in files if not file.startswith(".")]
        if any(file.endswith((".index", ".pb")) for file in shown):
            found.append(here)
            folders.clear()  # what is beneath belongs to it: an export has a checkpoint
    if len(found) != 1:
        names = ", ".join(sorted(os.path.relpath(here, path) for here in found))
        raise UserError(
            f"{archive} holds several checkpoints ({names}); extract it and give one"
            if found
            else f"{archive} holds no checkpoint, frozen graph or SavedModel"
        )
    return found[0]


def _described(prefix: str, arrays: Mapping[str, np.ndarray]) -> ModelConfig:
    """Returns the model of a checkpoint: as its training tells it, else by its names.

    Raises:
        UserError: if there is no `experiment.json`, and no model of the zoo that has
            the same variables.
    """
    path = os.path.join(os.path.dirname(prefix), EXPERIMENT_FILE)
    if tf.io.gfile.exists(path):
        return Experiment.from_json(text_files.read_content(path), source=path).model
    for candidate in candidates(arrays):
        config = dataclasses.replace(
            candidate, num_classes=class_count(arrays) or candidate.num_classes
        )
        try:
            complete = load_tf1_variables(build_model(config), arrays).complete
        except UserError:
            continue
        if complete:
            print(
                f"note: {prefix} has no {EXPERIMENT_FILE}; by its variables it is "
                f"taken for a {config.backbone} with output_stride "
                f"{config.output_stride} and atrous_rates {list(config.atrous_rates)}"
            )
            return config
    backbones = _backbones(arrays)
    hint = "load_tf1_checkpoint takes it into a model of build_model"
    if backbones:
        hint = f"of a backbone of the zoo give the name: {' or '.join(backbones)}"
    raise UserError(
        f"{prefix} has no {EXPERIMENT_FILE} beside it and the variables of no model of "
        f"the zoo; {hint}"
    )


def candidates(arrays: Mapping[str, np.ndarray]) -> list[ModelConfig]:
    """Returns the zoo's models that may be a checkpoint's, of other variables each.

    Args:
        arrays: Official name to value; the names will do.
    """
    has_decoder = any(name.startswith("decoder/") for name in arrays)
    models: dict[ModelConfig, ModelConfig] = {}
    for checkpoint in ZOO.values():
        model = checkpoint.preset.model
        same_decoder = bool(model.decoder_output_strides) == has_decoder
        if same_decoder and _has_scope_of(arrays, model):
            models.setdefault(_with_same_variables(model), model)
    return list(models.values())


def _with_same_variables(config: ModelConfig) -> ModelConfig:
    """Returns one model for all that differ in strides, rates and classes alone."""
    rates = tuple(1 for _ in config.atrous_rates)
    context = dataclasses.replace(config.context, rates=rates)
    return dataclasses.replace(config, num_classes=1, output_stride=16, context=context)


def _backbones(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns names of the zoo's backbones that a checkpoint without head may be."""
    if any(name.startswith(last_layer_scopes(logits_only=False)) for name in arrays):
        return []
    return [
        name
        for name, checkpoint in ZOO.items()
        if checkpoint.is_pretrained_backbone
        and _has_scope_of(arrays, checkpoint.preset.model)
    ]


def _has_scope_of(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> bool:
    # A scope is xception_65, or resnet_v1_50 of resnet_v1_50_beta too.
    scopes = {_plain(name.partition("/")[0]) for name in arrays}
    return _plain(config.backbone).startswith(tuple(scopes))


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


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
    content = text_files.read_content(described)
    required = ("backbone", "num_classes")
    return strict_json.from_json(ModelConfig, content, described, required), prefix


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
