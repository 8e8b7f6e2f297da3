"""Finds images and masks and pairs them by name."""

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

from etils import epath

from deeplab_tf.convert import pairs
from deeplab_tf.convert.mask_pattern import MaskPattern
from deeplab_tf.convert.options import Layout
from deeplab_tf.errors import UserError, escape, pluralize
from deeplab_tf.files import file_kinds
from deeplab_tf.images import formats
from deeplab_tf.images.mask_files import MASK_SUFFIXES

_ANNOTATION_SUFFIXES = {".json", ".txt", ".xml"}
_Mask = TypeVar("_Mask")


class _Kind(NamedTuple):
    """The images or the masks: their folder and the affixes of their names."""

    noun: str
    folder: str
    prefix: str
    suffix: str

    @property
    def affix_flags(self) -> str:
        """The given flags of prefix and suffix, for error messages."""
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

    def find_entries(self, paths: Sequence[str]) -> pairs.Entries:
        """Returns the files with the affixes by name, and reports other files."""
        root = epath.Path(self.folder)
        names = {root / path: self.name_of(path) for path in paths}
        others = [path for path in paths if names[root / path] is None]
        if others:
            print(
                f"ignored {pluralize(len(others), 'image(s)')} of "
                f"{escape(self.folder)} without {self.affix_flags}, such as "
                f"{escape(others[0])}",
                file=sys.stderr,
            )
        return pairs.find_entries(names, names.get)


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
        others: Subfolders of `folder` to leave out; empty strings are ignored.
        suffixes: Suffixes of the formats, in lower case.
        read: Other files that are read, and therefore not reported.

    Raises:
        UserError: if it is not a folder.
    """
    if file_kinds.find_kind(folder) is not file_kinds.Kind.DIRECTORY:
        raise UserError(f"--{flag}={folder} is not a folder")
    real = os.path.realpath(folder)
    left_out = {os.path.realpath(other) for other in others if other} - {real}
    paths = file_kinds.list_tree(folder, left_out)
    found = [path for path in paths if formats.get_suffix(path) in suffixes]
    others = {*paths} - {*found} - {os.path.relpath(path, folder) for path in read}
    formats.report_other_formats(sorted(others), folder)
    return found


def _list_files(
    layout: Layout, skipped_folder: str, is_mask: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Returns the paths of images and of masks, relative to their folders.

    `is_mask` separates them if they share one.
    """
    folders = (layout.image_dir, layout.label_dir, skipped_folder)
    paths = list_images(layout.image_dir, "image_dir", folders)
    if layout.is_shared:
        masks = [path for path in paths if is_mask(path)]
        return sorted({*paths} - {*masks}), masks
    return paths, list_images(layout.label_dir, "label_dir", folders, MASK_SUFFIXES)


def find_pairs(
    layout: Layout, skipped_folder: str = ""
) -> dict[str, tuple[epath.Path, epath.Path | None]]:
    """Returns image and mask by name, in alphabetical order.

    Names are relative paths with "/", without affixes and extension. Letter case and
    Unicode form of an image's and its mask's name may differ if that is unambiguous.

    Args:
        layout: Where the files are.
        skipped_folder: Subfolder to leave out, such as that of the output.

    Returns:
        The path of the mask is None if there is none and `missing_mask` is
        "background".

    Raises:
        UserError: if a folder is missing or empty, two files have the same name, or an
            image or a mask has no counterpart.
    """
    images = _Kind("image", layout.image_dir, layout.image_prefix, layout.image_suffix)
    labels = _Kind("label", layout.label_dir, layout.label_prefix, layout.label_suffix)

    def is_mask(path: str) -> bool:
        if labels.affix_flags:
            return labels.name_of(path) is not None
        if images.affix_flags:
            return images.name_of(path) is None
        return formats.get_suffix(path) == ".png"

    image_paths, label_paths = _list_files(layout, skipped_folder, is_mask)
    image_entries = images.find_entries(image_paths)
    label_entries = labels.find_entries(label_paths)
    found = _pair(image_entries, label_entries, layout)
    image_entries.report_skipped(layout.image_dir)
    label_entries.report_skipped(layout.label_dir)
    return found


