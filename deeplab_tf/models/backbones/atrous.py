"""Strides and atrous rates for an output stride (DeepLabv3, 1706.05587, Sec. 3.1)."""

from collections.abc import Iterable, Iterator


def strides_and_rates(
    nominal_strides: Iterable[int], output_stride: int
) -> Iterator[tuple[int, int]]:
    """Yields `(stride, rate)` of each unit of a backbone.

    Units keep their nominal stride until the features have `output_stride`. All later
    units run at stride 1, and their nominal strides multiply the rates of the units
    *after* them, so that every kernel samples the pixels it was trained on.
    """
    current, rate = 1, 1
    for stride in nominal_strides:
        if current == output_stride:
            yield 1, rate
            rate *= stride
        else:
            yield stride, 1
            current *= stride
