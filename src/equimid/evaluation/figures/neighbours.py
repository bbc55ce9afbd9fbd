"""Pictures of nearest neighbours: what the network takes for alike, without any head."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from equimid.data import Source
from equimid.errors import UserError
from equimid.evaluation.figures.drawing import Array, photographs, picture_file, picture_record, save_figure
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["draw_neighbours"]

_AMONG = 2000
_SAME, _OTHER = "#0072B2", "#D55E00"  # Okabe and Ito's; line and mark tell them apart too


@torch.inference_mode()
def draw_neighbours(
    study: Study, data: str, train: str | None = None, *, queries: int = 4, nearest: int = 6
) -> list[Record]:
    """One PNG per query under the study's pictures: the image and its nearest others by cosine of the final embedding,
    among at most 2,000 images of the data. Queries are drawn by the seed. With labels, each neighbour's class is named
    and marked as the query's (tick, full line) or another (cross, dashed line).

    Raises:
        UserError: fewer than two images.
    """
    source = images_of(data)
    if len(source) < 2:
        raise UserError(f"{data} has {len(source)} image(s) that can be read; neighbours need two or more")
    among = sample_images(source, _AMONG, study.scope.seed)
    source = source.take(among)
    order = counted_generator(study.scope.seed, "neighbours").permutation(len(source))
    rows = torch.from_numpy(order[:queries])
    embeddings = F.normalize(_embeddings(study, source).float(), dim=1)
    cosines = embeddings[rows] @ embeddings.T
    cosines[torch.arange(len(rows)), rows] = -torch.inf  # not itself
    highest, neighbours = cosines.topk(min(nearest, len(source) - 1), dim=1)
    records = []
    each = zip(rows.tolist(), neighbours.tolist(), highest.tolist(), strict=True)
    for number, (query, others, values) in enumerate(each):
        shown = torch.tensor([query, *others])
        x = next(study.batches(source, len(shown), shown.numpy()))
        names = None if source.labels is None else [source.classes[label] for label in source.labels[shown.numpy()]]
        file = picture_file(study, f"neighbours_query_{number + 1}.png")
        save_figure(_figure(photographs(x, study.preprocessing), values, names), file)
        details: dict[str, object] = {"query": number + 1, "cosines": [round(value, 4) for value in values]}
        if names:
            details |= {"class": names[0], "classes": names[1:]}
        details["caption"] = _caption(number + 1, len(source), values, names)
        records.append(picture_record(study, "neighbours", len(source), file, details))
    return records


def _embeddings(study: Study, source: Source) -> Tensor:
    """Final embeddings (n, D); labels are not needed."""
    parts = []
    for images in study.track(study.batches(source), "neighbours", len(source), len):
        parts.append(study.columns(images)[:, -study.encoder.embed_dim :].cpu())  # the last columns are the final one
    return torch.cat(parts)


def _caption(number: int, count: int, values: list[float], names: list[str] | None) -> str:
    text = f"Query {number}{f' ({names[0]})' if names else ''}: its {len(values)} nearest of {count - 1:,} other images"
    if names:
        same = sum(name == names[0] for name in names[1:])
        text += f", {same} of them of its class: {', '.join(names[1:])}"
    return f"{text}. Cosines of the final embedding from {values[0]:.2f} to {values[-1]:.2f}."


def _figure(photos: Array, values: list[float], names: list[str] | None) -> Figure:
    """The query (photos[0]) twice as large as its neighbours, nearest first."""
    columns = -(-len(values) // 2)
    figure = Figure(figsize=(1.3 * (columns + 2), 3.1), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, columns + 2)
    axes = figure.add_subplot(grid[:, :2])
    axes.imshow(photos[0])
    axes.set_title(_short(f"query: {names[0]}" if names else "query", 30), fontsize=10)
    axes.set_axis_off()
    for place, (photo, value) in enumerate(zip(photos[1:], values, strict=True)):
        axes = figure.add_subplot(grid[place // columns, 2 + place % columns])
        axes.imshow(photo)
        axes.set(xticks=[], yticks=[])
        same = names is not None and names[place + 1] == names[0]
        mark = "" if names is None else f"{'✓' if same else '✗'} {_short(names[place + 1], 12)}\n"
        axes.set_title(f"{mark}{value:.2f}", fontsize=8)
        for edge in axes.spines.values():
            edge.set_visible(names is not None)
            edge.set(color=_SAME if same else _OTHER, linestyle="-" if same else (0, (3, 2)), linewidth=2.5)
    return figure


def _short(text: str, length: int) -> str:
    # a dollar in a class's name is a dollar, not a formula
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
