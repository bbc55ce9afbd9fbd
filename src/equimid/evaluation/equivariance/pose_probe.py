"""How well a pose can be read back: a linear probe tells from features how an image was turned, or whether flipped.

A probe is a standardisation, the principal components and a logistic regression, fitted on one part of the images and
tested on the other; an image and all its poses lie in one part. What it reads, after some layers:

    map        the token map pooled to 4 x 4 places
    mean       its mean token; of an exactly equivariant layer this is invariant, so the probe is at chance
    cls        CLS
    embedding  the network's output, recorded with the last layer

Source: RotNet (Gidaris et al., ICLR 2018) for the four turns as a task.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor

from equimid.data import open_source
from equimid.errors import UserError
from equimid.evaluation.equivariance.transforms import Posed
from equimid.evaluation.probes.heads import predicted
from equimid.evaluation.probes.logistic import fit_logistic, penalty_of
from equimid.evaluation.study import Study, images_of, readable, same_place
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["measure_pose_probe", "some_layers"]

_BATCH = 32
_PLACES = 4  # the map is pooled to so many, squared
_COMPONENTS = 128
_STRENGTH = 0.1  # of the regression, as scikit-learn's C; the features are standardised
_POSES = ((0, False), (1, False), (2, False), (3, False), (0, True))  # (turns, flip)
_TARGETS = {"turn": (0, 1, 2, 3), "flip": (0, 4)}  # classes: numbers of poses

_Features = dict[tuple[int, str], list[Tensor]]  # (layer, what is read): per batch (b, poses, columns)


def measure_pose_probe(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the turn (chance 25 %) and of the flip (50 %) for `equivariance.probe_layers` layers.

    The images are halved at random, or with `train` the probes are fitted on those. Intervals are Wilson's over test
    images: the poses of an image are no independent trials.

    Raises:
        UserError: fewer than four images, two of each part.
    """
    half = study.config.equivariance_images // 2
    rng = counted_generator(study.scope.seed, "pose readback")
    source = images_of(data)
    order = rng.permutation(len(source))
    if train and not same_place(train, data):
        fitted = readable(open_source(train, "fit"))
        fit, fit_on = rng.permutation(len(fitted))[:half], fitted
        test = order[:half]
    else:
        part = min(half, len(source) // 2)
        fit, test, fit_on = order[:part], order[part : 2 * part], source
    if min(len(fit), len(test)) < 2:
        raise UserError(
            f"{data} gives {len(fit)} image(s) to fit pose probes on and {len(test)} to test them; expected two "
            "or more of each: give more images, or a larger equivariance_images"
        )
    fitted_on, tested_on = _read(study, fit_on, np.sort(fit)), _read(study, source, np.sort(test))
    records = []
    for layer, read in study.track(sorted(fitted_on), "pose probes", len(fitted_on)):
        for target, poses in _TARGETS.items():
            fit_rows, test_rows = (features[layer, read][:, poses] for features in (fitted_on, tested_on))
            details = {"layer": layer, "target": target, "from": read, "chance": 100 / len(poses)}
            records.append(study.scope.accuracy("pose_probe", _probe(fit_rows, test_rows, study.scope.seed), details))
    return records


def some_layers(depth: int, count: int) -> list[int]:
    """At most `count` layers, evenly to the last."""
    count = min(count, depth)
    return [round(depth * (n + 1) / count) for n in range(count)]


@torch.inference_mode()
def _read(study: Study, source: Any, indices: npt.NDArray[np.int64]) -> dict[tuple[int, str], Tensor]:
    """{(layer, what is read): (n, poses, columns)}"""
    encoder = study.encoder
    layers = some_layers(encoder.depth, study.config.equivariance.probe_layers)
    parts: _Features = defaultdict(list)
    for images in study.track(study.batches(source, _BATCH, indices), "poses", len(indices), len):
        posed: _Features = defaultdict(list)
        for turns, flip in _POSES:
            features = encoder.forward_features(Posed("", turns, flip, encoder.patch_size).after(images), layers)
            for layer in layers:
                m = features.maps[layer].float()
                posed[layer, "map"].append(F.adaptive_avg_pool2d(m, min(_PLACES, m.shape[-1])).flatten(1))
                posed[layer, "mean"].append(m.mean((2, 3)))
                if layer in features.cls_at:
                    posed[layer, "cls"].append(features.cls_at[layer].float())
            posed[layers[-1], "embedding"].append(features.cls.float())
        for key, columns in posed.items():
            parts[key].append(torch.stack(columns, 1).cpu())
    return {key: torch.cat(columns) for key, columns in parts.items()}


def _probe(fit: Tensor, test: Tensor, seed: int) -> npt.NDArray[np.float64]:
    """For each test image the fraction of its poses that are read correctly, of features (n, poses, columns)."""
    poses = fit.shape[1]
    x, queries = (features.flatten(0, 1).double() for features in (fit, test))
    deviation, mean = torch.std_mean(x, 0, correction=0)
    x, queries = ((rows - mean) / torch.where(deviation > 0, deviation, 1.0) for rows in (x, queries))
    state = int(counted_generator(seed, "pose probe").integers(2**31))
    pca = PCA(min(_COMPONENTS, x.shape[1], len(x) - 1), random_state=state).fit(x.numpy())
    x, queries = (torch.from_numpy(pca.transform(rows.numpy())) for rows in (x, queries))
    head = fit_logistic(x, torch.arange(poses).repeat(len(fit)), poses, penalty_of(_STRENGTH, len(x), poses))
    correct = predicted(head.logits(queries)).view(-1, poses) == torch.arange(poses)
    return correct.double().mean(1).numpy()
