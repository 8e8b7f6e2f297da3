"""Measures in addition to mIoU: boundaries, calibration, robustness."""

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.evaluation.boundary import BoundaryIoU, TrimapCurve
from deeplab_tf.evaluation.calibration import Calibration


def make_measures(
    info: DatasetInfo,
    trimap: str = "none",
    boundary_iou: bool = False,
    calibration: bool = False,
) -> dict:
    """Returns the selected measures, by their names in metrics.json.

    Args:
        info: Description of the dataset.
        trimap: Where to measure mIoU in bands (DeepLabv3+, Fig. 5): around "void"
            pixels, around boundaries between "classes", or "none".
        boundary_iou: Whether to measure Boundary IoU.
        calibration: Whether to measure the expected calibration error.
    """
    classes = info.num_classes, info.ignore_label
    measures: dict = {}
    if trimap != "none":
        measures["trimap"] = TrimapCurve(*classes, around=trimap)
    if boundary_iou:
        measures["boundary_iou"] = BoundaryIoU(*classes)
    if calibration:
        measures["calibration"] = Calibration(*classes)
    return measures


def describe_measures(metrics: dict) -> list[str]:
    """Returns one line for each of these measures in a metrics.json."""
    lines = []
    if "trimap" in metrics:
        trimap = metrics["trimap"]
        pairs = zip(trimap["widths"], trimap["miou"], strict=True)
        curve = ", ".join(f"{width} px {_format_score(miou)}" for width, miou in pairs)
        lines.append(f"mIoU around {trimap['around']}: {curve}")
    if "boundary_iou" in metrics:
        score = metrics["boundary_iou"]["boundary_iou"]
        lines.append(f"Boundary IoU {_format_score(score)}")
    if "calibration" in metrics:
        error = metrics["calibration"]["expected_calibration_error"]
        lines.append(f"expected calibration error {_format_score(error)}")
    robustness = metrics.get("robustness", {"miou": {}})
    for name, scores in robustness["miou"].items():
        pairs = zip(robustness["severities"], scores, strict=True)
        lines.append(
            f"{name}: " + ", ".join(f"{s}: {_format_score(x)}" for s, x in pairs)
        )
    return lines


def _format_score(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
