"""Benchmarks: how contenders alternate, and what is reported and fitted."""

import dataclasses
import json
import os

import numpy as np
import pytest
from absl.flags import Error

from benchmarks import measuring, multi_worker, scaling, train_step
from benchmarks.measuring import Contender, Process, Series
from deeplab_tf.errors import UserError
from deeplab_tf.flags import read_size

WORKLOADS = "tests.benchmark_workloads"


def make_sleeper(name, seconds, log, cores=None):
    process = Process({"CONTENDER": name}, cores)
    arguments = {"seconds": seconds, "log": str(log)}
    return Contender(name, f"{WORKLOADS}:make_sleeper", arguments, (process,))


def test_contenders_alternate_in_both_directions(tmp_path):
    log = tmp_path / "log"
    contenders = [make_sleeper("a", 0.01, log), make_sleeper("b", 0.05, log)]
    series = measuring.measure(contenders, 3)
    names = [line.split()[0] for line in log.read_text().splitlines()]
    # Two warm-up turns each, then three measured turns.
    assert names == [*"aabb", *"ab", *"ba", *"ab"]
    assert series["a"].shape == series["b"].shape == (3, 2)
    assert (series["a"][:, 0] >= 0.01).all() and (series["b"][:, 0] >= 0.05).all()
    # Sleeping uses no CPU time.
    assert (series["b"][:, 1] < 0.05).all()
    np.testing.assert_allclose(
        series.ratios("b"), series["b"][:, 0] / series["a"][:, 0]
    )
    assert 1 < series.mebibytes["a"] < 1000
    assert series.properties["a"]["ready_mebibytes"] <= series.mebibytes["a"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_process_is_pinned_to_its_cores(tmp_path):
    core = min(os.sched_getaffinity(0))
    series = measuring.measure([make_sleeper("a", 0.0, tmp_path / "log", (core,))], 1)
    assert series.properties["a"]["cores"] == [core]


def test_processes_of_a_contender_run_in_parallel(tmp_path):
    processes = tuple(Process({"CONTENDER": name}) for name in ("first", "second"))
    contender = Contender(
        "both", f"{WORKLOADS}:make_synchronised", {"folder": str(tmp_path)}, processes
    )
    series = measuring.measure([contender], 2)
    assert series["both"].shape == (2, 2)
    assert series.mebibytes["both"] > 2


@pytest.mark.parametrize(
    "factory, last_line",
    [
        ("fail_to_build", "ImportError: no module named an_engine"),
        ("make_failing", "MemoryError: out of memory in turn 3"),
    ],
)
def test_failing_contender_is_reported(factory, last_line):
    with pytest.raises(UserError, match=f"engine ended; its last line: {last_line}"):
        measuring.measure([Contender("engine", f"{WORKLOADS}:{factory}")], 1)


def test_in_process_workloads_are_interleaved():
    done = []
    workloads = {name: lambda name=name: done.append(name) for name in "ab"}
    series = measuring.measure_in_process(workloads, 2)
    assert "".join(done) == "ab" + "ab" + "ba"
    assert series["a"].shape == (2, 2)
    # A workload may measure its own time.
    workloads = {"c": lambda: np.array([3.0, 4.0])}
    assert measuring.measure_in_process(workloads, 2)["c"].tolist() == [[3.0, 4.0]] * 2


@pytest.fixture
def series():
    """Three turns of two contenders."""
    found = Series(
        {
            "ours": [[1.0, 2.0], [2.0, 4.0], [1.0, 2.0]],
            "theirs": [[3.0, 3.0], [4.0, 4.0], [2.0, 2.0]],
        }
    )
    found.properties = {"ours": {}, "theirs": {"multiply_adds": 500}}
    found.mebibytes = {"ours": 10.0}
    return found


def test_ratios_are_computed_within_a_turn(series):
    ours, theirs = measuring.summarize(series, per_turn=2)
    assert ours["milliseconds"] == 500 and ours["processor_milliseconds"] == 1000
    assert ours["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    # 3, 2 and 2, where the medians of the times would give 3.
    assert theirs["ratio"]["median"] == 2.0
    lines = measuring.table([ours, theirs]).splitlines()
    assert lines[2] == "| ours | 500.0 | 1000.0 | 1.000 (1.000..1.000) | 10 |"
    assert lines[3].startswith("| theirs | 1500.0 | 1500.0 | 2.000 (2.000..2.500) |  |")


def test_other_networks_are_compared_per_multiply_add(series):
    rows = measuring.summarize(series)
    text = measuring.add_multiply_adds(rows, 1000)
    assert rows[0]["ratio_per_multiply_add"] == 1.0
    assert rows[1]["ratio_per_multiply_add"] == 4.0
    assert "theirs: 0.00 billion" in text and "4.000 times ours" in text
    assert "\n\nours" not in text


def test_report_includes_its_provenance(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    values = measuring.make_flags(turns=3, dataset_dir=(None, ""))
    path = tmp_path / "result.json"
    values(["program", f"--json={path}", f"--dataset_dir={tmp_path}/tfrecord"])
    measuring.report(values, "A title", {"rows": [1]}, "| table |")
    out = capsys.readouterr().out
    assert out.startswith("A title\n\n| table |\n\n") and "tensorflow 2." in out
    result = json.loads(path.read_text())
    assert result["rows"] == [1]
    # Results are published, so paths are reduced to names.
    assert result["settings"] == {"turns": 3, "dataset_dir": "tfrecord"}
    assert out == f"A title\n\n{result['text']}\n"
    assert result["environment"]["OMP_NUM_THREADS"] == "3"
    assert ", OMP_NUM_THREADS=3" in out
    assert "cores of" in result["hardware"] and result["versions"]["keras"]


def test_flags_have_the_type_of_their_default():
    values = measuring.make_flags(
        path=(..., ""),
        size=((5, 7), ""),
        names=(["a"], ""),
        count=(3, "", 2),
        is_fast=(False, ""),
        kind=("x", "", "x", "y"),
    )
    values(["program", "--path=here"])
    assert read_size(values, "size") == (5, 7)
    found = values.flag_values_dict()
    assert "json" not in found and found["names"] == ["a"]
    assert (found["count"], found["is_fast"], found["kind"]) == (3, False, "x")
    for flag in ("--count=1", "--kind=z", "--size"):
        with pytest.raises(Error):
            values(["program", "--path=here", flag])
    with pytest.raises(Error, match="path"):
        measuring.make_flags(path=(..., ""))(["program"])


def test_parse_case_needs_three_parts():
    case = train_step.parse_case("xception_65:257:2")
    assert case == ("xception_65", 257, 2)
    for text in ("xception_65", "xception_65:257", "xception_65:257:two"):
        with pytest.raises(UserError, match="BACKBONE:CROP:BATCH"):
            train_step.parse_case(text)


def test_exponent_of_a_power_law_is_fitted():
    areas = np.array([1.0, 4.0, 9.0])
    assert scaling.fit_exponent(areas, 3 * areas**1.25) == pytest.approx(1.25)


def test_scaling_is_plotted():
    result = {
        "sides": [100, 200],
        "seconds": [0.1, 0.4],
        "mebibytes": [10.0, 40.0],
        "exponent_of_seconds": 1.0,
        "exponent_of_mebibytes": 1.0,
    }
    plot = scaling.plot(result)
    assert plot.dtype == np.uint8 and plot.shape[1] > plot.shape[0] > 100


def test_constants_of_a_cluster_are_fitted_and_predict():
    cores, size = 2, 4_000_000
    truth = multi_worker.Constants(0.1, 0.5, 0.001, 1e9, size)
    steps = {n: 0.1 + 0.5 * n for n in (2, 8)}
    # Two workers send two messages, in total all gradients.
    small = dataclasses.replace(truth, gradient_bytes=400)
    reduces = {400: small.all_reduce(2, cores), size: truth.all_reduce(2, cores)}
    assert reduces[size] == pytest.approx(0.002 + 0.004)
    found = multi_worker.fit_constants(steps, reduces, cores)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(truth))
    # Four workers share two cores: each has two images, six messages of 1 MB.
    assert found.step(4, 8, cores) == pytest.approx(2 * 1.1 + 0.006 + 6 * 0.002)
