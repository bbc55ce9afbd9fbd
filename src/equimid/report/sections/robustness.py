"""Accuracy where images are corrupted, move, or come from elsewhere."""

from collections.abc import Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report.blocks import Block, Fold, Plots, Section, Text, heading
from equimid.report.formatting import words
from equimid.report.sections.plots import line_plots
from equimid.report.sections.tables import score_blocks, tabulate, warnings
from equimid.report.series import Series, Subjects, grouped, legend, of, only, records_of

__all__ = ["CORRUPTED", "VARIANTS", "VIDEOS", "robustness_section"]

VARIANTS = ("imagenet_v2", "imagenet_r", "imagenet_sketch", "imagenet_a")  # in this order
VARIANTS_TEXT = (
    "The linear probe on sets that it was not fitted to. ImageNet-R and -A have 200 of the 1,000 classes: top-1 is "
    "among these, top-1 among all classes is among those of the training images."
)
# corrupted images: made by this library, which are not ImageNet-C, and ImageNet-C itself
CORRUPTED = {
    "generated_corruptions": (
        "Generated corruptions",
        "Corruptions that this library makes of clean images, after published formulas. They are not the files of "
        "ImageNet-C, and their values are no ImageNet-C values. Severity 0 is the clean image.",
    ),
    "imagenet_c": (
        "ImageNet-C",
        "The published files. CE is the error over the five severities relative to AlexNet's, mCE its mean over "
        "the 15 test corruptions: lower is better.",
    ),
}
VIDEOS = "imagenet_p"
VIDEOS_TEXT = (
    "How often the prediction changes from frame to frame of a slowly perturbed image (flip rate), and how far the "
    "five highest classes move (top-5 distance): lower is better. mFR and mT5D are relative to AlexNet's. Mean top-1 "
    "is the mean over the ten test perturbations of the fraction of frames that are classified rightly: higher is "
    "better."
)
CLEAN = "none"  # the corruption of a clean image


def robustness_section(series: Sequence[Series]) -> Section:
    """Other sets of the same classes, corruptions by severity, and videos."""
    blocks: list[Block] = []
    if variants := of(series, *VARIANTS):
        title = "Other images of the same classes"
        blocks += [heading(title), Text(VARIANTS_TEXT), *warnings(variants)]
        blocks += score_blocks("variants", title, variants)
    for evaluation, (title, text) in CORRUPTED.items():
        for number, (data, subjects) in enumerate(grouped(of(series, evaluation), lambda r: r.data).items()):
            label = f"{title}, {data}"
            blocks += [heading(label), Text(text), *warnings(subjects)]
            blocks += _corrupted(f"{evaluation}-{number}", label, subjects)
    for number, (data, subjects) in enumerate(grouped(of(series, VIDEOS), lambda r: r.data).items()):
        label = f"ImageNet-P, {data}"
        blocks += [heading(label), Text(VIDEOS_TEXT), *warnings(subjects)]
        overall = only(subjects, lambda r: "perturbation" not in r.details)
        blocks += score_blocks(f"imagenet-p-{number}", label, overall, short=True)
        if single := only(subjects, lambda r: "perturbation" in r.details):
            name = f"{label}: by perturbation"
            blocks.append(
                tabulate(name, "Perturbation", single, lambda _, r: words(r.details["perturbation"]), first="flip_rate")
            )
    return Section("robustness", "Robustness", blocks)


def _corrupted(name: str, label: str, subjects: Subjects) -> list[Block]:
    """The scores, and every corruption by severity."""
    overall = only(subjects, lambda r: r.details.get("corruption", CLEAN) == CLEAN)
    single = only(subjects, lambda r: r.details.get("corruption", CLEAN) != CLEAN)
    blocks: list[Block] = score_blocks(name, label, overall, short=True)
    if errors := only(single, lambda r: "severity" not in r.details):
        table = tabulate(f"{label}: by corruption", "Corruption", errors, lambda _, r: _corruption(r), first="ce")
        blocks.append(Fold("CE of every corruption", [table]))
    levels = only(single, lambda r: r.metric == "top1" and "severity" in r.details)
    if not levels:
        return blocks
    drawn = [
        (s, [*(r for kind in dict.fromkeys(map(_corruption, records)) for r in _clean(subjects, s, kind)), *records])
        for s, records in levels
    ]
    plots = line_plots(
        f"{name}-kind", "Top-1 in % by severity", drawn, _corruption, "severity", x_label="", height=1.35, width=1.9
    )
    tables = [
        tabulate(
            f"{label}: {s.label}, top-1",
            s.label,
            [(s, records)],
            lambda _, r: _corruption(r),
            lambda _, r: f"severity {r.details['severity']}",
        )
        for s, records in levels
    ]
    return [
        *blocks,
        Text("Top-1 in % (up) by severity (across), one plot for each corruption, all on one scale."),
        legend([s for s, _ in levels], name),
        Plots(plots, "small"),
        Fold("Every corruption and severity in numbers", tables),
    ]


def _clean(subjects: Subjects, s: Series, kind: str) -> list[Record]:
    """The subject's clean images, as where the curve of a corruption begins."""
    records = records_of([(other, records) for other, records in subjects if other is s])
    clean = [r for r in records if r.details.get("corruption") == CLEAN and r.metric == "top1"]
    return [replace(r, details=r.details | {"corruption": kind}) for r in clean]


def _corruption(r: Record) -> str:
    return words(str(r.details["corruption"]))
