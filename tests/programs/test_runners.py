"""Programs on a runner of Apache Beam: `--runner`."""

import contextlib
import glob
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import wheels
from PIL import Image
from program_runs import assert_refused

from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Counts, Evaluator
from deeplab_tf.evaluation.results import Split
from deeplab_tf.files import ledger, outputs
from deeplab_tf.programs import eval as eval_program, parse_flags, predict, runners

PREDICT, EVAL = "deeplab_tf.programs.predict", "deeplab_tf.programs.eval"
FLAGS = ["--model=m", "--images=photos", "--output_dir=out"]


def parse(program, *arguments):
    values = program.define_flags()
    parse_flags(values, ["program", *arguments])
    return values


def test_options_after_two_dashes_belong_to_the_runner():
    values = parse(predict, *FLAGS, "--runner=DirectRunner", "--", "--workers=2", "-x")
    assert values.runner_options == ["--workers=2", "-x"]


def test_workers_get_the_given_flags():
    given = [
        *("--checkpoint_dir=logs", "--dataset_dir=a b,c", "--eval_scales=0.5,1.0"),
        *("--eval_scales=1.5", "--calibration", "--noreport", "--trimap=void"),
        *("--runner=DirectRunner", "--atrous_rates=6", "--atrous_rates=12"),
    ]
    values = parse(eval_program, *given)
    again = parse(eval_program, *runners.list_given(values))
    for name in values:
        assert values[name].value == again[name].value, name
        assert values[name].present == again[name].present, name


@pytest.mark.parametrize(
    ("message", "program", "arguments"),
    [
        ("'--workers=2' follows `--`, which", PREDICT, [*FLAGS, "--", "--workers=2"]),
        ("no effect without --runner", PREDICT, [*FLAGS, "--runner_options=-x"]),
        (
            "--html is not available with --runner",
            *(PREDICT, [*FLAGS, "--runner=DirectRunner", "--html"]),
        ),
        (
            "--corruptions is not available with --runner",
            *(EVAL, ["--checkpoint_dir=m", "--runner=R", "--corruptions=all"]),
        ),
    ],
)
def test_invalid_combinations_are_refused(message, program, arguments):
    assert_refused(message, program, *arguments)


def test_runner_without_beam_names_the_extra():
    if importlib.util.find_spec("apache_beam"):
        pytest.skip("apache_beam is installed")
    assert_refused(
        r'run pip install "deeplab_tf\[beam\]"', PREDICT, *FLAGS, "--runner=R"
    )


def test_parts_of_a_ledger_are_merged(tmp_path):
    path = str(tmp_path / "a.txt")
    outputs.write_text("first", path)
    for part, name in (("000000", "b.txt"), ("000001", "a.txt")):
        with ledger.write_part(part):
            outputs.write_text(part, str(tmp_path / name))
    # Until they are merged, other processes do not know the files.
    with pytest.raises(UserError, match=r"b\.txt exists but was not written"):
        outputs.write_text("again", str(tmp_path / "b.txt"))
    outputs.claim(str(tmp_path), ["a.txt", "b.txt"])
    assert not list(tmp_path.glob(".deeplab_tf.0*"))
    outputs.write_text("again", str(tmp_path / "b.txt"))
    check = ["sha256sum", "--check", "--ignore-missing", ledger.LEDGER]
    listed = (tmp_path / ledger.LEDGER).read_text().splitlines()
    assert len(listed) == len(set(listed)) == 4
    if sys.platform == "linux":
        result = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
        assert "a.txt: OK" in result.stdout


def test_counts_of_parts_add_up(color_model, tiny_records):
    config = EvalConfig(eval_crop_size=(33, 33))
    evaluator = Evaluator(color_model, config, shows_progress=False)
    data = DataConfig(dataset_dir=tiny_records, batch_size=1)
    split = Split(data, "trainval", dataset_info("pascal_voc_seg"))
    expected = evaluator.evaluate(split.load())
    parts = [evaluator.count(split.load(i, 3)) for i in range(3)]
    assert [int(part.images[0]) for part in parts] == [2, 2, 1]
    total = Counts(*(sum(part) for part in zip(*parts, strict=True)))
    assert evaluator.compute_metrics(total) == expected


