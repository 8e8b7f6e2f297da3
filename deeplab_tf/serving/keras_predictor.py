"""Predicts with a `.keras` file in the same way as with an exported model."""

import numpy as np

from deeplab_tf.checkpoints.keras_file import load_keras_file
from deeplab_tf.inference import Predictor
from deeplab_tf.serving.artefact import Artefact


class KerasPredictor(Artefact):
    """A `.keras` file, loaded for evaluation and prediction.

    Raises:
        UserError: if the file is damaged or has a different model.
    """

    def __init__(self, path: str):
        self._predictor = Predictor(load_keras_file(path))
        config = self._predictor.config
        protocol = {"artefact": "Keras"}
        classes = config.num_classes
        super().__init__(path, config.channels, None, protocol, True, classes)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._predictor.labels(images).numpy()

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._predictor.probabilities(images).numpy()
