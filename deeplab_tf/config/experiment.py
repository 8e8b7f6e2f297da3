"""All settings of a training as one experiment.json."""

import dataclasses

from deeplab_tf import strict_json
from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.data import DataConfig
from deeplab_tf.config.model import ModelConfig
from deeplab_tf.config.train import TrainConfig
from deeplab_tf.data.info import DatasetInfo

# Its name beside the checkpoints of a training.
EXPERIMENT_FILE = "experiment.json"
# Keys that an experiment.json has in any case, by which a gap in it is noticed.
_REQUIRED = ("format_version", "model")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of a training; the text of `experiment.json`.

    Attributes:
        model: The model.
        data: Its training data.
        train: How it is trained.
        split: Split it is trained on.
        info: Classes and colours of the data; None where they are not known.
        format_version: Of the file; 1.

    Raises:
        UserError: for another `format_version`.
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
            f"format_version {self.format_version} is of a newer deeplab_tf; "
            "this one reads 1",
        )

    def to_json(self) -> str:
        """Returns the text of `experiment.json`."""
        values = dataclasses.asdict(self)
        return strict_json.dump({key: values[key] for key in _REQUIRED} | values)

    @classmethod
    def from_json(
        cls, text: str | bytes, source: str = EXPERIMENT_FILE
    ) -> "Experiment":
        """Returns the experiment that `to_json` wrote.

        Args:
            text: Content of the file.
            source: What to call the file in an error.

        Raises:
            UserError: if the text is something else, or was changed after `to_json`
                wrote it; names `source` and the key.
        """
        experiment = strict_json.from_json(cls, text, source, _REQUIRED)
        if experiment.info is not None:
            experiment.info.check_contents(f"{source}: info.")
        return experiment
