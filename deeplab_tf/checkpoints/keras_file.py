"""Reads `.keras` files of DeepLab models."""

import zipfile

import keras
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.errors import UserError
from deeplab_tf.files.file_kinds import make_local
from deeplab_tf.models.deeplab import DeepLab

KERAS = ".keras"
# Formats that Keras also writes, but that do not store the configuration.
_HDF5 = (".h5", ".hdf5")
_CONFIG = "config.json"


def is_keras_file(path: str) -> bool:
    """Returns whether a name ends in .keras; raises UserError for an HDF5 file."""
    if tf.io.gfile.isdir(path):
        return False
    if path.endswith(_HDF5) and tf.io.gfile.exists(path):
        raise UserError(
            f"{path} is an HDF5 file, which does not store the configuration of the "
            f"model; load it into build_model(config) with load_weights, then save the "
            f"model as a {KERAS} file"
        )
    return path.endswith(KERAS)


def load_keras_file(path: str) -> DeepLab:
    """Loads the model in a `.keras` file, without compiling it, in Keras' safe mode.

    Raises:
        UserError: if the file does not exist, is damaged, or has a different model.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"there is no file {path}")
    with make_local(path) as local:
        _require_deeplab(local, path)
        try:
            return keras.saving.load_model(local, compile=False, safe_mode=True)
        except Exception as error:  # Keras, h5py and zipfile each have their own
            raise _make_damage_error(path, error) from error


def _require_deeplab(local: str, path: str) -> None:
    """Raises UserError for a model of a different class, without loading it."""
    try:
        with zipfile.ZipFile(local) as archive, archive.open(_CONFIG) as file:
            content = file.read(strict_json.MAX_BYTES + 1)
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise _make_damage_error(path, error) from error
    config = strict_json.parse(content, f"{path}: {_CONFIG}")
    is_object = isinstance(config, dict)
    expected = keras.saving.get_registered_name(DeepLab)
    if not is_object or config.get("registered_name") != expected:
        found = config.get("class_name") if is_object else None
        raise UserError(
            f"{path} contains a model of class {found}, not {DeepLab.__name__}; "
            "save a model from build_model or from_pretrained instead"
        )


def _make_damage_error(path: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} cannot be read as a {KERAS} file ({reason}); copy or download it "
        "again, or save the model again"
    )
