"""The text files that the package reads: a valid example and a reader of each."""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.checkpoints import pretrained, tf1
from deeplab_tf.config import (
    CellBranch,
    ContextConfig,
    DataConfig,
    Experiment,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.convert import manifest
from deeplab_tf.convert.class_list import read_class_list
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.files import text_files
from deeplab_tf.serving import tflite
from deeplab_tf.training import resume
from deeplab_tf.training.history import History

INFO = DatasetInfo(
    "toys",
    ("floor", "Bär", "雪だるま", "نیم‌فاصله"),
    ignore_label=254,
    split_sizes={"train": 1464, "val": 1449},
    class_pixels={"train": [123456, 0, 7, 88], "val": [1, 2, 3, 4]},
    class_image_pixels={"train": [123456, 0, 70, 99], "val": [5, 6, 7, 8]},
    content_hashes={"train": "0123456789abcdef" * 4, "val": "fedcba9876543210" * 4},
)
MODEL = ModelConfig(
    "resnet_v1_18_beta",
    num_classes=4,
    image_pyramid=(0.5, 1.0),
    context=ContextConfig(dense_prediction_cell=(CellBranch("conv"),)),
)
EXPERIMENT = Experiment(
    MODEL,
    DataConfig(dataset_dir="records", crop_size=(65, 97), min_resize_value=60),
    TrainConfig(label_weights=(1.0, 0.5), train_logdir="logs", momentum=0.85),
    "train",
    INFO,
)
SHARDS = {
    f"train-0000{i}-of-00002.tfrecord": {
        "size": 3,
        "members": [
            json.dumps(
                [f"a{k}", f"/a{k}.jpg", f"{i}a", f"{k}b", {0: 9, 3: k}, f"{k}f" * 32]
            )
            for k in range(2)
        ],
    }
    for i in range(2)
}
ROWS = [
    *({"step": 10 * i, "data_loss": 2.5 / i, "learning_rate": 0.007} for i in (1, 2)),
    {"step": 20, "miou": 0.25},
    {"step": 30, "data_loss": 1.25, "learning_rate": 0.005},
    {"step": 30, "miou": 0.75},
]
STEPS = (1, 10, 100, 101, 110)
CHECKPOINT_STATE = "".join(
    [
        'model_checkpoint_path: "model.ckpt-101"\n',
        *(f'all_model_checkpoint_paths: "model.ckpt-{s}"\n' for s in (10, 110, 101)),
    ]
)
CLASS_LIST = "# our classes\nroad 128 64 128\nside walk 0 0 192\nBär 1 2 3\n\nsky 9 9 9"
NAMES = "2007_000001\n2007_000002\r\nöl_3\n"
EXPORT_NOTE = {"precision": "float16", "mean_pixel": [127.5, 127.5, 127.5]}


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """A text file format.

    Attributes:
        name: Path of the file in a folder.
        text: Valid content, as the package writes it.
        read: Reads the file in a folder.
        prepare: Writes the other files of the folder.
        detects_changes: True if any change of the content must be noticed.
    """

    name: str
    text: str
    read: Callable[[str], Any]
    prepare: Callable[[str], None] = lambda folder: None
    detects_changes: bool = True

    def write(self, folder, content=None):
        """Writes the file and the other files of its folder."""
        path = os.path.join(folder, self.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.prepare(str(folder))
        content = self.text if content is None else content
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def _create_files(*names, content=""):
    def prepare(folder):
        for name in names:
            with open(os.path.join(folder, name), "w") as file:
                file.write(content)

    return prepare


def _read_history(folder):
    history = History(folder)
    history.restart(10**9)
    return history.rows


def _history_text(folder="ram://text_formats"):
    history = History(folder)
    for row in ROWS:
        history.append(row)
    history.flush()
    return records.tf.io.gfile.GFile(f"{folder}/history.jsonl").read()


def _read_note(folder):
    with open(os.path.join(folder, "export.json"), "rb") as file:
        notes = {tflite.EXPORT_NOTE: file.read()}
    mean_pixel, protocol = tflite._parse_export_note(
        notes, 3, os.path.join(folder, "m.tflite")
    )
    return mean_pixel.tolist(), protocol


def _read_classes(name):
    return lambda folder: read_class_list(epath.Path(folder) / name, "mine")


FORMATS = {
    kind.name: kind
    for kind in (
        TextFormat("dataset_info.json", INFO.to_json(), records.read_info),
        TextFormat("experiment.json", EXPERIMENT.to_json(), resume.read_experiment),
        TextFormat(
            "assets.extra/model.json",
            strict_json.dump(dataclasses.asdict(MODEL)),
            lambda folder: pretrained._read_export(folder)[0],
            _create_files("assets.extra/model.ckpt.index"),
        ),
        TextFormat(
            "conversion.json",
            strict_json.dump({"shards": SHARDS, "skipped": {}}),
            lambda folder: manifest.Manifest(folder).shards,
            _create_files(*SHARDS, content="abc"),
        ),
        TextFormat("export.json", strict_json.dump(EXPORT_NOTE), _read_note),
        TextFormat("history.jsonl", _history_text(), _read_history),
        TextFormat(
            "checkpoint",
            CHECKPOINT_STATE,
            tf1.resolve,
            _create_files(*(f"model.ckpt-{step}.index" for step in STEPS)),
        ),
        TextFormat(
            "classes.txt",
            CLASS_LIST,
            _read_classes("classes.txt"),
            detects_changes=False,
        ),
        TextFormat("classes.json", INFO.to_json(), _read_classes("classes.json")),
        TextFormat(
            "names.txt",
            NAMES,
            lambda folder: text_files.read_words(os.path.join(folder, "names.txt")),
            detects_changes=False,
        ),
    )
}
JSON_FORMATS = [n for n in FORMATS if n.endswith(".json")]
