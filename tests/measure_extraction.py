"""Extracts an archive and prints time, memory and errors as JSON.

    python measure_extraction.py ARCHIVE FOLDER

Runs on Python 3.10 or newer with etils and tqdm.
"""

import json
import os
import sys
import time

from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files.archives import extract, find_damage


def peak_memory():
    """Returns the peak memory of this process in MiB."""
    # getrusage includes the peak of the parent process.
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def error_message(function, *arguments):
    """Returns the damage that a function finds, or its error message."""
    try:
        result = function(*arguments)
    except UserError as error:
        return str(error)
    return result if isinstance(result, str) and function is find_damage else None


def main(archive, folder):
    path = epath.Path(archive)
    before, start = peak_memory(), time.process_time()
    damage = error_message(find_damage, path)
    error = error_message(extract, path, epath.Path(folder))
    selection_error = error_message(
        extract, path, epath.Path(folder + ".selected"), ["a"]
    )
    result = {
        "seconds": (time.process_time() - start) / 3,
        "mebibytes": peak_memory() - before,
        "damage": damage,
        "error": error,
        "selection_error": selection_error,
        "is_extracted": os.path.exists(folder),
        "python": sys.version.split()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
