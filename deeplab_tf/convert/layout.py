"""Finds the images and masks of users and pairs them by name."""

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from etils import epath

from deeplab_tf.convert import pairs
from deeplab_tf.convert.mask_pattern import MaskPattern
from deeplab_tf.errors import UserError, escape, pluralize
from deeplab_tf.files import file_kinds
from deeplab_tf.images import formats
from deeplab_tf.images.mask_files import MASK_SUFFIXES

_ANNOTATION_SUFFIXES = {".json", ".txt", ".xml"}
MISSING_MASK = ("error", "background", "skip")


class Layout(NamedTuple):
    """The folders of images and masks, and how their names differ.

    Attributes:
        image_dir: Folder of the images, with subfolders.
        label_dir: Folder of the masks, with the same subfolders; may be `image_dir`.
        image_prefix: Start of every image's name; other files are no images.
        image_suffix: End of every image's name, before the extension.
        label_prefix: Start of every mask's name.
        label_suffix: End of every mask's name, before the extension.
        missing_mask: Treatment of an image without a mask: "error" refuses it,
            "background" makes all of it background, "skip" leaves it out.
        mask_pattern: Paths of masks of one class each; see `mask_pattern`.
    """

    image_dir: str
    label_dir: str
    image_prefix: str = ""
    image_suffix: str = ""
    label_prefix: str = ""
    label_suffix: str = ""
    missing_mask: str = "error"
    mask_pattern: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether images and masks are in one folder."""
        return os.path.realpath(self.image_dir) == os.path.realpath(self.label_dir)


class _Kind(NamedTuple):
    """The images or the masks: their flags and the affixes of their names."""

    noun: str
    folder: str
    prefix: str
    suffix: str

    @property
    def affix_flags(self) -> str:
        flags = {"prefix": self.prefix, "suffix": self.suffix}
        return " ".join(f"--{self.noun}_{k}={v}" for k, v in flags.items() if v)

    def name_of(self, path: str) -> str | None:
        """Returns the name that image and mask share, None for other files."""
        folder, slash, file = path.rpartition("/")
        stem = os.path.splitext(file)[0]
        if len(stem) <= len(self.prefix) + len(self.suffix):
            return None
        if not (stem.startswith(self.prefix) and stem.endswith(self.suffix)):
            return None
        end = len(stem) - len(self.suffix)
        return folder + slash + stem[len(self.prefix) : end]


def list_images(
    folder: str,
    flag: str,
    others: Sequence[str] = (),
    suffixes: Sequence[str] = formats.IMAGE_SUFFIXES,
    read: Collection[str] = (),
) -> list[str]:
    """Returns the files in image formats, relative to a folder, and reports the rest.

    Args:
        folder: The folder; its subfolders are listed as well.
        flag: The flag of the folder, for errors.
        others: Folders whose files are left out if they are below `folder`.
        suffixes: Suffixes of the formats, in lower case.
        read: Paths of other files that are read, and not reported.

    Raises:
        UserError: if it is not a folder.
    """
    if file_kinds.find_kind(folder) is not file_kinds.Kind.DIRECTORY:
        raise UserError(f"--{flag}={folder} is not a folder")
    real = os.path.realpath(folder)
    left_out = {os.path.realpath(other) for other in others} - {real}
    paths = file_kinds.list_tree(folder, left_out)
    found = [path for path in paths if formats.get_suffix(path) in suffixes]
    known = {os.path.relpath(path, folder) for path in read}
    formats.report_other_formats(sorted({*paths} - {*found} - known), folder)
    return found


def _tell_apart(
    images: _Kind, labels: _Kind, paths: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the names of the images and of the masks in one folder, by path."""
    if labels.affix_flags:
        label_names = _name_all(labels, paths)
    elif images.affix_flags:
        others = [path for path in paths if images.name_of(path) is None]
        label_names = dict(_strip(others))
    else:  # only the format tells them apart
        label_names = {p: s for p, s in _strip(paths) if _is_png(p)}
    return _name_all(images, [p for p in paths if p not in label_names]), label_names


def _is_png(path: str) -> bool:
    return formats.get_suffix(path) == ".png"


def _strip(paths: Sequence[str]) -> list[tuple[str, str]]:
    return [(path, os.path.splitext(path)[0]) for path in paths]


def _name_all(kind: _Kind, paths: Sequence[str]) -> dict[str, str]:
    """Returns the name of each file whose name has the affixes."""
    names = {path: kind.name_of(path) for path in paths}
    return {path: name for path, name in names.items() if name is not None}


def _make_entries(folder: str, names: dict[str, str]) -> pairs.Entries:
    root = epath.Path(folder)
    by_path = {root / path: name for path, name in names.items()}
    return pairs.find_entries(by_path, by_path.get)


