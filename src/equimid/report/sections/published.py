"""What was published beside what was measured, each in columns of its own."""

import re
from collections.abc import Sequence

from equimid.records import Record
from equimid.report.blocks import Block, Columns, Entry, Fold, Heading, Row, Section, Table, Text
from equimid.report.folder import Run
from equimid.report.published import CONDITIONS, DIFFERENCES, LAYERS, LINEAR, PUBLISHED, SETS, SOURCE, Published
from equimid.report.subjects import Series
from equimid.report.words import entry

__all__ = ["published_section"]

VALIDATION_IMAGES = 50_000  # of ImageNet-1k: a linear probe tested on so many was tested on them
WITH_SER = ("mocov3", "dino", "barlow_twins")


def published_section(series: Sequence[Series]) -> Section:
    """The comparison of the paper; on the page where a run is of one of its methods and add-ons."""
    own = [s for s in series if s.own and s.run.trained_here]
    alike = {s.key: _rows_like(s.run) for s in own}
    layers = any(s.run.setting("method.name") in WITH_SER and set(s.run.addons) == {"ser"} for s in own)
    blocks: list[Block] = []
    if any(alike.values()):
        blocks.append(_comparison(own, alike))
    if layers:
        rows = [
            Row(layer.label, [[Entry(f"{layer.linear:.2f} %")], _rotation(layer.rotation)], quiet=True)
            for layer in LAYERS
        ]
        changes = [Row(what, [[Entry(change)]], quiet=True) for what, change in DIFFERENCES]
        blocks.append(
            Fold(
                "Published for SER at other layers and on other methods",
                [
                    Heading("MoCo-v3 with SER at one layer"),
                    Text("Rotation equivariance is the paper's own measure; the cosines of this page are not it."),
                    _table("SER at", ["IN-1k linear, published", "rotation equivariance, published"], rows),
                    Heading("What was added, and what it changed"),
                    _table("Change", ["difference, published"], changes),
                ],
            )
        )
    if blocks:
        blocks.insert(
            0,
            Text(
                f"Published: {CONDITIONS} ({SOURCE}), without intervals. These values were not run here: a run with "
                "another network, other images or another length of training is not comparable to them. A run stands "
                "beside the row that has its method, its add-ons and its views; what it measured on the same test "
                "images stands in columns of their own."
            ),
        )
    return Section("published", f"Published, {CONDITIONS}: not run here", blocks, short="Published numbers")


def _comparison(own: Sequence[Series], alike: dict[tuple[str, str], list[Published]]) -> Table:
    """All published rows, and beside each the runs that are trained like it."""
    found = {
        (row.label, row.views, name): [
            (s, r) for s in own if alike[s.key] == [row] for r in s.of(name) if _same_images(r)
        ]
        for row in PUBLISHED
        for name in SETS
    }
    measured = {name for name in SETS if any(found[row.label, row.views, name] for row in PUBLISHED)}
    columns: list[str] = []
    for name in SETS:
        columns += ["published", "measured here"] if name in measured else ["published"]
    rows = []
    for row in PUBLISHED:
        runs = ", ".join(s.label for s in own if alike[s.key] == [row])
        cells: list[list[Entry]] = []
        for name, value in zip(SETS, row.top1, strict=True):
            cells.append([Entry(f"{value:.2f} %")])
            if name in measured:
                cells.append([entry(r, name=s.label) for s, r in found[row.label, row.views, name]])
        rows.append(Row(f"{row.label}, {row.views} views" + (f" (as {runs})" if runs else ""), cells))
    groups = [Columns(title, 2 if name in measured else 1) for name, title in SETS.items()]
    return Table(f"Published: {CONDITIONS}", "Method", columns, rows, groups=groups, published=("published",))


def _table(corner: str, columns: list[str], rows: list[Row]) -> Table:
    """All of it published."""
    return Table(f"Published: {corner}", corner, columns, rows, published=columns)


def _rows_like(run: Run) -> list[Published]:
    """The published rows that a run may stand beside; one alone where its views are known."""
    views = None if run.views is None else "+".join(re.findall(r"(\d+) x \d+", run.views))
    return [
        row
        for row in PUBLISHED
        if (row.method, row.addons) == (run.setting("method.name"), frozenset(run.addons))
        and all(run.addons.values())  # a control, of weight 0, is none of them
        and views in (None, row.views)
    ]


def _same_images(r: Record) -> bool:
    """Whether the published number is of these test images: the other sets are known by the evaluation's name."""
    whole = r.evaluation != LINEAR or r.n == VALIDATION_IMAGES
    return r.metric == "top1" and whole


def _rotation(value: float | None) -> list[Entry]:
    return [] if value is None else [Entry(f"{value:.3f}")]
