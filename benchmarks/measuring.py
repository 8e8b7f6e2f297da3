"""Measures several contenders in turns and compares them.

Where frameworks are compared, each contender works in a process of its own
(`benchmarks.worker`), so that threads and settings of one do not disturb another; only
one of them works at a time. In every turn each contender works once, forwards and
backwards in order, so that none is always the first. It is compared with the others of
the same turn: what slows the machine down for a while slows all of them down. Reported
are medians over the turns and the quartiles of the ratios.
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
    """A process of a contender.

    Attributes:
        environment: Variables that differ in it.
        cores: Processors that it may use; None leaves all.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
        name: Its name in tables.
        factory: A function of `benchmarks.contenders`, or `module:function`, that
            returns the work of a turn, a function without arguments.
        arguments: Of the factory, as JSON has them.
        processes: Several work at the same time, and a turn ends with the last.
    """

    name: str
    factory: str
    arguments: Mapping = dataclasses.field(default_factory=dict)
    processes: tuple[Process, ...] = (Process(),)


class Series(dict):
    """Seconds `[turns, 2]` by the name of the contender.

    The columns are the time by the clock and that of all processors together, which
    other programs on the machine disturb less.

    Attributes:
        mebibytes: Peak memory of each contender.
        properties: What each contender reports of itself.
    """

    def __init__(self, seconds: Mapping[str, Sequence]):
        super().__init__({name: np.array(each) for name, each in seconds.items()})
        self.mebibytes: dict[str, float] = {}
        self.properties: dict[str, dict] = {}

    def ratios(self, name: str) -> np.ndarray:
        """Returns seconds over those of the first one in the same turn, `[turns]`."""
        return self[name][:, 0] / next(iter(self.values()))[:, 0]


class _Worker:
    """A process of a contender."""

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
            # Before it imports anything that counts them.
            os.sched_setaffinity(self._process.pid, process.cores)

    def start(self) -> None:
        """Starts a turn."""
        with contextlib.suppress(BrokenPipeError):  # it ended; `answer` reports that
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def answer(self) -> dict:
        """Waits for the end of a turn and returns the answer.

        Raises:
            UserError: if the process ended instead.
        """
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["nothing"]
        raise UserError(f"{self._name} ended; its last line: {said[-1]}")

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _take_turn(workers: Sequence[_Worker]) -> list[dict]:
    for worker in workers:
        worker.start()
    return [worker.answer() for worker in workers]


@contextlib.contextmanager
def _start_workers(contenders: Iterable[Contender]) -> Iterator[dict[str, list]]:
    with contextlib.ExitStack() as stack:
        workers: dict[str, list[_Worker]] = {}
        for contender in contenders:
            for process in contender.processes:
                errors = stack.enter_context(tempfile.TemporaryFile("w+"))
                worker = _Worker(contender, process, errors)
                stack.callback(worker.end)
                workers.setdefault(contender.name, []).append(worker)
        yield workers


def _in_turns(names: Iterable[str], turns: int, time_once: Callable) -> Series:
    """Returns what `time_once(name)` gives, forwards and backwards in order."""
    seconds: dict[str, list] = {name: [] for name in names}
    for turn in range(turns):
        for name in list(seconds)[:: -1 if turn % 2 else 1]:
            seconds[name].append(time_once(name))
    return Series(seconds)


def measure(contenders: Iterable[Contender], turns: int) -> Series:
    """Measures contenders, each in processes of its own, in turns.

    Raises:
        UserError: if one of them fails, with the last line that it printed.
    """
    mebibytes: dict[str, float] = {}
    with _start_workers(contenders) as workers:
        # One after the other, so that they do not disturb each other as they warm up.
        properties = {name: _take_turn(own)[0] for name, own in workers.items()}

        def time_once(name: str) -> tuple[float, float]:
            answers = _take_turn(workers[name])
            mebibytes[name] = sum(answer["mebibytes"] for answer in answers)
            clock = max(answer["clock"] for answer in answers)
            return clock, sum(answer["processors"] for answer in answers)

        series = _in_turns(workers, turns, time_once)
    series.mebibytes, series.properties = mebibytes, properties
    return series


def measure_here(works: Mapping[str, Callable[[], object]], turns: int) -> Series:
    """Measures works in this process, in turns.

    Args:
        works: By name; each runs once before, to warm up. A work that returns an array
            of its own seconds, by the clock and of processors, is believed.
        turns: How often each is measured.
    """

    def time_once(name: str) -> np.ndarray:
        start = time.perf_counter(), time.process_time()
        found = works[name]()
        end = time.perf_counter(), time.process_time()
        return found if isinstance(found, np.ndarray) else np.subtract(end, start)

    for name in works:
        time_once(name)
    return _in_turns(works, turns, time_once)


def is_installed(module: str) -> bool:
    """Returns whether a module can be imported; "" stands for none."""
    return not module or importlib.util.find_spec(module) is not None


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Returns median and quartiles."""
    median, low, high = np.quantile(values, (0.5, 0.25, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def summarize(series: Series, per_turn: float = 1.0) -> list[dict]:
    """Returns a row for each contender: its times and its ratio to the first one.

    Args:
        series: What was measured.
        per_turn: Steps or images of a turn; times are those of one.
    """
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
    names = ["", f"ms per {unit}", "of all processors", times, "MiB"]
    cells = []
    for row in rows:
        ratio = "{median:.3f} ({low:.3f}..{high:.3f})".format(**row["ratio"])
        times = (row["milliseconds"], row["processor_milliseconds"])
        memory = "" if row["mebibytes"] is None else f"{row['mebibytes']:.0f}"
        cells.append([row["name"], *(f"{time:.1f}" for time in times), ratio, memory])
    return markdown_table(names, cells)


def markdown_table(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table of names of columns and of rows of cells."""
    header = f"| {' | '.join(names).lstrip()} |\n|{len(names) * '---|'}"
    return "\n".join([header, *(f"| {' | '.join(cells)} |" for cells in rows)])


def add_multiply_adds(rows: Sequence[dict], own: int) -> str:
    """Adds the ratio per multiply-add to each row; returns it for other networks.

    Args:
        rows: Of `summarize`; those of another network have their `multiply_adds`.
        own: Multiply-adds of an image of the others.
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
    """Returns date, commit, hardware, environment and versions of a measurement."""
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
    """Returns the commit of this code, with "-dirty" if changed; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=_ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> str:
    """Returns the processor, and how many of its cores may be used."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # on Linux
        names = [x.partition(":")[2] for x in file if x.startswith("model name")]
        name = names[0].strip() if names else name
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return f"{len(may_use(0))} of {os.cpu_count()} cores of {name}"


def make_flags(turns: int = 0, **flags: tuple) -> absl_flags.FlagValues:
    """Returns the flags of a program.

    Args:
        turns: Default of `--turns`; 0 defines neither this flag nor `--json`.
        **flags: By name the default, whose type is the flag's, and the help: a boolean,
            an integer (then its smallest value, if not 0), a list, a size `(height,
            width)`, or a text (then its choices, if any). None is a path, `...` one
            that is required.
    """
    values = absl_flags.FlagValues()
    if turns:
        flags["turns"] = (turns, "Turns of each.", 1)
        flags["json"] = (None, "File for the results, besides the table.")
    for name, (default, text, *limits) in flags.items():
        options: dict = {"flag_values": values}
        if isinstance(default, bool):
            absl_flags.DEFINE_boolean(name, default, text, **options)
        elif isinstance(default, int):
            options["lower_bound"] = limits[0] if limits else 0
            absl_flags.DEFINE_integer(name, default, text, **options)
        elif isinstance(default, list):
            absl_flags.DEFINE_list(name, default, text, **options)
        elif isinstance(default, tuple):
            size = ",".join(map(str, default))
            absl_flags.DEFINE_multi_string(name, size, text, **options)
        elif limits:
            absl_flags.DEFINE_enum(name, default, limits, text, **options)
        else:
            given = None if default is ... else default
            absl_flags.DEFINE_string(
                name, given, text, required=default is ..., **options
            )
    return values


def _without_folder(value: object) -> object:
    """Returns a setting; of an absolute path its last part."""
    is_place = isinstance(value, str) and os.path.isabs(value)
    return os.path.basename(value) if is_place else value


def report(
    values: absl_flags.FlagValues, title: str, result: Mapping, text: str
) -> None:
    """Prints a table with its provenance, and writes them as JSON if asked for.

    Args:
        values: The program's flags, which are reported, too.
        title: What was measured.
        result: Content of the file.
        text: The table.
    """
    around = provenance(result.get("packages", ()))
    versions = ", ".join(f"{name} {x}" for name, x in around["versions"].items())
    where = f"On {around['date']}, {around['hardware']}"
    where += "".join(f", {n}={value}" for n, value in around["environment"].items())
    text += f"\n\n{where}; commit {around['code']}; {versions}."
    print(f"{title}\n\n{text}")
    if values.json:
        settings = {n: _without_folder(values[n].value) for n in values if n != "json"}
        content = {"title": title, **around, "settings": settings, **result}
        with open(values.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(content | {"text": text}, indent=2) + "\n")
