"""No program deletes or replaces a file that it did not write.

Each case is a command line and a user's file in the way of its output. Programs refuse
before any slow work, so that models and records may be missing here.
"""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from program_runs import run

from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.images.videos import write_video

EXPORT = ("deeplab_tf.programs.export", "--checkpoint_path={model}")
PREDICT = (
    *("deeplab_tf.programs.predict", "--model={model}"),
    *("--images=photos/*.png", "--output_dir=out"),
)
VIDEO = (
    *("deeplab_tf.programs.predict", "--model={model}"),
    *("--video={video}", "--output_dir=out", "--save_frames"),
)
EVAL = (
    *("deeplab_tf.programs.eval", "--checkpoint_dir={model}", "--eval_logdir=out"),
    "--dataset_dir={records}",
)
TRAIN = (
    *("deeplab_tf.programs.train", "--dataset_dir={records}", "--train_logdir=out"),
    *("--train_crop_size=33,33", "--train_batch_size=2"),
)
DOCTOR = ("deeplab_tf.programs.doctor", "--dataset_dir={records}", "--output_dir=out")
PLAN = ("deeplab_tf.plan.program", "--json=out.json")
FOLDER = (
    *("deeplab_tf.programs.convert.folder", "--image_dir=photos", "--label_dir=labels"),
    *("--classes=classes.txt", "--output_dir=out"),
)
VOC = ("deeplab_tf.programs.convert.voc2012", "--voc_root={voc}", "--output_dir=out")

# Command line, file of the user and pattern of the error message.
FOREIGN = "not written by deeplab_tf"
CASES = [
    (*case, message)
    for message, cases in {
        "export_path is empty": [((*EXPORT, "--export_path="), "a.txt")],
        "replaced entirely": [
            ((*EXPORT, f"--export_path={path}"), "a.txt")
            for path in (".", "./", "..", "../..", "/", "{home}", "{home}/", "link")
        ],
        FOREIGN: [
            ((*EXPORT, "--export_path=out"), "out/thesis.tex"),
            ((*EXPORT, "--export_path=notes"), "notes"),
            ((*EXPORT, "--export_path=out"), "out/saved_model.pb"),
            ((*EXPORT, "--export_path=out"), "out/sub/thesis.tex"),
            ((*EXPORT, "--export_path=out"), "out.parity.json"),
            ((*EXPORT, "--export_path=out"), "out.refused.json"),
            ((*EXPORT, "--export_path=link_to_out"), "out/saved_model.pb"),
            ((*EXPORT, "--export_path=out.keras"), "out.keras"),
            ((*EXPORT, "--export_path=out.pb"), "out.pb"),
            (PREDICT, "out/a_label.png"),
            (PREDICT, "out/a_color.png"),
            (PREDICT, "out/b_overlay.png"),
            (PREDICT, "out/overview.png"),
            (VIDEO, "out/drive_overlay.mp4"),
            (VIDEO, "out/drive_labels/000003.png"),
            (EVAL, "out/metrics.json"),
            (EVAL, "out/report.html"),
            (TRAIN, "out/experiment.json"),
            (TRAIN, "out/history.jsonl"),
            (TRAIN, "out/curves.png"),
            (TRAIN, "out/checkpoint"),
            (TRAIN, "out/best/model.ckpt-3.index"),
            (TRAIN, "out/best/metrics.json"),
            (DOCTOR, "out/doctor.png"),
            (DOCTOR, "out/doctor.html"),
            (PLAN, "out.json"),
            (FOLDER, "out/conversion.json"),
            (VOC, "out/conversion.json"),
        ],
        "dataset_info.json: line 1": [
            (FOLDER, "out/dataset_info.json"),
            (VOC, "out/dataset_info.json"),
        ],
        "is the folder of the images or labels": [
            ((*FOLDER[:-1], "--output_dir=photos"), "photos/train-log.txt"),
            ((*FOLDER[:-1], "--output_dir=labels"), "labels/train-log.txt"),
        ],
    }.items()
    for case in cases
]


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    prefix = str(tmp_path_factory.mktemp("checkpoint") / "model.ckpt-1")
    save_tf1_checkpoint(tiny_model, prefix)
    return prefix


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder; its project of images and masks is the working folder."""
    project = tmp_path / "home/project"
    for name in ("photos", "labels"):
        (project / name).mkdir(parents=True)
    for name in ("a", "b"):
        pixels = np.full((8, 8), len(name), np.uint8)
        Image.fromarray(pixels).convert("RGB").save(project / f"photos/{name}.png")
        Image.fromarray(0 * pixels).save(project / f"labels/{name}.png")
    (project / "classes.txt").write_text("cat\ndog\n")
    (project / "link").symlink_to(tmp_path / "home")
    (project / "link_to_out").symlink_to("out")
    (tmp_path / "home/thesis.tex").write_text("years of work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(project)
    return tmp_path / "home"


def read_tree(folder):
    """Returns the content of every file and the target of every link in a folder."""
    return {
        str(path): path.read_bytes() if path.is_file() else os.readlink(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def make_video(path):
    with write_video(path, 5, (32, 32)) as write:
        for _ in range(4):
            write(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("command", "path", "message"),
    CASES,
    ids=[f"{command[0]}-{path}-{i}" for i, (command, path, _) in enumerate(CASES)],
)
def test_existing_user_file_is_not_overwritten(
    command, path, message, home, checkpoint, tiny_records, tiny_voc
):
    video = str(home / "drive.mp4")
    if command is VIDEO:
        make_video(video)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text("years of work")
    values = {"records": tiny_records, "voc": tiny_voc, "home": home, "video": video}
    module, *arguments = (x.format(model=checkpoint, **values) for x in command)
    before = read_tree(home)
    with pytest.raises(SystemExit, match=message) as error:
        run(module, *arguments)
    assert "\n" not in str(error.value.code)
    assert read_tree(home) == before
