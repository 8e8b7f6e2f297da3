"""Extracts an archive in a process of its own, and prints what that took as JSON.

    python extract_measured.py ARCHIVE FOLDER

It runs on every Python from 3.10 that has etils and tqdm.
"""

import json
import os
import sys
import time

from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files.archives import extract, find_damage


def memory():
    """Returns the peak of this process in MiB."""
    # Not of getrusage, which begins with that of the process that started this one.
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def refusal(function, *arguments):
    try:
        result = function(*arguments)
    except UserError as error:
        return str(error)
    return result if isinstance(result, str) and function is find_damage else None


def main(archive, folder):
    path = epath.Path(archive)
    before, start = memory(), time.process_time()
    damage = refusal(find_damage, path)
    refused = refusal(extract, path, epath.Path(folder))
    wanted = refusal(extract, path, epath.Path(folder + ".wanted"), ["a"])
    took = {
        "seconds": (time.process_time() - start) / 3,
        "mebibytes": memory() - before,
        "damage": damage,
        "refused": refused,
        "wanted": wanted,
        "is_extracted": os.path.exists(folder),
        "python": sys.version.split()[0],
    }
    print(json.dumps(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
