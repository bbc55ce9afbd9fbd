"""What was published beside what was measured, each in columns of its own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from equimid.records import Record
from equimid.report.blocks import Block, Columns, Entry, Fold, Heading, Note, Row, Section, Table, Text
from equimid.report.formatting import entry, plain, title
from equimid.report.published import (
    CONDITIONS,
    DIFFERENCES,
    IMAGES,
    LAYERS,
    LINEAR,
    METHOD,
    PROBE,
    PUBLISHED,
    SETS,
    SOURCE,
    Published,
)
from equimid.report.read_run import Run
from equimid.report.series import Series

__all__ = ["published_row", "published_section"]

WITH_SER = ("mocov3", "dino", "barlow_twins")
NAMED = 3  # differences that a note names


def published_section(series: Sequence[Series]) -> Section:
    """The comparison of the paper; on the page where a run is of one of its methods and add-ons."""
    own = [s for s in series if s.own and s.run.trained_here]
    blocks: list[Block] = []
    if any(_kin(s.run) for s in own):
        rows = {s.key: published_row(s.run) for s in own}
        blocks += [_comparison(own, rows), *_notes(own, rows)]
    if any(s.run.setting("method.name") in WITH_SER and set(s.run.addons) == {"ser"} for s in own):
        at_layers = [Row(row.label, [_percent(row.top1[LINEAR]), _rotation(row)], quiet=True) for row in LAYERS]
        changes = [Row(what, [[Entry(change)]], quiet=True) for what, change in DIFFERENCES]
        blocks.append(
            Fold(
                "Published for SER at other layers and on other methods",
                [
                    Heading("MoCo-v3 with SER at one layer"),
                    Text("Rotation equivariance is the paper's own measure; the values of this page are not it."),
                    _table("SER at", ["IN-1k linear, published", "rotation equivariance, published"], at_layers),
                    Heading("What was added, and what it changed"),
                    _table("Change", ["difference, published"], changes),
                ],
            )
        )
    if blocks:
        blocks.insert(
            0,
            Text(
                f"Published: {CONDITIONS} ({SOURCE}), without intervals. These values were not run here. A run stands "
                "beside the row that has its method, its add-ons and every setting that decides (network, length of "
                "training, views, layer, where CLS enters, form of the loss), or beside none. What it measured on the "
                "same test images with the paper's linear probe stands in columns of their own. Weights, rates and "
                "the fraction of posed images are not compared. Which selection of ImageNet-V2 the paper has, it does "
                "not say."
            ),
        )
    return Section("published", f"Published, {CONDITIONS}: not run here", blocks, short="Published numbers")


def published_row(run: Run) -> Published | None:
    """The published row whose every setting the run has."""
    return next((row for row in _kin(run) if not _unlike(row, run)), None)


def _kin(run: Run) -> list[Published]:
    """The rows of the run's method and add-ons, whatever their other settings."""
    return [row for row in PUBLISHED if (METHOD, row.addons) == (run.setting("method.name"), frozenset(run.addons))]


def _unlike(row: Published, run: Run) -> dict[str, Any]:
    """What decides and is not the row's: {what: the run's}."""
    found = {key: run.setting(key) for key, admitted in row.settings.items() if run.setting(key) not in admitted}
    found |= {f"{name}.weight": weight for name, weight in run.addons.items() if (weight == 0) != row.control}
    # the run's own record of its views: an add-on may have brought some
    if run.views is not None and "+".join(re.findall(r"(\d+) x \d+", run.views)) != row.views:
        found["views"] = run.views
    if run.counts.get("listed") != IMAGES:
        found["training images"] = run.counts.get("listed")
    if run.stopped_at:
        found["steps"] = run.stopped_at[0]
    return found


def _unfit(r: Record) -> str:
    """Why a record's value is not of the paper's test images and probe; "" where it is."""
    images = SETS[r.evaluation]
    if images.unknown:
        return f"the paper does not say {images.unknown}"
    if images.images not in (None, r.n):
        return f"it is of {r.n:,} test images, and the paper's of {images.images:,}"
    if images.classes not in (None, r.details.get("classes")):
        return f"it is not of all {images.classes:,} classes"
    if any(r.details.get(key) != value for key, value in PROBE.items()):
        return (
            f"the paper's probe is on random crops and reads the last four blocks for {PROBE['epochs']} epochs "
            "(evaluation.linear_crops, evaluation.linear_features=last4), and this one is not"
        )
    return ""


def _comparison(own: Sequence[Series], rows: Mapping[tuple[str, str], Published | None]) -> Table:
    """All published rows, and beside each the runs that are trained like it."""
    alike = [[s for s in own if rows[s.key] is row] for row in PUBLISHED]
    beside = [
        {name: [(s, r) for s in members for r in _top1(s, name) if name in row.top1 and not _unfit(r)] for name in SETS}
        for row, members in zip(PUBLISHED, alike, strict=True)
    ]
    measured = {name for name in SETS if any(found[name] for found in beside)}
    columns: list[str] = []
    for name in SETS:
        columns += ["published", "measured here"] if name in measured else ["published"]
    drawn = []
    for row, members, found in zip(PUBLISHED, alike, beside, strict=True):
        cells: list[list[Entry]] = []
        for name in SETS:
            cells.append(_percent(row.top1.get(name)))
            if name in measured:
                cells.append([entry(r, name=s.label) for s, r in found[name]])
        runs = ", ".join(s.label for s in members)
        drawn.append(Row(f"{row.label}, {row.views} views" + (f" (as {runs})" if runs else ""), cells))
    groups = [Columns(images.title, 2 if name in measured else 1) for name, images in SETS.items()]
    return Table(f"Published: {CONDITIONS}", "Method", columns, drawn, groups=groups, published=("published",))


def _notes(own: Sequence[Series], rows: Mapping[tuple[str, str], Published | None]) -> list[Block]:
    """What a row does not say, which runs and values stand beside none, and why; each once."""
    told: dict[str, dict[str, None]] = {}
    for s in own:
        row = rows[s.key]
        if row is None:
            if kin := _kin(s.run):
                told.setdefault(_apart(s.run, kin), {})[s.label] = None
            continue
        if row.note:
            told.setdefault(f"{row.label}: {row.note}.", {})[s.label] = None
        for name in row.top1:
            for r in _top1(s, name):
                if why := _unfit(r):
                    what = f"{title(name, r.metric)} is not set beside the published one: {why}."
                    told.setdefault(what, {})[s.label] = None
    return [Note(text, ", ".join(labels)) for text, labels in told.items()]


def _apart(run: Run, kin: Sequence[Published]) -> str:
    """How the run differs from the row that is nearest to it."""
    nearest, unlike = min(((row, _unlike(row, run)) for row in kin), key=lambda pair: len(pair[1]))
    named = [f"{key} {'unknown' if value is None else plain(value)}" for key, value in unlike.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    where = f"{nearest.label}, {nearest.views} views"
    return f"stands beside no published number; it differs from {where} in {', '.join(named[:NAMED])}{more}."


def _top1(s: Series, evaluation: str) -> list[Record]:
    return [r for r in s.of(evaluation) if r.metric == "top1"]


def _table(corner: str, columns: list[str], rows: list[Row]) -> Table:
    """All of it published."""
    return Table(f"Published: {corner}", corner, columns, rows, published=columns)


def _percent(value: float | None) -> list[Entry]:
    return [] if value is None else [Entry(f"{value:.2f} %")]


def _rotation(row: Published) -> list[Entry]:
    return [] if row.rotation is None else [Entry(f"{row.rotation:.3f}")]
