"""Scores: probes, other poses, detection and segmentation, and the pictures that evaluations drew."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Picture, Plot, Plots, Section, Text, heading
from equimid.report.formatting import metric_name, words
from equimid.report.read_run import Run
from equimid.report.sections.layers import unmeasured
from equimid.report.sections.plots import line_plot, line_plots, value_range
from equimid.report.sections.tables import score_blocks, tabulate, warnings
from equimid.report.series import Series, Subjects, finite, grouped, legend, of, only, records_of

__all__ = [
    "DENSE", "GEOMETRY", "PICTURES", "dense_section", "evaluation_section", "geometry_section", "pictures_section"
]  # fmt: skip

GEOMETRY, FEWSHOT, FEATURE_MAPS = "geometry", "fewshot", "feature_maps"
# how each is called, the metric of its values by class, and that of the whole
DENSE = {"detection": ("Detection", "map", "map"), "segmentation": ("Segmentation", "iou", "miou")}
# evaluations that are pictures and no more, with what each shows
PICTURES = {
    FEATURE_MAPS: ("Feature maps", "Token maps"),
    "attention": ("Attention", "What the class token attends to"),
    "neighbours": ("Nearest neighbours", "Images and those nearest to them"),
}
UPRIGHT, ANGLE = "none", "angle"  # kinds of poses: that which changes nothing, and that which is drawn as a curve
EVALUATION_TEXT = (
    "Measured on frozen features. In brackets the 95 % interval; below it the number of images and the difference to "
    "the random network of the same shape."
)
GEOMETRY_TEXT = (
    "Top-1 in % of a linear probe that was fitted to upright images, on test images in other poses; all plots on one "
    "scale. Over the angle only the disc that turns into itself is shown, at 0 degrees too."
)
DENSE_TEXT = (
    "A detector or a linear layer is trained on the frozen network's patches; the network itself does not change. In "
    "brackets the 95 % interval where one is known."
)


def evaluation_section(runs: Sequence[Run], series: Sequence[Series], apart: Sequence[str]) -> Section:
    """Every evaluation that has no section of its own, by data set."""
    names = dict.fromkeys(r.evaluation for s in series for r in s.records if r.evaluation not in apart)
    subjects = only(of(series, *names), lambda r: r.metric != "picture")
    blocks: list[Block] = unmeasured(runs)
    if subjects:
        blocks += [Text(EVALUATION_TEXT), *warnings(subjects)]
    elif any(run.records for run in runs):
        blocks.append(Text("The records hold no accuracy."))
    for number, (data, part) in enumerate(grouped(subjects, lambda r: r.data).items()):
        label = f"Evaluation on {data}"
        blocks += [heading(f"On {data}"), *score_blocks(f"evaluation-{number}", label, part)]
        blocks += _fewshot(f"fewshot-{number}", f"On {data}", only(part, lambda r: "per_class" in r.details))
    return Section("evaluation", "Evaluation", blocks)


def _fewshot(name: str, what: str, subjects: Subjects) -> list[Block]:
    """Accuracy over the number of labelled images."""
    counts = sorted({r.details["per_class"] for r in records_of(subjects)})
    if len(counts) < 2:
        return []
    places = [
        (s, [replace(r, details={"place": counts.index(r.details["per_class"])}) for r in records])
        for s, records in subjects
    ]
    plots = line_plots(
        name, what, places, lambda _: "few-shot top-1 in %", "place",
        x_label="labelled images a class", x_names=[str(count) for count in counts], width=4.2,
    )  # fmt: skip
    return [legend([s for s, _ in subjects], name), Plots(plots, "wide")]


def geometry_section(series: Sequence[Series]) -> Section:
    """Accuracy on turned, mirrored and scaled images."""
    subjects = of(series, GEOMETRY)
    blocks: list[Block] = [Text(GEOMETRY_TEXT), *warnings(subjects)] if subjects else []
    for number, (data, part) in enumerate(grouped(subjects, lambda r: r.data).items()):
        blocks += [heading(f"On {data}"), *_poses(f"geometry-{number}", f"Geometry on {data}", "Top-1", part)]
    return Section("geometry", "Turned, mirrored and scaled images", blocks, short="Geometry")


def dense_section(series: Sequence[Series]) -> Section:
    """Detection and segmentation: overall, by pose, by class, and as pictures."""
    blocks: list[Block] = []
    for evaluation, (title, by_class, overall) in DENSE.items():
        subjects = of(series, evaluation)
        blocks += warnings(subjects)
        for number, (data, part) in enumerate(
            grouped(only(subjects, lambda r: r.metric != "picture"), lambda r: r.data).items()
        ):
            label, name = f"{title} on {data}", f"{evaluation}-{number}"
            whole = only(part, lambda r: not {"class", "pose"} & set(r.details))
            if whole:
                blocks += [heading(label), *score_blocks(name, label, whole, short=True)]
            blocks += _posed(f"{name}-posed", f"{label}, by pose", part, overall)
            if classes := only(part, lambda r: "class" in r.details):
                table = tabulate(
                    f"{label}, by class", "Class", classes, lambda _, r: str(r.details["class"]), first=by_class
                )
                blocks.append(Fold(f"{label}, class by class", [table]))
        blocks += _pictures(subjects)
    return Section("dense", "Detection and segmentation", [Text(DENSE_TEXT), *blocks] if blocks else [])


def _posed(name: str, label: str, subjects: Subjects, overall: str) -> list[Block]:
    """The score of upright images beside that of the same images in other poses."""
    metric = f"{overall}_posed"
    upright = {"kind": UPRIGHT, "pose": "upright"}
    posed = []
    for s, records in subjects:
        if others := [r for r in records if r.metric == metric]:
            whole = [r for r in records if r.metric == overall and "class" not in r.details]
            posed.append((s, [*(replace(r, metric=metric, details=upright) for r in whole), *others]))
    if not posed:
        return []
    text = Text(
        f"Trained on upright images, tested in other poses: {metric_name(overall)} in %, all plots on one scale. The "
        "drop in the table above is the upright value less the mean over the poses of a kind, in points, with the "
        "95 % interval of the paired difference."
    )
    return [text, *_poses(name, label, metric_name(overall), posed)]


def _poses(name: str, label: str, what: str, subjects: Subjects) -> list[Block]:
    """A curve over the angle, a mark for each pose of the other kinds, all on one scale, and the numbers."""
    kinds = grouped(subjects, _kind)
    scale = value_range(records_of(subjects))
    plots: list[Plot] = []
    for number, (kind, part) in enumerate(kinds.items()):
        plot_name = f"{name}-{number}"
        if kind == ANGLE:
            plots += line_plots(
                plot_name,
                what,
                part,
                lambda _: "by angle",
                ANGLE,
                y_range=scale,
                x_label="degrees",
                x_step=45,
                width=4.2,
            )
        elif kind != UPRIGHT or len(kinds) == 1:
            plots.append(_marks(plot_name, f"{what} by pose", words(kind), _with_upright(part, kinds), scale))
    table = tabulate(
        label, "Pose", subjects, lambda _, r: _pose(r) if _kind(r) == UPRIGHT else f"{words(_kind(r))}, {_pose(r)}"
    )
    return [legend([s for s, _ in subjects], name), Plots(plots, "wide"), Fold("Every pose in numbers", [table])]


def _marks(name: str, what: str, caption: str, subjects: Subjects, scale: tuple[float, float]) -> Plot:
    """A mark for each pose, subjects beside each other: an interval would hide another's."""
    poses = list(dict.fromkeys(_pose(r) for r in records_of(subjects)))
    marks = []
    for number, (s, records) in enumerate(subjects):
        aside = 0.5 * ((number + 0.5) / len(subjects) - 0.5)
        points = [(poses.index(_pose(r)) + aside, value, r.low, r.high) for r, value in finite(records)]
        marks.append((s.label, replace(figures.with_points(s.line, points), dash="", marker=s.line.marker or "_")))
    names = [pose.removesuffix(" patches") for pose in poses]
    return line_plot(name, what, caption, marks, "%", x_label="", y_range=scale, x_names=names, width=4.2)


