"""Pictures of the last block's attention: where CLS looks, on average over the heads and head by head."""

import logging
import math

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from equimid.errors import UserError
from equimid.evaluation.figures.drawing import Array, photographs, picture_file, picture_record, save_figure
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.records import Record

__all__ = ["draw_attention"]

logger = logging.getLogger("equimid")

_COLUMNS = 5


@torch.inference_mode()
def draw_attention(study: Study, data: str, train: str | None = None, *, images: int = 3) -> list[Record]:
    """One PNG per image under the study's pictures: the photograph, the attention of CLS to the patches in the last
    block as the mean over the heads, and each head. No record for a network whose CLS attends to no patch that can be
    read (no CLS, or attention of another form).

    Raises:
        UserError: no image.
    """
    source = images_of(data)
    encoder = study.encoder
    chosen = sample_images(source, images, study.scope.seed)
    if not len(chosen):
        raise UserError(f"{data} has no image that can be read; attention needs one")
    x = next(study.batches(source, len(chosen), chosen))
    attention = encoder.cls_attention(x)
    if attention is None:
        logger.info("no pictures of attention: the last block's attention of CLS to patches cannot be had")
        return []
    records = []
    for number, (heads, photo) in enumerate(zip(attention.float(), photographs(x, study.preprocessing), strict=True)):
        maps = torch.cat([heads.mean(0, keepdim=True), heads])
        # over the patches alone: what CLS keeps for itself differs from head to head
        fractions = (maps / maps.sum((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()
        file = picture_file(study, f"attention_image_{number + 1}.png")
        save_figure(_figure(photo, fractions), file)
        caption = (
            f"Image {number + 1}: the photograph, where CLS looks in the last block on average over {len(heads)} heads "
            "and by each head. Every map has its own scale, from none (dark) to its highest patch (bright), which is "
            "so many times an even share (×)."
        )
        records.append(picture_record(study, "attention", 1, file, {"image": number + 1, "caption": caption}))
    return records


def _figure(photo: Array, fractions: Array) -> Figure:
    """Photograph (S, S, 3), and maps (1 + heads, h, w) that sum to 1, the first their mean."""
    count = 1 + len(fractions)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    close = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    figure = Figure(figsize=(1.45 * columns, 1.68 * rows), dpi=100, layout=close)
    titles = ["photograph", "mean", *(f"head {h + 1}" for h in range(len(fractions) - 1))]
    for place, title in enumerate(titles):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        if place == 0:
            axes.imshow(photo)
        else:
            fraction = fractions[place - 1]
            axes.imshow(fraction, cmap="magma", vmin=0, vmax=max(float(fraction.max()), 1e-12), interpolation="nearest")
            title += f", ×{fraction.max() * fraction.size:.1f}"
        axes.set_title(title, fontsize=9)
    return figure
