"""The data of the page's explorer: maps of posed images beside transported maps, for every pose of a small set.

For layer l, image x and pose g = (quarter turns, flip, grid), with f the token map, each token layer-normed without
parameters, m the mean token of some images, and p the patches of the posed grid: `agreement` compares f(g x) with
rho(g) f(x), one image at one pose, by its place, its centred cosine and its relative error. The error is drawn patch by
patch:

    error at p:  |f(g x) - rho(g) f(x)|_p  /  sqrt( mean_p |f(g x) - m|_p^2 )

Its root mean square over p is the relative error. 0 is equivariant; two unrelated maps of equal size have sqrt 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.equivariance.agreement import Tokens, agreement, mean_tokens, normalised_maps
from equimid.evaluation.figures.drawing import (
    Array,
    as_bytes,
    photographs,
    picture_file,
    picture_record,
    principal_colours,
    write_beside,
)
from equimid.evaluation.figures.feature_maps import some_layers
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.poses import Pose, transport
from equimid.records import Record

__all__ = ["record_explorer"]

_SCALES = (0.77, 1.0, 1.3)  # of the grid's side
_ELEMENTS = tuple((turns, flip) for flip in (False, True) for turns in range(4))
_MEAN_OF = 64  # images that the mean token is taken over
_COLOURS, _LEVELS, _TOP = 128, 32, 1.5  # of maps; of errors, from 0 to _TOP
_LARGEST = 256  # side of a photograph, pixels


@dataclass(frozen=True)
class _Scaled:
    """One image and layer on one grid of side s, for the eight elements.

    Attributes:
        upright:  (1, D, s, s) f(x), resized to the grid
        maps:     (8, D, s, s) f(g x)
        error:    (8, s, s)
        figures:  {"place", "centred_cosine", "relative_error": (8)}, NaN where it is not measurable
    """

    upright: Tensor
    maps: Tensor
    error: Tensor
    figures: dict[str, Tensor]


@torch.inference_mode()
def record_explorer(
    study: Study, data: str, train: str | None = None, *, layers: Sequence[int] = (), images: int = 3
) -> list[Record]:
    """One small PNG and one record per image and layer; the photographs lie beside them.

    The PNG has a row per grid and 17 tiles in it, all in cells of `side` pixels, a pixel a patch: f(x) resized to the
    grid; f(g x) for the eight elements g (turns 0 to 3, then the same of the flipped image); their errors. rho(g) f(x)
    needs no tile of its own: it is the first one, flipped and turned. Maps are in three colours, one basis and scale
    per image and layer. A last line of pixels is the scale of the errors.

    Args:
        layers: beside the first, one at a quarter, at half and at the full depth.

    Raises:
        UserError: there is no such layer, or no image.
    """
    source = images_of(data)
    encoder = study.encoder
    layers = some_layers(encoder, layers)
    some = sample_images(source, _MEAN_OF, study.scope.seed)
    means = mean_tokens(encoder, study.batches(source, 16, some), layers)
    chosen = sample_images(source, images, study.scope.seed)
    if not len(chosen):
        raise UserError(f"{data} has no image that can be read; the explorer needs one")
    x = next(study.batches(source, len(chosen), chosen))
    records = []
    for number, index in study.track(enumerate(chosen), "explorer", len(chosen)):
        photo = _write_photograph(study, photographs(x[number : number + 1], study.preprocessing)[0], number)
        maps = _posed_maps(encoder, x[number : number + 1], layers, means)
        for layer in layers:
            record = _record(study, number, layer, maps[layer])
            record.details["photograph"] = photo
            record.details["class"] = None if source.labels is None else source.classes[source.labels[index]]
            records.append(record)
    return records


def _grids(grid: int) -> list[int]:
    """Three sides of grids, patches, in order; of a grid of one patch two."""
    small, _, large = (round(grid * scale) for scale in _SCALES)
    return sorted({max(1, min(small, grid - 1)), grid, max(large, grid + 1)})


def _posed_maps(
    encoder: Encoder, x: Tensor, layers: list[int], means: dict[int, Tensor]
) -> dict[int, dict[int, _Scaled]]:
    """{layer: {side of the grid: ...}} of one image (1, 3, S, S)."""
    grid = x.shape[-1] // encoder.patch_size
    base = normalised_maps(encoder, x, layers)
    turns = torch.tensor([turns for turns, _ in _ELEMENTS], device=x.device)
    flip = torch.tensor([flip for _, flip in _ELEMENTS], device=x.device)
    upright = Pose.identity(len(_ELEMENTS), (grid, grid), x.device)
    maps: dict[int, dict[int, _Scaled]] = {layer: {} for layer in layers}
    for side in _grids(grid) if encoder.any_size else [grid]:
        pose = Pose(turns, flip, (side, side))
        posed = normalised_maps(encoder, pose.act(x.expand(len(_ELEMENTS), -1, -1, -1), encoder.patch_size), layers)
        for layer in layers:
            mean = means[layer][..., None]
            carried = transport(base[layer].expand(len(_ELEMENTS), -1, -1, -1), upright, pose)
            size = (posed[layer] - mean).square().sum(1).mean((1, 2)).sqrt().clamp(min=1e-12)
            error = (posed[layer] - carried).norm(dim=1) / size[:, None, None]
            figures = agreement(Tokens.of(posed[layer].flatten(2)), Tokens.of(carried.flatten(2)), means[layer])
            maps[layer][side] = _Scaled(carried[:1], posed[layer], error, figures)
    return maps


def _record(study: Study, number: int, layer: int, scales: dict[int, _Scaled]) -> Record:
    file = picture_file(study, f"explorer_image_{number + 1}_layer_{layer}.png")
    write_beside(file, _sprite(scales))
    caption = (
        f"Image {number + 1}, layer {layer}: token maps under {len(_ELEMENTS) * len(scales)} poses, and their errors"
    )
    details = {
        "image": number + 1,
        "layer": layer,
        "side": max(scales),
        "grids": list(scales),
        "upright": study.preprocessing.size // study.encoder.patch_size,
        "elements": [list(element) for element in _ELEMENTS],
        **{
            name: [_rounded(scaled.figures[name]) for scaled in scales.values()]
            for name in ("place", "centred_cosine", "relative_error")
        },
        "error_levels": _LEVELS,
        "error_top": _TOP,
        "caption": caption,
    }
    return picture_record(study, "explorer", 1, file, details)


def _rounded(values: Tensor) -> list[float | None]:
    """None where it is not measurable."""
    return [round(v, 4) if math.isfinite(v) else None for v in values.tolist()]


def _sprite(scales: dict[int, _Scaled]) -> bytes:
    """The PNG of one image and layer: at most 160 colours, so that a page can carry many."""
    side, count = max(scales), len(_ELEMENTS)
    maps = np.zeros((len(scales) * side, (1 + count) * side, 3), np.uint8)
    errors = np.zeros((len(scales) * side, count * side), np.uint8)
    colours = principal_colours([m for scaled in scales.values() for m in (scaled.upright, scaled.maps)])
    for row, scaled in enumerate(scales.values()):
        tiles = np.concatenate(colours[2 * row : 2 * row + 2])
        _lay(maps, as_bytes(tiles), row, side)
        level = scaled.error.cpu().numpy() / _TOP * (_LEVELS - 1)
        _lay(errors, level.round().clip(0, _LEVELS - 1).astype(np.uint8), row, side)
    reduced = Image.fromarray(maps).quantize(_COLOURS, dither=Image.Dither.NONE)
    used = len(reduced.getpalette() or []) // 3
    scale = matplotlib.colormaps["magma"](np.linspace(0, 1, _LEVELS))[:, :3]
    pixels = np.concatenate([np.asarray(reduced), errors + np.uint8(used)], axis=1)
    pixels = np.pad(pixels, ((0, 1), (0, max(0, _LEVELS - pixels.shape[1]))))
    pixels[-1, :_LEVELS] = np.arange(_LEVELS) + used
    sprite = Image.fromarray(pixels, mode="P")
    sprite.putpalette([*(reduced.getpalette() or []), *as_bytes(scale).flatten().tolist()])
    buffer = BytesIO()
    sprite.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _lay(canvas: npt.NDArray[np.uint8], tiles: npt.NDArray[np.uint8], row: int, side: int) -> None:
    """Tiles (n, s, s, ...) into the cells of a row, at their upper left."""
    s = tiles.shape[1]
    for column, tile in enumerate(tiles):
        canvas[row * side : row * side + s, column * side : column * side + s] = tile


def _write_photograph(study: Study, photo: Array, number: int) -> str:
    """Its path below the study's folder."""
    picture = Image.fromarray(as_bytes(photo))
    picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    small = max(picture.size) <= 96  # JPEG's blocks would show, and PNG costs nothing
    buffer = BytesIO()
    picture.save(buffer, **({"format": "png"} if small else {"format": "jpeg", "quality": 85}))
    file = picture_file(study, f"explorer_image_{number + 1}.{'png' if small else 'jpg'}")
    write_beside(file, buffer.getvalue())
    return file.relative_to(study.folder).as_posix()
