"""Equivariance of every layer: does the map of the changed image equal the carried map, patch by patch?

For layer l, image x and change g, over the T tokens that both maps show, `agreement` compares f_l(g x) with

    rho(g) f_l(x)    the carried map, the network's own value ("backbone")
    f_l(x)           the map left where it was ("not_carried"): what a network has that does not follow the image
    rho(g) f_l(x')   the carried map of another image ("mismatched"): what all maps have in common

and with a network of the same shape and random weights ("random"). Values are averaged over the changes of a kind, then
over images. Tokens are normalised first (layer norm without parameters), so that a network without taps is measured
alike. The headline is `place`; docs/equivariance.md says which fault each figure excludes.

Source: SER (ICLR 2026, arXiv 2603.06693) for turns and scales; place, its references and retrieval are ours.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.equivariance.agreement import (
    MapStatistics,
    Tokens,
    agreement,
    map_statistics,
    normalised_maps,
    retrieval,
    shows_content,
)
from equimid.evaluation.equivariance.transforms import Grid, Transform, transforms_of
from equimid.evaluation.study import Scope, Study, images_of, sample_images
from equimid.records import Record, Subject

__all__ = ["NOT_FINITE", "compare", "input_grid", "measure_equivariance", "neighbourhood"]

logger = logging.getLogger("equimid")

Key = tuple[str, str, str, float | None, int]  # metric, subject, kind, angle (None = the kind's mean), layer
SAME = "same"  # the carried map of the same image: the network's own value
NOT_FINITE = "features that are not finite"


def input_grid(encoder: Encoder) -> Grid:
    """(h, w) in patches of the images that the network is made for."""
    height, width = encoder.pretrained_cfg["input_size"][-2:]
    return int(height) // encoder.patch_size, int(width) // encoder.patch_size


@torch.inference_mode()
def measure_equivariance(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Records for every layer and kind, of a trained network also for the references.

    Of rotations there is a record for every angle, {"layer", "kind", "angle"}, then the kind's mean. Where place cannot
    be measured (maps of one patch, maps that are constant within an image, images of one colour) the value is None and
    {"not_measurable"} says why. Shares of the maps' variance are records {"layer"} of their own.

    Raises:
        UserError: fewer than two images.
    """
    source, scope = images_of(data), study.scope
    if len(source) < 2:
        raise UserError(f"{data} has {len(source)} image(s); equivariance needs other images to compare with")
    encoder = study.encoder
    layers, grid = list(range(1, encoder.depth + 1)), input_grid(encoder)
    todo = transforms_of(grid, encoder.patch_size, study.config.equivariance, encoder.any_size)
    if not encoder.any_size:
        logger.warning("this network takes images of one size: its equivariance to scales and crops is not measured")
    batch = max(2, min(32, 8192 // (grid[0] * grid[1])))
    indices = sample_images(source, study.config.equivariance_images, scope.seed)
    flags: list[Tensor] = []

    def with_content(images: Tensor) -> Tensor:
        flags.append(shows_content(images))
        return images[flags[-1]]

    statistics = map_statistics(encoder, map(with_content, study.batches(source, batch, indices)), layers)
    content = torch.cat(flags).cpu().numpy()
    if not content.all():
        logger.warning(
            "%d of %d images are of one colour and are left out of equivariance", (~content).sum(), len(content)
        )
    indices = indices[content]
    # a last batch of one image has no other image to be compared with
    indices = indices[: len(indices) - (len(indices) % batch == 1)]
    values: dict[Key, list[Tensor]] = defaultdict(list)
    for images in study.track(study.batches(source, batch, indices), "equivariance", len(indices), len):
        for key, of_images in compare(encoder, images, layers, statistics, todo).items():
            values[key].append(of_images)
    if not values:
        keys = [(change.kind, layer) for change in todo for layer in layers]
        values = {("place", SAME, kind, None, layer): [] for kind, layer in dict.fromkeys(keys)}
    chances: dict[tuple[str, float | None], list[Mapping[str, float]]] = defaultdict(list)
    for change in todo:
        chances[change.kind, change.member].append(_chances(change, grid))
    return [*_records(scope, values, statistics, chances), *_share_records(scope, statistics)]


def compare(
    encoder: Encoder,
    images: Tensor,
    layers: Sequence[int],
    statistics: Mapping[int, MapStatistics],
    todo: Sequence[Transform],
) -> dict[Key, Tensor]:
    """Of images (n, 3, H, W): per image (n,), the mean over the changes of a kind, and of rotations over an angle's."""
    grid = (images.shape[2] // encoder.patch_size, images.shape[3] // encoder.patch_size)
    bases: dict[tuple[int, int] | None, dict[int, Tensor]] = {}
    parts: dict[Key, list[Tensor]] = defaultdict(list)
    for change in todo:
        if change.place not in bases:
            bases[change.place] = normalised_maps(encoder, change.before(images), layers)
        changed = normalised_maps(encoder, change.after(images), layers)
        near = neighbourhood(change, grid).to(images.device)
        for layer in layers:
            mean, base = statistics[layer].mean, bases[change.place][layer]
            there, carried = Tokens.of(change.select(changed[layer])), Tokens.of(change.transport(base))
            compared = {
                SAME: agreement(there, carried, mean) | retrieval(there, carried, mean, near),
                Subject.NOT_CARRIED: agreement(there, Tokens.of(change.leave(base)), mean),
                Subject.MISMATCHED: agreement(there, carried.roll(), mean),
            }
            for subject, metrics in compared.items():
                for metric, value in metrics.items():
                    if change.member is not None:
                        parts[metric, subject, change.kind, change.member, layer].append(value)
                    parts[metric, subject, change.kind, None, layer].append(value)
    means = {key: torch.stack(values).mean(0).cpu() for key, values in parts.items()}
    # kind by kind, an angle's records before the kind's mean
    kinds = list(dict.fromkeys(change.kind for change in todo))
    return dict(sorted(means.items(), key=lambda entry: (kinds.index(entry[0][2]), entry[0][3] is None)))


def neighbourhood(change: Transform, grid: Grid) -> Tensor:
    """(T, T) bool: compared tokens within one patch of each other, diagonally too, of images of `grid` patches."""
    cells = change.cells(grid)
    near: Tensor = (cells[:, None] - cells[None]).abs().amax(2) <= 1
    return near


def _chances(change: Transform, grid: Grid) -> dict[str, float]:
    """Of retrieval, in percent, for a guess among the tokens of the image."""
    near = neighbourhood(change, grid)
    return {"retrieval": 100 / len(near), "retrieval_near": 100 * float(near.float().mean())}


def _records(
    scope: Scope,
    values: Mapping[Key, list[Tensor]],
    statistics: Mapping[int, MapStatistics],
    chances: Mapping[tuple[str, float | None], Sequence[Mapping[str, float]]],
) -> list[Record]:
    records = []
    for (metric, subject, kind, angle, layer), parts in values.items():
        if subject != SAME and scope.subject != Subject.BACKBONE:
            continue
        details: dict[str, Any] = {"layer": layer, "kind": kind} | ({} if angle is None else {"angle": angle})
        if metric.startswith("retrieval"):
            of_kind = [c[metric] for (k, a), each in chances.items() if k == kind and angle in (None, a) for c in each]
            details["chance"] = sum(of_kind) / len(of_kind)
        of_images = torch.cat(parts).double().numpy() if parts else np.zeros(0)
        known = of_images[np.isfinite(of_images)]
        name = scope.subject if subject == SAME else subject
        if len(known):
            details |= {"left_out": len(of_images) - len(known)} if len(known) < len(of_images) else {}
            record = scope.mean("equivariance", metric, known, details, subject=name)
        else:
            details["not_measurable"] = _reason(statistics.get(layer))
            record = scope.missing("equivariance", metric, details, subject=name)
        records.append(replace(record, unit="%" if metric.startswith("retrieval") else ""))
    return records


def _reason(statistics: MapStatistics | None) -> str:
    if statistics is None or statistics.images < 2:
        return "fewer than two images that are not of one colour"
    if not torch.isfinite(statistics.mean).all():
        return NOT_FINITE
    return "maps of one patch" if statistics.patches == 1 else "maps that are constant within an image"


def _share_records(scope: Scope, statistics: Mapping[int, MapStatistics]) -> list[Record]:
    """Where the variance of the upright maps lies, in percent."""
    records = []
    for layer, of_layer in statistics.items():
        for part, fraction in of_layer.fractions.items():
            details: dict[str, Any] = {"layer": layer}
            value, images = (100 * fraction, of_layer.images) if math.isfinite(fraction) else (None, 0)
            if value is None:
                finite = bool(torch.isfinite(of_layer.mean).all())
                details["not_measurable"] = "maps that do not vary" if finite else NOT_FINITE
            records.append(scope.record("equivariance", part, value, images, unit="%", details=details))
    return records
