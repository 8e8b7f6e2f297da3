"""Benchmarks contenders against each other in alternating turns.

Each contender runs in its own process (`benchmarks.worker`), so that the threads and
settings of one framework do not affect another, and only one is active at a time. A
turn runs every contender once, in alternating order, and ratios are taken within a
turn: a machine that slows down for a while slows all of them down. Reports give the
median over turns and the quartiles of the ratios.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO

import numpy as np
from absl import flags as absl_flags

from deeplab_tf.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PACKAGES = ("deeplab_tf", "tensorflow", "keras", "numpy")
# Variables that change the speed of frameworks.
_ENVIRONMENT = (
    "GLIBC_TUNABLES",
    "KERAS_BACKEND",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "TF_ENABLE_ONEDNN_OPTS",
    "XLA_FLAGS",
)


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of a contender: extra environment variables and allowed cores."""

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] | None = None  # all


@dataclasses.dataclass(frozen=True)
class Contender:
    """A workload to measure.

    `factory`, a function of `benchmarks.contenders` or `module:function`, takes
    `arguments` (JSON) and returns a function that runs one turn. Several processes run
    at the same time; a turn ends when the last one finishes.
    """

    name: str
    factory: str
    arguments: Mapping = dataclasses.field(default_factory=dict)
    processes: tuple[Process, ...] = (Process(),)


class Series(dict):
    """Seconds `[turns, 2]` by contender: wall-clock time and CPU time.

    CPU time is less sensitive to other programs. `mebibytes` is the peak memory of each
    contender, `properties` what its worker reports.
    """

    def __init__(self, seconds: Mapping[str, Sequence]):
        super().__init__({name: np.array(each) for name, each in seconds.items()})
        self.mebibytes: dict[str, float] = {}
        self.properties: dict[str, dict] = {}

    def ratios(self, name: str) -> np.ndarray:
        """Returns wall-clock time relative to the first contender's, `[turns]`."""
        return self[name][:, 0] / next(iter(self.values()))[:, 0]


