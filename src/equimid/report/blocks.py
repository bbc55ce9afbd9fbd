"""What a section of the page is made of; page.html.j2 has one macro for each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = [
    "Block", "Code", "Columns", "Entry", "Facts", "Fold", "Heading", "Key", "Note", "Picture", "Plot", "Plots", "Row",
    "Section", "Table", "Text",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One piece of a section; `macro` draws it."""

    macro: ClassVar[str]


@dataclass(frozen=True)
class Heading(Block):
    macro = "heading"
    text: str


@dataclass(frozen=True)
class Text(Block):
    """What a reader must know to read what follows."""

    macro = "text"
    text: str


@dataclass(frozen=True)
class Note(Block):
    """What is missing or needs care; `about` is whom it concerns."""

    macro = "note"
    text: str
    about: str = ""


@dataclass(frozen=True)
class Code(Block):
    macro = "code"
    text: str


@dataclass(frozen=True)
class Facts(Block):
    """Terms and what they are."""

    macro = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Key(Block):
    """A legend: pieces of line (SVG) and what they stand for."""

    macro = "key"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Plot:
    caption: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Plots(Block):
    """`size`: "small" (a corruption), "" or "wide" (rows with names)."""

    macro = "plots"
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
class Columns:
    """Neighbouring columns under a title."""

    title: str
    count: int


@dataclass(frozen=True)
class Table(Block):
    """
    corner:    what the rows are
    style:     "numbers" or "settings"
    groups:    titles above the columns, together as many columns as there are
    published: names of columns that were not measured here, which look unlike all others
    """

    macro = "table"
    label: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[Row]
    style: str = "numbers"
    groups: Sequence[Columns] = ()
    published: Collection[str] = ()


@dataclass(frozen=True)
class Picture(Block):
    """`source`: a data URL, "" where the file is missing."""

    macro = "picture"
    caption: str
    alt: str
    source: str
    name: str


@dataclass(frozen=True)
class Fold(Block):
    """What is shown when it is asked for."""

    macro = "fold"
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """`short` stands in the navigation; `html` is all of a section that is not made of blocks. One without either is
    not on the page."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    short: str = ""
    html: str = ""
