"""Correspondence: is the same patch found again in the changed image, by its token alone?

For layer l, image x and change g, every token of f_l(g x) looks for its nearest token, by the cosine after the layer's
mean token is taken away, among those of the carried map rho(g) f_l(x):

    among "image"    the tokens of the same image: chance 1 / T
    among "images"   the tokens of all n images: chance 1 / (n T)

    top1        fraction of the tokens that find their partner
    near_top1   fraction that find it or one of the (up to 8) tokens around it on the grid of the same image

Where g is no permutation (scales, angles, unaligned crops) the carried map is resampled. Two references: a network of
random weights, and the mean colours of the patches. These move exactly with turns and flips, so they show what colour
alone finds.

Letters: n images, T compared tokens, D width.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.equivariance.agreement import Tokens, cosines, hits, mean_tokens, normalised_maps, shows_content
from equimid.evaluation.equivariance.maps import NOT_FINITE, input_grid, neighbourhood
from equimid.evaluation.equivariance.pose_probe import some_layers
from equimid.evaluation.equivariance.transforms import Transform, transforms_of
from equimid.evaluation.study import Details, Scope, Study, images_of, sample_images
from equimid.features import Features
from equimid.records import Record

__all__ = ["PatchColours", "correspondence", "measure_correspondence"]

logger = logging.getLogger("equimid")

_BATCH = 16
_MOST_TOKENS = 16384  # that are searched at once: the time grows with the square of it


class PatchColours(Encoder):
    """The reference without a network: the token of a patch is its mean colour, one "layer".

    Of the three numbers themselves, layer norm would leave the hue alone. So a colour c is a point of the unit sphere,
    s = (2 c, |c|^2 - 1) / (|c|^2 + 1), which is seen in a direction of its own from any point inside, and its token is
    (s, -s), which layer norm scales by one number for all.
    """

    depth, embed_dim = 1, 8

    def __init__(self, like: Encoder) -> None:
        super().__init__()
        self.patch_size, self.any_size = like.patch_size, like.any_size
        self.pretrained_cfg: Mapping[str, Any] = like.pretrained_cfg

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        colours = F.avg_pool2d(images, self.patch_size)
        square = colours.square().sum(1, keepdim=True)
        sphere = torch.cat([2 * colours, square - 1], dim=1) / (square + 1)
        tokens = torch.cat([sphere, -sphere], dim=1)
        return Features(tokens.mean((2, 3)), dict.fromkeys(layers, tokens))


@torch.inference_mode()
def measure_correspondence(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Records {"layer", "kind", "among", "chance"}, of rotations also {"angle"}, of at most
    `equivariance.correspondence_images` images; for the layers of pose probe and those that SER acted on.

    Raises:
        UserError: fewer than two images.
    """
    source, encoder = images_of(data), study.encoder
    if len(source) < 2:
        raise UserError(f"{data} has {len(source)} image(s); correspondence needs other images to search in")
    grid, config = input_grid(encoder), study.config.equivariance
    if grid == (1, 1):
        logger.warning("the maps of this network have one patch: there is nothing to search in, no correspondence")
        return []
    layers = sorted({*some_layers(encoder.depth, config.probe_layers), *encoder.taps})
    most = min(config.correspondence_images, len(source))
    count = max(2, min(most, _MOST_TOKENS // (grid[0] * grid[1])))
    if count < most:
        logger.warning("correspondence: %d of %d images, for their maps have %d x %d patches", count, most, *grid)
    indices = sample_images(source, count, study.scope.seed)
    images = torch.cat(list(study.batches(source, _BATCH, indices)))
    content = shows_content(images)
    if not content.all():
        logger.warning(
            "%d of %d images are of one colour and are left out of correspondence", (~content).sum(), len(images)
        )
        images = images[content]
    if len(images) < 2:
        logger.warning("correspondence is not measurable: fewer than two images that are not of one colour")
        return []
    means = mean_tokens(encoder, images.split(_BATCH), layers)
    todo = transforms_of(grid, encoder.patch_size, config, encoder.any_size)
    parts: dict[tuple[str, str, str, float | None, int], list[Tensor]] = defaultdict(list)
    chances: dict[tuple[str, str, str, float | None], list[float]] = defaultdict(list)
    for change in study.track(todo, "correspondence", len(todo)):
        near = neighbourhood(change, grid).to(images.device)
        members = (None,) if change.member is None else (change.member, None)
        for layer, (there, carried) in _tokens(encoder, images, layers, change).items():
            for (metric, among), value in correspondence(there, carried, means[layer], near).items():
                for angle in members:
                    parts[metric, among, change.kind, angle, layer].append(value.cpu())
        for among, searched in (("image", len(near)), ("images", len(images) * len(near))):
            for angle in members:
                chances["top1", among, change.kind, angle].append(100 / searched)
                around = 100 * float(near.sum(1).double().mean()) / searched
                chances["near_top1", among, change.kind, angle].append(around)
    records = []
    # kind by kind, an angle's records before the kind's mean
    kinds = list(dict.fromkeys(change.kind for change in todo))
    in_order = sorted(parts.items(), key=lambda part: (kinds.index(part[0][2]), part[0][3] is None))
    for (metric, among, kind, angle, layer), values in in_order:
        chance = chances[metric, among, kind, angle]
        details = {"layer": layer, "kind": kind, "among": among, "chance": sum(chance) / len(chance)}
        details |= {} if angle is None else {"angle": angle}
        records.append(_record(study.scope, metric, torch.stack(values).mean(0), details))
    return records


def _record(scope: Scope, metric: str, values: Tensor, details: Details) -> Record:
    """The mean over images (n,), in percent; those of features that are not finite are left out."""
    known = values[torch.isfinite(values)]
    if len(known):
        details |= {"left_out": len(values) - len(known)} if len(known) < len(values) else {}
        record = scope.mean("correspondence", metric, known.double().numpy(), details)
    else:
        record = scope.missing("correspondence", metric, details | {"not_measurable": NOT_FINITE})
    return replace(record, unit="%")


def _tokens(
    encoder: Encoder, images: Tensor, layers: Sequence[int], change: Transform
) -> dict[int, tuple[Tensor, Tensor]]:
    """{layer: f(g x) and rho(g) f(x)}, each (n, D, T)."""
    parts: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for batch in images.split(_BATCH):
        before = normalised_maps(encoder, change.before(batch), layers)
        after = normalised_maps(encoder, change.after(batch), layers)
        for layer in layers:
            parts[layer].append((change.select(after[layer]), change.transport(before[layer])))
    return {
        layer: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) for layer, pairs in parts.items()
    }


def correspondence(there: Tensor, carried: Tensor, mean: Tensor, near: Tensor) -> dict[tuple[str, str], Tensor]:
    """{(metric, among): (n,)} in percent, of the tokens f(g x) and rho(g) f(x), (n, D, T). A tie counts as it comes out
    on average.

    Args:
        mean: the layer's mean token, (D, 1).
        near: which of the T tokens lie near each other, (T, T) bool.
    """
    a, b = Tokens.of(there), Tokens.of(carried)
    T = len(near)
    percent: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    everywhere = b.without(mean).flatten(0, 1)
    for number, tokens in enumerate(a.without(mean)):
        among_all = cosines(tokens, everywhere)
        own = among_all[:, number * T : (number + 1) * T]
        for among, searched in (("image", own), ("images", among_all)):
            exact, around = hits(searched, own, near)
            percent["top1", among].append(100 * exact.mean())
            percent["near_top1", among].append(100 * around.mean())
    return {key: torch.stack(values) for key, values in percent.items()}
