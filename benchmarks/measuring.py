"""Several contenders, measured in turns and told beside each other.

Where frameworks are compared, each contender works in a process of its own,
`benchmarks.contender`, so that nobody's threads and settings disturb another's; only
one of them works at a time. In every turn each has its go, forwards and backwards, so
that none is always the first, and is compared with the others of the same turn: what
slows down the machine for a while slows down all. Told are medians over the turns and
the quartiles of the ratios.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Where a contender works, or a part of it.

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
        name: What tables call it.
        factory: `module:function`, which is called in a process of its own and returns
            a function without arguments: the work of a turn.
        arguments: Of the factory, as JSON has them.
        processes: Several work at the same time, and a turn ends with the last.
    """

    name: str
    factory: str
    arguments: Mapping = dataclasses.field(default_factory=dict)
    processes: tuple[Process, ...] = (Process(),)


class Series(dict):
    """What was measured: seconds `[turns, 2]` by the name of the contender.

    The columns are the clock and all processors together, which other programs on the
    machine disturb less.

    Attributes:
        mebibytes: The most memory that each process has held.
        facts: What each contender tells of itself.
    """

    def __init__(self):
        super().__init__()
        self.mebibytes: dict[str, float] = {}
        self.facts: dict[str, dict] = {}

    def ratios(self, name: str, reference: str) -> np.ndarray:
        """Returns how many times the reference's seconds of its turn, `[turns]`."""
        return self[name][:, 0] / self[reference][:, 0]


class _Worker:
    """A process of a contender: it gets ready, then works whenever it is told."""

    def __init__(self, contender: Contender, process: Process, errors: IO[str]):
        self._name, self._errors = contender.name, errors
        command = [sys.executable, "-m", "benchmarks.contender", contender.factory]
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
        """Lets it work for a turn."""
        with contextlib.suppress(BrokenPipeError):  # it ended, which `answer` tells
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def answer(self) -> dict:
        """Returns what the process tells next.

        Raises:
            UserError: if it ended instead.
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


def _turn(workers: Sequence[_Worker]) -> list[dict]:
    """Returns what the processes of a contender tell of a turn."""
    for worker in workers:
        worker.start()
    return [worker.answer() for worker in workers]


@contextlib.contextmanager
def _workers(contenders: Sequence[Contender]) -> Iterator[dict[str, list[_Worker]]]:
    with contextlib.ExitStack() as stack:
        workers: dict[str, list[_Worker]] = {}
        for contender in contenders:
            workers[contender.name] = []
            for process in contender.processes:
                errors = stack.enter_context(tempfile.TemporaryFile("w+"))
                worker = _Worker(contender, process, errors)
                stack.callback(worker.end)
                workers[contender.name].append(worker)
        yield workers


def _order(names: Sequence[str], turns: int) -> Iterator[str]:
    """Yields who has its go, forwards and backwards: none is always the first."""
    for turn in range(turns):
        yield from names[:: -1 if turn % 2 else 1]


def measure(contenders: Sequence[Contender], turns: int) -> Series:
    """Returns what contenders take for a turn, measured in turns.

    Raises:
        UserError: if one of them fails, with what it said last.
    """
    series = Series()
    with _workers(contenders) as workers:
        for name, own in workers.items():
            # One after the other: they warm up, and should not disturb each other.
            series.facts[name] = _turn(own)[0]
        seconds: dict[str, list] = {name: [] for name in workers}
        for name in _order(list(workers), turns):
            answers = _turn(workers[name])
            clock = max(answer["clock"] for answer in answers)
            processors = sum(answer["processors"] for answer in answers)
            seconds[name].append((clock, processors))
            series.mebibytes[name] = sum(answer["mebibytes"] for answer in answers)
    series.update({name: np.array(each) for name, each in seconds.items()})
    return series


def measure_here(works: Mapping[str, Callable[[], object]], turns: int) -> Series:
    """Returns what several works of this process take, measured in turns.

    Args:
        works: By name; each is done once before, to warm up.
        turns: How often each is measured.
    """
    for work in works.values():
        work()
    seconds: dict[str, list] = {name: [] for name in works}
    for name in _order(list(works), turns):
        start = time.perf_counter(), time.process_time()
        works[name]()
        end = time.perf_counter(), time.process_time()
        seconds[name].append(np.subtract(end, start))
    series = Series()
    series.update({name: np.array(each) for name, each in seconds.items()})
    return series


def spread(values: np.ndarray) -> dict[str, float]:
    """Returns median and quartiles."""
    median, low, high = np.quantile(values, (0.5, 0.25, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def compared(series: Series, reference: str, per_turn: float = 1.0) -> list[dict]:
    """Returns a row for each contender: its times, and its ratio to the reference.

    Args:
        series: What was measured.
        reference: Name of the contender that the others are compared with.
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
                "ratio": spread(series.ratios(name, reference)),
                "mebibytes": series.mebibytes.get(name),
                **series.facts.get(name, {}),
            }
        )
    return rows


