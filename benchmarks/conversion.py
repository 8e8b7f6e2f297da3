"""Benchmarks converting a folder of images and masks against decoding alone.

    python -m benchmarks.conversion --image_dir=photos --label_dir=masks \
      --classes=classes.txt

Decoding alone is Pillow, in as many threads: `load`, and `asarray`, which also copies
the pixels into an array. Converting decodes the same files, checks and counts the
labels, hashes the pixels and writes the records.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from concurrent import futures

import numpy as np
from absl import flags
from etils import epath
from PIL import Image

from benchmarks import measuring
from deeplab_tf.convert import layout
from deeplab_tf.programs import run_program
from deeplab_tf.programs.convert import folder


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        turns=7,
        image_dir=(..., "Folder of the images."),
        label_dir=(..., "Folder of the masks."),
        classes=(..., "Class file."),
        label_suffix=("", "End of the names of masks."),
        nearest=(False, "Snap values and colours."),
    )


def decode_all(paths: list[epath.Path], decode: Callable) -> None:
    """Decodes files in as many threads as the converter has."""
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda path: decode(Image.open(path)), paths):
            pass


def main(values: flags.FlagValues) -> None:
    """Runs the benchmark."""
    names = ("image_dir", "label_dir", "classes", "label_suffix")
    arguments = [f"--{name}={values[name].value}" for name in names]
    arguments += [f"--nearest={values.nearest}", "--missing_mask=skip"]
    pairs = layout.find_pairs(
        layout.Layout(
            values.image_dir,
            values.label_dir,
            label_suffix=values.label_suffix,
            missing_mask="skip",
        )
    )
    paths = [path for pair in pairs.values() for path in pair if path is not None]

    def convert() -> None:
        with tempfile.TemporaryDirectory() as output_dir:
            options = folder.define_flags()
            options(["folder", *arguments, f"--output_dir={output_dir}/records"])
            with contextlib.redirect_stdout(io.StringIO()):
                folder.main(options)

    workloads = {
        "Pillow, asarray": lambda: decode_all(paths, np.asarray),
        "Pillow, load": lambda: decode_all(paths, lambda image: image.load()),
        "deeplab-convert folder": convert,
    }
    series = measuring.measure_in_process(workloads, values.turns)
    rows = measuring.summarize(series, len(pairs))
    share = 1 / rows[-1]["ratio"]["median"]
    text = f"converting has {share:.2f} times the throughput of {rows[0]['name']}"
    text = f"{measuring.table(rows, 'image and mask')}\n\n{text}"
    measuring.report(values, "Conversion of a folder", {"rows": rows}, text)


if __name__ == "__main__":
    run_program(__name__)
