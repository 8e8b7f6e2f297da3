"""The settings of a training run, saved as experiment.json."""

import dataclasses

from deeplab_tf import strict_json
from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.data import DataConfig
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.config.train import TrainConfig
from deeplab_tf.data.info import DatasetInfo

EXPERIMENT_FILE = "experiment.json"
# Fields that are always written; if one is missing, the file is incomplete.
_REQUIRED = ("format_version", "model")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings of a training run, as saved in `experiment.json`.

    Attributes:
        model: The model.
        data: The training data.
        train: The training recipe.
        split: The training split.
        info: Class names and colours; None if unknown.
        format_version: Version of the file format; 1.

    Raises:
        UserError: if `format_version` is not supported.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    split: str = "train"
    info: DatasetInfo | None = None
    format_version: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.format_version == 1,
            f"format_version {self.format_version} needs a newer deeplab_tf; this "
            "version reads format_version 1",
        )

    def to_json(self) -> str:
        """Returns the content of `experiment.json`."""
        values = dataclasses.asdict(self)
        return strict_json.dump({key: values[key] for key in _REQUIRED} | values)

    @classmethod
    def from_json(
        cls, text: str | bytes, source: str = EXPERIMENT_FILE
    ) -> "Experiment":
        """Parses the text written by `to_json`; `source` is the file name for errors.

        Raises:
            UserError: if the text is invalid or was changed after it was written; names
                `source` and the key.
        """
        experiment = strict_json.from_json(cls, text, source, _REQUIRED)
        if experiment.info is not None:
            experiment.info.check_contents(f"{source}: info.")
        return experiment