def _report_other_names(kind: _Kind, paths: Sequence[str], named: dict) -> None:
    """Prints a line on stderr about files without the affixes, if there are any."""
    others = [path for path in paths if path not in named]
    if others and kind.affix_flags:
        print(
            f"passed over {pluralize(len(others), 'image(s)')} of "
            f"{escape(kind.folder)} without "
            f"{kind.affix_flags}, such as {escape(others[0])}",
            file=sys.stderr,
        )


def find_pairs(
    layout: Layout, skipped_folder: str = ""
) -> dict[str, tuple[epath.Path, epath.Path | None]]:
    """Returns image and mask by name, in alphabetical order.

    Names are relative paths with "/", without affixes and extension. Letter case and
    Unicode form of an image's and its mask's name may differ if that is unambiguous.

    Args:
        layout: Where the files are.
        skipped_folder: Folder inside of them to leave out, such as that of the output.

    Returns:
        The path of the mask is None if there is none and `missing_mask` is
        "background".

    Raises:
        UserError: if a folder is missing or empty, two files have the same name, or an
            image or a mask has no counterpart.
    """
    images = _Kind("image", layout.image_dir, layout.image_prefix, layout.image_suffix)
    labels = _Kind("label", layout.label_dir, layout.label_prefix, layout.label_suffix)
    folders = (layout.image_dir, layout.label_dir, *filter(None, [skipped_folder]))
    image_paths = list_images(layout.image_dir, "image_dir", folders)
    if layout.is_shared:
        image_names, label_names = _tell_apart(images, labels, image_paths)
        _report_other_names(images, image_paths, image_names | label_names)
    else:
        label_paths = list_images(
            *(layout.label_dir, "label_dir", folders, MASK_SUFFIXES)
        )
        image_names = _name_all(images, image_paths)
        label_names = _name_all(labels, label_paths)
        _report_other_names(images, image_paths, image_names)
        _report_other_names(labels, label_paths, label_names)
    image_entries = _make_entries(layout.image_dir, image_names)
    label_entries = _make_entries(layout.label_dir, label_names)
    found = _pair(image_entries, label_entries, layout)
    image_entries.report_skipped(layout.image_dir)
    label_entries.report_skipped(layout.label_dir)
    return found


def find_class_masks(
    layout: Layout, class_names: Sequence[str], skipped_folder: str = ""
) -> dict[str, tuple[epath.Path, dict[int, list[epath.Path]]]]:
    """Returns image and masks of one class each by name, in alphabetical order.

    Args:
        layout: Where the files are; it has a `mask_pattern`.
        class_names: The classes.
        skipped_folder: As for `find_pairs`.

    Returns:
        Image, and masks by class id; none if there are none and `missing_mask` is
        "background".

    Raises:
        UserError: if the pattern is invalid or a mask does not match it; otherwise as
            `find_pairs`.
    """
    if layout.label_prefix or layout.label_suffix:
        raise UserError("--mask_pattern replaces --label_prefix and --label_suffix")
    kind = _Kind("image", layout.image_dir, layout.image_prefix, layout.image_suffix)
    folders = (layout.image_dir, layout.label_dir, *filter(None, [skipped_folder]))
    paths = list_images(layout.image_dir, "image_dir", folders)
    if layout.is_shared:
        shape = MaskPattern(layout.mask_pattern, (), class_names)
        mask_paths = [path for path in paths if shape.has_shape(path)]
        paths = sorted({*paths} - {*mask_paths})
    else:
        arguments = (layout.label_dir, "label_dir", folders, MASK_SUFFIXES)
        mask_paths = list_images(*arguments)
    names = _name_all(kind, paths)
    _report_other_names(kind, paths, names)
    images = _make_entries(layout.image_dir, names)
    _require_images(images, layout)
    sorted_names = sorted(images.files)
    pattern = MaskPattern(layout.mask_pattern, sorted_names, class_names)
    root = epath.Path(layout.label_dir)
    masks = {
        name: {k: [root / path for path in paths] for k, paths in by_class.items()}
        for name, by_class in pattern.group(mask_paths).items()
    }
    missing = {n: p for n, p in images.files.items() if n not in masks}
    where = f"{layout.label_dir} has no mask that matches --mask_pattern"
    if not masks:
        raise UserError(f"{where}={layout.mask_pattern}")
    kept = report_missing(missing, layout.missing_mask, where)
    images.report_skipped(layout.image_dir)
    return {
        name: (images.files[name], masks.get(name, {}))
        for name in sorted_names
        if name in masks or name in kept
    }


