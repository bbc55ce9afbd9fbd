"""Pictures of feature maps: image, posed image, and both maps beside the transported one, in three colours."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.equivariance.agreement import Tokens, agreement, mean_tokens, normalised_maps
from equimid.evaluation.figures.drawing import (
    Array,
    photographs,
    picture_file,
    picture_record,
    principal_colours,
    save_figure,
)
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.poses import Pose, transport
from equimid.records import Record

__all__ = ["draw_feature_maps", "some_layers"]

_TOP = 1.5  # relative error that is drawn brightest
_TITLES = ("image", "its map", "posed image", "its map", "first, transported", "error")


def some_layers(encoder: Encoder, added: Sequence[int] = ()) -> list[int]:
    """The first layer, one at a quarter, at half and at the full depth, those that training tapped, and those given;
    ascending.

    Raises:
        UserError: a given layer is none of the network.
    """
    depth = encoder.depth
    if unknown := [layer for layer in added if not 1 <= layer <= depth]:
        raise UserError(f"there is no layer {unknown[0]}: the network's layers are 1 to {depth}")
    return sorted({1, max(1, depth // 4), max(1, depth // 2), depth, *encoder.taps, *added})


@torch.inference_mode()
def draw_feature_maps(
    study: Study, data: str, train: str | None = None, *, layers: Sequence[int] = (), images: int = 3
) -> list[Record]:
    """One PNG per layer under the study's pictures, a row per image: first three principal components as red, green,
    blue. The pose is a quarter turn of the flipped image on a larger grid (its own where the network takes one size).
    If the layer is equivariant, the last two maps of a row are alike and the error, of normalised tokens as in
    `measure_equivariance`, is dark.

    Args:
        layers: beside the first, one at a quarter, at half and at the full depth.

    Raises:
        UserError: there is no such layer, or no image.
    """
    source = images_of(data)
    encoder = study.encoder
    layers = some_layers(encoder, layers)
    chosen = sample_images(source, images, study.scope.seed)
    x = next(study.batches(source, len(chosen), chosen))
    grid = x.shape[-1] // encoder.patch_size
    upright = Pose.identity(len(x), (grid, grid), study.device)
    larger = max(grid + 1, round(grid * 1.14)) if encoder.any_size else grid
    pose = Pose(upright.turns + 1, ~upright.flip, (larger, larger))
    posed = pose.act(x, encoder.patch_size)
    base, turned = (normalised_maps(encoder, images, layers) for images in (x, posed))
    means = mean_tokens(encoder, [x], layers)
    records = []
    for layer in layers:
        carried = transport(base[layer], upright, pose)
        colours = principal_colours([base[layer], turned[layer], carried])
        spread = (turned[layer] - means[layer][..., None]).square().sum(1).mean((1, 2), keepdim=True).sqrt()
        error = ((turned[layer] - carried).norm(dim=1) / spread.clamp(min=1e-12) / _TOP).clamp(max=1)
        place = agreement(Tokens.of(turned[layer].flatten(2)), Tokens.of(carried.flatten(2)), means[layer])["place"]
        shown = matplotlib.colormaps["magma"](error.cpu().numpy())[..., :3].astype(np.float32)
        photos = photographs(x, study.preprocessing), photographs(posed, study.preprocessing)
        file = picture_file(study, f"feature_maps_layer_{layer}.png")
        _draw([photos[0], colours[0], photos[1], colours[1], colours[2], shown], file)
        caption = (
            f"Layer {layer}: an image and its map, the image flipped, turned and scaled and its map, and the first map "
            "transported by the same pose. The more equivariant the layer, the more alike the two, and the darker the "
            f"error (black 0, brightest {_TOP:g} times the map's spread or more). Place, row by row: {_listed(place)}."
        )
        records.append(picture_record(study, "feature_maps", len(x), file, {"layer": layer, "caption": caption}))
    return records


def _listed(values: Tensor) -> str:
    found = values.tolist()
    return ", ".join(f"{v:.2f}".replace("-", "−") if math.isfinite(v) else "not measurable" for v in found)


def _draw(columns: list[Array], file: Path) -> None:
    rows = len(columns[0])
    figure = Figure(figsize=(1.7 * len(columns), 1.75 * rows + 0.25), dpi=110, layout="constrained")
    for c, (title, images) in enumerate(zip(_TITLES, columns, strict=True)):
        for r in range(rows):
            axes = figure.add_subplot(rows, len(columns), r * len(columns) + c + 1)
            axes.imshow(images[r], interpolation="nearest")
            axes.set_axis_off()
            if r == 0:
                axes.set_title(title, fontsize=9)
    save_figure(figure, file)
