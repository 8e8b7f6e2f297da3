"""Measures how inference scales with image size and training with processes.

    python -m benchmarks.scaling --plot=scaling.png

Time and memory of a SavedModel on square images are fitted as a power of the area; an
exponent of 1 is linear. Each size runs in its own process, and memory excludes the
loaded model. Training with two workers of MultiWorkerMirroredStrategy, one core each,
is compared with one process on both cores.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import contextlib
import json
import os
import socket
import tempfile

import numpy as np
from absl import flags as absl_flags
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks import measuring
from benchmarks.contenders import make_model
from benchmarks.measuring import Contender, Process
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program
from deeplab_tf.serving.saved_model import export_saved_model
from deeplab_tf.visualize import encode_png, render

_STEPS = 2


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    sides = ["257", "385", "513", "769", "1025", "1281", "1537"]
    return measuring.make_flags(
        turns=7,
        model_variant=("mobilenet_v2", "Backbone."),
        sides=(sides, "Image sides in pixels."),
        plot=(None, "File for the plot."),
        train_crop_size=(321, "Crop side in pixels."),
        train_batch_size=(8, "Images per step on both workers; 0 skips training."),
    )


def fit_exponent(areas: np.ndarray, values: np.ndarray) -> float:
    """Fits `values = c * areas ** p` in log space; returns p."""
    return float(np.polyfit(np.log(areas), np.log(values), 1)[0])


def compare_sizes(values: absl_flags.FlagValues, model: dict) -> tuple[dict, str]:
    """Measures time and memory by image size."""
    sides = [int(side) for side in values.sides]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "exported")
        export_saved_model(make_model(model), path)
        task = {"path": path, "batch": 1, "times": 1}
        contenders = [
            Contender(str(side), "saved_model", task | {"size": [side, side]})
            for side in sides
        ]
        series = measuring.measure(contenders, values.turns)
    seconds = [float(np.median(each[:, 0])) for each in series.values()]
    mebibytes = [
        series.mebibytes[name] - own["ready_mebibytes"]
        for name, own in series.properties.items()
    ]
    areas = np.square(sides, dtype=float)
    result = {
        "sides": sides,
        "seconds": seconds,
        "mebibytes": mebibytes,
        "exponent_of_seconds": fit_exponent(areas, seconds),
        "exponent_of_mebibytes": fit_exponent(areas, mebibytes),
    }
    return result, _format_size_table(result)


def _format_size_table(result: dict) -> str:
    columns = (result[name] for name in ("sides", "seconds", "mebibytes"))
    rows = [
        [f"{side}", f"{1e3 * t:.1f}", f"{memory:.0f}", f"{1e9 * t / side**2:.0f}"]
        for side, t, memory in zip(*columns, strict=True)
    ]
    table = measuring.markdown_table(["side", "ms", "MiB", "ns per pixel"], rows)
    time, memory = result["exponent_of_seconds"], result["exponent_of_mebibytes"]
    return f"{table}\n\nAs a power of the area: time {time:.3f}, memory {memory:.3f}"


def plot(result: dict) -> np.ndarray:
    """Plots time and memory against image size."""
    figure = Figure((8, 3.4), dpi=120)
    labels = {"seconds": "seconds", "mebibytes": "MiB beyond the model"}
    megapixels = np.square(result["sides"], dtype=float) / 1e6
    for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        power = result[f"exponent_of_{name}"]
        axes.loglog(megapixels, result[name], marker="o", markersize=4)
        fit = megapixels**power
        fit *= np.exp(np.mean(np.log(result[name]) - np.log(fit)))
        axes.loglog(megapixels, fit, "--", color="0.4", linewidth=1)
        axes.set_title(f"area to the power of {power:.2f}", fontsize=10)
        axes.set_xlabel("megapixels")
        axes.set_ylabel(label)
        axes.grid(color="0.9", which="both")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
    figure.tight_layout()
    return render(figure)


def _find_free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def make_worker_processes(cores: tuple[int, ...]) -> tuple[Process, ...]:
    """Returns the processes of a cluster with one core each."""
    addresses = [f"localhost:{port}" for port in _find_free_ports(len(cores))]
    clusters = (
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        for index in range(len(cores))
    )
    return tuple(
        Process({"TF_CONFIG": json.dumps(cluster)}, (core,))
        for cluster, core in zip(clusters, cores, strict=True)
    )


def compare_processes(values: absl_flags.FlagValues, model: dict) -> tuple[list, str]:
    """Measures training with one process and with two workers."""
    cores = tuple(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        raise UserError("two workers need two cores; skip them: --train_batch_size=0")
    side, batch = values.train_crop_size, values.train_batch_size
    task = {"model": model, "batch": batch, "size": [side, side], "times": _STEPS}
    shared = task | {"strategy": "multi_worker_mirrored"}
    contenders = [
        Contender("one process", "training_step", task, (Process(cores=cores),)),
        Contender("two workers", "training_step", shared, make_worker_processes(cores)),
    ]
    rows = measuring.summarize(measuring.measure(contenders, values.turns), _STEPS)
    for row in rows:
        row["images_per_second"] = 1000 * batch / row["milliseconds"]
    throughput = 1 / rows[1]["ratio"]["median"]
    return rows, (
        f"{measuring.table(rows, 'step')}\n\n"
        f"two workers have {throughput:.3f} times the throughput of one process"
    )


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    model = {"model_variant": values.model_variant, "output_stride": 16}
    result = {}
    result["sizes"], text = compare_sizes(values, model)
    if values.plot:
        with open(values.plot, "wb") as file:
            file.write(encode_png(plot(result["sizes"])))
    if values.train_batch_size:
        result["processes"], processes = compare_processes(values, model)
        text += f"\n\n{processes}"
    measuring.report(values, f"Scaling of {values.model_variant}", result, text)


if __name__ == "__main__":
    run_program(__name__)