def _require_images(images: pairs.Entries, layout: Layout) -> None:
    if not images.files:
        suffixes = ", ".join(formats.IMAGE_SUFFIXES)
        raise UserError(
            f"--image_dir={layout.image_dir} contains no images ({suffixes})"
        )
    _require_unique(images)


def _pair(
    images: pairs.Entries, labels: pairs.Entries, layout: Layout
) -> dict[str, tuple[epath.Path, epath.Path | None]]:
    pairs.require_files(images, labels)
    affixes = f"{layout.label_prefix}*{layout.label_suffix}"
    if images.files and not labels.files and layout.is_shared and affixes == "*":
        raise UserError(
            f"images and masks are both in {layout.label_dir}, and none of them is a "
            "PNG; add --label_suffix or --label_prefix to tell them apart"
            + _suggest_annotations(layout.label_dir)
        )
    _require_images(images, layout)
    if not labels.files:
        raise UserError(
            f"--label_dir={layout.label_dir} has no label {affixes} "
            f"({', '.join(MASK_SUFFIXES)}){_suggest_annotations(layout.label_dir)}"
        )
    _require_unique(labels)
    found = _match(images.files, labels.files)
    used = set(found.values())
    unpaired = [path for path in labels.files.values() if path not in used]
    if unpaired:
        hint = "" if found else "; see --label_prefix, --label_suffix, --mask_pattern"
        raise UserError(
            f"{layout.image_dir} has no image for {_join_first(unpaired)}{hint}"
        )
    names = sorted(images.files)
    missing = [name for name in names if name not in found]
    example = affixes.replace("*", (missing or [""])[0].rpartition("/")[2])
    kept = report_missing(
        {name: images.files[name] for name in missing},
        layout.missing_mask,
        f"{layout.label_dir} has no label, such as {example}.png,",
    )
    names = [name for name in names if name in found or name in kept]
    return {name: (images.files[name], found.get(name)) for name in names}


def _suggest_annotations(folder: str) -> str:
    """Returns a hint for a folder without masks if it may have annotation files."""
    suffixes = {formats.get_suffix(path) for path in file_kinds.list_tree(folder)}
    if found := sorted(suffixes & _ANNOTATION_SUFFIXES):
        return (
            f"; if its {', '.join(found)} are annotations, use --annotations={folder}"
        )
    return ""


def report_missing(
    images: dict[str, epath.Path], missing_mask: str, reason: str
) -> dict[str, epath.Path]:
    """Returns the images without a mask that are kept, and reports them.

    Args:
        images: The images without a mask, by name.
        missing_mask: As in `Layout`.
        reason: Start of the error, such as "masks has no label".

    Raises:
        UserError: if there are any and `missing_mask` is "error".
    """
    if not images:
        return {}
    listed = _join_first(list(images.values()))
    if missing_mask == "error":
        raise UserError(
            f"{reason} for {listed}; add --missing_mask=skip to leave such images "
            "out, or --missing_mask=background if they show nothing else"
        )
    fate = "left out" if missing_mask == "skip" else "taken as background"
    found = pluralize(len(images), "image(s) without a label (was|were)")
    print(f"{found} {fate}: {escape(listed)}")
    return images if missing_mask == "background" else {}


def _join_first(paths: Sequence[epath.Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(os.fspath(path) for path in paths[:3]) + more


def _require_unique(entries: pairs.Entries) -> None:
    for stem, path in entries.duplicates.items():
        raise UserError(
            f"{entries.files[stem]} and {path.name} have the same name; remove one of "
            "them"
        )


def _match(
    images: dict[str, epath.Path], labels: dict[str, epath.Path]
) -> dict[str, epath.Path]:
    """Returns the label of each image that has one, by the image's name."""
    found = {name: labels[name] for name in images if name in labels}
    alike: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((images, labels)):
        for name in names:
            alike[fold(name)][side].append(name)
    different = {}
    for image_names, label_names in alike.values():
        rest = [name for name in image_names if name not in found]
        if rest and any(name not in images for name in label_names):
            if len(image_names) > 1 or len(label_names) > 1:
                listed = ", ".join(map(repr, sorted({*image_names, *label_names})))
                raise UserError(
                    f"{images[rest[0]]}: the names {listed} of images and labels "
                    "differ only in letter case or Unicode form; rename them"
                )
            different[rest[0]] = labels[label_names[0]]
    if different:
        name, label = next(iter(different.items()))
        print(
            pluralize(len(different), "label(s) (has|have) the name of the image")
            + f" in another letter case or Unicode form, such as {escape(label)} for "
            f"{escape(images[name])}"
        )
    return found | different


def fold(name: str) -> str:
    """Returns a name without differences in letter case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
