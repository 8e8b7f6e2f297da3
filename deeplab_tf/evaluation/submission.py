"""Writes archives of label maps for the evaluation servers of benchmarks.

The formats follow section 5.3 of the VOC2012 development kit and the script
`evalPixelLevelSemanticLabeling` from Cityscapes.
"""

import io
import re
import tarfile
import tempfile
import zipfile

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import CITYSCAPES_IDS, DatasetInfo, dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.visualize import encode_palette_png, encode_png

_VOC_NAME = re.compile("[0-9]{4}_[0-9]{6}")
_VOC_COMPETITIONS = ("comp5", "comp6")
_TAR_MODES = {".tgz": "w:gz", ".tar.gz": "w:gz", ".tar": "w"}
# Names in records lack the suffix of the image files.
_CITYSCAPES_NAME = re.compile("([A-Za-z-]+_[0-9]{6}_[0-9]{6})(_leftImg8bit)?")
_CITYSCAPES_SIZE = (1024, 2048)  # height, width


class _Submission:
    """An archive of label maps, written atomically.

    Subclasses open the archive, append to it, name its members and encode label maps.
    """

    _benchmark = ""
    _suffixes = ()

    def __init__(self, path: str, info: DatasetInfo, overwrite: bool = False):
        self._num_classes = dataset_info(self._benchmark).num_classes
        if info.num_classes != self._num_classes:
            raise UserError(
                f"a submission to {self._benchmark} needs its {self._num_classes} "
                f"classes; {info.name} has {info.num_classes}"
            )
        if not path.endswith(tuple(self._suffixes)):
            raise UserError(
                f"{path} must end with {' or '.join(self._suffixes)}, as "
                f"{self._benchmark} requires"
            )
        self._path = path
        self._overwrite = overwrite

    def __enter__(self):
        """Checks that the path can be written and opens a scratch archive."""
        folder, name = outputs.split_path(self._path)
        if not tf.io.gfile.isdir(folder):
            raise UserError(
                f"{self._path} cannot be written, because there is no folder {folder}; "
                "create it"
            )
        outputs.claim(folder, [name], self._overwrite)
        self._members = set()
        # Writing an archive needs seeks, which gs:// does not support.
        self._scratch = tempfile.TemporaryFile()
        self._archive = self._open(self._scratch)
        return self

    def __exit__(self, error_type, error, trace):
        """Publishes the archive unless there was an error."""
        with self._scratch:
            self._archive.close()
            if error_type is None:
                self._publish()

    def _publish(self) -> None:
        if not self._members:
            raise UserError(f"{self._path} would be empty: no image was labelled")
        self._scratch.seek(0)
        outputs.write_bytes(self._scratch.read(), self._path)

    def add(self, name: str, labels: np.ndarray) -> None:
        """Adds the label map of one image.

        Args:
            name: Name of the image file without extension.
            labels: Class ids `[height, width]` at the size of the image.

        Raises:
            UserError: if the server would reject the name or the labels, or the image
                was already added.
        """
        member = self._make_member_name(name)
        if member in self._members:
            raise UserError(f"image {name} was added twice to {self._path}")
        labels = np.asarray(labels)
        self._check(name, labels)
        self._append(member, self._encode(labels))
        self._members.add(member)

    def _check(self, name: str, labels: np.ndarray) -> None:
        """Raises UserError for a name or labels that the server would reject."""
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            raise UserError(
                f"the labels of {name} must be integers [height, width]; received "
                f"{labels.dtype} {list(labels.shape)}"
            )
        wrong = labels[(labels < 0) | (labels >= self._num_classes)]
        if wrong.size:
            raise UserError(
                f"{name} has the label {wrong[0]}; the classes of {self._benchmark} "
                f"are 0..{self._num_classes - 1}"
            )


class VocSubmission(_Submission):
    """An archive of results on the test images of PASCAL VOC 2012.

    A context manager: entering checks that the path can be written, and leaving writes
    the archive unless there was an error.

    Args:
        path: Archive to write, `.tgz`, `.tar.gz` or `.tar`; `tf.io.gfile` paths work.
        info: Classes of the model; must be the 21 of VOC.
        competition: "comp5" for models trained on VOC only, "comp6" for all others,
            including those pretrained on ImageNet.
        overwrite: Whether to replace files that deeplab_tf did not write.

    Raises:
        UserError: for an invalid argument, or if no image was added.
    """

    _benchmark = "pascal_voc_seg"
    _suffixes = tuple(_TAR_MODES)

    def __init__(
        self,
        path: str,
        info: DatasetInfo,
        competition: str = "comp6",
        overwrite: bool = False,
    ):
        super().__init__(path, info, overwrite)
        if competition not in _VOC_COMPETITIONS:
            raise UserError(
                f"competition must be {' or '.join(_VOC_COMPETITIONS)}; received "
                f"{competition!r}"
            )
        self._folder = f"results/VOC2012/Segmentation/{competition}_test_cls"

    def _open(self, scratch) -> tarfile.TarFile:
        mode = next(m for s, m in _TAR_MODES.items() if self._path.endswith(s))
        return tarfile.open(fileobj=scratch, mode=mode)

    def _append(self, member: str, content: bytes) -> None:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        self._archive.addfile(entry, io.BytesIO(content))

    def _make_member_name(self, name: str) -> str:
        if not _VOC_NAME.fullmatch(name):
            raise UserError(
                f"{name} is not the name of a VOC image, such as 2008_000006"
            )
        return f"{self._folder}/{name}.png"

    def _encode(self, labels: np.ndarray) -> bytes:
        # VOC's palette, even if the model has different colours.
        return encode_palette_png(labels, dataset_info(self._benchmark))


class CityscapesSubmission(_Submission):
    """An archive of results on the test images of Cityscapes, as labelIds images.

    A context manager: entering checks that the path can be written, and leaving writes
    the archive unless there was an error.

    Args:
        path: Archive to write, `.zip`; `tf.io.gfile` paths work.
        info: Classes of the model; must be the 19 of Cityscapes.
        overwrite: Whether to replace files that deeplab_tf did not write.

    Raises:
        UserError: for an invalid argument, or if no image was added.
    """

    _benchmark = "cityscapes"
    _suffixes = (".zip",)

    def _open(self, scratch) -> zipfile.ZipFile:
        return zipfile.ZipFile(scratch, "w")

    def _append(self, member: str, content: bytes) -> None:
        self._archive.writestr(member, content)

    def _make_member_name(self, name: str) -> str:
        match = _CITYSCAPES_NAME.fullmatch(name)
        if match is None:
            raise UserError(
                f"{name} is not the name of a Cityscapes image, such as "
                "berlin_000000_000019_leftImg8bit"
            )
        return f"{match[1]}_labelIds.png"

    def _check(self, name: str, labels: np.ndarray) -> None:
        super()._check(name, labels)
        if labels.shape != _CITYSCAPES_SIZE:
            height, width = _CITYSCAPES_SIZE
            raise UserError(
                f"the labels of {name} are {labels.shape[1]}x{labels.shape[0]}; the "
                f"Cityscapes server needs {width}x{height}, the size of its images"
            )

    def _encode(self, labels: np.ndarray) -> bytes:
        return encode_png(np.array(CITYSCAPES_IDS, np.uint8)[labels])


SUBMISSIONS = {"pascal_voc_seg": VocSubmission, "cityscapes": CityscapesSubmission}
