"""Output stride to strides and atrous rates (DeepLabv3, 1706.05587, Sec. 3.1)."""

from collections.abc import Iterable, Iterator


def strides_and_rates(
    nominal_strides: Iterable[int], output_stride: int
) -> Iterator[tuple[int, int]]:
    """Yields `(stride, rate)` of each unit of a backbone.

    Units keep their stride until the features are `output_stride` times coarser
    than their input. From there on a unit runs at stride 1 and the strides it
    would have had multiply the rate of the units *after* it, so that every
    kernel meets the pixels it was trained on.

    Args:
        nominal_strides: Stride of each unit in the classification network.
        output_stride: Product of strides to keep.
    """
    current, rate = 1, 1
    for stride in nominal_strides:
        if current == output_stride:
            yield 1, rate
            rate *= stride
        else:
            yield stride, 1
            current *= stride
