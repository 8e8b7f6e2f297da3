r"""How time and memory grow with the image, and training with processes.

    python -m benchmarks.scaling --plot=scaling.png

Time and memory of labelling a square image by a SavedModel are fitted as a power of its
area: an exponent of 1 is linear. Each size has a process of its own; its memory is what
it takes beyond the loaded model. Then training by two processes of a core each, the
workers of a MultiWorkerMirroredStrategy, beside one process that has both cores.
"""

import json
import os
import socket
import tempfile

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
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
from deeplab_tf.visualize import drawn, png_bytes

_HERE = "benchmarks.contenders"
_ONE, _TWO = "one process", "two workers"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    string("model_variant", "mobilenet_v2", "Backbone.", flag_values=values)
    absl_flags.DEFINE_list(
        "sides",
        ["257", "385", "513", "769", "1025", "1281", "1537"],
        "Sides of the images in pixels.",
        flag_values=values,
    )
    string("plot", None, "File for the picture.", flag_values=values)
    integer("train_crop_size", 321, "Side of the crop.", flag_values=values)
    integer(
        "train_batch_size",
        8,
        "Images of a step, of both workers together; 0 leaves them out.",
        flag_values=values,
    )
    measuring.define_flags(values, turns=7)
    return values


def exponent(areas: np.ndarray, values: np.ndarray) -> float:
    """Returns p of the fit `values = c * areas ** p`, of logarithms."""
    return float(np.polyfit(np.log(areas), np.log(values), 1)[0])


def compare_sizes(values: absl_flags.FlagValues) -> tuple[dict, str]:
    """Returns time and memory by size, and their table."""
    sides = [int(side) for side in values.sides]
    model = {"model_variant": values.model_variant, "output_stride": 16}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "exported")
        export_saved_model(make_model(model), path)
        several = [
            Contender(
                str(side),
                f"{_HERE}:saved_model",
                {"path": path, "batch": 1, "size": [side, side], "times": 1},
            )
            for side in sides
        ]
        series = measuring.measure(several, values.turns)
    seconds = np.array([np.median(series[str(side)], 0)[0] for side in sides])
    mebibytes = np.array(
        [
            series.mebibytes[name] - series.facts[name]["ready_mebibytes"]
            for name in map(str, sides)
        ]
    )
    areas = np.square(sides, dtype=float)
    result = {
        "sides": sides,
        "seconds": seconds.tolist(),
        "mebibytes": mebibytes.tolist(),
        "exponent_of_seconds": exponent(areas, seconds),
        "exponent_of_mebibytes": exponent(areas, mebibytes),
    }
    return result, _size_table(result)


def _size_table(result: dict) -> str:
    lines = ["| side | ms | MiB | ns per pixel |", "|---|---|---|---|"]
    columns = (result[name] for name in ("sides", "seconds", "mebibytes"))
    for side, seconds, mebibytes in zip(*columns, strict=True):
        per_pixel = 1e9 * seconds / side**2
        lines.append(
            f"| {side} | {1000 * seconds:.1f} | {mebibytes:.0f} | {per_pixel:.0f} |"
        )
    time, memory = result["exponent_of_seconds"], result["exponent_of_mebibytes"]
    lines.append(f"\nAs a power of the area: time {time:.3f}, memory {memory:.3f}")
    return "\n".join(lines)


def picture(result: dict) -> np.ndarray:
    """Returns time and memory against the side of the image, a uint8 picture."""
    figure = Figure((8, 3.4), dpi=120)
    measures = (
        ("seconds", "seconds", result["exponent_of_seconds"]),
        ("mebibytes", "MiB beyond the model", result["exponent_of_mebibytes"]),
    )
    megapixels = np.square(result["sides"], dtype=float) / 1e6
    for axes, (name, label, power) in zip(figure.subplots(1, 2), measures, strict=True):
        axes.loglog(megapixels, result[name], marker="o", markersize=4)
        fit = np.exp(np.polyval([power, 0], np.log(megapixels)))
        fit *= np.exp(np.mean(np.log(result[name]) - np.log(fit)))
        axes.loglog(megapixels, fit, "--", color="0.4", linewidth=1)
        axes.set_title(f"area to the power of {power:.2f}", fontsize=10)
        axes.set_xlabel("megapixels")
        axes.set_ylabel(label)
        axes.grid(color="0.9", which="both")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
    figure.tight_layout()
    return drawn(figure)


def _free_ports(count: int) -> list[int]:
    """Returns ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def compare_processes(values: absl_flags.FlagValues) -> tuple[list[dict], str]:
    """Returns rows of one process and of two workers, and their table."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("two workers need two cores; --train_batch_size=0 leaves them")
    side = values.train_crop_size
    task = {
        "model": {"model_variant": values.model_variant, "output_stride": 16},
        "batch": values.train_batch_size,
        "size": [side, side],
        "times": 2,
    }
    addresses = [f"localhost:{port}" for port in _free_ports(2)]
    workers = []
    for index, core in enumerate(cores):
        place = {"type": "worker", "index": index}
        cluster = {"cluster": {"worker": addresses}, "task": place}
        workers.append(Process({"TF_CONFIG": json.dumps(cluster)}, (core,)))
    several = [
        Contender(_ONE, f"{_HERE}:training_step", task, (Process(cores=tuple(cores)),)),
        Contender(_TWO, f"{_HERE}:worker_training_step", task, tuple(workers)),
    ]
    series = measuring.measure(several, values.turns)
    rows = measuring.compared(series, _ONE, task["times"])
    for row in rows:
        row["images_per_second"] = 1000 * values.train_batch_size / row["milliseconds"]
    throughput = 1 / rows[1]["ratio"]["median"]
    return rows, (
        f"{measuring.table(rows, _ONE, 'step')}\n\n"
        f"two workers have {throughput:.3f} of the throughput of one process"
    )


def main(values: absl_flags.FlagValues) -> None:
    """Measures, prints and draws."""
    result, text = compare_sizes(values)
    whole = {"sizes": result}
    if values.plot:
        with open(values.plot, "wb") as file:
            file.write(png_bytes(picture(result)))
    if values.train_batch_size:
        whole["processes"], told = compare_processes(values)
        text += f"\n\n{told}"
    measuring.report(values, f"Scaling of {values.model_variant}", whole, text)


if __name__ == "__main__":
    run_program(__name__)
