"""Decides which records of earlier runs stay when images are added to a split."""

import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from deeplab_tf.convert.manifest import Manifest, Member, is_published
from deeplab_tf.convert.tiling import strip_tile
from deeplab_tf.data import records
from deeplab_tf.errors import UserError
from deeplab_tf.files.file_kinds import is_remote

_REMEDY = "use another --output_dir or --split, or add --overwrite to replace the split"


def find_earlier_records(
    folder: str, manifest: Manifest, split: str
) -> dict[str, Member]:
    """Returns the published records of a split, by name.

    Raises:
        UserError: if it has a shard that the manifest does not describe.
    """
    for path in records.list_split_files(folder, split):
        key = os.path.basename(path)
        if is_published(key, split) and key not in manifest.shards:
            raise UserError(
                f"{path} was not written by this version of deeplab_tf, or was changed "
                f"since, so nothing can be added to the split {split}; {_REMEDY}"
            )
    return manifest.members(split)


def select_kept_records(
    folder: str, split: str, earlier: Mapping[str, Member], new: Sequence[Member]
) -> list[Member]:
    """Returns the earlier records whose names are not among the new ones.

    Raises:
        UserError: if the image of one is added again under another name, or was
            removed from the folder of the new images.
    """
    names = {member.name for member in new}
    by_image = {member.image: member for member in new}
    kept = [member for name, member in earlier.items() if name not in names]
    local = [member.image for member in new if not is_remote(member.image)]
    root = os.path.commonpath([os.path.dirname(path) for path in local] or ["/"])
    for member in kept:
        if member.image in by_image:
            raise UserError(
                f"{member.image} is in the split {split} of {folder} as {member.name}, "
                f"and would be added as {by_image[member.image].name}; {_REMEDY}"
            )
        if member.image.startswith(f"{root}/") and not tf.io.gfile.exists(member.image):
            raise UserError(
                f"{member.image} is in the split {split} of {folder} but no longer "
                f"exists; {_REMEDY}"
            )
    return kept


def require_same_sources(
    folder: str, split: str, old: Member | None, new: Member
) -> None:
    """Refuses to replace a record by a different one with the same name.

    Content may differ only if the paths of image and label are the same.

    Raises:
        UserError: if content and paths differ.
    """
    if old is None or old.files == new.files or old.digest == new.digest:
        return
    other = f"from {old.image}, not {new.image}"
    if old.image == new.image:
        other = "from a different label file"
    raise UserError(
        f"the split {split} of {folder} already has an image {new.name} {other}, with "
        f"different content; {_REMEDY}"
    )


def find_earlier_splits(folder: str) -> dict[str, str]:
    """Returns the split of every image with records in a folder, by name."""
    if not tf.io.gfile.isdir(folder):
        return {}
    records.finish_publishing(folder)
    manifest = Manifest(folder)
    return {
        strip_tile(name): split
        for split in records.list_splits(folder)
        for name in manifest.members(split)
    }
