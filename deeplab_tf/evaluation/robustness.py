"""mIoU under common corruptions (1903.12261), as in 1908.05005 for DeepLab."""

import sys
from collections.abc import Callable, Sequence

import tensorflow as tf

from deeplab_tf.evaluation import corruptions
from deeplab_tf.evaluation.evaluator import Evaluator


def measure_robustness(
    evaluator: Evaluator,
    load: Callable[[], tf.data.Dataset],
    names: Sequence[str],
    severities: Sequence[int],
    clean: float,
) -> dict:
    """Measures mIoU under each corruption at each severity; prints the progress.

    Args:
        evaluator: Evaluator of the model.
        load: Function that returns a dataset of RGB images and labels.
        names: Names of corruptions, from `corruptions.CORRUPTIONS`.
        severities: Severities, 1 to 5.
        clean: mIoU on images that are not corrupted.

    Returns:
        `clean`, `severities` and `miou`, which lists one mIoU per severity by name.

    Raises:
        UserError: if a corruption is unknown, or images are too small or not RGB.
    """

    def miou(name: str, severity: int) -> float:
        dataset = load()
        corrupted = tf.data.Dataset.from_generator(
            lambda: corruptions.corrupt_dataset(dataset, name, severity),
            output_signature=dataset.element_spec,
        )
        print(f"{name}, severity {severity}", file=sys.stderr)
        return evaluator.evaluate(corrupted.prefetch(2))["miou"]

    scores = {name: [miou(name, severity) for severity in severities] for name in names}
    return {"clean": clean, "severities": list(severities), "miou": scores}
