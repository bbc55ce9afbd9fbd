"""Pictures of images with their boxes, as labelled and as found."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from equimid.data import open_image
from equimid.errors import UserError
from equimid.evaluation.detection.annotations import DetectionSet
from equimid.evaluation.detection.train import Detections
from equimid.evaluation.figures.drawing import save_figure

__all__ = ["draw_detections"]

_SCORE = 0.5


def draw_detections(images: DetectionSet, detections: Sequence[Detections], chosen: Sequence[int], file: Path) -> None:
    """A PNG, written beside and renamed: above the labelled boxes (ignored ones dotted), below those found with a score
    above 0.5, a colour for each class."""
    figure = Figure(figsize=(2.6 * len(chosen), 4.4), dpi=110, layout="constrained")
    shown: set[int] = set()
    for column, i in enumerate(chosen):
        photo, of_image = open_image(images.images[i]), detections[i]
        best = of_image.scores > _SCORE
        labelled = zip(images.boxes[i].tolist(), images.labels[i].tolist(), images.ignored[i].tolist(), strict=True)
        detected = zip(
            detections[i].boxes[best].tolist(), detections[i].labels[best].tolist(), cycle([False]), strict=False
        )
        for row, (title, boxes) in enumerate((("labelled", labelled), ("found", detected))):
            axes = figure.add_subplot(2, len(chosen), row * len(chosen) + column + 1)
            axes.imshow(photo)
            axes.set_axis_off()
            if column == 0:
                axes.set_title(title, fontsize=9, loc="left")
            shown |= _outline(axes, boxes)
    handles = [Line2D([], [], color=_colour(label), label=images.classes[label]) for label in sorted(shown)]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); make room, or give another folder") from None


def _outline(axes: Any, boxes: Iterable[tuple[list[float], int, bool]]) -> set[int]:
    labels = set()
    for (x0, y0, x1, y1), label, ignored in boxes:
        style = ":" if ignored else "-"
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=_colour(label), lw=1.2, ls=style))
        labels.add(label)
    return labels


def _colour(label: int) -> tuple[float, float, float]:
    red, green, blue, _ = colormaps["tab10"](label % 10)
    return red, green, blue
