"""How long the tokens of each layer's map are: the mean of |f_l(x)_t| over patches, then over images.

The maps are those before any norm. A layer whose tokens are much longer than those below it hides what they said from a
probe that reads raw tokens; a network of the same shape and random weights shows what the architecture gives.

Letters: f_l(x)_t the token of patch t of image x after block l.
"""

import numpy as np
import torch

from equimid.evaluation.equivariance.maps import NOT_FINITE
from equimid.evaluation.study import Details, Study, images_of, sample_images
from equimid.records import Record

__all__ = ["measure_map_norms"]

_BATCH = 32


@torch.inference_mode()
def measure_map_norms(study: Study, data: str, train: str | None = None) -> list[Record]:
    """A record {"layer"} for every layer, with an interval over images; at most `equivariance_images` are looked at."""
    source = images_of(data)
    layers = range(1, study.encoder.depth + 1)
    indices = sample_images(source, study.config.equivariance_images, study.scope.seed)
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for images in study.track(study.batches(source, _BATCH, indices), "map norms", len(indices), len):
        for layer, m in study.encoder.token_maps(images, layers).items():
            parts[layer].append(m.double().norm(dim=1).mean((1, 2)).cpu())
    records = []
    for layer, lengths in parts.items():
        of_images, details = torch.cat(lengths).numpy(), Details(layer=layer)
        if np.isfinite(of_images).all():
            records.append(study.scope.mean("map_norms", "norm", of_images, details))
        else:
            records.append(study.scope.missing("map_norms", "norm", details | {"not_measurable": NOT_FINITE}))
    return records