@pytest.fixture(scope="module")
def images(tmp_path_factory, voc_root):
    """120 images in two folders, of which one is broken."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    paths = sorted((voc_root / "JPEGImages").iterdir())
    for i in range(120):
        path = folder / f"{i % 2}/{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(paths[i % len(paths)]).resize((96 + i % 2, 64)).save(path)
    (folder / "1/0003.jpg").write_bytes(b"broken")
    return folder


def read_labels(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*_*.png")) + sorted(folder.glob("*.txt"))
    }


DIRECT = ["--direct_running_mode=multi_processing", "--direct_num_workers"]


@pytest.fixture(scope="module")
def predictions(beam_environment, images, tiny_export, tmp_path_factory):
    """The command to predict, and the files that it writes in one process."""
    folder = tmp_path_factory.mktemp("predictions")
    command = [beam_environment / "deeplab-predict", f"--model={tiny_export}"]
    command += [f"--images={images}", "--skip_broken"]
    result = wheels.run(*command, f"--output_dir={folder}", folder=folder)
    assert result.returncode == 0, result.stderr
    return command, read_labels(folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_labels_equal_those_of_one_process(predictions, workers, tmp_path):
    command, expected = predictions
    options = ["--runner=DirectRunner", "--", DIRECT[0], f"{DIRECT[1]}={workers}"]
    out = tmp_path / "out"
    result = wheels.run(*command, f"--output_dir={out}", *options, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "119 images labelled" in result.stdout
    assert len(expected) == 3 * 119 + 1
    assert read_labels(out) == expected
    # A second run replaces the files.
    options = ["--runner=DirectRunner", f"--output_dir={out}"]
    assert wheels.run(*command, *options, folder=tmp_path).returncode == 0


@pytest.mark.slow
def test_broken_image_sets_the_exit_status(predictions, tmp_path):
    command, expected = predictions
    command = [x for x in command if x != "--skip_broken"]
    options = [f"--output_dir={tmp_path / 'out'}", "--runner=DirectRunner"]
    result = wheels.run(*command, *options, folder=tmp_path)
    assert result.returncode == 1
    assert "0003.jpg is broken" in result.stderr.splitlines()[-1]
    assert read_labels(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("Unexpected pipeline runner: Foo", ["--runner=Foo"]),
        (
            "has no option --direct_num_worker; similar: --direct_num_workers",
            ["--runner=DirectRunner", "--", "--direct_num_worker=2"],
        ),
        (
            "argument --direct_num_workers: invalid int value: 'x'",
            ["--runner=DirectRunner", "--", "--direct_num_workers=x"],
        ),
        ("no checkpoint nothing", ["--runner=DirectRunner", "--model=nothing"]),
    ],
)
def test_invalid_runners_and_models_are_refused(
    predictions, message, options, tmp_path
):
    command, _ = predictions
    out = f"--output_dir={tmp_path / 'out'}"
    result = wheels.run(*command, out, *options, folder=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]


def find_workers(parent):
    """Returns the processes below a process that are workers of Beam."""
    found, waiting = [], [parent]
    while waiting:
        process = waiting.pop()
        # Any thread may have started a process.
        for path in glob.glob(f"/proc/{process}/task/*/children"):
            with contextlib.suppress(OSError), open(path) as file:
                waiting += map(int, file.read().split())
        if not os.path.exists(f"/proc/{process}"):
            continue
        with open(f"/proc/{process}/cmdline") as file:
            if "sdk_worker_main" in file.read() and process != parent:
                found.append(process)
    return found


@pytest.mark.slow
def test_killed_worker_ends_the_direct_runner(predictions, tmp_path):
    command, expected = predictions
    out = tmp_path / "out"
    options = ["--runner=DirectRunner", "--", DIRECT[0], f"{DIRECT[1]}=2"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    process = subprocess.Popen(
        [*command, f"--output_dir={out}", *options],
        **{"cwd": tmp_path, "env": variables, "text": True},
        stderr=subprocess.PIPE,
    )
    while len(find_workers(process.pid)) < 2:
        time.sleep(0.1)
        assert process.poll() is None
    while not list(out.glob("0/*_label.png")):
        time.sleep(0.1)
        assert process.poll() is None
    os.kill(max(find_workers(process.pid)), signal.SIGKILL)
    with process:
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "a worker process ended" in errors
    # Running the command again completes the labels.
    result = wheels.run(
        *command, f"--output_dir={out}", "--runner=DirectRunner", folder=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert read_labels(out) == expected
    assert not list(out.rglob(".deeplab_tf.0*"))


DASK = """
import sys, time
from dask.distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c:
        pids = [worker.pid for worker in c.workers.values()]
        print(c.scheduler_address, *pids, flush=True)
        sys.stdin.read()
"""


@pytest.mark.slow
def test_dask_retries_the_tasks_of_a_killed_worker(
    predictions, beam_environment, tmp_path
):
    command, expected = predictions
    out = tmp_path / "out"
    script = tmp_path / "cluster.py"
    script.write_text(DASK)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with subprocess.Popen(
        [beam_environment / "python", script], cwd=tmp_path, env=variables, **pipes
    ) as cluster:
        address, *workers = cluster.stdout.readline().split()

        def kill():
            while not list(out.glob("0/*_label.png")):
                time.sleep(0.1)
            os.kill(int(workers[0]), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        runner = "apache_beam.runners.dask.dask_runner.DaskRunner"
        options = [f"--runner={runner}", "--", f"--dask_client_address={address}"]
        result = wheels.run(*command, f"--output_dir={out}", *options, folder=tmp_path)
        cluster.stdin.close()
        cluster.wait(60)
    assert result.returncode == 0, result.stderr
    assert read_labels(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "workers"),
    [("multi_processing", 1), ("multi_processing", 2), ("multi_threading", 3)],
)
def test_metrics_equal_those_of_one_process(
    beam_environment, voc_checkpoint, voc_records, mode, workers, tmp_path
):
    found = {}
    for name, options in (
        ("one", ["--noreport"]),
        (
            "many",
            [
                *("--runner=DirectRunner", "--", f"--direct_running_mode={mode}"),
                f"{DIRECT[1]}={workers}",
            ],
        ),
    ):
        result = wheels.run(
            beam_environment / "deeplab-eval",
            f"--checkpoint_dir={voc_checkpoint}",
            "--preset=mobilenetv2_coco_voc_trainval",
            *("--eval_split=val", "--eval_scales=1.0"),
            f"--dataset_dir={voc_records}",
            f"--eval_logdir={tmp_path / name}",
            *("--trimap=void", "--boundary_iou", "--calibration", *options),
            folder=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert found["one"] == found["many"]
    assert np.sum(found["one"]["confusion_matrix"]) > 10_000_000
