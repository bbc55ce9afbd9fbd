"""What was published beside what was measured, each in columns of its own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from equimid.records import Record
from equimid.report.blocks import Block, Entry, Group, Row, Section, Table, Text, explained
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
from equimid.report.series import grouped
from equimid.report.views import pivot

__all__ = ["published_row", "published_section"]

WITH_SER = ("mocov3", "dino", "barlow_twins")
Beside = Sequence[tuple[Run, Published | None]]  # runs, and the row that each stands beside
NAMED = 3  # differences that a note names


def published_section(runs: Sequence[Run]) -> Section:
    """The comparison of the paper; on the page where a run is of one of its methods and add-ons."""
    trained = [run for run in runs if run.trained_here]
    beside = [(run, published_row(run)) for run in trained]
    with_ser = any(run.setting("method.name") in WITH_SER and set(run.addons) == {"ser"} for run in trained)
    return Section(
        "published",
        f"Published, {CONDITIONS}: not run here",
        [
            explained("published", conditions=CONDITIONS, source=SOURCE),
            *([_comparison(beside), *_notes(beside)] if any(map(_kin, trained)) else []),
            *([SER_TABLES] if with_ser else []),
        ],
        short="Published numbers",
    )


def _quiet(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    drawn = [Row(head, [[Entry(v)] if v else [] for v in cells], quiet=True) for head, cells in rows.items()]
    return Table(f"Published: {corner}", corner, columns, drawn, published=columns)


def published_row(run: Run) -> Published | None:
    """The published row whose every setting the run has."""
    return next((row for row in _kin(run) if not _unlike(row, run)), None)


def _kin(run: Run) -> list[Published]:
    """The rows of the run's method and add-ons, whatever their other settings."""
    return [row for row in PUBLISHED if (METHOD, row.addons) == (run.setting("method.name"), frozenset(run.addons))]


def _unlike(row: Published, run: Run) -> dict[str, Any]:
    """What decides and is not the row's: {what: the run's}."""
    unlike = {key: run.setting(key) for key, admitted in row.settings.items() if run.setting(key) not in admitted}
    unlike |= {f"{name}.weight": weight for name, weight in run.addons.items() if (weight == 0) != row.control}
    # the run's own record of its views: an add-on may have brought some
    if run.views is not None and "+".join(re.findall(r"(\d+) x \d+", run.views)) != row.views:
        unlike["views"] = run.views
    if run.counts.get("listed") != IMAGES:
        unlike["training images"] = run.counts.get("listed")
    if run.stopped_at:
        unlike["steps"] = run.stopped_at[0]
    return unlike


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


def _comparison(beside: Beside) -> Table:
    """All published rows, and beside each the runs that are trained like it."""

    def head(row: Published) -> str:
        names = ", ".join(run.name for run, like in beside if like is row)
        return f"{row.label}, {row.views} views" + (f" (as {names})" if names else "")

    published = [
        (head(row), (name, "published"), Entry(f"{value:.2f} %"))
        for row in PUBLISHED
        for name, value in row.top1.items()
    ]
    measured = [
        (head(row), (name, "measured here"), entry(r, below=[run.name]))
        for run, row in beside
        for name in (row.top1 if row else ())
        for r in _top1(run, name)
        if row and not _unfit(r)
    ]
    cells = [*published, *measured]
    kinds = {column for _, column, _ in cells}
    columns = [(name, kind) for name in SETS for kind in ("published", "measured here") if (name, kind) in kinds]
    return pivot(
        f"Published: {CONDITIONS}", "Method", cells, lambda cell: cell[0], lambda cell: cell[1],
        lambda part: [value for _, _, value in part], rows=[head(row) for row in PUBLISHED], columns=columns,
        name=lambda column: column[1], published=("published",),
        groups=[(SETS[name].title, len(pair)) for name, pair in grouped(columns, lambda column: column[0]).items()],
    )  # fmt: skip


def _notes(beside: Beside) -> list[Block]:
    """What a row does not say, which runs and values stand beside none, and why; each once."""
    notes: dict[str, list[str]] = {}
    for run, row in beside:
        texts = []
        if row is None:
            texts = [_apart(run, kin)] if (kin := _kin(run)) else []
        else:
            texts = [f"{row.label}: {row.note}."] if row.note else []
            unfit = [(r, why) for name in row.top1 for r in _top1(run, name) if (why := _unfit(r))]
            texts += [f"{title(r)} is not set beside the published one: {why}." for r, why in unfit]
        for text in dict.fromkeys(texts):
            notes.setdefault(text, []).append(run.name)
    return [Text(text, "note", ", ".join(names)) for text, names in notes.items()]


def _apart(run: Run, kin: Sequence[Published]) -> str:
    """How the run differs from the row that is nearest to it."""
    nearest, unlike = min(((row, _unlike(row, run)) for row in kin), key=lambda pair: len(pair[1]))
    named = [f"{key} {'unknown' if value is None else plain(value)}" for key, value in unlike.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    where = f"{nearest.label}, {nearest.views} views"
    return f"stands beside no published number; it differs from {where} in {', '.join(named[:NAMED])}{more}."


def _top1(run: Run, evaluation: str) -> list[Record]:
    return [r for r in run.records if (r.evaluation, r.metric, r.subject) == (evaluation, "top1", run.subject)]


SER_TABLES = Group(
    "Published for SER at other layers and on other methods",
    [
        Group(
            "MoCo-v3 with SER at one layer",
            [
                explained("rotation"),
                _quiet(
                    "SER at",
                    ["IN-1k linear, published", "rotation equivariance, published"],
                    {
                        row.label: [f"{row.top1[LINEAR]:.2f} %", f"{row.rotation:.3f}" if row.rotation else ""]
                        for row in LAYERS
                    },
                ),
            ],
        ),
        Group(
            "What was added, and what it changed",
            [_quiet("Change", ["difference, published"], {what: [change] for what, change in DIFFERENCES})],
        ),
    ],
    folded=True,
)
