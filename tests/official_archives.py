"""Small archives in the layout of PASCAL VOC and SBD, with tiny images."""

import functools
import io
import tarfile

import numpy as np
import scipy.io
from PIL import Image

HEIGHT, WIDTH = 6, 8


def class_id(name):
    """Returns the class id that fills the label map of an image, 1..19."""
    return 1 + sum(name.encode()) % 19


@functools.cache
def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * value, np.uint8)).save(
        file, "JPEG"
    )
    return file.getvalue()


@functools.cache
def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@functools.cache
def mat(value, height=HEIGHT, width=WIDTH):
    """Returns an SBD label file (MATLAB) whose first pixel is background."""
    label = np.full((height, width), value, np.uint8)
    label[0, 0] = 0
    file = io.BytesIO()
    truth = {"Boundaries": np.zeros((20, 1)), "Segmentation": label}
    scipy.io.savemat(file, {"GTcls": truth}, do_compression=True)
    return file.getvalue()


def lines(names):
    return "".join(f"{name}\n" for name in names).encode()


def voc_files(train, val, unlabelled=()):
    """Returns `{path: content}` of the files; `unlabelled` images have no labels."""
    root = "VOCdevkit/VOC2012"
    lists = {"train": train, "val": val, "trainval": sorted([*train, *val])}
    files = {f"{root}/JPEGImages/{n}.jpg": jpeg(class_id(n)) for n in (*train, *val)}
    files |= {f"{root}/JPEGImages/{n}.jpg": jpeg(class_id(n)) for n in unlabelled}
    for name in (*train, *val):
        files[f"{root}/SegmentationClass/{name}.png"] = png(class_id(name))
        # Unused by the conversion.
        files[f"{root}/SegmentationObject/{name}.png"] = png(1)
    for split, names in lists.items():
        files[f"{root}/ImageSets/Segmentation/{split}.txt"] = lines(names)
        files[f"{root}/ImageSets/Main/{split}.txt"] = lines(names)
    return files


def sbd_files(train, val):
    """Returns `{path: content}` of the files."""
    root = "benchmark_RELEASE/dataset"
    files = {f"{root}/cls/{n}.mat": mat(class_id(n)) for n in (*train, *val)}
    files |= {f"{root}/inst/{n}.mat": b"unused" for n in (*train, *val)}
    return files | {f"{root}/train.txt": lines(train), f"{root}/val.txt": lines(val)}


def write_tar(path, files, *members):
    """Writes an archive of files and of further members; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gzip = {"mode": "w:gz", "compresslevel": 1}
    options = gzip if path.suffix == ".tgz" else {"mode": "w"}
    with tarfile.open(path, **options) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_300_000_000
            tar.addfile(member, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    return path
