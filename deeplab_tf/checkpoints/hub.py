"""Downloads and uploads models on Hugging Face (`hf://`) and Kaggle (`kaggle://`)."""

import contextlib
import glob
import importlib
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras

from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints.handles import HUGGING_FACE, import_client
from deeplab_tf.checkpoints.keras_file import KERAS
from deeplab_tf.checkpoints.model_card import CARD, format_model_card
from deeplab_tf.checkpoints.pytorch.weights import CONFIG, WEIGHTS
from deeplab_tf.errors import UserError
from deeplab_tf.models.checks import BUILT

_MODEL = f"model{KERAS}"
_MAX_REASON = 300


def download(handle: str, cache_dir: str | None = None) -> str:
    """Downloads the model of a handle and returns its local path.

    That is a `.keras` file or, for a model of PyTorch on Hugging Face, a folder.

    Args:
        handle: `hf://user/repo`, which has `model.keras`, or else `config.json` and
            `model.safetensors` or `pytorch_model.bin`, optionally with `@revision` (a
            branch, tag or commit), or
            `kaggle://user/model/keras/variation`, optionally with `/version`.
        cache_dir: Folder for the file, for Hugging Face only; None uses the cache of
            the client (HF_HOME or KAGGLEHUB_CACHE).

    Raises:
        UserError: if the handle is invalid, the client of the hub is not installed, the
            model or file does not exist or cannot be downloaded, a Kaggle model has
            several `.keras` files, or `cache_dir` is given for a Kaggle model.
    """
    name, client = import_client(handle)
    if handle.startswith(HUGGING_FACE):
        name, _, revision = name.partition("@")
        options = {"cache_dir": cache_dir, "revision": revision or None}
        return _call(_download_first, handle, client, name, **options)
    if cache_dir is not None:
        raise UserError(
            f"{handle}: cache_dir is not supported; set the environment variable "
            "KAGGLEHUB_CACHE instead"
        )
    folder = _call(client.model_download, handle, name)
    found = sorted(glob.glob(os.path.join(glob.escape(folder), f"*{KERAS}")))
    if len(found) != 1:
        names = ", ".join(map(os.path.basename, found)) or "none"
        raise UserError(f"{handle} must have one {KERAS} file; found {names}")
    return found[0]


def _download_first(client: Any, name: str, **options: Any) -> str:
    """Returns the path of `model.keras`, or of a folder with PyTorch weights."""
    errors = importlib.import_module(f"{client.__name__}.errors")
    missing_entry = errors.EntryNotFoundError
    try:
        return client.hf_hub_download(name, _MODEL, **options)
    except missing_entry as error:
        missing = error
    for weights in WEIGHTS:
        with contextlib.suppress(missing_entry):
            path = client.hf_hub_download(name, weights, **options)
            with contextlib.suppress(missing_entry):
                client.hf_hub_download(name, CONFIG, **options)
            return os.path.dirname(path)
    raise missing


@check_arguments(model=BUILT)
def push_to_hub(
    model: keras.Model,
    handle: str,
    *,
    license: str,
    metrics: Mapping | None = None,
    command: str | None = None,
) -> str:
    """Uploads a model with a model card to Hugging Face and returns its URL.

    Writes `model.keras`, with the optimiser if the model is compiled, and `README.md`,
    replacing earlier ones. A new repository is public by default.

    Args:
        model: A model from `build_model` or `from_pretrained`.
        handle: `hf://user/repo`, as for `from_pretrained`.
        license: Identifier of the licence of the weights, such as "apache-2.0".
        metrics: Metrics for the card, as from `evaluate` or `metrics.json`.
        command: The command that computes the metrics, to show on the card.

    Raises:
        UserError: if the handle is invalid, huggingface_hub is not installed, or you
            are not logged in or may not write to the repository.
    """
    if not handle.startswith(HUGGING_FACE) or "@" in handle:
        raise UserError(f"handle must be hf://user/repo; received {handle}")
    name, client = import_client(handle)
    api = client.HfApi()
    card = format_model_card(model.model_config, handle, license, metrics, command)
    with tempfile.TemporaryDirectory() as folder:
        model.save(os.path.join(folder, _MODEL))
        with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
            file.write(card)
        url = _call(api.create_repo, handle, name, exist_ok=True)
        _call(api.upload_folder, handle, repo_id=name, folder_path=folder)
    return str(url)


def _call(function: Callable, handle: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a function of a client, and converts its errors to one line."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # both clients also raise errors of HTTP libraries
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise UserError(
            f"{handle}: {reason or type(error).__name__}; check the name, your "
            "connection and, for a private model, that you are logged in"
        ) from error
