"""docs/own_data.md leads from every kind of files to a report and an exported model.

Its commands run as written, from the installed wheel and outside of the checkout.
"""

import json
import pathlib
import re
import shlex
import shutil
import time

import annotation_files
import numpy as np
import pytest
import wheels
from doc_pages import OWN_DATA, find_blocks, find_commands
from PIL import Image
from record_files import read_records

CHECKPOINT = "mobilenetv2_coco_voc_trainval"
CLASSES = ("background", "cat", "dog")
COLORS = ((0, 0, 0), (48, 112, 32), (176, 112, 32))
COUNT = 40
# Two objects per image that do not overlap, so that every tool draws them alike.
SCENES = {
    f"IMG_{i:04d}.jpg": [
        ("cat", i % 9, i % 7, i % 9 + 9, i % 7 + 11),
        ("dog", 20 + i % 8, 12 + i % 5, 31 + i % 8, 24 + i % 5),
    ]
    for i in range(1, COUNT + 1)
}


def draw(scene):
    return annotation_files.draw_truth(scene, {"cat": 1, "dog": 2})


def save_masks(encode, classes=CLASSES):
    """Returns a function that writes masks, by `encode(label)`, and a class file."""

    def save(folder):
        for name, scene in SCENES.items():
            path = (folder / "masks" / name).with_suffix(".png")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(encode(draw(scene))).save(path)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))

    return save


def save_class_masks(folder):
    """Writes a mask of each class but background."""
    (folder / "masks").mkdir()
    for name, scene in SCENES.items():
        for i, class_name in enumerate(CLASSES[1:], 1):
            path = folder / f"masks/{name[:-4]}_{class_name}.png"
            Image.fromarray(np.uint8(draw(scene) == i) * 255).save(path)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def save_cvat_masks(folder):
    """Writes the export "Segmentation mask 1.1" of CVAT."""
    (folder / "SegmentationClass").mkdir()
    for name, scene in SCENES.items():
        colors = np.array(COLORS, np.uint8)[draw(scene)]
        path = (folder / "SegmentationClass" / name).with_suffix(".png")
        Image.fromarray(colors).save(path)
    lines = [
        f"{name}:{','.join(map(str, color))}::\n"
        for name, color in zip(CLASSES, COLORS, strict=True)
    ]
    text = "# label:color_rgb:parts:actions\n" + "".join(lines)
    (folder / "labelmap.txt").write_text(text)


def save_labelme(folder):
    annotation_files.save_labelme(folder / "images", SCENES)


def save_coco(folder):
    annotation_files.save_coco(folder, SCENES)


def save_yolo(folder):
    annotation_files.save_yolo(folder, SCENES)


def save_cvat(folder):
    annotation_files.save_cvat(folder, SCENES)


BLACK_AND_WHITE = "Black-and-white masks"
# Heading on the page -> function that writes such files.
KINDS = {
    "Masks of class ids or colours": save_masks(np.uint8),
    BLACK_AND_WHITE: save_masks(
        lambda label: np.uint8(label > 0) * 255, ("background", "object")
    ),
    "One mask per class": save_class_masks,
    "labelme": save_labelme,
    "COCO": save_coco,
    "YOLO segmentation": save_yolo,
    "CVAT": save_cvat,
}


def read_section(heading):
    """Returns the text below a heading of the page, up to the next one."""
    _, _, rest = OWN_DATA.read_text().partition(f"\n### {heading}\n")
    return re.split(r"^## |^### ", rest, maxsplit=1, flags=re.M)[0]


def find_command(section):
    block = re.search(r"^```bash\n(.*?)^```", section, re.M | re.S)[1]
    return block.replace("\\\n", " ")


def find_outputs(section):
    """Returns the printed lines in a section as patterns; `...` is any text."""
    blocks = re.findall(r"^```text\n(.*?)^```", section, re.M | re.S)
    blocks = [block for block in blocks if not block.startswith("my_data/")]
    blocks += re.findall(r"`(annotations: [^`]+)`", section)
    lines = [" ".join(block.split()) for block in blocks]
    return [re.escape(line).replace(r"\.\.\.", ".*") for line in lines]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = wheels.build_wheel(wheels.build_sdist(folder), folder)
    wheels.install(wheel, folder / "environment")
    return folder / "environment"


@pytest.fixture
def run(environment, voc_checkpoint, tmp_path):
    """A function that runs a command of the page; the folder has a checkpoint."""
    # A folder of this name is preferred to the zoo, which needs the network.
    (tmp_path / CHECKPOINT).symlink_to(pathlib.Path(voc_checkpoint).parent)

    def run(command, status=0):
        program, *arguments = shlex.split(command)
        path = environment / "bin" / program
        result = wheels.run(path, *arguments, folder=tmp_path)
        assert result.returncode == status, result.stderr
        return " ".join((result.stderr if status else result.stdout).split())

    return run


