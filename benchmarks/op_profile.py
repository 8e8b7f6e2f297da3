r"""Where the time of a step of training, or of labelling an image, goes.

    python -m benchmarks.op_profile --what=training --model_variant=mobilenet_v2 \
      --size=321,321 --batch=8

TensorFlow's profiler records every operation of a few calls on the CPU; their times are
summed by purpose. Shares are of the time of all operations together, on one thread
each. Printed are also the operations that take most.
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
from deeplab_tf.flags import size_value
from deeplab_tf.programs import run_program
from deeplab_tf.serving.saved_model import export_saved_model

# What an operation is for, by the first of these that its name matches.
_PURPOSES = {
    "depthwise convolutions": "Depthwise",
    # Pointwise ones may be products. So is the count of classes, which is small.
    "convolutions": "Conv2D|(?<!Batch)MatMul",
    "batch normalisation": "BatchNorm",
    "activations": "Relu",
    "loss": "CrossEntropy|Softmax",
    "resizing": "BatchMatMul|Resize|Interpolat",
    "layout and copies": (
        "SpaceToBatch|BatchToSpace|Pad|Concat|Cast|Transpose|Slice|Split|Reshape"
    ),
}
# `name of the node:kind of operation`, but not `Executor::Process`.
_EVENT = re.compile(r"[^:]*:(\w+)(#.*)?")
# They hold other operations.
_WRAPPERS = re.compile("__|While|StatelessWhile|PartitionedCall|Stateful|If$")


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        what=("training", "Of what.", "training", "inference"),
        model_variant=("mobilenet_v2", "Backbone."),
        precision=("float32", "Of convolutions."),
        size=((321, 321), "Height and width of the images."),
        batch=(8, "Images at once.", 1),
        calls=(2, "Calls that are recorded.", 1),
        json=(None, "File for the results."),
    )


def record_operations(
    work: Callable[[], object], calls: int
) -> dict[str, tuple[float, int]]:
    """Returns milliseconds and number of each kind of operation in a call.

    Args:
        work: What is recorded, once it has warmed up.
        calls: How often.
    """
    for _ in range(2):
        work()
    with tempfile.TemporaryDirectory() as folder:
        # This level of detail has the operations, and nothing further.
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2)
        tf.profiler.experimental.start(folder, options)
        for _ in range(calls):
            work()
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return _operations(path.read_bytes(), calls)


def _operations(trace: bytes, calls: int) -> dict[str, tuple[float, int]]:
    # The profiler's own format; nothing public reads it without TensorBoard.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(trace)
    times, counts = collections.Counter(), collections.Counter()
    for plane in space.planes:
        names = {key: data.name for key, data in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                found = _EVENT.fullmatch(names[event.metadata_id])
                if found and not _WRAPPERS.match(found[1]):
                    times[found[1]] += event.duration_ps / 1e9
                    counts[found[1]] += 1
    return {kind: (times[kind] / calls, counts[kind] // calls) for kind in times}


def purpose(kind: str) -> str:
    """Returns what a kind of operation is for."""
    matches = (name for name, part in _PURPOSES.items() if re.search(part, kind))
    return next(matches, "all others")


def sum_by_purpose(operations: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Returns milliseconds by purpose, the longest first."""
    sums = collections.Counter()
    for kind, (milliseconds, _) in operations.items():
        sums[purpose(kind)] += milliseconds
    return dict(sums.most_common())


def make_work(values: absl_flags.FlagValues, folder: str) -> Callable[[], object]:
    """Returns what is recorded."""
    model = {"model_variant": values.model_variant, "output_stride": 16}
    size = size_value(values, "size")
    task = {"batch": values.batch, "size": size, "times": 1}
    if values.what == "training":
        return contenders.training_step(model, **task, precision=values.precision)
    export_saved_model(contenders.make_model(model, values.precision), folder)
    return contenders.saved_model(folder, **task)


def make_tables(operations: dict[str, tuple[float, int]]) -> str:
    """Returns both tables."""
    sums = sum_by_purpose(operations)
    total = sum(sums.values())
    purposes = [[n, f"{t:.1f}", f"{100 * t / total:.1f} %"] for n, t in sums.items()]
    longest = sorted(operations.items(), key=lambda item: -item[1][0])[:15]
    kinds = [[kind, f"{t:.1f}", str(count)] for kind, (t, count) in longest]
    return "\n\n".join(
        [
            measuring.markdown_table(["for", "ms", "share"], purposes),
            measuring.markdown_table(["operation", "ms", "how many"], kinds),
        ]
    )


def main(values: absl_flags.FlagValues) -> None:
    """Records and prints."""
    if tf.config.list_physical_devices("GPU"):
        raise UserError("operations of a GPU are not told apart; hide it first")
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(values, f"{folder}/exported")
        operations = record_operations(work, values.calls)
    measuring.report(
        values,
        f"{values.what} of {values.model_variant}, {values.precision}",
        {"purposes": sum_by_purpose(operations), "operations": operations},
        make_tables(operations),
    )


if __name__ == "__main__":
    run_program(__name__)
