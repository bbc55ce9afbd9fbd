"""Equivariance of every layer: does the map of the posed image equal the transported map?

For layer l, image x and pose g:  cos( f_l(g x), rho(g) f_l(x) ), mean over patches, then over images. Tokens are
normalised first (layer norm without parameters), so that a network without taps is measured alike.

Token maps share a large common vector, which alone gives high cosines; `centred_cosine` subtracts the layer's mean
token before it compares. Two references say what a number means: other images ("mismatched": rho(g) f_l(x'), x' != x),
and a network of the same shape with random weights ("random").
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Backbone
from equimid.data import Source
from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.features import Preprocessing, Progress, image_batches
from equimid.evaluation.scope import Scope
from equimid.poses import Pose, transport
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["measure_equivariance", "pose_kinds"]

_BATCH = 32
_Values = dict[tuple[str, str, str, int], list[Tensor]]  # (metric, subject, kind, layer): per image


def pose_kinds(grid: int) -> dict[str, list[tuple[int, bool, tuple[int, int]]]]:
    """The poses (turns, flip, grid) that each kind averages over, for an upright map of `grid` x `grid` patches."""
    small, large = max(2, round(grid * 0.7**0.5)), round(grid * 1.3**0.5)
    small, large = min(small, grid - 1) or 1, max(large, grid + 1)
    upright = (grid, grid)
    return {
        "quarter turns": [(1, False, upright), (2, False, upright), (3, False, upright)],
        "flip": [(0, True, upright)],
        "scale": [(0, False, size) for size in ((small, small), (large, large), (small, large), (large, small))],
    }


def sample_images(source: Source, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of at most `count` images, drawn once for a seed."""
    order = counted_generator(seed, "equivariance").permutation(len(source))
    return np.sort(order[:count])


@torch.inference_mode()
def measure_equivariance(
    backbone: Backbone,
    source: Source,
    config: EvaluationConfig,
    scope: Scope,
    *,
    device: torch.device,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """Records for every layer and kind: cosine and centred cosine, and for a trained subject the mismatched images.

    Raises:
        ValueError: fewer than two images.
    """
    if len(source) < 2:
        raise ValueError(f"{source.name} has {len(source)} image(s); equivariance needs other images to compare with")
    backbone = backbone.to(device).eval()
    layers = list(range(1, len(backbone.blocks) + 1))
    indices = sample_images(source, config.equivariance_images, scope.seed)

    def batches() -> Iterator[Tensor]:
        # a last batch of one image has no other image to be compared with
        count = len(indices) - (1 if len(indices) % _BATCH == 1 else 0)
        preprocessing = Preprocessing.of(backbone.pretrained_cfg)
        for images in image_batches(source, preprocessing, batch_size=_BATCH, workers=workers, indices=indices[:count]):
            yield images.to(device)

    means = _mean_tokens(backbone, batches(), layers)
    values: _Values = defaultdict(list)
    done = 0
    for images in batches():
        for kind, found in _compare(backbone, images, layers, means).items():
            values[kind].append(found)
        done += len(images)
        if progress:
            progress(done, len(indices))
    subjects = {"same": scope.subject, "other": "mismatched"}
    return [
        scope.mean(
            "equivariance",
            metric,
            torch.cat(parts).double().numpy(),
            {"layer": layer, "kind": kind},
            subject=subjects[pairing],
        )
        for (metric, pairing, kind, layer), parts in values.items()
        if pairing == "same" or scope.subject == "backbone"
    ]


def _maps(backbone: Backbone, images: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """Normalised token maps {layer: (B, D, h, w)}."""
    maps = backbone.token_maps(images, layers)
    return {layer: F.layer_norm(m.movedim(1, -1).float(), m.shape[1:2]).movedim(-1, 1) for layer, m in maps.items()}


def _mean_tokens(backbone: Backbone, batches: Iterator[Tensor], layers: list[int]) -> dict[int, Tensor]:
    sums: dict[int, Tensor] = {}
    count = 0
    for images in batches:
        for layer, m in _maps(backbone, images, layers).items():
            total = m.sum((0, 2, 3))
            sums[layer] = sums[layer] + total if layer in sums else total
        count += len(images) * m.shape[2] * m.shape[3]
    return {layer: total[:, None, None] / count for layer, total in sums.items()}


def _compare(
    backbone: Backbone, images: Tensor, layers: list[int], means: dict[int, Tensor]
) -> dict[tuple[str, str, str, int], Tensor]:
    """Per image, the mean cosine over patches and over the poses of a kind."""
    n, patch = len(images), backbone.patch_embed.patch_size[0]
    grid = images.shape[-1] // patch
    upright = Pose.identity(n, (grid, grid), images.device)
    base = _maps(backbone, images, layers)
    found: dict[tuple[str, str, str, int], Tensor] = {}
    for kind, poses in pose_kinds(grid).items():
        sums: dict[tuple[str, str, str, int], Tensor] = defaultdict(lambda: torch.zeros(n))
        for turns, flip, size in poses:
            pose = Pose(torch.full_like(upright.turns, turns), torch.full_like(upright.flip, flip), size)
            posed = _maps(backbone, pose.act(images, patch), layers)
            for layer in layers:
                carried = transport(base[layer], upright, pose)
                for pairing, other in (("same", carried), ("other", carried.roll(1, 0))):
                    for metric, mean in (("cosine", 0.0), ("centred_cosine", means[layer])):
                        cosine = F.cosine_similarity(posed[layer] - mean, other - mean, dim=1)
                        sums[metric, pairing, kind, layer] += cosine.mean((1, 2)).cpu() / len(poses)
        found |= sums
    return found
