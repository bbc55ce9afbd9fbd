"""Pictures of feature maps: image, posed image, and both maps beside the transported one, in three colours."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from equimid.evaluation.features import Preprocessing
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.poses import Pose, transport
from equimid.records import Record

__all__ = ["draw_feature_maps"]

_TITLES = ("image", "its map", "posed image", "its map", "first map, transported")


@torch.inference_mode()
def draw_feature_maps(
    study: Study, data: str, train: str | None = None, *, layers: Sequence[int] | None = None, images: int = 3
) -> list[Record]:
    """One PNG per layer under the study's pictures, a row per image: first three principal components as red, green,
    blue. The pose is a quarter turn of the flipped image on a larger grid. If the layer is equivariant, the last two
    maps of a row are alike.

    Args:
        layers: by default the first, one at a quarter, at half and at the full depth.
    """
    source, scope, folder = images_of(data), study.scope, study.folder
    encoder = study.encoder.to(study.device)
    depth = encoder.depth
    layers = sorted(set(layers or (1, max(1, depth // 4), max(1, depth // 2), depth)))
    chosen = sample_images(source, images, scope.seed)
    x = next(study.batches(source, len(chosen), chosen))
    patch = encoder.patch
    grid = x.shape[-1] // patch
    upright = Pose.identity(len(x), (grid, grid), study.device)
    larger = max(grid + 1, round(grid * 1.14))
    pose = Pose(upright.turns + 1, ~upright.flip, (larger, larger))
    posed = pose.act(x, patch)
    base, turned = encoder.token_maps(x, layers), encoder.token_maps(posed, layers)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    # records of other data and subjects stay beside these, so their pictures must too
    of = hashlib.blake2b(repr((scope.subject, scope.data)).encode(), digest_size=4).hexdigest()
    records = []
    for layer in layers:
        carried = transport(base[layer].float(), upright, pose)
        colours = _principal_colours([base[layer].float(), turned[layer].float(), carried])
        columns = [_photo(x, study.preprocessing), colours[0], _photo(posed, study.preprocessing), colours[1], colours[2]]
        file = pictures / f"feature_maps_{of}_layer_{layer}.png"
        _draw(columns, file)
        caption = (
            f"Layer {layer}: an image and its map, the image flipped, turned and scaled and its map, and the first map "
            "transported by the same pose. The more equivariant the layer, the more alike the last two."
        )
        records.append(
            Record(
                "feature_maps",
                "picture",
                None,
                len(x),
                scope.subject,
                scope.data,
                scope.seed,
                scope.checkpoint,
                details={"layer": layer, "caption": caption},
                picture=str(file.relative_to(folder)),
            )
        )
    return records


def _principal_colours(maps: list[Tensor]) -> list[npt.NDArray[np.float32]]:
    """Each (n, D, h, w) to (n, h, w, 3) in [0, 1]; one basis and one scale for all of them."""
    rows = torch.cat([m.movedim(1, -1).flatten(0, 2) for m in maps])
    mean = rows.mean(0)
    basis = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:3].T
    scores = (rows - mean) @ basis
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    return [
        (((m.movedim(1, -1) - mean) @ basis - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).cpu().numpy()
        for m in maps
    ]


def _photo(x: Tensor, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    photo: npt.NDArray[np.float32] = (x * std + mean).clamp(0, 1).movedim(1, -1).cpu().numpy()
    return photo


def _draw(columns: list[npt.NDArray[np.float32]], file: Path) -> None:
    rows = len(columns[0])
    figure = Figure(figsize=(1.7 * len(columns), 1.75 * rows + 0.25), dpi=110, layout="constrained")
    for c, (title, images) in enumerate(zip(_TITLES, columns, strict=True)):
        for r in range(rows):
            axes = figure.add_subplot(rows, len(columns), r * len(columns) + c + 1)
            axes.imshow(images[r], interpolation="nearest")
            axes.set_axis_off()
            if r == 0:
                axes.set_title(title, fontsize=9)
    figure.savefig(file)