def find_class_masks(
    layout: Layout, class_names: Sequence[str], skipped_folder: str = ""
) -> dict[str, tuple[epath.Path, dict[int, list[epath.Path]] | None]]:
    """Returns each image and its one-class masks by name, in alphabetical order.

    Args:
        layout: Where the files are; it has a `mask_pattern`.
        class_names: The classes.
        skipped_folder: As for `find_pairs`.

    Returns:
        Image, and masks by class id; None if there are none and `missing_mask` is
        "background".

    Raises:
        UserError: if the pattern is invalid or a mask does not match it; otherwise as
            `find_pairs`.
    """
    if layout.label_prefix or layout.label_suffix:
        raise UserError("--mask_pattern replaces --label_prefix and --label_suffix")
    images = _Kind("image", layout.image_dir, layout.image_prefix, layout.image_suffix)
    shape = MaskPattern(layout.mask_pattern, (), class_names)
    paths, mask_paths = _list_files(layout, skipped_folder, shape.is_possible_mask)
    entries = images.find_entries(paths)
    _require_images(entries, layout)
    pattern = MaskPattern(layout.mask_pattern, sorted(entries.files), class_names)
    root = epath.Path(layout.label_dir)
    masks = {
        name: {k: [root / path for path in paths] for k, paths in by_class.items()}
        for name, by_class in pattern.group(mask_paths).items()
    }
    where = f"{layout.label_dir} has no mask that matches --mask_pattern"
    if not masks:
        raise UserError(f"{where}={layout.mask_pattern}")
    found = _join(entries.files, masks, layout, where)
    entries.report_skipped(layout.image_dir)
    return found


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
    """Returns the mask of each image; every mask must have an image."""
    pairs.require_files(images, labels)
    affixes = f"{layout.label_prefix}*{layout.label_suffix}"
    if images.files and not labels.files and layout.is_shared and affixes == "*":
        raise UserError(
            f"images and masks are both in {layout.label_dir}, and none of them is a "
            "PNG; add --label_suffix or --label_prefix to tell masks from images"
            + _suggest_annotations(layout.label_dir)
        )
    _require_images(images, layout)
    if not labels.files:
        raise UserError(
            f"--label_dir={layout.label_dir} has no label files named {affixes} "
            f"({', '.join(MASK_SUFFIXES)}){_suggest_annotations(layout.label_dir)}"
        )
    _require_unique(labels)
    found = _match_names(images.files, labels.files)
    used = set(found.values())
    unpaired = [path for path in labels.files.values() if path not in used]
    if unpaired:
        hint = "" if found else "; see --label_prefix, --label_suffix, --mask_pattern"
        raise UserError(
            f"{layout.image_dir} has no image for {_join_first(unpaired)}{hint}"
        )
    first = next((name for name in sorted(images.files) if name not in found), "")
    example = affixes.replace("*", first.rpartition("/")[2])
    reason = f"{layout.label_dir} has no label, such as {example}.png,"
    return _join(images.files, found, layout, reason)


def _join(
    images: Mapping[str, epath.Path],
    masks: Mapping[str, _Mask],
    layout: Layout,
    reason: str,
) -> dict[str, tuple[epath.Path, _Mask | None]]:
    """Returns image and mask by name, and applies `missing_mask` to the rest.

    `reason` is as in `handle_missing_masks`.
    """
    names = sorted(images)
    missing = {name: images[name] for name in names if name not in masks}
    kept = handle_missing_masks(missing, layout.missing_mask, reason)
    return {n: (images[n], masks.get(n)) for n in names if n in masks or n in kept}


def _suggest_annotations(folder: str) -> str:
    """Returns a hint for a folder without masks if it may have annotation files."""
    suffixes = {formats.get_suffix(path) for path in file_kinds.list_tree(folder)}
    if found := sorted(suffixes & _ANNOTATION_SUFFIXES):
        return (
            f"; if its {', '.join(found)} are annotations, use --annotations={folder}"
        )
    return ""


def handle_missing_masks(
    images: Mapping[str, epath.Path], missing_mask: str, reason: str
) -> Mapping[str, epath.Path]:
    """Returns the images without a mask to label as background, and reports them.

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
            "out, or --missing_mask=background to label them as background"
        )
    action = "left out" if missing_mask == "skip" else "labelled as background"
    found = pluralize(len(images), "image(s) without a label (was|were)")
    print(f"{found} {action}: {escape(listed)}")
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


def _match_names(
    images: dict[str, epath.Path], labels: dict[str, epath.Path]
) -> dict[str, epath.Path]:
    """Returns the label of each image that has one, by the image's name.

    Also matches and reports names that differ only in letter case or Unicode form;
    raises UserError if these are ambiguous.
    """
    found = {name: labels[name] for name in images if name in labels}
    by_folded_name: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((images, labels)):
        for name in names:
            by_folded_name[fold_name(name)][side].append(name)
    different = {}
    for image_names, label_names in by_folded_name.values():
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
        count = pluralize(len(different), "label(s) (differs|differ)")
        print(
            f"{count} from the name of the image in letter case or Unicode form, such "
            f"as {escape(label)} for {escape(images[name])}"
        )
    return found | different


def fold_name(name: str) -> str:
    """Returns a name without differences in letter case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
