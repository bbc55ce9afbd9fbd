"""Equivariance of every layer: does the map of the posed image equal the transported map?

For layer l, image x and pose g:  cos( f_l(g x), rho(g) f_l(x) ), mean over patches, then over images. Tokens are
normalised first (layer norm without parameters), so that a network without taps is measured alike.

Token maps share a large common vector, which alone gives high cosines; `centred_cosine` subtracts the layer's mean
token before it compares. Two references say what a number means: other images ("mismatched": rho(g) f_l(x'), x' != x),
and a network of the same shape with random weights ("random").
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.poses import Pose, transport
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


@torch.inference_mode()
def measure_equivariance(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Records for every layer and kind: cosine and centred cosine, and for a trained subject the mismatched images.

    Raises:
        UserError: fewer than two images.
    """
    source, scope = images_of(data), study.scope
    if len(source) < 2:
        raise UserError(f"{data} has {len(source)} image(s); equivariance needs other images to compare with")
    encoder = study.encoder.to(study.device)
    layers = list(range(1, encoder.depth + 1))
    indices = sample_images(source, study.config.equivariance_images, scope.seed)

    def batches() -> Iterator[Tensor]:
        # a last batch of one image has no other image to be compared with
        count = len(indices) - (1 if len(indices) % _BATCH == 1 else 0)
        return study.batches(source, _BATCH, indices[:count])

    means = _mean_tokens(encoder, batches(), layers)
    values: _Values = defaultdict(list)
    done = 0
    with study.bar(f"equivariance, {scope.subject}") as progress:
        for images in batches():
            for kind, found in _compare(encoder, images, layers, means).items():
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


def _maps(encoder: Encoder, images: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """Normalised token maps {layer: (B, D, h, w)}."""
    maps = encoder.token_maps(images, layers)
    return {layer: F.layer_norm(m.movedim(1, -1).float(), m.shape[1:2]).movedim(-1, 1) for layer, m in maps.items()}


def _mean_tokens(encoder: Encoder, batches: Iterator[Tensor], layers: list[int]) -> dict[int, Tensor]:
    sums: dict[int, Tensor] = {}
    count = 0
    for images in batches:
        for layer, m in _maps(encoder, images, layers).items():
            total = m.sum((0, 2, 3))
            sums[layer] = sums[layer] + total if layer in sums else total
        count += len(images) * m.shape[2] * m.shape[3]
    return {layer: total[:, None, None] / count for layer, total in sums.items()}


def _compare(
    encoder: Encoder, images: Tensor, layers: list[int], means: dict[int, Tensor]
) -> dict[tuple[str, str, str, int], Tensor]:
    """Per image, the mean cosine over patches and over the poses of a kind."""
    n, patch = len(images), encoder.patch
    grid = images.shape[-1] // patch
    upright = Pose.identity(n, (grid, grid), images.device)
    base = _maps(encoder, images, layers)
    found: dict[tuple[str, str, str, int], Tensor] = {}
    for kind, poses in pose_kinds(grid).items():
        sums: dict[tuple[str, str, str, int], Tensor] = defaultdict(lambda: torch.zeros(n))
        for turns, flip, size in poses:
            pose = Pose(torch.full_like(upright.turns, turns), torch.full_like(upright.flip, flip), size)
            posed = _maps(encoder, pose.act(images, patch), layers)
            for layer in layers:
                carried = transport(base[layer], upright, pose)
                for pairing, other in (("same", carried), ("other", carried.roll(1, 0))):
                    for metric, mean in (("cosine", 0.0), ("centred_cosine", means[layer])):
                        cosine = F.cosine_similarity(posed[layer] - mean, other - mean, dim=1)
                        sums[metric, pairing, kind, layer] += cosine.mean((1, 2)).cpu() / len(poses)
        found |= sums
    return found
