"""Accuracy of probes, detection and segmentation: tables of subjects by metrics."""

from collections.abc import Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Note, Plot, Plots, Section, Text
from equimid.report.formatting import digits, metric_name
from equimid.report.read_run import Run
from equimid.report.sections.pictures import pictures_of
from equimid.report.sections.poses import UPRIGHT, pose_blocks
from equimid.report.sections.tables import by_data, finite, score_blocks, tabulate, value_range, warnings
from equimid.report.series import Series, legend

__all__ = ["dense_section", "evaluation_section", "unmeasured"]

# how each is called, the metric of its values by class, and that of the whole
DENSE = {"detection": ("Detection", "map", "map"), "segmentation": ("Segmentation", "iou", "miou")}


def unmeasured(runs: Sequence[Run]) -> list[Block]:
    """Who has no records yet."""
    return [
        Note(f"is not evaluated yet: equimid evaluate {run.path}", run.name)
        if run.trained_here
        else Note(f"holds no records: equimid evaluate knn linear --model {run.model} --data DATA", run.name)
        for run in runs
        if not run.records
    ]


def evaluation_section(runs: Sequence[Run], series: Sequence[Series], apart: Sequence[str]) -> Section:
    """Every evaluation that has no section of its own, by data set."""
    names = dict.fromkeys(r.evaluation for s in series for r in s.records if r.evaluation not in apart)
    found = by_data(series, *(names or [""]))
    scored = {
        data: {key: [r for r in records if r.metric != "picture"] for key, records in of.items()}
        for data, of in found.items()
    }
    scored = {data: {key: records for key, records in of.items() if records} for data, of in scored.items()}
    blocks: list[Block] = [*unmeasured(runs)]
    if any(scored.values()):
        blocks.append(
            Text(
                "Measured on frozen features. In brackets the 95 % interval; below it the number of images and the "
                "difference to the random network of the same shape."
            )
        )
        blocks += warnings(series, *names)
    elif any(run.records for run in runs):
        blocks.append(Text("The records hold no accuracy."))
    for number, (data, records) in enumerate((d, r) for d, r in scored.items() if r):
        blocks.append(Heading(f"On {data}"))
        blocks += score_blocks(f"evaluation-{number}", f"Evaluation on {data}", series, records)
        blocks += _fewshot(f"fewshot-{number}", series, data)
    return Section("evaluation", "Evaluation", blocks)


def _fewshot(name: str, series: Sequence[Series], data: str) -> list[Block]:
    """Accuracy over the number of labelled images."""
    lines, said = [], []
    found = [r for s in series for r in s.of("fewshot") if r.data == data and "per_class" in r.details]
    counts = sorted({int(r.details["per_class"]) for r in found})
    if len(counts) < 2:
        return []
    for s in series:
        points = sorted(
            (counts.index(int(r.details["per_class"])), value, r.low, r.high)
            for r, value in finite(r for r in s.of("fewshot") if r.data == data and "per_class" in r.details)
        )
        if points:
            lines.append(figures.with_points(s.line, points))
            said.append(f"{s.label} from {digits(points[0][1], '%')} to {digits(points[-1][1], '%')}")
    alt = f"Few-shot top-1 by labelled images a class: {', '.join(said)}"
    x_names = [str(count) for count in counts]
    svg = figures.lines(
        name, alt, lines, "labelled images a class", y_range=value_range(found), width=4.2, x_names=x_names
    )
    shown = [s for s in series if any(r.data == data for r in s.of("fewshot"))]
    return [legend(shown, name), Plots([Plot("few-shot top-1 in %", svg)], "wide")]


def _posed(
    name: str, where: str, series: Sequence[Series], records: dict[tuple[str, str], list[Record]], overall: str
) -> list[Block]:
    """The score of upright images beside that of the same images in other poses."""
    metric = f"{overall}_posed"
    upright = {"kind": UPRIGHT, "pose": "upright"}
    found = {
        key: [
            *(
                replace(r, metric=metric, details=upright)
                for r in of
                if r.metric == overall and "class" not in r.details
            ),
            *(r for r in of if r.metric == metric),
        ]
        for key, of in records.items()
        if any(r.metric == metric for r in of)
    }
    if not found:
        return []
    text = Text(
        f"Trained on upright images, tested in other poses: {metric_name(overall)} in %, all plots on one scale. The "
        "drop in the table above is the upright value less the mean over the poses of a kind, in points, with the "
        "95 % interval of the paired difference."
    )
    shown = [s for s in series if s.key in found]
    return [text, *pose_blocks(name, f"{where}, by pose", metric_name(overall), shown, found)]


def dense_section(series: Sequence[Series]) -> Section:
    """Detection and segmentation: overall, by class, and as pictures."""
    blocks: list[Block] = []
    for evaluation, (heading, by_class, overall) in DENSE.items():
        found = by_data(series, evaluation)
        part: list[Block] = [*warnings(series, evaluation)]
        for number, (data, records) in enumerate(found.items()):
            scored = {key: [r for r in of if r.metric != "picture"] for key, of in records.items()}
            whole = {key: [r for r in of if not {"class", "pose"} & set(r.details)] for key, of in scored.items()}
            if any(whole.values()):
                where = f"{heading} on {data}"
                part.append(Heading(where))
                part += score_blocks(f"{evaluation}-{number}", where, series, whole, short=True)
            part += _posed(f"{evaluation}-{number}-posed", f"{heading} on {data}", series, scored, overall)
            cells = [
                (str(r.details["class"]), s.label, r)
                for s in series
                for r in scored.get(s.key, [])
                if "class" in r.details
            ]
            if cells:
                table = tabulate(f"{heading} on {data}, by class", "Class", cells, by_class)
                part.append(Fold(f"{heading} on {data}, class by class", [table]))
        part += pictures_of(series, evaluation)
        if part:
            blocks += part
    if blocks:
        blocks.insert(
            0,
            Text(
                "A detector or a linear layer is trained on the frozen network's patches; the network itself does not "
                "change. In brackets the 95 % interval where one is known."
            ),
        )
    return Section("dense", "Detection and segmentation", blocks)