def _with_upright(part: Subjects, kinds: Mapping[str, Subjects]) -> Subjects:
    """The upright images before the others, which are not cut as those of the curve are."""
    both = [*kinds.get(UPRIGHT, []), *part]
    return [(s, [r for other, records in both if other is s for r in records]) for s, _ in part]


def _kind(r: Record) -> str:
    return str(r.details.get("kind", "all"))


def _pose(r: Record) -> str:
    if "pose" in r.details:
        return str(r.details["pose"])
    return f"{r.details['angle']:g} degrees" if "angle" in r.details else "–"


def pictures_section(series: Sequence[Series], evaluation: str) -> Section:
    """The pictures of one evaluation; feature maps are drawn for every run, so that they are missed where none are."""
    blocks = _pictures(of(series, evaluation))
    if not blocks and evaluation == FEATURE_MAPS and any(s.run.trained_here for s in series):
        blocks = [Text("No picture was recorded.")]
    return Section(evaluation.replace("_", "-"), PICTURES[evaluation][0], blocks)


def _pictures(subjects: Subjects) -> list[Block]:
    blocks: list[Block] = []
    for s, records in only(subjects, lambda r: r.picture is not None):
        blocks += [heading(s.label), *(_picture(s.run, r) for r in records)]
    return blocks


def _picture(run: Run, r: Record) -> Block:
    source = run.picture(str(r.picture))
    if not source:
        missing = f"{r.picture} is missing from the run's folder, or is no PNG or JPEG: run equimid evaluate again."
        return Text(missing, "note")
    what = PICTURES[r.evaluation][1] if r.evaluation in PICTURES else words(r.evaluation).capitalize()
    if "layer" in r.details:
        what += f" of layer {r.details['layer']}"
    caption = r.details.get("caption")
    return Picture(str(caption or what), f"{what}: {caption}" if caption else what, source)
