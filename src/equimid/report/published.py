"""Numbers that the SER paper gives, each with the settings that decide it, beside what was measured here. Nothing that
is called published was run by this library.

Source: arXiv 2603.06693. ImageNet-1k, ViT-S/16 at 224 px, 100 epochs, batch 2048; top-1 in percent of a linear probe on
random crops. The paper gives no intervals and one seed. `views`: how many of which size, the largest first: "2+4" are
two large and four small.

A run stands beside a number if all its settings are the row's, and its probe and its test images the paper's; else
beside none. Not compared is what the paper does not fix or does not tell: the fraction of posed images, the weight (but
for 0), the rates.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equimid.records import Record
from equimid.report.blocks import Block, Entry, Group, Section, Table, TableRow, Text, explained
from equimid.report.formatting import entry, plain, title
from equimid.report.read_run import Run
from equimid.report.series import grouped
from equimid.report.views import pivot

__all__ = ["LAYERS", "PUBLISHED", "Published", "published_row", "published_section"]

SOURCE = "arXiv 2603.06693"
CONDITIONS = "ImageNet-1k, ViT-S/16 at 224 px, 100 epochs, batch 2048"
METHOD = "mocov3"  # of all rows
IMAGES = 1_281_167  # of ImageNet-1k, to train on
# details of a record whose linear probe is the paper's: on crops, CLS of the last four blocks, 50 epochs
PROBE: Mapping[str, Any] = {"crops": True, "features": "last4", "epochs": 50}

LINEAR = "linear"
WITH_SER = ("mocov3", "dino", "barlow_twins")
NAMED = 3  # differences that a note names
Settings = Mapping[str, tuple[Any, ...]]  # {setting: the values that a row admits}; a missing setting is None


@dataclass(frozen=True)
class ImageSet:
    """Test images of a published number.

    Attributes:
        images, classes: how many, where that tells them from others.
        unknown:         what the paper does not say though it decides: nothing stands beside such numbers.
    """

    title: str
    images: int | None = None
    classes: int | None = None
    unknown: str = ""


# by the evaluation whose records are of the same test images
SETS = {
    LINEAR: ImageSet("IN-1k linear", images=50_000),
    "imagenet_sketch": ImageSet("ImageNet-Sketch", classes=1000),
    "imagenet_v2": ImageSet("ImageNet-V2", classes=1000),
    # 18.59 % beside 17.65 % on Sketch: very likely among all 1,000
    "imagenet_r": ImageSet("ImageNet-R", unknown="whether predictions are among its 200 classes or among all 1,000"),
}


@dataclass(frozen=True)
class Published:
    """A trained network of the comparison.

    Attributes:
        addons:   all that it has; METHOD is its base.
        top1:     by evaluation, of SETS.
        settings: what decides that a run is this row, beside its base and its add-ons.
        control:  its add-ons have weight 0, else none has.
        rotation: the paper's rotation equivariance, None where it gives none.
        note:     what must be known where a run stands beside it.
    """

    label: str
    addons: frozenset[str]
    views: str
    top1: Mapping[str, float]
    settings: Settings
    control: bool = False
    rotation: float | None = None
    note: str = ""


# EquiMod's third view and E-SSL's four are the add-ons' own: the settings of the views do not name them
_CONDITIONS: Settings = {
    "backbone.name": ("vit_small_patch16_224",), "backbone.image_size": (224,), "backbone.patch_size": (None, 16),
    "backbone.embed_dim": (None, 384), "backbone.depth": (None, 12), "backbone.num_heads": (None, 6),
    "views.full": (2,), "train.batch_size": (2048,), "train.epochs": (100,), "train.steps": (None, 0),
    "train.accumulate": (None, 1), "evaluation.network": (None, "student"), "evaluation.crop": (None, 0.875),
}  # fmt: skip
_AUGSELF: Settings = {
    "augself.form": ("comparison",), "augself.crop": (0.5,), "augself.colour": (0.5,), "augself.flip": (0,),
    "augself.blur": (0,),
}  # fmt: skip
_EQUIMOD: Settings = {"equimod.form": ("comparison",)}


def _ser(layer: int) -> Settings:
    return {
        "ser.layers": ([layer], layer), "ser.layer_weights": (None, []), "ser.temperature": (0.3,),
        "ser.form": ("canonical",), "ser.negatives": (None, "images"),  # None: there was one kind alone
        "ser.source": ("resize",), "ser.complement": (False,), "ser.detached": (False,),
    }  # fmt: skip


def _row(
    label: str,
    *top1: float,
    addon: str = "",
    views: str = "2",
    small: int = 0,
    cls_layer: int = 0,
    settings: Settings | None = None,
    **more: Any,
) -> Published:
    """top1: of SETS in order, maybe the first alone; small: views of the base method beside its two full ones."""
    # the add-on's settings first: a reader asks for them first
    decides = {**(settings or {}), "backbone.cls_layer": (cls_layer,), "views.local.count": (small,), **_CONDITIONS}
    if small:
        decides["views.local.size"] = (96,)
    numbers = dict(zip(SETS, top1, strict=False))
    return Published(label, frozenset({addon} if addon else ()), views, numbers, decides, **more)


_READING = "the paper does not say whether it reads the mean token of the layer or CLS after it; either stands here"

PUBLISHED = (
    _row("MoCo-v3", 68.44, 17.65, 56.54, 18.59, rotation=0.804),
    _row(
        "MoCo-v3 + AugSelf", 67.55, 13.30, 53.74, 17.62, addon="augself",
        settings={"augself.layer": (0,), **_AUGSELF},
    ),
    _row(
        "MoCo-v3 + STL", 65.49, 15.40, 55.43, 17.22, addon="stl",
        settings={"stl.layer": (0,), "stl.form": ("comparison",)},
    ),
    _row("MoCo-v3 + SER", 69.28, 17.68, 56.95, 18.95, addon="ser", cls_layer=3, settings=_ser(3), rotation=0.840),
    _row("MoCo-v3 + SER at layer 9", 68.72, addon="ser", cls_layer=9, settings=_ser(9), rotation=0.888),
    _row(
        "MoCo-v3 + SER at layer 12", 68.18, addon="ser", cls_layer=0, settings=_ser(12), rotation=0.924,
        note="CLS cannot enter after the last block: the released code has it from the start there, and crashes; what "
        "the paper's network was is not known",
    ),
    _row("MoCo-v3 + SER, weight 0 (control)", 68.82, addon="ser", cls_layer=3, settings=_ser(3), control=True),
    _row(
        "MoCo-v3 + AugSelf at layer 3", 68.23, addon="augself",
        settings={"augself.layer": (3,), "augself.pool": ("mean", "cls"), **_AUGSELF}, note=_READING,
    ),
    _row(
        "MoCo-v3 + EquiMod", 68.95, 14.81, 56.31, 16.54, addon="equimod", views="3",
        settings={"equimod.layer": (0,), **_EQUIMOD},
    ),
    _row(
        "MoCo-v3 + EquiMod at layer 3", 69.51, addon="equimod", views="3",
        settings={"equimod.layer": (3,), "equimod.pool": ("mean", "cls"), **_EQUIMOD}, note=_READING,
    ),
    _row(
        "MoCo-v3 + E-SSL", 70.60, 19.23, 58.33, 19.86, addon="essl", views="2+4",
        settings={"essl.layer": (0,), "essl.size": (96,)},
    ),
    _row(
        "MoCo-v3 + SER", 71.56, 19.76, 59.50, 20.27, addon="ser", views="2+4", small=4, cls_layer=3, settings=_ser(3),
    ),
)  # fmt: skip
# SER at one layer on two views, and what it is compared with
LAYERS = tuple(row for row in PUBLISHED if row.views == "2" and row.addons <= {"ser"})
# what is added, and what it changes
DIFFERENCES = (
    ("SER on DINO, linear top-1", "+0.26 points"),
    ("SER on Barlow Twins, linear top-1", "+0.68 points"),
    ("SER on MoCo-v3, ImageNet-C top-1", "+1.11 points"),
    ("SER on MoCo-v3, ImageNet-P top-1", "+1.22 points"),
    ("SER on MoCo-v3, COCO with a frozen network", "+1.7 mAP"),
    ("SER on MoCo-v3, training FLOPs", "1.008 times"),
    ("EquiMod at layer 3 in place of 12, linear top-1", "68.95 to 69.51 %"),
    ("AugSelf at layer 3 in place of 12, linear top-1", "67.55 to 68.23 %"),
)

Beside = Sequence[tuple[Run, Published | None]]  # runs, and the row that each stands beside


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
    drawn = [TableRow(head, [[Entry(v)] if v else [] for v in cells], quiet=True) for head, cells in rows.items()]
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
