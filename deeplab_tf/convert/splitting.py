"""Divides samples into training and validation, exactly and stably."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from deeplab_tf.convert.options import Splitting
from deeplab_tf.data.info import normalize_split
from deeplab_tf.errors import UserError

_VAL = "val"


def split_names(
    names: Sequence[str],
    splitting: Splitting,
    earlier: Mapping[str, str],
    classes_of: Callable[[Sequence[str]], Mapping[str, Hashable | None]],
) -> dict[str, list[str]]:
    """Returns the names of each split, in the order of `names`.

    The split `val` has exactly `round(val_share * len(names))` names, or as nearly as
    groups and earlier splits allow. Names with the same classes are divided by the same
    share, to within one. The choice depends on hashes of the names, never on order.

    Args:
        names: Distinct names.
        splitting: The settings.
        earlier: Splits of names that were converted before, which they keep.
        classes_of: Returns the set of classes of each name, or None if a name does
            not count towards `val_share`; not called if names are grouped.

    Raises:
        UserError: if a split would be empty or a group is in both splits.
    """
    split = normalize_split(splitting.split)
    if not splitting.val_share:
        return {split: list(names)}
    fixed = {n: earlier[n] for n in names if earlier.get(n) in (split, _VAL)}
    if splitting.group_by:
        target = _round(splitting.val_share * len(names))
        chosen = _choose_groups(names, splitting.group_by, fixed, target)
    else:
        classes = {n: c for n, c in classes_of(names).items() if c is not None}
        target = _round(splitting.val_share * len(classes))
        chosen = _choose_names(classes, fixed, target)
    splits = {
        split: [name for name in names if name not in chosen],
        _VAL: [name for name in names if name in chosen],
    }
    for name, members in splits.items():
        if not members:
            kept = " that keep their earlier splits" if fixed else ""
            raise UserError(
                f"--val_share={splitting.val_share} of {len(names)} images{kept} "
                f"leaves none for {name}"
            )
    return splits


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _round(value: float) -> int:
    return math.floor(value + 0.5)


def _choose_names(
    classes: Mapping[str, Hashable], fixed: Mapping[str, str], target: int
) -> set[str]:
    """Returns the names for validation, stratified by their sets of classes."""
    strata: dict[Hashable, list[str]] = defaultdict(list)
    for name in sorted(classes, key=_hash):
        strata[classes[name]].append(name)
    chosen = {name for name in classes if fixed.get(name) == _VAL}
    quotas = _allocate({key: len(rest) for key, rest in strata.items()}, target)
    free = {
        key: [name for name in members if name not in fixed]
        for key, members in strata.items()
    }
    spare = []
    for key, members in strata.items():
        wanted = max(0, quotas[key] - len(chosen.intersection(members)))
        chosen.update(free[key][:wanted])
        spare += free[key][wanted:]
    # Earlier splits may hold more or fewer of a stratum than its quota.
    surplus = len(chosen) - target
    if surplus > 0:
        last = sorted(chosen - fixed.keys(), key=_hash)[::-1]
        chosen.difference_update(last[:surplus])
    elif surplus < 0:
        chosen.update(sorted(spare, key=_hash)[:-surplus])
    return chosen


def _allocate(sizes: Mapping[Hashable, int], total: int) -> dict[Hashable, int]:
    """Apportions `total` to the sizes by the largest-remainder method."""
    count = sum(sizes.values())
    quotas = {key: size * total // count for key, size in sizes.items()}
    # Of equal remainders, the largest stratum is first: the only image with some set of
    # classes is of more use in training.
    order = sorted(
        sizes,
        key=lambda key: (-(sizes[key] * total % count), -sizes[key], _hash(str(key))),
    )
    for key in order[: total - sum(quotas.values())]:
        quotas[key] += 1
    return quotas


def _choose_groups(
    names: Sequence[str], group_by: str, fixed: Mapping[str, str], target: int
) -> set[str]:
    """Returns the names for validation, without dividing a group."""
    groups = defaultdict(list)
    for name in names:
        groups[_find_group(name, group_by)].append(name)
    chosen, free = set(), []
    for group in sorted(groups, key=_hash):
        split = _find_earlier_split(group, groups[group], fixed)
        if split == _VAL:
            chosen.update(groups[group])
        elif split is None:
            free.append(groups[group])
    passed = []
    for members in free:
        if len(chosen) + len(members) <= target:
            chosen.update(members)
        else:
            passed.append(members)
    smallest = min(passed, key=len, default=())
    missing = target - len(chosen)
    # One group more may come nearer, but must leave something to train on.
    is_nearer = not chosen or abs(len(smallest) - missing) < missing
    if target and is_nearer and len(chosen) + len(smallest) < len(names):
        chosen.update(smallest)
    return chosen


def _find_earlier_split(
    group: str, members: Sequence[str], fixed: Mapping[str, str]
) -> str | None:
    """Returns the split that earlier images of a group are in, if any."""
    splits = sorted({fixed[name] for name in members if name in fixed})
    if len(splits) > 1:
        raise UserError(
            f"the group {group!r} is already in the splits {' and '.join(splits)}; use "
            "another --output_dir, or add --overwrite to divide all images again"
        )
    return splits[0] if splits else None


def _find_group(name: str, group_by: str) -> str:
    """Returns the folder of an image, or the part of its name that matches."""
    if group_by == "folder":
        return name.rpartition("/")[0]
    try:
        match = re.search(group_by, name)
    except re.error as error:
        raise UserError(
            f"--group_by={group_by} is neither 'folder' nor a regular expression: "
            f"{error}"
        ) from error
    if match is None:
        raise UserError(
            f"--group_by={group_by} does not match the image name {name!r}; it must "
            "match every name"
        )
    return (match.re.groups and match[1]) or match[0]
