"""Images and labels that belong together by the names of their files."""

from collections.abc import Callable, Mapping

from etils import epath

from deeplab_tf.errors import UserError


def require_pairs(
    images: Mapping[str, epath.Path],
    labels: Mapping[str, epath.Path],
    image_path: Callable[[str], epath.Path],
    label_path: Callable[[str], epath.Path],
) -> None:
    """Refuses images without a label, and labels without an image.

    Args:
        images: Files by what their names have in common.
        labels: Likewise.
        image_path: Returns where the image of such a name should be.
        label_path: Returns where its label should be.

    Raises:
        UserError: naming the file that is there and the one that is missing.
    """
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise UserError(f"{images[name]} has no label {label_path(name)}")
        raise UserError(f"{labels[name]} has no image {image_path(name)}")
