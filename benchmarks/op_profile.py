r"""Profiles the operations of a training step or of inference on a CPU.

    python -m benchmarks.op_profile --what=training --model_variant=mobilenet_v2 \
      --size=321,321 --batch=8

TensorFlow's profiler records every operation of a few calls. Times are summed by
purpose; shares refer to the total time of all operations.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable

import tensorflow as tf
from absl import flags as absl_flags

from benchmarks import contenders, measuring
from deeplab_tf.errors import UserError
from deeplab_tf.flags import read_size
from deeplab_tf.programs import run_program
from deeplab_tf.serving.saved_model import export_saved_model

# An operation has the first purpose whose pattern matches its name.
_PURPOSES = {
    "depthwise convolutions": "Depthwise",
    # Pointwise ones may be matrix products. So is the class count, which is small.
    "convolutions": "Conv2D|(?<!Batch)MatMul",
    "batch normalisation": "BatchNorm",
    "activations": "Relu",
    "loss": "CrossEntropy|Softmax",
    "resizing": "BatchMatMul|Resize|Interpolat",
    "layout and copies": (
        "SpaceToBatch|BatchToSpace|Pad|Concat|Cast|Transpose|Slice|Split|Reshape"
    ),
}
# Matches `node name:operation`, not `Executor::Process`.
_EVENT = re.compile(r"[^:]*:(\w+)(#.*)?")
# These contain other operations.
_WRAPPERS = re.compile("__|While|StatelessWhile|PartitionedCall|Stateful|If$")


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        what=("training", "What to profile.", "training", "inference"),
        model_variant=("mobilenet_v2", "Backbone."),
        precision=("float32", "Compute type of convolutions."),
        size=((321, 321), "Height and width of the images."),
        batch=(8, "Images per batch.", 1),
        calls=(2, "Calls to record.", 1),
        json=(None, "Also write the results to this JSON file."),
    )


def record_operations(run_turn: Callable, calls: int) -> dict[str, tuple[float, int]]:
    """Returns milliseconds and count per call of each kind of operation."""
    for _ in range(2):  # warms up
        run_turn()
    with tempfile.TemporaryDirectory() as folder:
        # This level records operations only.
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2)
        tf.profiler.experimental.start(folder, options)
        for _ in range(calls):
            run_turn()
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return _sum_operations(path.read_bytes(), calls)


def _sum_operations(trace: bytes, calls: int) -> dict[str, tuple[float, int]]:
    """Returns milliseconds and count per call of each operation in a trace."""
    # There is no public reader for the profiler's format without TensorBoard.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(trace)
    times, counts = collections.Counter(), collections.Counter()
    for plane in space.planes:
        names = {key: data.name for key, data in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                match = _EVENT.fullmatch(names[event.metadata_id])
                if match and not _WRAPPERS.match(match[1]):
                    times[match[1]] += event.duration_ps / 1e9
                    counts[match[1]] += 1
    return {kind: (times[kind] / calls, counts[kind] // calls) for kind in times}


def _find_purpose(kind: str) -> str:
    matches = (name for name, part in _PURPOSES.items() if re.search(part, kind))
    return next(matches, "other")


def sum_by_purpose(operations: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Returns milliseconds by purpose, in descending order."""
    sums = collections.Counter()
    for kind, (milliseconds, _) in operations.items():
        sums[_find_purpose(kind)] += milliseconds
    return dict(sums.most_common())


def make_workload(values: absl_flags.FlagValues, folder: str) -> Callable:
    """Returns the function to profile."""
    model = {"model_variant": values.model_variant, "output_stride": 16}
    size = read_size(values, "size")
    task = {"batch": values.batch, "size": size, "times": 1}
    if values.what == "training":
        return contenders.training_step(model, **task, precision=values.precision)
    export_saved_model(contenders.make_model(model, values.precision), folder)
    return contenders.saved_model(folder, **task)


def make_tables(operations: dict[str, tuple[float, int]]) -> str:
    """Returns the tables of purposes and of operations."""
    sums = sum_by_purpose(operations)
    total = sum(sums.values())
    purposes = [[n, f"{t:.1f}", f"{100 * t / total:.1f} %"] for n, t in sums.items()]
    longest = sorted(operations.items(), key=lambda item: -item[1][0])[:15]
    kinds = [[kind, f"{t:.1f}", str(count)] for kind, (t, count) in longest]
    purposes = measuring.markdown_table(["operations", "ms", "share"], purposes)
    kinds = measuring.markdown_table(["operation", "ms", "calls"], kinds)
    return f"{purposes}\n\n{kinds}"


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    if tf.config.list_physical_devices("GPU"):
        raise UserError("GPU operations cannot be profiled; hide the GPU first")
    with tempfile.TemporaryDirectory() as folder:
        workload = make_workload(values, f"{folder}/exported")
        operations = record_operations(workload, values.calls)
    measuring.report(
        values,
        f"{values.what} of {values.model_variant}, {values.precision}",
        {"purposes": sum_by_purpose(operations), "operations": operations},
        make_tables(operations),
    )


if __name__ == "__main__":
    run_program(__name__)
