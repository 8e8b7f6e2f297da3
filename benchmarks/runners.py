"""Measures deeplab-predict on one core, without and with a runner of Apache Beam.

    python -m benchmarks.runners --model=export --images=photos

Labels many small copies of the images, and compares the files of both. Needs the extra
`beam`. Times include the start of the programs.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import filecmp
import os
import resource
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
from absl import flags

from benchmarks import measuring
from deeplab_tf.errors import UserError
from deeplab_tf.images.inputs import find_images, read_image
from deeplab_tf.programs import run_program

_RUNNERS = {
    "deeplab-predict": (),
    "DirectRunner": ("--runner=DirectRunner",),
    "DirectRunner, one process": (
        *("--runner=DirectRunner", "--", "--direct_num_workers=1"),
        "--direct_running_mode=multi_processing",
    ),
}


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=3,
        model=(..., "Exported model."),
        images=(..., "Folder of images."),
        copies=(10_000, "Number of images to label.", 1),
        side=(96, "Longer side of the copies.", 1),
        core=(0, "Core to run on.", 0),
    )


def _write_copies(values: flags.FlagValues, folder: str) -> None:
    """Writes small copies of the images to a folder."""
    paths = list(find_images(values.images).values())
    os.mkdir(folder)
    small = []
    for path in paths[: values.copies]:
        image = read_image(path)
        scale = values.side / max(image.shape)
        image = cv2.resize(image, None, fx=scale, fy=scale)
        small.append(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())
    for number in range(values.copies):
        with open(f"{folder}/{number:06d}.jpg", "wb") as file:
            file.write(small[number % len(small)])


def _read_clocks() -> tuple[float, float]:
    """Returns wall-clock time, and CPU time of the child processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


def _require_same_files(one: str, other: str) -> None:
    names = [name for name in os.listdir(one) if name.endswith("_label.png")]
    _, different, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    if different or missing or not names:
        raise UserError(f"{other} differs from {one} in {[*different, *missing][:3]}")


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
    os.sched_setaffinity(0, [values.core])
    first = next(iter(_RUNNERS))
    with tempfile.TemporaryDirectory() as folder:
        _write_copies(values, f"{folder}/images")

        def label(name: str) -> np.ndarray:
            out = os.path.join(folder, name)
            command = [sys.executable, "-m", "deeplab_tf", "predict"]
            command += [f"--model={values.model}", f"--images={folder}/images"]
            command += [f"--output_dir={out}", *_RUNNERS[name]]
            start = _read_clocks()
            done = subprocess.run(command, capture_output=True, text=True)
            seconds = np.subtract(_read_clocks(), start)
            if done.returncode:
                raise UserError(f"{name} failed: {done.stderr[-500:]}")
            if name != first:
                _require_same_files(f"{folder}/{first}", out)
            return seconds

        series = measuring.alternate(_RUNNERS, values.turns, label)
    rows = measuring.summarize(series, values.copies)
    title = f"Labelling {values.copies:,} images of up to {values.side} pixels"
    measuring.report(values, title, {"contenders": rows}, measuring.table(rows))


if __name__ == "__main__":
    run_program(__name__)
