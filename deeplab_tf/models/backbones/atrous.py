"""Strides and atrous rates for an output stride (DeepLabv3, 1706.05587, Sec. 3.1)."""

from collections.abc import Iterable, Iterator


def strides_and_rates(
    nominal_strides: Iterable[int],
    output_stride: int,
    first_unit_rate: str = "previous",
) -> Iterator[tuple[int, int]]:
    """Yields `(stride, rate)` of each unit of a backbone.

    Units keep their nominal stride until the features have `output_stride`. All later
    units run at stride 1, and their nominal strides multiply the rates of the units
    *after* them, so that every kernel samples the pixels it was trained on. With a
    `first_unit_rate` of "block", their own rates as well, as in some frameworks.
    """
    current, rate = 1, 1
    for stride in nominal_strides:
        if current == output_stride:
            own = rate
            rate *= stride
            yield 1, (own if first_unit_rate == "previous" else rate)
        else:
            yield stride, 1
            current *= stride
