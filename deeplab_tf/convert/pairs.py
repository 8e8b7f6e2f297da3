"""Pairs images with labels by the names of their files."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds


class Entries(NamedTuple):
    """Folder entries, by the part of their names that images and labels share.

    `others` are not files, such as directories; `duplicates` are second files of the
    same name.
    """

    files: dict[str, epath.Path]
    others: dict[str, epath.Path]
    duplicates: dict[str, epath.Path]

    def find(self, name: str, missing: str) -> epath.Path:
        """Returns the file of a name.

        Raises:
            UserError: if the entry is not a file, or with the message `missing` if
                there is none.
        """
        if name in self.files:
            return self.files[name]
        if name in self.others:
            file_kinds.require_file(self.others[name])
        raise UserError(missing)

    def report_skipped(self, where: epath.Path | str) -> None:
        """Prints a line on stderr about the entries that are not files, if any."""
        total = sum(map(len, self))
        others = file_kinds.find_non_files(self.others.values())
        file_kinds.report_skipped(others, total, where)


def list_folder(folder: epath.Path) -> list[epath.Path]:
    """Returns the entries of a folder, sorted and without hidden ones."""
    return [folder / name for name in file_kinds.list_names(folder)]


def find_entries(
    paths: Iterable[epath.Path], name_of: Callable[[epath.Path], str | None]
) -> Entries:
    """Groups sorted paths by name; `name_of` returns None for paths to leave out."""
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
    """Raises `UserError` if the counterpart of an image or a label is not a file."""
    for kind, files, entries in (
        ("label", images.files, labels),
        ("image", labels.files, images),
    ):
        for name in sorted(files.keys() & entries.others.keys() - entries.files.keys()):
            other = file_kinds.describe(entries.others[name])
            raise UserError(f"{files[name]} has no {kind}: {other}")


class Folder(NamedTuple):
    """A folder of images or labels whose names have a common suffix.

    Attributes:
        path: The folder.
        suffix: The common suffix, such as "_leftImg8bit.png".
        subfolders: Pattern of the subfolders for messages, such as "<city>/", if the
            files are in subfolders; their names are then "subfolder/stem".
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
        """Returns the common name of image and label in a path, None without suffix."""
        if not path.name.endswith(self.suffix):
            return None
        stem = path.name.removesuffix(self.suffix)
        return f"{path.parent.name}/{stem}" if self.subfolders else stem


def find_pairs(images: Folder, labels: Folder) -> dict[str, tuple[epath.Path, ...]]:
    """Returns each image and its label by name, sorted, and reports skipped entries.

    Raises:
        UserError: if there is no image, or an image or a label has no counterpart.
    """
    image_entries, label_entries = images.entries(), labels.entries()
    if not image_entries.files:
        raise UserError(
            f"{images.path} has no files {images.subfolders}*{images.suffix}"
        )
    require_files(image_entries, label_entries)
    for name in sorted(image_entries.files.keys() ^ label_entries.files.keys()):
        image = image_entries.files.get(name) or images.path / f"{name}{images.suffix}"
        label = label_entries.files.get(name) or labels.path / f"{name}{labels.suffix}"
        if name in image_entries.files:
            raise UserError(f"{image} has no label {label}")
        raise UserError(f"{label} has no image: {image} does not exist")
    for folder, entries in ((images.path, image_entries), (labels.path, label_entries)):
        entries.report_skipped(folder)
    return {
        name: (image_entries.files[name], label_entries.files[name])
        for name in image_entries.files
    }
