r"""Labels of an image: our SavedModels, OpenVINO, ONNX Runtime and others compared.

    pip install 'deeplab_tf[peers,export]'
    python -m benchmarks.inference --model_variant=mobilenet_v2,xception_65

All have the same weights (but keras-hub, whose DeepLabv3+ with ResNet-50 has an output
stride of 32: it is also compared per multiply-add) and give the label map of a uint8
image. Our SavedModel is also measured in bfloat16, and several scales with mirrored
images are compared with each of these inference passes alone. Engines that are not
installed are left out.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import os
import tempfile

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

# Module that has to be installed, factory, and its arguments besides the task: the path
# of a file that `write_files` makes, or the flags of the model.
_ENGINES = {
    "float32": ("", "saved_model", {"path": "float32"}),
    "bfloat16": ("", "saved_model", {"path": "bfloat16"}),
    "openvino": ("openvino", "openvino", {"path": "model.onnx"}),
    "onnxruntime": ("onnxruntime", "onnxruntime", {"path": "model.onnx"}),
    "pytorch": ("torch", "torch_inference", {"model": {}}),
    "keras-hub": ("keras_hub", "keras_hub_inference", {"jit": False}),
    "keras-hub with XLA": ("keras_hub", "keras_hub_inference", {"jit": True}),
}
_REFERENCE = "float32"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=15,
        model_variant=(["mobilenet_v2", "xception_65"], "Backbones."),
        size=((513, 513), "Height and width of the image."),
        batch=(1, "Images at once.", 1),
        output_stride=(16, "Output stride."),
        times=(3, "Batches of a turn.", 1),
        engines=(list(_ENGINES), "Which to measure."),
        scales=(
            ["0.75", "1", "1.25"],
            "Scales to compare, combined and alone; empty leaves this out.",
        ),
    )


def select_engines(names: list[str]) -> list[str]:
    """Returns the installed engines of some names, the reference among them.

    Raises:
        UserError: for an unknown name.
    """
    for name in names:
        if name not in _ENGINES:
            raise UserError(f"--engines={name} is none of {'; '.join(_ENGINES)}")
    wanted = {_REFERENCE, *names}
    return [
        name
        for name, (module, *_) in _ENGINES.items()
        if name in wanted and measuring.is_installed(module)
    ]


def write_files(model: dict, engines: list[str], folder: str) -> None:
    """Writes the files that the engines load."""
    for name in engines:
        path = os.path.join(folder, _ENGINES[name][-1].get("path", ""))
        if os.path.exists(path):  # already written, or the folder: none to load
            continue
        if path.endswith(".onnx"):
            export_onnx(make_model(model), path)
        else:
            export_saved_model(make_model(model, precision=name), path)
    use_precision("float32")


def make_contender(name: str, task: dict, model: dict, folder: str) -> Contender:
    """Returns an engine with its task."""
    _, factory, own = _ENGINES[name]
    arguments = task | own
    if "model" in own:
        arguments["model"] = model
    if "path" in own:
        arguments["path"] = os.path.join(folder, own["path"])
    return Contender(name, factory, arguments)


def compare_engines(
    values: absl_flags.FlagValues, model: dict, task: dict
) -> tuple[list, str]:
    """Returns the rows of the engines, and their table."""
    counts = multiply_adds(make_config(model), task["size"])
    task = task | {"times": values.times}
    engines = select_engines(values.engines)
    with tempfile.TemporaryDirectory() as folder:
        write_files(model, engines, folder)
        several = [make_contender(name, task, model, folder) for name in engines]
        series = measuring.measure(several, values.turns)
    rows = measuring.summarize(series, values.batch * values.times)
    others = measuring.add_multiply_adds(rows, counts)
    return rows, measuring.table(rows) + others


def compare_scales(
    values: absl_flags.FlagValues, model: dict, task: dict
) -> tuple[list, str]:
    """Returns the rows of several scales combined and alone, and their table."""
    task = task | {"model": model, "scales": [float(scale) for scale in values.scales]}
    several = [
        Contender(name, "scaled_inference", task | {"is_combined": is_combined})
        for name, is_combined in (("each view alone", False), ("all views", True))
    ]
    rows = measuring.summarize(measuring.measure(several, values.turns), values.batch)
    return rows, measuring.table(rows)


def main(values: absl_flags.FlagValues) -> None:
    """Measures and prints."""
    engines = select_engines(values.engines)
    height, width = size_value(values, "size")
    task = {"batch": values.batch, "size": [height, width]}
    result, texts = {}, []
    for backbone in values.model_variant:
        model = {"model_variant": backbone, "output_stride": values.output_stride}
        rows, text = compare_engines(values, model, task)
        result[backbone] = {"engines": rows}
        texts.append(f"{backbone}\n\n{text}")
        if values.scales:
            result[backbone]["views"], text = compare_scales(values, model, task)
            scales = ", ".join(values.scales)
            texts.append(f"{backbone}, scales {scales}, each mirrored too\n\n{text}")
    measuring.report(
        values,
        f"Labels of {values.batch} images of {height}x{width}, "
        f"output stride {values.output_stride}",
        {
            "backbones": result,
            "packages": sorted({_ENGINES[name][0] for name in engines} - {""}),
        },
        "\n\n".join(texts),
    )


if __name__ == "__main__":
    run_program(__name__)
