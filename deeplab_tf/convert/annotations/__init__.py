"""Reads annotation files of common tools. One file per format, and this table of them.

A format is recognised by its content. Adding one takes a module with
`is_content(content)` and `read(file, options)`, and a row.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from etils import epath

from deeplab_tf import strict_json
from deeplab_tf.convert.annotations import (
    coco,
    cvat,
    label_studio,
    labelme,
    mask_exports,
    via,
    yolo,
)
from deeplab_tf.convert.annotations.objects import DEFAULTS, Annotations, File
from deeplab_tf.convert.class_list import read_class_list
from deeplab_tf.convert.options import AnnotationOptions
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.images import formats

__all__ = ["Annotations", "read"]

# All except YOLO, whose files contain neither image nor class names.
FORMATS = (labelme, coco, label_studio, cvat, via)
_SUFFIXES = (".json", ".xml", ".txt")
_MAX_BYTES = 2**31
_KNOWN = (
    "labelme, COCO, YOLO segmentation, Label Studio (JSON), CVAT for images 1.1 and VIA"
)


def read(path: str, options: AnnotationOptions = DEFAULTS) -> Annotations:
    """Reads an annotation file, or all annotation files in a folder and its subfolders.

    Args:
        path: File or folder.
        options: Settings that the files do not contain.

    Raises:
        UserError: if a file is broken or of an unknown format, or formats are mixed.
    """
    names = _list_files(path)
    parts: list[Annotations] = []
    texts: list[File] = []
    for name, relative in names.items():
        is_text = len(names) > 1 and formats.get_suffix(name) == ".txt"
        file = File(name, relative, _parse(name, is_text))
        content = file.content
        if isinstance(content, list) and all(isinstance(x, str) for x in content):
            texts.append(file)
        elif not yolo.is_notes(content):
            part = _read_content(file, options)
            _require_same_format(parts, part)
            parts.append(part)
    parts += _read_texts(path, texts, parts)
    if not parts:
        raise UserError(
            f"--annotations={path} contains no annotations; the formats are {_KNOWN}; "
            "for masks, use --label_dir"
        )
    return dataclasses.replace(_merge(parts), options=options)


def _list_files(path: str) -> dict[str, str]:
    """Returns the relative path of each file."""
    if file_kinds.find_kind(path) is not file_kinds.Kind.DIRECTORY:
        file_kinds.require_file(path)
        return {path: os.path.basename(path)}
    names = file_kinds.list_tree(path)
    mask_exports.refuse(path, names)
    known = [name for name in names if formats.get_suffix(name) in _SUFFIXES]
    return {os.path.join(path, name): name for name in known}


def _parse(path: str, is_text: bool) -> Any:
    """Returns parsed JSON, the root of an XML document, or the lines of a text file."""
    content = text_files.read_content(path, _MAX_BYTES)
    start = content.lstrip(b"\xef\xbb\xbf \r\n\t")[:1]
    # UTF-16 starts with one of two bytes; strict_json reports it.
    if not is_text and start in (b"{", b"[", b"\xff", b"\xfe"):
        return strict_json.parse(content, path, _MAX_BYTES)
    if not is_text and start == b"<":
        return cvat.parse(content, path)
    return text_files.split_lines(content, path)


def _read_content(file: File, options: AnnotationOptions) -> Annotations:
    """Reads parsed content in whichever format it has."""
    for module in FORMATS:
        if module.is_content(file.content):
            return module.read(file, options)
    raise UserError(
        f"{file.path} is not an annotation file in a known format ({_KNOWN})"
    )


def _read_texts(
    path: str, texts: list[File], others: list[Annotations]
) -> Iterable[Annotations]:
    """Reads the YOLO label files among text files."""
    labels = [file for file in texts if yolo.is_content(file.content)]
    if not labels:
        if len(texts) == 1 and not others:
            raise UserError(
                f"{texts[0].path} is not an annotation file in a known format "
                f"({_KNOWN})"
            )
        return
    names = _read_class_names(path, labels[0])
    for file in texts:
        if file in labels or not any(line.strip() for line in file.content):
            part = yolo.read(file, names)
            _require_same_format(others, part)
            yield part


def _read_class_names(path: str, label: File) -> tuple[str, ...]:
    """Reads the class names of YOLO's labels from the folder or one above it."""
    folder = os.path.dirname(os.path.abspath(label.path))
    top = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    while True:
        for name in yolo.NAME_FILES:
            file = os.path.join(folder, name)
            if os.path.isfile(file):
                return read_class_list(epath.Path(file), "yolo").info.class_names
        if folder in (top, os.path.dirname(folder)):
            break
        folder = os.path.dirname(folder)
    raise UserError(
        f"{label.path} is a YOLO label file, but there is no data.yaml or "
        "classes.txt with the class names in its folder or the two folders above"
    )


def _require_same_format(parts: list[Annotations], part: Annotations) -> None:
    """Raises `UserError` if formats or class lists differ."""
    if not parts:
        return
    first, second = (p.images[0].source if p.images else "" for p in (parts[0], part))
    if part.format != parts[0].format:
        raise UserError(
            f"{first} is in {parts[0].format} format, but {second} is in "
            f"{part.format} format; convert one format at a time"
        )
    if part.class_names != parts[0].class_names:
        raise UserError(
            f"{first} and {second} list different classes; convert one at a time, and "
            "give a common list with --classes"
        )


def _merge(parts: list[Annotations]) -> Annotations:
    """Joins the annotations of several files of one format."""
    merged = parts[0]
    for part in parts[1:]:
        merged.images += part.images
        merged.notes += part.notes
    return merged
