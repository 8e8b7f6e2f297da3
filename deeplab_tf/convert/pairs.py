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
        others = file_kinds.find_other_kinds(self.others.values())
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
    kinds = file_kinds.find_other_kinds(path for path, _ in named)
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


def require_pairs(
    images: Entries,
    labels: Entries,
    image_path: Callable[[str], epath.Path],
    label_path: Callable[[str], epath.Path],
) -> None:
    """Refuses images without a label, and labels without an image.

    Args:
        images: Images by name.
        labels: Labels by name.
        image_path: Returns where the image of such a name should be.
        label_path: Returns where its label should be.

    Raises:
        UserError: naming the file that is there and the one that is missing.
    """
    require_files(images, labels)
    for name in sorted(images.files.keys() ^ labels.files.keys()):
        if name in images.files:
            raise UserError(f"{images.files[name]} has no label {label_path(name)}")
        raise UserError(f"{labels.files[name]} has no image {image_path(name)}")
