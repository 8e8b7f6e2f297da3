"""--help, --version and wrong flags of every program, without TensorFlow."""

import importlib
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from deeplab_tf.checkpoints import keras_file
from deeplab_tf.convert import shapes
from deeplab_tf.evaluation.submission import SUBMISSIONS
from deeplab_tf.programs import commands
from deeplab_tf.programs.flag_help import group_flags
from deeplab_tf.serving import choices

LISTS = ("presets", "zoo")
PROGRAMS = [name for name in commands.COMMANDS if name not in LISTS]
# Runs command lines in one process; prints what each prints, and the slow modules.
SCRIPT = """
import contextlib, io, json, sys
from deeplab_tf.programs import commands

printed = {}
for missing in json.loads(sys.argv[2]):
    sys.modules[missing] = None  # not importable
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            commands.main(["/bin/deeplab", *line.split()])
            error = None
        except SystemExit as exit:
            error = exit.code
    printed[line] = (out.getvalue(), error)
slow = {"tensorflow", "keras", "numpy", "scipy", "cv2", "PIL", "matplotlib", "etils"}
print(json.dumps([printed, sorted(slow & {*sys.modules})]))
"""
TRAIN = "train --train_logdir=l --dataset_dir=d"
EXPORT = "export --checkpoint_path=c --export_path"
EVAL = "eval --dataset_dir=d --checkpoint_dir"
PREDICT = "predict --images=i --output_dir=o --model"
REFUSED = {
    "": "",
    "trian": "deeplab: there is no command 'trian'; similar: train, .*--help lists all",
    "convert": "",
    "convert foldr": "deeplab convert: there is no command 'foldr'; similar: folder; ",
    "train --batch_size=3": "deeplab train: there is no flag --batch_size; similar: "
    "--train_batch_size, ",
    "train --optimizer=sgd": "flag --optimizer=sgd: it must be momentum, nesterov, ",
    "train --precision=float8": "similar: float32, float16, .*; it must be float32, ",
    "train --dataset_dir=d": "--train_logdir is required: folder of checkpoints",
    "train --train_logdir=l": "--dataset_dir is required: the folder of the TFRecords$",
    "train --train_logdir=l d": "unexpected argument 'd'; flags begin with --$",
    f"{TRAIN} --model_variant=resnet50": "similar: resnet_v1_50",
    f"{TRAIN} --preset=camvid": "similar: camvid_mobilenet",
    f"{TRAIN} --tf_initial_checkpoint=hf://me": "must be hf://user/repo; received hf:",
    f"{TRAIN} --weight_decay=-1": "weight_decay must be at least 0; received -1",
    "eval": "--checkpoint_dir is required: checkpoint folder or prefix, ",
    "export --checkpoint_path=c": "--export_path is required: folder for a ",
    "predict --model=m": "give --images or --video; received neither$",
    "convert voc2012 --output_dir=o": "give either --voc_root or the archives ",
    "convert folder --image_dir=i --output_dir=o": "give either --label_dir ",
    "doctor": "--dataset_dir is required",
    "presets camvid mobilnet": "no name contains camvid and mobilnet; similar: ",
    "zoo vgg": "no name contains vgg; without words, all are listed$",
    f"{EXPORT}=m.h5": "m.h5 has the extension of a different format; give a name ",
    f"{EXPORT}=m.onnx --crop_size=33,33": "--crop_size has no effect on m.onnx$",
    f"{EXPORT}=m.xml --quantize=dynamic": "dynamic is not possible for m.xml; use ",
    f"{EXPORT}=m.tflite --calibration_images=3": "no effect without --quantize=int8$",
    f"{EXPORT}=e/ --tflite_output=logits": "--tflite_output has no effect on e$",
    f"{EXPORT}=e --max_miou_drop=1": "--max_miou_drop needs --dataset_dir: ",
}
# Command line -> how the error starts, the missing package and the extra with it.
MISSING = {
    f"{EXPORT}=m.tflite": ("m.tflite: TFLite files need", "ai_edge_litert", "export"),
    f"{EXPORT}=m.onnx": ("m.onnx: ONNX files need", "onnx", "export"),
    f"{EXPORT}=m.xml": ("m.xml: OpenVINO files need", "openvino", "export"),
    f"{EVAL}=m.tflite": ("m.tflite: TFLite files need", "ai_edge_litert", "export"),
    f"{EVAL}=m.onnx": ("m.onnx: ONNX files need", "onnxruntime", "export"),
    f"{EVAL}=m.xml": ("m.xml: OpenVINO files need", "openvino", "export"),
    f"{PREDICT}=m.tflite": ("m.tflite: TFLite files need", "ai_edge_litert", "export"),
    f"{PREDICT}=m.onnx": ("m.onnx: ONNX files need", "onnxruntime", "export"),
    f"{PREDICT}=m.xml": ("m.xml: OpenVINO files need", "openvino", "export"),
    f"{TRAIN} --tf_initial_checkpoint=hf://me/roads": (
        *("hf://me/roads needs", "huggingface_hub", "hub"),
    ),
    f"{TRAIN} --tf_initial_checkpoint=kaggle://me/a/keras/b": (
        *("kaggle://me/a/keras/b needs", "kagglehub", "hub"),
    ),
    f"{TRAIN} --tracker=wandb": ("--tracker=wandb needs", "wandb", "wandb"),
    f"{TRAIN} --tracker=mlflow": ("--tracker=mlflow needs", "mlflow", "mlflow"),
    "convert coco_voc --annotations=a --image_dir=i --split=s --output_dir=o": (
        *("COCO annotations need", "pycocotools", "coco"),
    ),
}


