"""Scores: probes, other images, corruptions, other poses, detection and segmentation, and pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from equimid.evaluation.registry import measurement_of
from equimid.records import Record
from equimid.report.blocks import Block, Figure, Figures, Group, Text, explained
from equimid.report.formatting import capital, gathered, metric_name
from equimid.report.read_run import Run
from equimid.report.series import Point, grouped, in_page_order
from equimid.report.views import curves, legend, marks, panel, pivot, scores, value_range, warnings

__all__ = ["dense", "evaluation", "geometry", "plain_section", "robustness", "unmeasured"]

UPRIGHT, ANGLE, CLEAN = "none", "angle", "none"  # kinds of poses, and the corruption of a clean image


def evaluation(runs: Sequence[Run], points: Sequence[Point]) -> list[Block]:
    """Every measurement that has no section of its own."""
    return [*unmeasured(runs, points, "accuracy"), *plain_section("evaluation", "Evaluation", runs, points)]


def unmeasured(runs: Sequence[Run], points: Sequence[Point], what: str) -> list[Block]:
    """Who has no records yet, and that no run has this."""
    notes: list[Block] = [
        Text(f"is not evaluated yet: equimid evaluate {run.path}", "note", run.name)
        if run.trained_here
        else Text(f"holds no records: equimid evaluate knn linear --model {run.model} --data DATA", "note", run.name)
        for run in runs
        if not run.records
    ]
    if not points and len(notes) < len(runs):
        notes.append(Text(f"The records hold no {what}.", "note"))
    return notes


def plain_section(name: str, title: str, runs: Sequence[Run], points: Sequence[Point]) -> list[Block]:
    """For each data set a table of scores, or of layers by subjects where records have a layer, and the pictures."""
    layered = [p for p in points if "layer" in p.details and p.metric != "picture"]
    values = [p for p in points if "layer" not in p.details and p.metric != "picture"]
    blocks: list[Block] = [explained("scores"), *warnings(values)] if values else []
    for number, (data, part) in enumerate(grouped(values, lambda p: p.data).items()):
        table_and_plots = scores(f"{name}-{number}", f"{title} on {data}", part)
        blocks.append(Group(f"On {data}", [*table_and_plots, *_fewshot(f"fewshot-{number}", f"On {data}", part)]))
    # feature maps are drawn for every run
    missing = name == "feature-maps" and not points and any(run.trained_here for run in runs)
    for evaluation, part in grouped(layered, lambda p: p.evaluation).items():
        text = Text(f"{capital(measurement_of(evaluation).text)}, by layer.")
        blocks += [text, *warnings(part), *_by_layer(f"{name}-{evaluation}", title, part)]
    return [*blocks, *pictures(points), Text("No picture was recorded." if missing else "", "note")]


def _by_layer(name: str, title: str, points: Sequence[Point]) -> list[Block]:
    """A plot for each metric, and a table of layers by subjects for each metric and data set."""
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None and math.isfinite(v)]
    y_range = (1.05 * min([0.0, *values]), 1.05 * max(values, default=1.0))
    lines = curves(name, title, points, panel(points, metric_name), "layer", "", y_range=y_range)
    tables: list[Block] = [
        pivot(
            f"{capital(metric)} on {data}", "Layer", sorted(part, key=lambda p: p.details["layer"]),
            lambda p: p.details["layer"],
            columns=list(dict.fromkeys(p.series for p in points)),  # in the order of the subjects
        )
        for (metric, data), part in grouped(points, lambda p: (metric_name(p), p.data)).items()
    ]  # fmt: skip
    return [legend(name, points), Figures(lines), *tables]


def _fewshot(name: str, what: str, points: Sequence[Point]) -> list[Block]:
    """Accuracy over the number of labelled images."""
    few = [p for p in points if "per_class" in p.details]
    counts = sorted({p.details["per_class"] for p in few})
    placed = [replace(p, details={"place": counts.index(p.details["per_class"])}) for p in few]
    plots = curves(
        name, what, placed, lambda _: "few-shot top-1 in %", "place", least=2,
        x_label="labelled images a class", x_names=[str(count) for count in counts], width=4.2,
    )  # fmt: skip
    return [legend(name, placed), Figures(plots, "wide")] if plots else []


def robustness(points: Sequence[Point]) -> list[Block]:
    """Other sets of the same classes, corruptions by severity, and videos."""
    views = {"generated_corruptions": _corruptions, "imagenet_c": _corruptions, "imagenet_p": _videos}
    others = [p for p in in_page_order(points) if p.evaluation not in views]
    title = "Other images of the same classes"
    texts: list[Block] = [explained("other sets"), *warnings(others)]
    blocks: list[Block] = [Group(title, [*texts, *scores("variants", title, others)])]
    for name, label, part in _by_data([p for p in points if p.evaluation in views], ", "):
        evaluation = part[0].evaluation
        view = views[evaluation](name, label, part)
        blocks.append(Group(label, [explained(evaluation), *warnings(part), *view]))
    return blocks


def _by_data(points: Sequence[Point], between: str = " on ") -> list[tuple[str, str, list[Point]]]:
    """A name, a label and the points of each measurement on each data set."""
    parts = grouped(in_page_order(points), lambda p: (p.evaluation, p.data))
    titles = [capital(measurement_of(evaluation).title) + between + data for evaluation, data in parts]
    names = [f"{evaluation}-{number}" for number, (evaluation, _) in enumerate(parts)]
    return list(zip(names, titles, parts.values(), strict=True))


def _videos(name: str, label: str, points: Sequence[Point]) -> list[Block]:
    """The scores, and every perturbation."""
    single = [p for p in points if "perturbation" in p.details]
    by_kind = pivot(
        f"{label}: by perturbation", "Perturbation", single, _detail("perturbation"),
        cell=lambda part: gathered(part, "flip_rate"),
    )  # fmt: skip
    return [*scores(name, label, [p for p in points if "perturbation" not in p.details], short=True), by_kind]


def _corruptions(name: str, label: str, points: Sequence[Point]) -> list[Block]:
    """The scores, and every corruption by severity."""
    kind = _detail("corruption")
    overall = [p for p in points if p.detail("corruption", CLEAN) == CLEAN]
    single = [p for p in points if p.detail("corruption", CLEAN) != CLEAN]
    errors = [p for p in single if "severity" not in p.details]
    levels = [p for p in single if "severity" in p.details and p.metric == "top1"]
    subjects = grouped(levels, lambda p: p.series)
    # every curve begins with the subject's clean images
    clean = [
        replace(p, details=p.details | {"corruption": corruption})
        for p in overall
        if p.metric == "top1" and "corruption" in p.details
        for corruption in dict.fromkeys(level.details["corruption"] for level in subjects.get(p.series, ()))
    ]
    lines = curves(
        f"{name}-kind", "Top-1 in % by severity", [*clean, *levels], kind, "severity",
        x_label="", height=1.35, width=1.9,
    )  # fmt: skip
    tables = [
        pivot(f"{label}: {s}, top-1", s.label, part, kind, lambda p: f"severity {p.details['severity']}")
        for s, part in subjects.items()
    ]
    by_severity: list[Block] = [
        explained("severities"),
        legend(name, levels),
        Figures(lines, "small"),
        Group("Every corruption and severity in numbers", tables, folded=True),
    ]
    table = pivot(f"{label}: by corruption", "Corruption", errors, kind)
    return [
        *scores(name, label, overall, short=True),
        Group("CE of every corruption", [table], folded=True),
        *(by_severity if levels else []),
    ]


def geometry(points: Sequence[Point]) -> list[Block]:
    """Accuracy on turned, mirrored and scaled images."""
    return [
        explained("geometry"),
        *warnings(points),
        *(Group(f"On {part[0].data}", _poses(name, label, "Top-1", part)) for name, label, part in _by_data(points)),
    ]


def dense(points: Sequence[Point]) -> list[Block]:
    """Detection and segmentation: overall, by pose, by class, and as pictures."""
    blocks: list[Block] = [explained("dense")]
    for own in grouped(in_page_order(points), lambda p: p.evaluation).values():
        blocks += warnings(own)
        for name, label, part in _by_data([p for p in own if p.metric != "picture"]):
            whole = [p for p in part if not {"class", "pose"} & set(p.details)]
            classes = [p for p in part if "class" in p.details]
            table = pivot(f"{label}, by class", "Class", classes, _detail("class"))
            blocks.append(Group(label, scores(name, label, whole, short=True)))
            blocks += _posed(f"{name}-posed", f"{label}, by pose", part)
            blocks.append(Group(f"{label}, class by class", [table], folded=True))
        blocks += pictures(own)
    return blocks


def _posed(name: str, label: str, points: Sequence[Point]) -> list[Block]:
    """The score of upright images beside that of the same images in other poses."""
    measurement = measurement_of(points[0].evaluation)
    metric = next((headline.metric for headline in measurement.headlines), "")
    title = measurement.metric_title(metric)
    posed = [p for p in points if p.metric == f"{metric}_posed"]
    subjects = {p.series for p in posed}
    upright = [
        replace(p, metric=f"{metric}_posed", details={"kind": UPRIGHT, "pose": "upright"})
        for p in points
        if p.metric == metric and "class" not in p.details and p.series in subjects
    ]
    return [explained("posed", metric=title), *_poses(name, label, title, [*upright, *posed])] if posed else []


def _poses(name: str, label: str, what: str, points: Sequence[Point]) -> list[Block]:
    """A curve over the angle, a mark for each pose of the other kinds, all on one scale, and the numbers."""
    kinds = grouped(points, _kind)
    scale = value_range(points)
    plots: list[Figure] = []
    for number, (kind, part) in enumerate(kinds.items()):
        plot_name = f"{name}-{number}"
        if kind == ANGLE:
            plots += curves(
                plot_name, what, part, lambda _: "by angle", ANGLE, y_range=scale, x_label="degrees", x_step=45,
                width=4.2,
            )  # fmt: skip
        elif kind != UPRIGHT or len(kinds) == 1:
            # the upright images before the others
            subjects = {p.series for p in part}
            upright = [p for p in kinds.get(UPRIGHT, []) if p.series in subjects and kind != UPRIGHT]
            plots.append(marks(plot_name, f"{what} by pose", kind, [*upright, *part], _pose, y_range=scale))
    table = pivot(label, "Pose", points, lambda p: _pose(p) if _kind(p) == UPRIGHT else f"{_kind(p)}, {_pose(p)}")
    return [legend(name, points), Figures(plots, "wide"), Group("Every pose in numbers", [table], folded=True)]


def _kind(r: Record) -> str:
    return str(r.details.get("kind", "all")).replace("_", " ")


def _pose(r: Record) -> str:
    if "pose" in r.details:
        return str(r.details["pose"])
    return f"{r.details['angle']:g} degrees" if "angle" in r.details else "–"


def _detail(name: str) -> Callable[[Point], str]:
    """A row of a table for each value of the detail."""
    return lambda p: str(p.details[name]).replace("_", " ")


def pictures(points: Sequence[Point]) -> list[Block]:
    """The pictures of each subject, or what is missing of them."""
    blocks: list[Block] = []
    for s, part in grouped([p for p in points if p.picture is not None], lambda p: p.series).items():
        blocks.append(Group(s.label, [_picture(p) for p in part]))
    return blocks


def _picture(p: Point) -> Block:
    source = p.series.run.picture(str(p.picture))
    if not source:
        missing = f"{p.picture} is missing from the run's folder, or is no PNG or JPEG: run equimid evaluate again."
        return Text(missing, "note")
    measurement = measurement_of(p.evaluation)
    what = capital(measurement.metrics.get(p.metric, measurement.title))
    what += f" of layer {p.details['layer']}" if "layer" in p.details else ""
    caption = p.detail("caption")
    alt = f"{what}: {caption}" if caption else what
    return Figures([Figure(str(caption or what), source=source, alt=alt)], "picture")
