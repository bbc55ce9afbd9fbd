"""Accuracy where images are corrupted, move, or come from elsewhere."""

from collections.abc import Sequence

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Plot, Plots, Section, Text
from equimid.report.formatting import digits, words
from equimid.report.sections.tables import by_data, finite, score_blocks, tabulate, value_range, warnings
from equimid.report.series import Series, legend

__all__ = ["CORRUPTED", "VARIANTS", "robustness_section"]

VARIANTS = ("imagenet_v2", "imagenet_r", "imagenet_sketch", "imagenet_a")
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


def robustness_section(series: Sequence[Series]) -> Section:
    """Other sets of the same classes, corruptions by severity, and videos."""
    blocks: list[Block] = [*_variants(series)]
    for evaluation, (heading, text) in CORRUPTED.items():
        found = by_data(series, evaluation)
        for number, (data, records) in enumerate(found.items()):
            blocks += [Heading(f"{heading}, {data}"), Text(text)]
            if number == 0:
                blocks += warnings(series, evaluation)
            blocks += _corrupted(f"{evaluation}-{number}", f"{heading}, {data}", series, records)
    blocks += _videos(series)
    return Section("robustness", "Robustness", blocks)


def _variants(series: Sequence[Series]) -> list[Block]:
    found: dict[tuple[str, str], list[Record]] = {}
    for name in VARIANTS:  # in this order, whatever was measured first
        for s in series:
            if records := s.of(name):
                found.setdefault(s.key, []).extend(records)
    if not found:
        return []
    heading = "Other images of the same classes"
    return [
        Heading(heading),
        Text(
            "The linear probe on sets that it was not fitted to. ImageNet-R and -A have 200 of the 1,000 classes: "
            "top-1 is among these, top-1 among all classes is among those of the training images."
        ),
        *warnings(series, *VARIANTS),
        *score_blocks("variants", heading, series, found),
    ]


def _corrupted(
    name: str, label: str, series: Sequence[Series], records: dict[tuple[str, str], list[Record]]
) -> list[Block]:
    shown = [s for s in series if s.key in records]
    overall = {key: [r for r in of if "corruption" not in r.details or _clean(r)] for key, of in records.items()}
    single = {key: [r for r in of if "corruption" in r.details and not _clean(r)] for key, of in records.items()}
    levels = {key: [r for r in of if r.metric == "top1" and "severity" in r.details] for key, of in single.items()}
    blocks: list[Block] = []
    if any(overall.values()):
        blocks += score_blocks(name, label, series, overall, short=True)
    errors = [(_corruption(r), s.label, r) for s in shown for r in single[s.key] if "severity" not in r.details]
    if errors:
        table = tabulate(f"{label}: by corruption", "Corruption", errors, "ce")
        blocks.append(Fold("CE of every corruption", [table]))
    kinds = dict.fromkeys(_corruption(r) for of in levels.values() for r in of)
    if kinds:
        scale = value_range(r for of in (*levels.values(), *overall.values()) for r in of if r.metric == "top1")
        plots = []
        for number, kind in enumerate(kinds):
            lines, said = [], []
            for s in shown:
                at = [r for r in levels[s.key] if _corruption(r) == kind]
                clean = [r for r in overall[s.key] if _clean(r)] if at else []
                points = sorted((int(r.details["severity"]), v, r.low, r.high) for r, v in finite([*clean, *at]))
                if points:
                    lines.append(figures.with_points(s.line, points))
                    said.append(f"{s.label} {', '.join(digits(y, '%') for _, y, *_ in points)}")
            first = min((int(x) for line in lines for x in line.x), default=0)
            alt = f"{kind}, top-1 in % from severity {first} on: {'; '.join(said)}"
            svg = figures.lines(f"{name}-kind-{number}", alt, lines, "", y_range=scale, height=1.35, width=1.9)
            plots.append(Plot(kind, svg))
        blocks += [
            Text("Top-1 in % (up) by severity (across), one plot for each corruption, all on one scale."),
            legend([s for s in shown if levels[s.key]], name),
            Plots(plots, "small"),
            Fold(
                "Every corruption and severity in numbers",
                [
                    tabulate(
                        f"{label}: {s.label}, top-1",
                        s.label,
                        [(_corruption(r), f"severity {r.details['severity']}", r) for r in levels[s.key]],
                        "top1",
                    )
                    for s in shown
                    if levels[s.key]
                ],
            ),
        ]
    return blocks


def _videos(series: Sequence[Series]) -> list[Block]:
    blocks: list[Block] = []
    for number, (data, records) in enumerate(by_data(series, "imagenet_p").items()):
        label = f"ImageNet-P, {data}"
        blocks += [
            Heading(label),
            Text(
                "How often the prediction changes from frame to frame of a slowly perturbed image (flip rate), and how "
                "far the five highest classes move (top-5 distance): lower is better. mFR and mT5D are relative to "
                "AlexNet's. Mean top-1 is the mean over the ten test perturbations of the fraction of frames that are "
                "classified rightly: higher is better."
            ),
        ]
        if number == 0:
            blocks += warnings(series, "imagenet_p")
        overall = {key: [r for r in of if "perturbation" not in r.details] for key, of in records.items()}
        if any(overall.values()):
            blocks += score_blocks(f"imagenet-p-{number}", label, series, overall, short=True)
        cells = _cells(series, records, "perturbation")
        if cells:
            blocks.append(tabulate(f"{label}: by perturbation", "Perturbation", cells, "flip_rate"))
    return blocks


def _cells(
    series: Sequence[Series], records: dict[tuple[str, str], list[Record]], detail: str
) -> list[tuple[str, str, Record]]:
    """(the detail, subject, record) for a table."""
    return [
        (words(str(r.details[detail])), s.label, r)
        for s in series
        for r in records.get(s.key, [])
        if detail in r.details
    ]


def _corruption(r: Record) -> str:
    return words(str(r.details["corruption"]))


def _clean(r: Record) -> bool:
    return bool(r.details.get("corruption") == "none")