@pytest.fixture
def data(tmp_path):
    """The folder `my_data` with images only, in which each class has a colour."""
    folder = tmp_path / "my_data"
    (folder / "images").mkdir(parents=True)
    for i, (name, scene) in enumerate(SCENES.items()):
        colors = np.array([[90, 110, 70], [200, 60, 50], [50, 80, 210]])[draw(scene)]
        noise = np.random.RandomState(i).normal(0, 12, colors.shape)
        pixels = np.clip(colors + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name, quality=95)
    return folder


def check_records(folder, classes=CLASSES):
    """Checks class names, image names and every label; returns the names of val."""
    splits = [read_records(folder, split) for split in ("train", "val")]
    assert [names for names, _ in splits] == [classes] * 2
    assert [len(labels) for _, labels in splits] == [30, 10]
    labels = splits[0][1] | splits[1][1]
    assert sorted(labels) == [name[:-4] for name in SCENES]
    for name, scene in SCENES.items():
        truth = np.minimum(draw(scene), len(classes) - 1)
        np.testing.assert_array_equal(labels[name[:-4]], truth)
    return list(splits[1][1])


def test_every_section_has_a_test():
    first_step = OWN_DATA.read_text().partition("\n## 2.")[0]
    assert re.findall("^### (.*)", first_step, re.M) == list(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("heading", KINDS)
def test_page_leads_from_files_to_a_report(heading, run, data, tmp_path):
    KINDS[heading](data)
    section = read_section(heading)
    command, outputs = find_command(section), find_outputs(section)
    classes = CLASSES
    if heading == BLACK_AND_WHITE:
        classes = ("background", "object")
        flag = "--value_map=255:object "
        assert command.count(flag) == 1
        assert re.search(outputs.pop(), run(command.replace(flag, ""), status=1))
    printed = run(command)
    for output in outputs:
        assert re.search(output, printed)
    val_images = check_records(tmp_path / "tfrecord/my_data", classes)
    if heading in ("Masks of class ids or colours", "One mask per class"):
        return  # the rest is the same as for other masks
    doctor, train, evaluate = (
        next(c for c in find_commands([OWN_DATA]) if c.startswith(f"deeplab-{program}"))
        for program in ("doctor", "train", "eval")
    )
    assert run(doctor).endswith("safe to train")
    page = (tmp_path / "tfrecord/my_data/doctor.html").read_text()
    assert "deeplab-train" in page and "data:image" in page
    run(re.sub(r"(--training_number_of_steps)=\d+", r"\1=2", train))
    run(evaluate)
    report = (tmp_path / "eval_my_data/report.html").read_text()
    assert all(name in report for name in (*classes, "Worst images"))
    # The images of the split, as the worst and the best.
    assert set(re.findall("IMG_[0-9]{4}", report)) == set(val_images)


@pytest.mark.slow
def test_cvat_commands_of_the_page_run(run, data, tmp_path):
    save_cvat_masks(data)
    flags = re.findall("`(--label_dir=.*)`", read_section("CVAT"))[0]
    command = find_command(read_section("Masks of class ids or colours"))
    for flag in flags.split():
        command = re.sub(rf"{flag.partition('=')[0]}=\S+", flag, command)
    run(command)
    check_records(tmp_path / "tfrecord/my_data")


@pytest.fixture
def camvid_data(camvid, tmp_path):
    """The folder `my_data` with 40 real images, masks and renamed classes."""
    data = tmp_path / "my_data"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
    for photo in sorted((camvid / "train").iterdir())[::9][:COUNT]:
        shutil.copy(photo, data / "images")
        mask = np.array(Image.open(camvid / f"trainannot/{photo.stem}.png"))
        mask[mask == 11] = 255  # CamVid's own value of void
        Image.fromarray(mask).save(data / f"masks/{photo.stem}.png")
    names = "heaven house post street footpath plant board barrier vehicle person rider"
    (data / "classes.txt").write_text("\n".join(names.split()) + "\n")
    return tmp_path


@pytest.mark.slow
def test_page_runs_line_by_line(camvid_data, environment, run):
    start = time.monotonic()
    run(find_command(read_section("Masks of class ids or colours")))
    steps = find_commands([OWN_DATA])
    first = next(i for i, c in enumerate(steps) if c.startswith("deeplab-doctor"))
    for command in steps[first:]:
        run(command)
    (script,) = find_blocks("python", [OWN_DATA])
    result = wheels.run(environment / "bin/python", "-c", script, folder=camvid_data)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    metrics = json.loads((camvid_data / "eval_my_data/metrics.json").read_text())
    print(f"mIoU {metrics['miou']:.3f}")
    # Of sky, buildings and road alone it could not be more than 3 / 11.
    assert metrics["miou"] > 0.35
    assert "heaven" in (camvid_data / "eval_my_data/report.html").read_text()
    assert (camvid_data / "pictures_my_data/overview.png").exists()
