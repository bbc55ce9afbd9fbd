"""What a section of the page is made of; page.html.j2 has one macro for each kind of block.

A block without content is not drawn, and no group of such blocks: sections name all that they may show.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import yaml
from jinja2 import Environment, StrictUndefined, Template

__all__ = [
    "Block",
    "Entry",
    "Figure",
    "Figures",
    "Group",
    "Pairs",
    "Section",
    "Table",
    "TableRow",
    "Text",
    "drawn",
    "explained",
    "read",
    "template",
]  # fmt: skip


@dataclass(frozen=True)
class Text:
    """
    Attributes:
        style: "hint" for what explains other blocks, "code", or "note" for what is missing or needs care.
        about: whom a note concerns.
    """

    text: str
    style: str = "hint"
    about: str = ""


@dataclass(frozen=True)
class Pairs:
    """Names and what they are: "facts", or the "key" of plots with a piece of line (SVG) for each name."""

    pairs: Sequence[tuple[str, str]]
    style: str = "facts"


@dataclass(frozen=True)
class Figure:
    """A plot (`svg`), or a picture (`source`, a data URL, and what it shows)."""

    caption: str
    svg: str = ""
    note: str = ""
    source: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Figures:
    """`size`: "small" (a corruption), "" or "wide" (rows with names); "picture" for pictures, one below the other."""

    items: Sequence[Figure]
    size: str = ""


@dataclass(frozen=True)
class Entry:
    """A value in a table; `below` are lines of less weight under it."""

    value: str
    interval: str = ""
    below: Sequence[str] = ()


@dataclass(frozen=True)
class TableRow:
    """`quiet`: a reference, not a subject of the report."""

    head: str
    cells: Sequence[Sequence[Entry]]
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        corner:    what the rows are.
        style:     "numbers" or "settings".
        groups:    (title, number of columns) above the columns, together as many columns as there are.
        published: names of columns that were not measured here, which look unlike all others.
    """

    label: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    style: str = "numbers"
    groups: Sequence[tuple[str, int]] = ()
    published: Collection[str] = ()


@dataclass(frozen=True)
class Group:
    """Blocks below a heading; folded ones are shown when they are asked for."""

    title: str
    blocks: "Sequence[Block]"
    folded: bool = False


Block = Text | Pairs | Figures | Table | Group


@dataclass(frozen=True)
class Section:
    """`short` stands in the navigation; `html` is all of a section without blocks. One without either is not shown."""

    id: str
    title: str
    blocks: Sequence[Block] = ()
    short: str = ""
    html: str = ""


def drawn(blocks: Iterable[Block]) -> list[Block]:
    """The blocks with content; none where all are texts that explain others."""
    kept: list[Block] = []
    for block in blocks:
        if isinstance(block, Group):
            block = replace(block, blocks=drawn(block.blocks))
        content = {Text: "text", Pairs: "pairs", Figures: "items", Table: "rows", Group: "blocks"}[type(block)]
        if getattr(block, content):
            kept.append(block)
    return kept if any(not isinstance(block, Text) or block.style != "hint" for block in kept) else []


def explained(*names: str, **values: str) -> Text:
    """Texts of texts.yaml as one; `values` stand for the names in braces."""
    return Text(" ".join(_texts()[name] for name in names).format(**values))


@cache
def _texts() -> dict[str, str]:
    texts: dict[str, str] = yaml.safe_load(read("texts.yaml"))
    return texts


def template(name: str) -> Template:
    """A template of this folder."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(read(name))


def read(name: str) -> str:
    """A file of this folder."""
    return files("equimid.report").joinpath(name).read_text(encoding="utf-8")
