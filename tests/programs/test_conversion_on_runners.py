"""Conversion on the workers of Apache Beam: the shards of one process."""

import os
import signal
import subprocess
import time

import pytest
import wheels
from program_runs import assert_refused
from programs.test_runners import DIRECT, find_workers

from deeplab_tf.convert.manifest import MANIFEST
from deeplab_tf.data import records

DATASETS = ("folder", "voc2012", "cityscapes", "ade20k", "coco_voc")


@pytest.mark.parametrize("name", DATASETS)
def test_options_without_a_runner_are_refused(name, tmp_path):
    given = {
        "folder": ["image_dir", "label_dir", "classes"],
        "voc2012": ["voc_root"],
        "coco_voc": ["annotations", "image_dir", "split"],
    }.get(name, [f"{name}_root"])
    flags = [f"--{flag}={tmp_path}" for flag in [*given, "output_dir"]]
    program = f"deeplab_tf.programs.convert.{name}"
    message = "--runner_options has no effect without --runner"
    assert_refused(message, program, *flags, "--runner_options=-x")


def read_files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


@pytest.fixture(scope="module")
def conversion(beam_environment, voc_root, tmp_path_factory):
    """The command to convert the sample, and the files that it writes in threads."""
    folder = tmp_path_factory.mktemp("conversion") / "records"
    command = [beam_environment / "deeplab-convert", "voc2012"]
    command += [f"--voc_root={voc_root}", "--num_shards=5"]
    result = wheels.run(*command, f"--output_dir={folder}", folder=folder.parent)
    assert result.returncode == 0, result.stderr
    return command, read_files(folder), result.stdout.splitlines()[:-1]


def run_on(workers):
    return ["--runner=DirectRunner", "--", DIRECT[0], f"{DIRECT[1]}={workers}"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_files_are_those_of_threads(conversion, workers, tmp_path):
    command, expected, printed = conversion
    out = tmp_path / "records"
    command = [*command, f"--output_dir={out}", *run_on(workers)]
    result = wheels.run(*command, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:-1] == printed  # with the content hashes
    assert sum(name.endswith(".tfrecord") for name in expected) == 20
    assert read_files(out) == expected
    assert not list(out.glob(".*tmp")) + list(out.glob(f".{MANIFEST}.*"))


@pytest.mark.slow
def test_killed_worker_loses_no_finished_shard(conversion, tmp_path):
    command, expected, _ = conversion
    out = tmp_path / "records"
    command = [*command, f"--output_dir={out}"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    process = subprocess.Popen(
        [*command, *run_on(2)],
        **{"cwd": tmp_path, "env": variables, "text": True},
        stderr=subprocess.PIPE,
    )
    while not list(out.glob(f".{MANIFEST}.*")):
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(max(find_workers(process.pid)), signal.SIGKILL)
    with process:
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "a worker process ended" in errors
    time.sleep(5)  # until the other worker ended too
    # Nothing is published, but the finished shards are kept.
    kept = [p.name.removeprefix(f".{MANIFEST}.") for p in out.glob(f".{MANIFEST}.*")]
    times = {n: (out / f"{n}{records.FINISHED}").stat().st_mtime_ns for n in kept}
    assert 0 < len(kept) < 20 and not list(out.glob("[!.]*.tfrecord"))
    result = wheels.run(*command, *run_on(2), folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_files(out) == expected
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == times
    assert not list(out.glob(".*tmp")) + list(out.glob(f".{MANIFEST}.*"))


@pytest.mark.slow
def test_broken_image_is_named_in_one_line(beam_environment, voc_root, tmp_path):
    sample = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass"):
        (sample / name).mkdir(parents=True)
        for path in (voc_root / name).iterdir():
            (sample / name / path.name).symlink_to(path)
    (sample / "ImageSets").symlink_to(voc_root / "ImageSets")
    lists = voc_root / "ImageSets/Segmentation/val.txt"
    broken = sample / f"JPEGImages/{lists.read_text().split()[40]}.jpg"
    broken.unlink()
    broken.write_bytes(b"broken")
    command = [beam_environment / "deeplab-convert", "voc2012", f"--voc_root={sample}"]
    command += [f"--output_dir={tmp_path / 'out'}", *run_on(2)]
    result = wheels.run(*command, folder=tmp_path)
    assert result.returncode == 1
    assert f"{broken} is broken" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
