"""Finds masks of one class each by a pattern of their names."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence

from deeplab_tf.errors import UserError, escape

_TOKEN = re.compile(r"(\{[^{}]*\}|\*)")
_IMAGE, _INDEX, _CLASS = "{image}", "{index}", "{class}"

# Masks of an image by class id, as paths relative to the folder of masks.
ClassMasks = dict[int, list[str]]


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFC", text)


class MaskPattern:
    """A pattern of the paths of masks, such as `{image}_{class}.png`.

    The fields are `{image}`, an image's name; or `{index}`, its number in sorted order,
    from 1; `{class}`, a class name; and `*`, any text.

    Args:
        pattern: The pattern; all other text is literal.
        images: Names of the images, sorted.
        class_names: Names of the classes.

    Raises:
        UserError: if the pattern does not have exactly these fields.
    """

    def __init__(self, pattern: str, images: Sequence[str], class_names: Sequence[str]):
        self._pattern = pattern
        self._class_names = class_names
        self._images = {_normalize(name): name for name in images}
        self._by_index = {str(i): name for i, name in enumerate(images, 1)}
        tokens = _TOKEN.split(_normalize(pattern))
        fields = [token for token in tokens if token.startswith("{")]
        if sorted(fields) not in ([_CLASS, _IMAGE], [_CLASS, _INDEX]):
            raise UserError(
                f"--mask_pattern={pattern} must have {_CLASS}, and either {_IMAGE} or "
                f"{_INDEX}, once each; * matches any text"
            )
        self._is_numbered = _INDEX in fields
        middle = tokens.index(_INDEX if self._is_numbered else _IMAGE)
        # Patterns of the text before and after the image, for each class.
        self._halves = [
            (_compile(tokens[:middle], name), _compile(tokens[middle + 1 :], name))
            for name in class_names
        ]

    def group(self, paths: Sequence[str]) -> dict[str, ClassMasks]:
        """Returns the masks of each image by class id.

        Raises:
            UserError: if a path does not match or matches in two ways; names the
                fields.
        """
        found: dict[str, ClassMasks] = {}
        unmatched = []
        for path in paths:
            matches = sorted(set(self._find_matches(path)))
            if len(matches) > 1:
                listed = " or ".join(
                    f"{self._class_names[k]} of {name}" for name, k in matches[:2]
                )
                raise UserError(
                    f"--mask_pattern={self._pattern} is ambiguous for {escape(path)}: "
                    f"{listed}"
                )
            if not matches:
                unmatched.append(path)
            for name, class_id in matches:
                found.setdefault(name, {}).setdefault(class_id, []).append(path)
        if unmatched:
            raise UserError(self._describe_unmatched(unmatched, len(paths)))
        return found

    def is_possible_mask(self, path: str) -> bool:
        """Returns whether a path may match the pattern, whatever the image's name."""
        path = _normalize(path)
        for left, right in self._halves:
            starts, stops = _find_ends(left, right, path)
            if starts and stops and starts[0] < stops[-1]:
                return True
        return False

    def _find_matches(self, path: str) -> Iterator[tuple[str, int]]:
        """Yields image name and class id of each way to match a path."""
        path = _normalize(path)
        for class_id, (left, right) in enumerate(self._halves):
            if _normalize(self._class_names[class_id]) not in path:
                continue  # the search below is slow
            starts, stops = _find_ends(left, right, path)
            for start in starts:
                for stop in stops:
                    name = self._find_image(path, start, stop)
                    if name is not None:
                        yield name, class_id

    def _find_image(self, path: str, start: int, stop: int) -> str | None:
        """Returns the image that a part of a path names or numbers; None without."""
        text = path[start:stop]
        if not self._is_numbered:
            return self._images.get(text)
        if (
            path[max(start - 1, 0) : start].isdecimal()
            or path[stop : stop + 1].isdecimal()
        ):
            return None  # a part of a number
        return self._by_index.get(text.lstrip("0"))

    def _describe_unmatched(self, paths: Collection[str], total: int) -> str:
        """Returns the error for masks that do not match, with the fields."""
        image = next(iter(self._images.values()), "")
        field = f"{_IMAGE} (the name of an image, such as {escape(image)})"
        if self._is_numbered:
            field = f"{_INDEX} (the number of an image, 1..{len(self._images)})"
        classes = ", ".join(self._class_names[:5])
        if len(self._class_names) > 5:
            classes += f" and {len(self._class_names) - 5} more"
        other = f"name, use {_IMAGE}" if self._is_numbered else f"number, use {_INDEX}"
        return (
            f"--mask_pattern={self._pattern} does not match {len(paths)} of {total} "
            f"masks, such as {escape(next(iter(paths)))}; its fields are {field}, "
            f"{_CLASS} (a class: {classes}) and * (any text); to match images by "
            f"{other} instead"
        )


def _find_ends(
    left: re.Pattern, right: re.Pattern, path: str
) -> tuple[list[int], list[int]]:
    """Returns where the text between two patterns may start and stop."""
    ends = range(len(path) + 1)
    starts = [i for i in ends if left.fullmatch(path, 0, i)]
    return starts, [i for i in ends if right.fullmatch(path, i)] if starts else []


def _compile(tokens: Sequence[str], class_name: str) -> re.Pattern:
    texts: Mapping[str, str] = {
        "*": "[^/]*",
        _CLASS: re.escape(_normalize(class_name)),
    }
    return re.compile("".join(texts.get(t) or re.escape(t) for t in tokens))
