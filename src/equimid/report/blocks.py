"""What a section of the page is made of; page.html.j2 has one macro for each kind of block."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = [
    "Block", "Entry", "Facts", "Fold", "Key", "Picture", "Plot", "Plots", "Row", "Section", "Table", "Text", "heading",
]  # fmt: skip


class Block:
    """One piece of a section; the macro of the same name draws it."""


@dataclass(frozen=True)
class Text(Block):
    """
    style: "hint", "heading", "code", or "note" for what is missing or needs care
    about: whom a note concerns
    """

    text: str
    style: str = "hint"
    about: str = ""


def heading(text: str) -> Text:
    return Text(text, "heading")


@dataclass(frozen=True)
class Facts(Block):
    """Terms and what they are."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Key(Block):
    """A legend: names, and a piece of line (SVG) for each."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Plot:
    caption: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Plots(Block):
    """`size`: "small" (a corruption), "" or "wide" (rows with names)."""

    items: Sequence[Plot]
    size: str = ""


@dataclass(frozen=True)
class Entry:
    """A value in a table; `below` are lines of less weight under it."""

    value: str
    interval: str = ""
    below: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """`quiet`: a reference, not a subject of the report."""

    head: str
    cells: Sequence[Sequence[Entry]]
    quiet: bool = False


@dataclass(frozen=True)
class Table(Block):
    """
    corner:    what the rows are
    style:     "numbers" or "settings"
    groups:    (title, number of columns) above the columns, together as many columns as there are
    published: names of columns that were not measured here, which look unlike all others
    """

    label: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[Row]
    style: str = "numbers"
    groups: Sequence[tuple[str, int]] = ()
    published: Collection[str] = ()


@dataclass(frozen=True)
class Picture(Block):
    """`source`: a data URL."""

    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Fold(Block):
    """What is shown when it is asked for."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """`short` stands in the navigation; `html` is all of a section without blocks. One without either is not shown."""

    id: str
    title: str
    blocks: Sequence[Block] = ()
    short: str = ""
    html: str = ""