@pytest.fixture(scope="module")
def printed():
    """Output and error of each command line.

    They run in a process without TensorFlow and without the packages of `MISSING`.
    """
    asked = [f"{name} --help" for name in (*commands.COMMANDS, "convert", "")]
    asked += [f"{name} --nonsense" for name in PROGRAMS]
    asked += ["train --helpfull", "--version", "train --version", "presets --version"]
    asked += ["presets camvid MOBILENET", "zoo ade20k"]
    lines = json.dumps([*asked, *REFUSED, *MISSING])
    missing = json.dumps([package for _, package, _ in MISSING.values()])
    command = [sys.executable, "-c", SCRIPT, lines, missing]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stderr == ""
    texts, slow = json.loads(result.stdout)
    assert slow == []
    return texts


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_lists_each_effective_flag_once(printed, name):
    text, error = printed[f"{name} --help"]
    program = importlib.import_module(commands.COMMANDS[name])
    assert error is None and text.startswith(program.__doc__.rstrip())
    groups = group_flags(program.define_flags())
    dead = groups.pop("Without effect", [])
    assert re.findall(r"^(\w[\w ]+):$", text, re.M)[-len(groups) :] == [*groups]
    listed = re.findall(r"^  --(?:\[no\])?(\w+)", text, re.M)
    assert listed == [flag.name for own in groups.values() for flag in own]
    assert len({*listed}) == len(listed) and {*listed}.isdisjoint(f.name for f in dead)
    assert len(dead) == 0 or f"lists {len(dead)} official flags that have no" in text


def test_help_shows_values_and_defaults(printed):
    text, _ = printed["train --help"]
    start = text.partition("\nStart here:\n")[2]
    required, meaning = "--train_logdir=LOGDIR (required)", "Folder of checkpoints and"
    assert start.startswith(f"  {required}\n      {meaning} ")
    for line in (
        "--train_crop_size=HEIGHT,WIDTH (default: 513,513)",
        "--optimizer=momentum|nesterov|adam|adamw (default: momentum)",
        "--base_learning_rate=NUMBER (default: 0.0001)",
        "--[no]recompute (default: false)",
        "--bootstrap_classes=CLASS,...",
        "--tpu=TPU",
    ):
        assert f"\n  {line}\n" in text
    everything, _ = printed["train --helpfull"]
    assert "\nWithout effect:\n  --[no]logtostderr\n" in everything


def test_commands_are_listed(printed):
    text, _ = printed[" --help"]
    for name in commands.COMMANDS:
        assert re.search(rf"^  {name} +\w", text, re.M)
    converters, _ = printed["convert --help"]
    assert re.search("^  folder +Converts a folder of images", converters, re.M)


def test_version_names_tensorflow(printed):
    text, _ = printed["--version"]
    assert re.match(r"deeplab_tf \d\S+ \(Python 3\S+ tensorflow 2\.", text)
    assert printed["train --version"] == printed["presets --version"] == [text, None]


@pytest.mark.parametrize("name", PROGRAMS)
def test_unknown_flag_is_refused(printed, name):
    expected = f"deeplab {name}: there is no flag --nonsense; .*--help lists all flags"
    assert re.fullmatch(expected, printed[f"{name} --nonsense"][1])


@pytest.mark.parametrize(("line", "message"), REFUSED.items())
def test_mistakes_are_refused_before_tensorflow_starts(printed, line, message):
    out, error = printed[line]
    if message:
        assert out == "" and re.search(message, error) and "\n" not in error
    else:
        assert error is None and re.search("DATASET|COMMAND", out)


@pytest.mark.parametrize("line", MISSING)
def test_missing_packages_are_reported_before_tensorflow_starts(printed, line):
    start, package, extra = MISSING[line]
    install = f'run pip install "deeplab_tf[{extra}]"'
    expected = f"{start} {package}; {install} (No module named {package!r})"
    out, error = printed[line]
    program = re.match("convert coco_voc|[a-z]+", line)[0]
    assert (out, error) == ("", f"deeplab {program}: {expected}")


def test_lists_are_filtered_by_words(printed):
    text, _ = printed["presets camvid MOBILENET"]
    names = re.findall(r"^(\w+) \(", text, re.M)
    assert names and all("camvid" in name for name in names)
    names = re.findall(r"^(\w+) \(", printed["zoo ade20k"][0], re.M)
    assert names == ["mobilenetv2_ade20k_train", "xception65_ade20k_train"]


def test_help_ends_quietly_when_its_reader_does():
    command = f"{sys.executable} -m deeplab_tf train --help | head -n 1"
    result = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


def test_flags_repeat_what_slow_modules_define():
    predict, scenes = (
        importlib.import_module(commands.COMMANDS[name]).define_flags()
        for name in ("predict", "convert shapes")
    )
    assert [*predict["submission"].parser.enum_values] == sorted(SUBMISSIONS)
    names = ("train_images", "val_images", "test_images", "image_size", "seed")
    given = [scenes[name].value for name in names]
    given[3] = tuple(map(int, given[3][0].split(",")))
    assert tuple(given) == shapes.write.__defaults__
    assert choices.KERAS == keras_file.KERAS
