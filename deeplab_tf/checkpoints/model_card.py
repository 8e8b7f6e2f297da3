"""Writes the model card that a hub shows for a model."""

import json
from collections.abc import Mapping
from typing import Any

from deeplab_tf.config import ModelConfig

CARD = "README.md"
_TAGS = ("deeplab", "image-segmentation", "semantic-segmentation")
# Keys of `metrics.json` and of its protocol, in the order of the table.
_SCORES = ("miou", "pixel_accuracy", "frequency_weighted_iou", "images")
_PROTOCOL = ("dataset", "split", "eval_scales", "add_flipped_images")


def format_model_card(
    config: ModelConfig,
    handle: str,
    license: str,
    metrics: Mapping[str, Any] | None,
    command: str | None,
) -> str:
    """Returns the text of a model card: Markdown with a YAML header.

    Args:
        config: The model configuration.
        handle: Handle of the published model, for `from_pretrained`.
        license: Identifier of the licence of the weights, such as "apache-2.0".
        metrics: The metrics of `evaluate` or `metrics.json`, if any.
        command: The command that reproduces the metrics, if known.
    """
    width = config.depth_multiplier
    backbone = config.backbone + (f" x {width}" if width != 1 else "")
    parts = [
        _format_header(license),
        f"# {handle.rpartition('/')[2]}",
        f"{_name_architecture(config)} with {backbone}: {config.num_classes} classes, "
        f"output stride {config.output_stride}, {config.channels} channels (0..255).",
        "```python\nimport deeplab_tf\n\n"
        f'model = deeplab_tf.from_pretrained("{handle}")\n'
        'labels = model.predict_labels("photo.jpg")\n```',
    ]
    if metrics:
        parts += ["## Evaluation", _format_metrics(metrics)]
    if command:
        parts += ["Command:", f"```bash\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def _name_architecture(config: ModelConfig) -> str:
    if config.context.squeeze_and_excitation:
        return "LR-ASPP"
    if config.decoder.output_strides:
        return "DeepLabv3+"
    is_v2 = not config.context.aspp and len(config.context.rates or ()) > 1
    return "DeepLabv2" if is_v2 else "DeepLabv3"


def _format_header(license: str) -> str:
    # A string of JSON is one of YAML, too.
    lines = ["library_name: deeplab_tf", f"license: {json.dumps(license)}"]
    lines += ["pipeline_tag: image-segmentation", "tags:", *(f"- {x}" for x in _TAGS)]
    return "\n".join(["---", *lines, "---"])


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    protocol = metrics.get("protocol", {})
    rows = {key: metrics[key] for key in _SCORES if key in metrics}
    rows |= {key: protocol[key] for key in _PROTOCOL if key in protocol}
    lines = ["| | |", "|---|---|"]
    for key, value in rows.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        lines.append(f"| {key} | {text} |")
    return "\n".join(lines)
