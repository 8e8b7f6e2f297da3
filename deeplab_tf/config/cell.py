"""Configuration of dense prediction cells (1809.04184)."""

import dataclasses
import pathlib

from deeplab_tf import strict_json
from deeplab_tf.config.checks import check_fields, require
from deeplab_tf.config.options import SIDE, document_fields, option

_RELEASED_CELL_FILE = "dense_prediction_cell_branch5_top1_cityscapes.json"


@document_fields
@dataclasses.dataclass(frozen=True)
class CellBranch:
    """One branch of a dense prediction cell (1809.04184).

    Raises:
        UserError: if a value is invalid.
    """

    op: str = option(
        help='"conv" or "pyramid_pooling".', accepts=("conv", "pyramid_pooling")
    )
    input: int = option(
        -1, help="Index of the branch to read from; -1 reads from the backbone."
    )
    kernel: tuple[int, int] = option(
        (1, 1), help="Kernel height and width of a convolution, 1x1 or 3x3."
    )
    rate: tuple[int, int] = option(
        (1, 1),
        SIDE,
        "Vertical and horizontal atrous rate of a 3x3 convolution, at output "
        "stride 16.",
    )
    grid_size: tuple[int, int] = option(
        (1, 1),
        SIDE,
        "Rows and columns of the grid that pooling divides the image into.",
    )

    def __post_init__(self) -> None:
        check_fields(self, " of a cell")
        require(
            self.kernel in ((1, 1), (3, 3)),
            f"kernel of a cell must be 1 or 3; received {self.kernel}",
        )


# The cell of the zoo's Xception-71 (1809.04184, Fig. 4).
RELEASED_CELL = tuple(
    CellBranch("conv", source, (3, 3), rate)
    for rate, source in (
        *(((1, 6), -1), ((18, 15), 0), ((6, 3), 1)),
        *(((1, 1), 0), ((6, 21), 0)),
    )
)


def parse_cell(value: object) -> tuple[CellBranch, ...]:
    """Returns the branches of a dense prediction cell.

    Args:
        value: A list of dictionaries with the official keys, the JSON text of one, or
            the path of a JSON file. The official file name of the released cell
            works without the file. "" and None mean no cell.
    """
    if not value:
        return ()
    if isinstance(value, list | tuple):
        return tuple(_parse_branch(dict(branch)) for branch in value)
    text = str(value)
    content: str | bytes = text
    if not text.lstrip().startswith("["):
        path = pathlib.Path(text)
        if path.name == _RELEASED_CELL_FILE and not path.exists():
            return RELEASED_CELL
        content = path.read_bytes()
    branches = strict_json.parse(content, "the cell")
    if not isinstance(branches, list):
        raise ValueError("the cell must be a list of branches")
    if not branches:
        raise ValueError("the cell has no branches")
    return parse_cell(branches)


def _parse_branch(keys: dict) -> CellBranch:
    """Returns a branch; sizes and rates can be one number or two."""
    # The official files write 3 or [3, 3].
    for name in ("kernel", "rate", "grid_size"):
        if name in keys:
            side = keys[name]
            keys[name] = (side, side) if isinstance(side, int) else tuple(side)
    return CellBranch(**keys)
