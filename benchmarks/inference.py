r"""Labels of an image: SavedModels of ours beside OpenVINO, ONNX Runtime and others.

    pip install 'deeplab_tf[peers,export]'
    python -m benchmarks.inference --model_variant=mobilenet_v2,xception_65

All have the same weights (but keras-hub, whose DeepLabv3+ with ResNet-50 has an output
stride of 32: it is told per multiply-add) and give the label map of a uint8 image. Our
SavedModel is also measured in bfloat16, and several scales with mirrored images beside
each of these views alone. Those that are not installed are left out.
"""

import importlib.util
import os
import tempfile
from typing import NamedTuple

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.contenders import make_config, make_model
from benchmarks.measuring import Contender
from deeplab_tf.errors import UserError
from deeplab_tf.flags import size_value
from deeplab_tf.models.complexity import multiply_adds
from deeplab_tf.models.precision import use_precision
from deeplab_tf.programs import run_program
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.saved_model import export_saved_model


class _Engine(NamedTuple):
    """What labels images.

    Attributes:
        factory: Its name in `benchmarks.contenders`.
        file: What it loads; "" takes the model's flags instead, None nothing.
        module: What has to be installed; "" is nothing.
    """

    factory: str
    file: str | None
    module: str = ""


_ENGINES = {
    "float32": _Engine("saved_model", "float32"),
    "bfloat16": _Engine("saved_model", "bfloat16"),
    "openvino": _Engine("openvino", "model.onnx", "openvino"),
    "onnxruntime": _Engine("onnxruntime", "model.onnx", "onnxruntime"),
    "pytorch": _Engine("torch_inference", "", "torch"),
    "keras-hub": _Engine("keras_hub_inference", None, "keras_hub"),
    "keras-hub with XLA": _Engine("keras_hub_jit_inference", None, "keras_hub"),
}
_REFERENCE = "float32"
_HERE = "benchmarks.contenders"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    string = absl_flags.DEFINE_multi_string
    absl_flags.DEFINE_list(
        "model_variant",
        ["mobilenet_v2", "xception_65"],
        "Backbones.",
        flag_values=values,
    )
    string("size", "513,513", "Height and width of the image.", flag_values=values)
    integer = absl_flags.DEFINE_integer
    integer("batch", 1, "Images at once.", lower_bound=1, flag_values=values)
    integer("output_stride", 16, "Output stride.", flag_values=values)
    integer("times", 3, "Batches of a turn.", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_list(
        "engines", list(_ENGINES), "Which to measure.", flag_values=values
    )
    absl_flags.DEFINE_list(
        "scales",
        ["0.75", "1", "1.25"],
        "Of the comparison of several views with each alone; empty leaves it out.",
        flag_values=values,
    )
    measuring.define_flags(values, turns=15)
    return values


def chosen(names: list[str]) -> list[str]:
    """Returns the engines of some names that are installed, the reference among them.

    Raises:
        UserError: for a name that is none.
    """
    for name in names:
        if name not in _ENGINES:
            raise UserError(f"--engines={name} is none of {'; '.join(_ENGINES)}")
    modules = {name: engine.module for name, engine in _ENGINES.items()}
    return [
        name
        for name, module in modules.items()
        if name == _REFERENCE
        or (name in names and (not module or importlib.util.find_spec(module)))
    ]


def model_flags(values: absl_flags.FlagValues, backbone: str) -> dict:
    """Returns the official flags of the model."""
    return {"model_variant": backbone, "output_stride": values.output_stride}


def write_files(model: dict, engines: list[str], folder: str) -> None:
    """Writes what the engines load."""
    for name in engines:
        path = os.path.join(folder, _ENGINES[name].file or "none")
        if not _ENGINES[name].file or os.path.exists(path):
            continue
        if path.endswith(".onnx"):
            export_onnx(make_model(model), path)
        else:
            export_saved_model(make_model(model, precision=name), path)
    use_precision("float32")


def contender(name: str, task: dict, model: dict, folder: str) -> Contender:
    """Returns an engine at its task."""
    factory, file, _ = _ENGINES[name]
    own = {"path": os.path.join(folder, file)} if file else {"model": model}
    arguments = task | (own if file is not None else {})
    return Contender(name, f"{_HERE}:{factory}", arguments)


def compare_engines(values: absl_flags.FlagValues, backbone: str) -> tuple[list, str]:
    """Returns the rows of the engines, and their table."""
    size = size_value(values, "size")
    counts = multiply_adds(make_config(model_flags(values, backbone)), size)
    task = {"batch": values.batch, "size": list(size), "times": values.times}
    engines = chosen(values.engines)
    with tempfile.TemporaryDirectory() as folder:
        model = model_flags(values, backbone)
        write_files(model, engines, folder)
        several = [contender(name, task, model, folder) for name in engines]
        series = measuring.measure(several, values.turns)
    rows = measuring.compared(series, _REFERENCE, values.batch * values.times)
    others = measuring.add_multiply_adds(rows, counts, _REFERENCE)
    return rows, measuring.table(rows, _REFERENCE) + others


def compare_views(values: absl_flags.FlagValues, backbone: str) -> tuple[list, str]:
    """Returns the rows of several views and of each alone, and their table."""
    task = {
        "model": model_flags(values, backbone),
        "batch": values.batch,
        "size": list(size_value(values, "size")),
        "scales": [float(scale) for scale in values.scales],
        "times": 1,
    }
    alone, together = "each view alone", "all views"
    several = [
        Contender(alone, f"{_HERE}:separate_views", task),
        Contender(together, f"{_HERE}:views", task),
    ]
    series = measuring.measure(several, values.turns)
    rows = measuring.compared(series, alone, values.batch)
    return rows, measuring.table(rows, alone)


def main(values: absl_flags.FlagValues) -> None:
    """Measures and prints."""
    chosen(values.engines)
    result, texts = {}, []
    for backbone in values.model_variant:
        rows, text = compare_engines(values, backbone)
        result[backbone] = {"engines": rows}
        texts += [f"{backbone}\n\n{text}"]
        if values.scales:
            rows, text = compare_views(values, backbone)
            result[backbone]["views"] = rows
            scales = ", ".join(values.scales)
            texts += [f"{backbone}, scales {scales}, each mirrored too\n\n{text}"]
    modules = {_ENGINES[name].module for name in chosen(values.engines)}
    height, width = size_value(values, "size")
    measuring.report(
        values,
        f"Labels of {values.batch} images of {height}x{width}, "
        f"output stride {values.output_stride}",
        {"backbones": result, "packages": sorted(modules - {""})},
        "\n\n".join(texts),
    )


if __name__ == "__main__":
    run_program(__name__)
