"""Measures the memory of this machine and of processes, in bytes."""

import os
import re
import resource
import sys


def peak_bytes() -> int:
    """Returns the peak memory of this process so far."""
    # On Linux, getrusage includes the parent's memory at the time of the fork.
    found = _read_proc_status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes(process: int | str = "self") -> int:
    """Returns the current memory of a process, given by its id.

    It is 0 on systems other than Linux, and if the process has ended.
    """
    return _read_proc_status("VmRSS", process) or 0


def _read_proc_status(name: str, process: int | str = "self") -> int | None:
    """Returns an entry of /proc/PROCESS/status in bytes; None if it is missing."""
    try:
        with open(f"/proc/{process}/status") as file:
            found = re.search(rf"^{name}:\s+(\d+) kB$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return found and int(found[1]) * 1024


def machine_bytes() -> int:
    """Returns the memory of the machine, or the limit of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ):
        try:
            with open(path) as file:
                limit = file.read().strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(total, int(limit))
    return total
