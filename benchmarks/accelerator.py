r"""Our models on JAX beside PyTorch, on one accelerator.

    pip install 'jax[cuda13]' torch torchvision
    KERAS_BACKEND=jax python -m benchmarks.accelerator

Forward pass and step of training of DeepLabv3+ in bfloat16. Ours runs on Keras' JAX
backend, compiled by XLA; beside it the same layers in PyTorch, compiled by
torch.compile, and, with ResNet-101, torchvision's DeepLabv3, which has no decoder and
dense convolutions. Told are time, images a second, memory of the device and the share
of its peak: twice the multiply-adds of the convolutions, three times as many for a
step, over the time. TensorFlow need not be installed.
"""

import importlib.util
import itertools
import sys
from collections.abc import Iterator

from absl import flags as absl_flags

from benchmarks import measuring
from benchmarks.contenders import make_config
from benchmarks.measuring import Contender, Process
from deeplab_tf.errors import UserError
from deeplab_tf.models.complexity import multiply_adds

FLAGS = absl_flags.FlagValues()
_HERE = "benchmarks.contenders"
_OURS = "deeplab_tf on JAX"
_JAX = (Process({"KERAS_BACKEND": "jax"}),)
_TORCHVISION = {"resnet_v1_101_beta": "deeplabv3_resnet101"}
# Dense bfloat16 of one device, in 10^12 operations a second, as its maker tells.
_PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
_PASSES = {"forward": 1, "training": 3}


def _define() -> None:
    for name, default, text in (
        (
            "model_variant",
            ["mobilenet_v2", "xception_65", "resnet_v1_101_beta"],
            "Backbones.",
        ),
        ("sides", ["513", "769"], "Sides of the images."),
        ("batches", ["8", "16"], "Images at once."),
        ("passes", list(_PASSES), "Which to measure."),
    ):
        absl_flags.DEFINE_list(name, default, text, flag_values=FLAGS)
    string, integer = absl_flags.DEFINE_enum, absl_flags.DEFINE_integer
    string("device", "cuda", ["cuda", "cpu"], "PyTorch's device.", flag_values=FLAGS)
    string(
        "precision",
        "bfloat16",
        ["bfloat16", "float32"],
        "Of convolutions.",
        flag_values=FLAGS,
    )
    absl_flags.DEFINE_float(
        "peak_teraflops",
        None,
        "Of the device; unless it is known by its name.",
        flag_values=FLAGS,
    )
    integer("times", 10, "Batches or steps of a turn.", flag_values=FLAGS)
    measuring.define_flags(FLAGS, turns=7)


_define()


def device_name(device: str) -> str:
    """Returns what PyTorch calls the device."""
    if device == "cpu" or not importlib.util.find_spec("torch"):
        return measuring.hardware()
    import torch

    return torch.cuda.get_device_name()


def peak_of(name: str, told: float | None) -> float | None:
    """Returns the operations a second of a device, None where they are not known."""
    known = (value for part, value in _PEAKS.items() if part in name)
    found = told or next(known, None)
    return found and found * 1e12


def contenders(
    backbone: str, side: int, batch: int, what: str, values: absl_flags.FlagValues
) -> Iterator[Contender]:
    """Yields what is installed."""
    model = {"model_variant": backbone, "output_stride": 16}
    task = {
        "batch": batch,
        "size": [side, side],
        "times": values.times,
        "precision": values.precision,
    }
    ending = "inference" if what == "forward" else "training_step"
    yield Contender(_OURS, f"{_HERE}:jax_{ending}", task | {"model": model}, _JAX)
    if not importlib.util.find_spec("torch"):
        return
    torch = f"{_HERE}:torch_{ending}"
    own = task | {"device": values.device, "compiled": True}
    yield Contender("torch.compile", torch, own | {"model": model}, _JAX)
    if backbone in _TORCHVISION and importlib.util.find_spec("torchvision"):
        other = {"model": {"torchvision": _TORCHVISION[backbone]}, "compiled": False}
        yield Contender("torchvision", torch, own | other)


def compare(
    backbone: str,
    side: int,
    batch: int,
    what: str,
    values: absl_flags.FlagValues,
) -> tuple[list[dict], str]:
    """Returns the rows of a model, a size and a pass, and their table."""
    several = list(contenders(backbone, side, batch, what, values))
    series = measuring.measure(several, values.turns)
    rows = measuring.compared(series, _OURS, values.times)
    model = {"model_variant": backbone, "output_stride": 16}
    counts = multiply_adds(make_config(model), (side, side))
    operations = 2 * counts * batch * _PASSES[what]
    peak = peak_of(device_name(values.device), values.peak_teraflops)
    lines = []
    for row in rows:
        row["images_per_second"] = 1000 * batch / row["milliseconds"]
        rate = f"{row['images_per_second']:.1f} images/s"
        memory = row.get("device_mebibytes")
        told = [row["name"], rate, f"{memory:.0f} MiB of the device" if memory else ""]
        if row["name"] != "torchvision" and peak:
            row["share_of_peak"] = 1000 * operations / row["milliseconds"] / peak
            told.append(f"{100 * row['share_of_peak']:.1f} % of the peak")
        lines.append(": ".join((told[0], ", ".join(filter(None, told[1:])))))
    text = measuring.table(rows, _OURS, "batch" if what == "forward" else "step")
    return rows, text + "\n\n" + "\n".join(lines)


def main(values: absl_flags.FlagValues) -> None:
    """Measures and prints."""
    for what in values.passes:
        if what not in _PASSES:
            raise UserError(f"--passes={what} is none of {', '.join(_PASSES)}")
    cases = itertools.product(
        values.model_variant,
        map(int, values.sides),
        map(int, values.batches),
        values.passes,
    )
    result = []
    for backbone, side, batch, what in cases:
        rows, text = compare(backbone, side, batch, what, values)
        result.append(
            {
                "backbone": backbone,
                "side": side,
                "batch": batch,
                "pass": what,
                "rows": rows,
            }
        )
        title = f"{what} of {backbone}, {side}x{side}, batch {batch}"
        # At once, for whoever has the device for some minutes only.
        print(f"{title}, {values.precision}\n\n{text}\n", flush=True)
    device = device_name(values.device)
    measuring.report(
        values,
        "One accelerator",
        {"cases": result, "device": device, "packages": ["jax", "torch"]},
        device,
    )


if __name__ == "__main__":
    FLAGS(sys.argv)
    try:
        main(FLAGS)
    except UserError as error:
        sys.exit(f"accelerator: {error}")