def table(rows: Sequence[Mapping], reference: str, unit: str = "image") -> str:
    """Returns rows of `compared` as a Markdown table."""
    lines = [
        f"| | ms per {unit} | of all processors | times {reference} (quartiles) "
        "| MiB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "{median:.3f} ({low:.3f}..{high:.3f})".format(**row["ratio"])
        times = f"{row['milliseconds']:.1f} | {row['processor_milliseconds']:.1f}"
        memory = "" if row["mebibytes"] is None else f"{row['mebibytes']:.0f}"
        lines.append(f"| {row['name']} | {times} | {ratio} | {memory} |")
    return "\n".join(lines)


def add_multiply_adds(rows: Sequence[dict], own: int, reference: str) -> str:
    """Adds the ratio per multiply-add to each row; returns it for other networks.

    Args:
        rows: Of `compared`; those of another network tell their `multiply_adds`.
        own: Multiply-adds of an image of the others.
        reference: Name of the contender that is compared with.
    """
    lines = []
    for row in rows:
        count = row.setdefault("multiply_adds", own)
        per_one = row["ratio_per_multiply_add"] = row["ratio"]["median"] * own / count
        if count != own:
            lines.append(
                f"\n\n{row['name']}: {count / 1e9:.2f} billion multiply-adds, ours "
                f"{own / 1e9:.2f}; per multiply-add {per_one:.3f} times {reference}"
            )
    return "".join(lines)


def circumstances(packages: Sequence[str] = ()) -> dict:
    """Returns hardware, environment, versions and commit, for whoever compares."""
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
    """Returns the commit of this code, "-dirty" where it was changed, if git knows."""
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
    try:
        with open("/proc/cpuinfo") as file:
            names = [x.partition(":")[2] for x in file if x.startswith("model name")]
        name = names[0].strip() if names else name
    except OSError:
        pass  # not Linux
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return f"{len(may_use(0))} of {os.cpu_count()} cores of {name}"


def define_flags(values: absl_flags.FlagValues, turns: int) -> None:
    """Defines what all comparisons have in common."""
    absl_flags.DEFINE_integer(
        "turns", turns, "Turns of each.", lower_bound=1, flag_values=values
    )
    absl_flags.DEFINE_string(
        "json", None, "File for the results, besides the table.", flag_values=values
    )


def _without_place(value: object) -> object:
    """Returns a setting; of a file or a folder the name, but not where it lies."""
    is_place = isinstance(value, str) and os.path.isabs(value)
    return os.path.basename(value) if is_place else value


def report(
    values: absl_flags.FlagValues, title: str, result: Mapping, text: str
) -> None:
    """Prints a table with its circumstances, and writes them as JSON if asked for.

    Args:
        values: The program's flags, which are told, too.
        title: What was measured.
        result: What the file is to hold.
        text: The table.
    """
    around = circumstances(result.get("packages", ()))
    told = ", ".join(f"{name} {number}" for name, number in around["versions"].items())
    where = f"On {around['date']}, {around['hardware']}"
    where += "".join(f", {n}={value}" for n, value in around["environment"].items())
    where += f"; commit {around['code']}"
    text += f"\n\n{where}; {told}."
    print(f"{title}\n\n{text}")
    if values.json:
        settings = {n: _without_place(values[n].value) for n in values if n != "json"}
        whole = {"title": title, **around, "settings": settings, **result}
        whole["text"] = text
        with open(values.json, "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=2)
            file.write("\n")
