"""Flags to configs: options, official defaults, presets, flags without effect."""

import dataclasses
import importlib
import json

import pytest
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import UserError, flags
from deeplab_tf.config import (
    RELEASED_CELL,
    ContextConfig,
    DecoderConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.config.options import (
    document_fields,
    export_flag_name,
    option,
    ours,
)
from deeplab_tf.presets import find_preset


@document_fields
@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """A config."""

    rate: float = option(0.5, help="Learning rate.")
    steps: int | None = option(None, help="Steps.", flag="number_of_steps")
    flip: bool = ours(True, help="Whether images are mirrored.")
    size: tuple[int, int] = option((3, 4), help="Height and width.")
    scales: tuple[float, ...] = ours((), help="Scales.")
    names: tuple[str, ...] = option((), help="Names.")
    folder: str = option("", help="Folder.", flag_default=None, export_flag="path")
    hidden: int = option(7, help="No flag.", flag="")


def toy_values(*arguments, **options):
    values = absl_flags.FlagValues()
    flags.define_options(values, ToyConfig, **options)
    values(["toy", *arguments])
    return values


def test_options_define_flags():
    values = toy_values()
    assert {name: values[name].default for name in values} == {
        "rate": 0.5,
        "number_of_steps": None,
        "flip": True,
        "size": ["3,4"],
        "scales": None,
        "names": None,
        "folder": None,
    }
    assert values["flip"].help == "Ours: whether images are mirrored."
    assert values["rate"].help == "Learning rate."
    assert flags.read_options(values, ToyConfig) == ToyConfig()


def test_flags_are_read_into_a_config():
    given = ("--rate=0.1", "--number_of_steps=3", "--noflip", "--size=5", "--size=6")
    values = toy_values(*given, "--scales=0.5,1", "--names=a,b", "--folder=f")
    expected = ToyConfig(0.1, 3, False, (5, 6), (0.5, 1.0), ("a", "b"), "f")
    assert flags.read_options(values, ToyConfig) == expected
    read = flags.read_options(values, ToyConfig, hidden=8, rate=0.2)
    assert read == dataclasses.replace(expected, hidden=8, rate=0.2)


def test_base_config_fills_in_missing_flags():
    base = ToyConfig(rate=0.1, hidden=9, names=("a",))
    values = toy_values("--rate=0.5")  # equals the default, but counts as given
    read = flags.read_options(values, ToyConfig, base)
    assert read == dataclasses.replace(base, rate=0.5)


def test_export_flags_have_their_own_names():
    values = toy_values("--path=f", names=("folder", "rate"), get_name=export_flag_name)
    assert set(values) == {"path", "rate"}
    read = flags.read_options(values, ToyConfig, get_name=export_flag_name)
    assert read == ToyConfig(folder="f")


def test_config_docstrings_contain_the_flag_help():
    assert "\nAttributes:\n    rate: Learning rate.\n" in ToyConfig.__doc__
    for config in (ModelConfig, ContextConfig, DecoderConfig, TrainConfig, EvalConfig):
        for field in dataclasses.fields(config):
            assert f"\n    {field.name}: " in config.__doc__


REQUIRED = {
    "train": ("--train_logdir=l", "--dataset_dir=d"),
    "eval": ("--checkpoint_dir=c", "--eval_logdir=l", "--dataset_dir=d"),
    "vis": ("--checkpoint_dir=c", "--vis_logdir=l", "--dataset_dir=d"),
    "export": ("--checkpoint_path=c", "--export_path=e"),
    "predict": ("--model=m", "--images=i", "--output_dir=o"),
}


def parse(name, *arguments):
    program = importlib.import_module(f"deeplab_tf.programs.{name}")
    values = program.define_flags()
    values([name, *REQUIRED[name], *arguments])
    return values


TRAINED = ModelConfig(
    depth_multiplier=0.1,
    context=ContextConfig(rates=(6, 12)),
    decoder=DecoderConfig(output_strides=(4,)),
)


def test_explicit_flags_override_the_experiment_with_a_note(capsys):
    values = parse("eval", "--output_stride=8", "--depth_multiplier=0.1")
    config = flags.read_model_config(values, TRAINED, "experiment.json")
    assert config == TRAINED.at_output_stride(8)
    assert config.context.rates == (12, 24)
    out = capsys.readouterr().out
    assert out == "note: output_stride is 8, not 16 as in experiment.json\n"


def test_defaults_do_not_override_the_experiment(capsys):
    for name in REQUIRED:
        assert flags.read_model_config(parse(name), TRAINED) == TRAINED
    assert capsys.readouterr().out == ""


def test_official_defaults_apply_without_an_experiment():
    for name, output_stride in (("eval", 16), ("export", 8)):
        config = flags.read_model_config(parse(name))
        official = {"output_stride": output_stride}
        assert config == ModelConfig.from_official_flags(official)


COMMON_DEAD = (
    "--logtostderr",
    "--alsologtostderr",
    "--verbosity=1",
    "--master=",
    "--batch_norm_decay=0.9997",
    "--keep_aspect_ratio=true",
    "--nas_stem_output_num_conv_filters=20",
    "--nas_use_classification_head=false",
    "--nas_remove_os32_stride=false",
)
DEAD = {
    "train": (
        "--num_replicas=1",
        "--startup_delay_steps=15",
        "--num_ps_tasks=0",
        "--task=0",
        "--profile_logdir=p",
        "--drop_path_keep_prob=1.0",
        "--save_summaries_secs=600",
        "--save_summaries_images=true",
    ),
    "eval": (),
    "vis": (),
    "export": ("--save_inference_graph=true",),
    "predict": (),
}


@pytest.mark.parametrize("name", REQUIRED)
def test_flags_without_effect_give_one_line_warning(name, capsys):
    for flag in COMMON_DEAD + DEAD[name]:
        flags.check_flags(parse(name, flag), name)
        (warning,) = capsys.readouterr().err.splitlines()
        assert warning.startswith(f"warning: {flag.partition('=')[0]} has no effect: ")
    flags.check_flags(parse(name), name)
    assert capsys.readouterr().err == ""


def test_overriding_a_preset_prints_a_note(capsys):
    values = parse("export", "--output_stride=8", "--merge_method=max")
    config = flags.read_model_config(values, TRAINED, "the preset toy")
    assert config == TRAINED.at_output_stride(8)
    out = capsys.readouterr().out
    assert out == "note: output_stride is 8, not 16 as in the preset toy\n"


def test_split_flag_overrides_a_preset():
    trainval = {"train_split": "trainval", "eval_split": "trainval"}
    toy = dataclasses.replace(find_preset("deeplabv3_table6_os8"), **trainval)
    for name, flag in (("train", "train_split"), ("eval", "eval_split")):
        assert flags.read_split(parse(name), flag, toy) == "trainval"
        given = parse(name, f"--{flag}=val")
        assert flags.read_split(given, flag, toy) == "val"
        official = {"train_split": "train", "eval_split": "val"}[flag]
        assert flags.read_split(parse(name), flag, None) == official


def test_preset_sets_dataset_and_image_size():
    preset = find_preset("mobilenetv2_ade20k_train")
    assert flags.default_dataset(preset) == "ade20k"
    assert flags.default_dataset(None) == "pascal_voc_seg"
    values = parse("eval", "--max_resize_value=513")
    data = flags.read_data_config(values, preset.model, preset.data)
    resizing = (data.min_resize_value, data.max_resize_value, data.resize_factor)
    assert resizing == (257, 513, 16)
    alone = flags.read_data_config(parse("eval"), preset.model, None)
    assert alone.min_resize_value is None


def test_cell_is_read_from_any_file_system():
    branches = [
        {"op": "conv", "input": b.input, "kernel": 3, "rate": b.rate}
        for b in RELEASED_CELL[:2]
    ]
    with tf.io.gfile.GFile("ram://cells/cell.json", "w") as file:
        file.write(json.dumps(branches))
    for name in ("train", "eval", "export"):
        values = parse(name, "--dense_prediction_cell_json=ram://cells/cell.json")
        context = flags.read_model_config(values).context
        assert context.dense_prediction_cell == RELEASED_CELL[:2]
    missing = parse("eval", "--dense_prediction_cell_json=ram://cells/none.json")
    with pytest.raises(UserError, match=r"^dense_prediction_cell_json cannot .*ram:"):
        flags.read_model_config(missing)


def test_training_flags_warn_in_other_programs(capsys):
    for name in ("eval", "vis", "export", "predict"):
        flags.check_flags(parse(name, "--label_weights=1"), name)
        assert "warning: --label_weights has no effect" in capsys.readouterr().err
