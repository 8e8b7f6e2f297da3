"""Benchmarks inference: our SavedModels, OpenVINO, ONNX Runtime, PyTorch, keras-hub.

    pip install 'deeplab_tf[peers,export]'
    python -m benchmarks.inference --model_variant=mobilenet_v2,xception_65

Every engine turns a uint8 image into a label map with the same weights. The exception
is keras-hub, whose DeepLabv3+ has a ResNet-50 at output stride 32: it is also compared
per multiply-add. Multi-scale inference with mirrored images is compared with separate
passes. Engines that are not installed are skipped.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import os
import tempfile

from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.contenders import make_config, make_model, make_noise
from benchmarks.measuring import Contender
from deeplab_tf.errors import UserError
from deeplab_tf.flags import read_size
from deeplab_tf.models.complexity import multiply_adds
from deeplab_tf.models.precision import use_precision
from deeplab_tf.programs import run_program
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.openvino_file import export_openvino
from deeplab_tf.serving.saved_model import export_saved_model

# Required module, factory, and further arguments: the file from `write_files` to load,
# or a place for the model flags.
_ENGINES = {
    "float32": ("", "saved_model", {"path": "float32"}),
    "all signatures": (
        *("", "saved_model"),
        {"path": "float32", "calls_all": True},
    ),
    "bfloat16": ("", "saved_model", {"path": "bfloat16"}),
    "openvino": ("openvino", "openvino", {"path": "model.onnx"}),
    "openvino-int8": ("nncf", "openvino", {"path": "int8.xml"}),
    "onnxruntime": ("onnxruntime", "onnxruntime", {"path": "model.onnx"}),
    "onnxruntime-int8": ("onnxruntime", "onnxruntime", {"path": "int8.onnx"}),
    "pytorch": ("torch", "torch_inference", {"model": {}}),
    "keras-hub": ("keras_hub", "keras_hub_inference", {"jit": False}),
    "keras-hub with XLA": ("keras_hub", "keras_hub_inference", {"jit": True}),
}
_REFERENCE = "float32"
# Of noise, as only the speed counts.
_CALIBRATION_SIZE = (129, 129)


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=15,
        model_variant=(["mobilenet_v2", "xception_65"], "Backbones."),
        size=((513, 513), "Height and width of the image."),
        batch=(1, "Images per batch.", 1),
        output_stride=(16, "Output stride."),
        times=(3, "Batches per turn.", 1),
        engines=(list(_ENGINES), "Engines to measure."),
        scales=(["0.75", "1", "1.25"], "Scales of multi-scale inference; or none."),
    )


def select_engines(names: list[str]) -> list[str]:
    """Returns the installed engines among `names`, and the reference."""
    for name in names:
        if name not in _ENGINES:
            raise UserError(f"--engines={name} must be one of {', '.join(_ENGINES)}")
    wanted = {_REFERENCE, *names}
    return [
        name
        for name, (module, *_) in _ENGINES.items()
        if name in wanted and measuring.is_installed(module)
    ]


def write_files(model: dict, engines: list[str], folder: str) -> None:
    """Exports the files that the engines load."""
    for name in engines:
        path = os.path.join(folder, _ENGINES[name][-1].get("path", ""))
        if os.path.exists(path):  # already exported, or the folder itself
            continue
        if path.endswith((".onnx", ".xml")):
            export = export_onnx if path.endswith(".onnx") else export_openvino
            is_int8 = name.endswith("int8")
            images = [make_noise(1, _CALIBRATION_SIZE)] if is_int8 else None
            precision = "int8" if is_int8 else "float32"
            export(make_model(model), path, False, precision, images)
        else:
            export_saved_model(make_model(model, precision=name), path)
    use_precision("float32")


def make_contender(name: str, task: dict, model: dict, folder: str) -> Contender:
    """Returns the contender of an engine."""
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
    """Measures the engines; returns rows and table."""
    counts = multiply_adds(make_config(model), task["size"])
    task = task | {"times": values.times}
    engines = select_engines(values.engines)
    with tempfile.TemporaryDirectory() as folder:
        write_files(model, engines, folder)
        contenders = [make_contender(name, task, model, folder) for name in engines]
        series = measuring.measure(contenders, values.turns)
    rows = measuring.summarize(series, values.batch * values.times)
    others = measuring.add_multiply_adds(rows, counts)
    loading = [
        f"\n\n{row['name']}: first label {row['first_label_seconds']:.1f} s after "
        "the start of loading"
        for row in rows
        if row["name"] == _REFERENCE
    ]
    return rows, measuring.table(rows) + "".join(loading) + others


def compare_scales(
    values: absl_flags.FlagValues, model: dict, task: dict
) -> tuple[list, str]:
    """Measures multi-scale inference, combined and pass by pass."""
    task = task | {"model": model, "scales": [float(scale) for scale in values.scales]}
    contenders = [
        Contender(name, "scaled_inference", task | {"is_combined": is_combined})
        for name, is_combined in (("separate passes", False), ("combined", True))
    ]
    series = measuring.measure(contenders, values.turns)
    rows = measuring.summarize(series, values.batch)
    return rows, measuring.table(rows)


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    engines = select_engines(values.engines)
    height, width = read_size(values, "size")
    task = {"batch": values.batch, "size": [height, width]}
    result, texts = {}, []
    for backbone in values.model_variant:
        model = {"model_variant": backbone, "output_stride": values.output_stride}
        rows, text = compare_engines(values, model, task)
        result[backbone] = {"engines": rows}
        texts.append(f"{backbone}\n\n{text}")
        if values.scales:
            result[backbone]["scales"], text = compare_scales(values, model, task)
            scales = ", ".join(values.scales)
            texts.append(f"{backbone}, scales {scales}, each also mirrored\n\n{text}")
    packages = sorted({_ENGINES[name][0] for name in engines} - {""})
    result = {"backbones": result, "packages": packages}
    title = f"Labels of {values.batch} images of {height}x{width}, "
    title += f"output stride {values.output_stride}"
    measuring.report(values, title, result, "\n\n".join(texts))


if __name__ == "__main__":
    run_program(__name__)
