"""Images and labels that belong together by the names of their files."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds


class Entries(NamedTuple):
    """Entries of folders, by the part of their names that images and labels share.

    Attributes:
        files: Readable files.
        others: What has such a name but is something else, such as a directory.
        duplicates: Second files of a name.
    """

    files: dict[str, epath.Path]
    others: dict[str, epath.Path]
    duplicates: dict[str, epath.Path]

    def find(self, name: str, missing: str) -> epath.Path:
        """Returns the file of a name.

        Raises:
            UserError: saying what is there instead of a file, or else `missing`.
        """
        if name in self.files:
            return self.files[name]
        if name in self.others:
            file_kinds.require_file(self.others[name])
        raise UserError(missing)

    def report_skipped(self, where: epath.Path | str) -> None:
        """Prints one line on stderr about the entries that are not files, if any."""
        total = sum(map(len, self))
        others = file_kinds.find_non_files(self.others.values())
        file_kinds.report_skipped(others, total, where)


def list_folder(folder: epath.Path) -> list[epath.Path]:
    """Returns what is in a folder, without hidden entries, sorted."""
    return [folder / name for name in file_kinds.list_names(folder)]


def find_entries(
    paths: Iterable[epath.Path], name_of: Callable[[epath.Path], str | None]
) -> Entries:
    """Returns those of some listed paths that have a name.

    Args:
        paths: What was listed, sorted.
        name_of: Returns the name of a path, None for one that is not wanted.
    """
    named = [(path, name) for path in paths if (name := name_of(path)) is not None]
    kinds = file_kinds.find_non_files(path for path, _ in named)
    entries = Entries({}, {}, {})
    for path, name in named:
        if path in kinds:
            entries.others[name] = path
        elif entries.files.setdefault(name, path) != path:
            entries.duplicates[name] = path
    return entries


def require_files(images: Entries, labels: Entries) -> None:
    """Refuses entries that are not files but belong to one.

    Args:
        images: Images by name.
        labels: Labels by name.

    Raises:
        UserError: naming the file, and saying what the other entry is.
    """
    for what, files, entries in (
        ("label", images.files, labels),
        ("image", labels.files, images),
    ):
        for name in sorted(files.keys() & entries.others.keys() - entries.files.keys()):
            other = file_kinds.describe(entries.others[name])
            raise UserError(f"{files[name]} has no {what}: {other}")


class Folder(NamedTuple):
    """A folder of images or of labels, whose files end alike.

    Attributes:
        path: The folder.
        suffix: End of their names, such as "_leftImg8bit.png".
        subfolders: Their subfolders, for messages, such as "<city>/"; a name is then
            "subfolder/stem". "" if the files are in the folder itself.
    """

    path: epath.Path
    suffix: str
    subfolders: str = ""

    def entries(self) -> Entries:
        """Returns the files by name, sorted."""
        folders = [self.path]
        if self.subfolders:
            folders = [path for path in list_folder(self.path) if path.is_dir()]
        paths = [path for folder in folders for path in list_folder(folder)]
        return find_entries(paths, self._name)

    def _name(self, path: epath.Path) -> str | None:
        if not path.name.endswith(self.suffix):
            return None
        stem = path.name.removesuffix(self.suffix)
        return f"{path.parent.name}/{stem}" if self.subfolders else stem


def find_pairs(images: Folder, labels: Folder) -> dict[str, tuple[epath.Path, ...]]:
    """Returns image and label by name, sorted; what is not a file is reported.

    Args:
        images: Folder of the images.
        labels: Folder of their labels.

    Raises:
        UserError: if there is no image, an image has no label or a label no image;
            names the file that is there and the one that is missing.
    """
    of_images, of_labels = images.entries(), labels.entries()
    if not of_images.files:
        raise UserError(f"{images.path} has no {images.subfolders}*{images.suffix}")
    require_files(of_images, of_labels)
    for name in sorted(of_images.files.keys() ^ of_labels.files.keys()):
        image = of_images.files.get(name) or images.path / f"{name}{images.suffix}"
        label = of_labels.files.get(name) or labels.path / f"{name}{labels.suffix}"
        if name in of_images.files:
            raise UserError(f"{image} has no label {label}")
        raise UserError(f"{label} has no image {image}")
    for folder, entries in ((images.path, of_images), (labels.path, of_labels)):
        entries.report_skipped(folder)
    return {
        name: (of_images.files[name], of_labels.files[name]) for name in of_images.files
    }