class _Worker:
    """A process that runs turns of a contender."""

    def __init__(self, contender: Contender, process: Process, errors: IO[str]):
        self._name, self._errors = contender.name, errors
        command = [sys.executable, "-m", "benchmarks.worker", contender.factory]
        self._process = subprocess.Popen(
            [*command, json.dumps(dict(contender.arguments))],
            cwd=_ROOT,
            env=os.environ | dict(process.environment),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        if process.cores is not None:
            # Must precede imports that count cores.
            os.sched_setaffinity(self._process.pid, process.cores)

    def start_turn(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # exited; `answer` reports it
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def answer(self) -> dict:
        """Waits for the answer of the process; raises an error if it died."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["nothing"]
        raise UserError(f"{self._name} ended; its last line: {lines[-1]}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _run_turn(workers: Sequence[_Worker]) -> list[dict]:
    for worker in workers:
        worker.start_turn()
    return [worker.answer() for worker in workers]


@contextlib.contextmanager
def _start_workers(contenders: Iterable[Contender]) -> Iterator[dict[str, list]]:
    with contextlib.ExitStack() as stack:
        workers: dict[str, list[_Worker]] = {}
        for contender in contenders:
            for process in contender.processes:
                errors = stack.enter_context(tempfile.TemporaryFile("w+"))
                worker = _Worker(contender, process, errors)
                stack.callback(worker.stop)
                workers.setdefault(contender.name, []).append(worker)
        yield workers


def alternate(names: Iterable[str], turns: int, time_once: Callable) -> Series:
    """Calls `time_once(name)` for each name, reversing the order every turn."""
    seconds: dict[str, list] = {name: [] for name in names}
    for turn in range(turns):
        for name in list(seconds)[:: -1 if turn % 2 else 1]:
            seconds[name].append(time_once(name))
    return Series(seconds)


def measure(contenders: Iterable[Contender], turns: int) -> Series:
    """Measures contenders in separate processes."""
    mebibytes: dict[str, float] = {}
    with _start_workers(contenders) as workers:
        # Warm up sequentially, so that contenders do not slow each other down.
        properties = {name: _run_turn(own)[0] for name, own in workers.items()}

        def time_once(name: str) -> tuple[float, float]:
            answers = _run_turn(workers[name])
            mebibytes[name] = sum(answer["mebibytes"] for answer in answers)
            clock = max(answer["clock"] for answer in answers)
            return clock, sum(answer["processors"] for answer in answers)

        series = alternate(workers, turns, time_once)
    series.mebibytes, series.properties = mebibytes, properties
    return series


def measure_in_process(workloads: Mapping[str, Callable], turns: int) -> Series:
    """Measures functions in this process, after one warm-up call each.

    A function may time itself and return `[wall-clock, CPU]` seconds as an array.
    """

    def time_once(name: str) -> np.ndarray:
        start = time.perf_counter(), time.process_time()
        result = workloads[name]()
        end = time.perf_counter(), time.process_time()
        return result if isinstance(result, np.ndarray) else np.subtract(end, start)

    for name in workloads:
        time_once(name)
    return alternate(workloads, turns, time_once)


def is_installed(module: str) -> bool:
    """Returns whether a module is installed; the empty name always is."""
    return not module or importlib.util.find_spec(module) is not None


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Returns median and quartiles."""
    median, low, high = np.quantile(values, (0.5, 0.25, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def summarize(series: Series, per_turn: float = 1.0) -> list[dict]:
    """Returns a row per contender: times per step or image, ratio to the first."""
    rows = []
    for name, seconds in series.items():
        clock, processors = np.median(seconds, 0) / per_turn
        rows.append(
            {
                "name": name,
                "milliseconds": 1000 * float(clock),
                "processor_milliseconds": 1000 * float(processors),
                "ratio": quartiles(series.ratios(name)),
                "mebibytes": series.mebibytes.get(name),
                **series.properties.get(name, {}),
            }
        )
    return rows


def table(rows: Sequence[Mapping], unit: str = "image") -> str:
    """Returns the rows of `summarize` as a Markdown table."""
    times = f"times {rows[0]['name']} (quartiles)"
    names = ["", f"ms per {unit}", "CPU ms", times, "MiB"]
    cells = []
    for row in rows:
        ratio = "{median:.3f} ({low:.3f}..{high:.3f})".format(**row["ratio"])
        times = (row["milliseconds"], row["processor_milliseconds"])
        memory = "" if row["mebibytes"] is None else f"{row['mebibytes']:.0f}"
        cells.append([row["name"], *(f"{time:.1f}" for time in times), ratio, memory])
    return markdown_table(names, cells)


def markdown_table(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    header = f"| {' | '.join(names).lstrip()} |\n|{len(names) * '---|'}"
    return "\n".join([header, *(f"| {' | '.join(cells)} |" for cells in rows)])


def add_multiply_adds(rows: Sequence[dict], own: int) -> str:
    """Adds the ratio per multiply-add to the rows; describes it for other networks.

    `own` is the count of our network; rows of other networks have `multiply_adds`.
    """
    lines, reference = [], rows[0]["name"]
    for row in rows:
        count = row.setdefault("multiply_adds", own)
        per_one = row["ratio_per_multiply_add"] = row["ratio"]["median"] * own / count
        if count != own:
            lines.append(
                f"\n\n{row['name']}: {count / 1e9:.2f} billion multiply-adds, ours "
                f"{own / 1e9:.2f}; per multiply-add {per_one:.3f} times {reference}"
            )
    return "".join(lines)


def provenance(packages: Sequence[str] = ()) -> dict:
    """Returns the date, commit, hardware, environment and package versions."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.date.today().isoformat(),
        "code": commit(),
        "hardware": hardware(),
        "environment": {n: os.environ[n] for n in _ENVIRONMENT if n in os.environ},
        "versions": versions,
    }


def commit() -> str | None:
    """Returns the checked-out commit, "-dirty" if modified; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=_ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> str:
    """Returns the processor model and the number of usable cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # on Linux
        names = [x.partition(":")[2] for x in file if x.startswith("model name")]
        name = names[0].strip() if names else name
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return f"{len(affinity(0))} of {os.cpu_count()} cores of {name}"


def make_flags(turns: int = 0, **flags: tuple) -> absl_flags.FlagValues:
    """Returns the flags of a benchmark.

    Args:
        turns: Default of `--turns`; 0 defines neither `--turns` nor `--json`.
        **flags: `name=(default, help, *limits)`. The flag has the type of its default:
            bool, int (limit: minimum, else 0), list, size `(height, width)` or str
            (limits: choices). None is an optional string, `...` a required one.
    """
    values = absl_flags.FlagValues()
    if turns:
        flags["turns"] = (turns, "Turns per contender.", 1)
        flags["json"] = (None, "Also write the results to this JSON file.")
    options: dict = {"flag_values": values}
    for name, (default, text, *limits) in flags.items():
        if isinstance(default, bool):
            absl_flags.DEFINE_boolean(name, default, text, **options)
        elif isinstance(default, int):
            minimum = limits[0] if limits else 0
            absl_flags.DEFINE_integer(
                name, default, text, lower_bound=minimum, **options
            )
        elif isinstance(default, list):
            absl_flags.DEFINE_list(name, default, text, **options)
        elif isinstance(default, tuple):
            size = ",".join(map(str, default))
            absl_flags.DEFINE_multi_string(name, size, text, **options)
        elif limits:
            absl_flags.DEFINE_enum(name, default, limits, text, **options)
        else:
            required = default is ...
            default = None if required else default
            absl_flags.DEFINE_string(name, default, text, required=required, **options)
    return values


def _strip_folder(value: object) -> object:
    is_path = isinstance(value, str) and os.path.isabs(value)
    return os.path.basename(value) if is_path else value


def report(
    values: absl_flags.FlagValues, title: str, result: Mapping, text: str
) -> None:
    """Prints a table with its provenance; `--json` also writes `result` to a file."""
    origin = provenance(result.get("packages", ()))
    versions = ", ".join(f"{name} {x}" for name, x in origin["versions"].items())
    where = f"On {origin['date']}, {origin['hardware']}"
    where += "".join(f", {n}={value}" for n, value in origin["environment"].items())
    text += f"\n\n{where}; commit {origin['code']}; {versions}."
    print(f"{title}\n\n{text}")
    if values.json:
        settings = {n: _strip_folder(values[n].value) for n in values if n != "json"}
        content = {"title": title, **origin, "settings": settings, **result}
        with open(values.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(content | {"text": text}, indent=2) + "\n")
