"""HTML in which every text is escaped: elements, tables and images."""

import base64
import html
from collections.abc import Iterable, Sequence

# Elements without content and end tag.
_VOID = {"img", "meta"}


class Markup(str):
    """Text that is HTML already.

    Whatever derives from it by formatting or joining is plain text again, which
    `element` escapes.
    """


def _escape(value: object) -> str:
    """Returns anything as HTML that is safe between tags and in attributes."""
    # A command line may hold bytes that are not UTF-8, as surrogates.
    text = html.escape(str(value).encode(errors="replace").decode())
    return text.replace("\xa0", "&nbsp;").replace("\u2013", "&ndash;")


def fragment(*children: object) -> Markup:
    """Returns children side by side, of which all but `Markup` are escaped."""
    parts = (c if isinstance(c, Markup) else _escape(c) for c in children)
    return Markup("".join(parts))


def element(tag: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an HTML element.

    Args:
        tag: Its name.
        *children: Its content; all but `Markup` is escaped.
        **attributes: Its attributes, whose values are escaped. Of their names `_` is
            `-`, and at the end nothing: `class_`.
    """
    names = (name.rstrip("_").replace("_", "-") for name in attributes)
    pairs = zip(names, attributes.values(), strict=True)
    start = "".join(f' {name}="{_escape(value)}"' for name, value in pairs)
    end = "" if tag in _VOID else f"</{tag}>"
    return Markup(f"<{tag}{start}>{fragment(*children)}{end}")


def row(cells: Iterable[object]) -> Markup:
    """Returns a row of a table, whose first cell is its header."""
    first, *others = cells
    columns = (element("td", cell) for cell in others)
    return fragment(
        element("tr", element("th", first, scope="row"), *columns), Markup("\n")
    )


def scroll(label: str, content: Markup) -> Markup:
    """Returns content in a box that scrolls by itself, by keyboard too."""
    attributes = {"class_": "scroll", "tabindex": 0, "role": "region"}
    return element("div", content, **attributes, aria_label=label)


def table(
    label: str, header: Sequence[object], rows: Iterable[Iterable[object]]
) -> Markup:
    """Returns a table of figures.

    Args:
        label: What the table shows.
        header: Names of the columns.
        rows: Cells of each row, text or `Markup`.
    """
    columns = (element("th", name, scope="col") for name in header)
    head = element("thead", element("tr", *columns))
    body = element("tbody", *map(row, rows))
    return scroll(label, element("table", head, Markup("\n"), body, class_="figures"))


def image(
    data: bytes, kind: str, alt: str, size: tuple[int, int], **attributes: object
) -> Markup:
    """Returns an image that is part of the page.

    Args:
        data: The file.
        kind: "png" or "jpeg".
        alt: What the image shows.
        size: Width and height, in pixels of the page.
        **attributes: More attributes of the element.
    """
    width, height = size
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return element("img", **attributes, width=width, height=height, alt=alt, src=source)
