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
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from equimid.data import open_source
from equimid.errors import UserError
from equimid.evaluation.equivariance.transforms import Posed
from equimid.evaluation.study import Study, images_of, readable, same_place
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["measure_pose_probe", "some_layers"]

_BATCH = 32
_PLACES = 4  # the map is pooled to so many, squared
_COMPONENTS = 128
_STRENGTH = 0.1  # scikit-learn's C; the features are standardised
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
    tables = [_read(study, fit_on, np.sort(fit)), _read(study, source, np.sort(test))]
    records = []
    with study.bar(f"pose probes, {study.scope.subject}") as progress:
        for done, key in enumerate(sorted(tables[0])):
            for target, poses in _TARGETS.items():
                right = _probe(tables[0][key][:, poses], tables[1][key][:, poses], study.scope.seed)
                details = {"layer": key[0], "target": target, "from": key[1], "chance": 100 / len(poses)}
                records.append(_record(study, right, details))
            if progress:
                progress(done + 1, len(tables[0]))
    return records


def some_layers(depth: int, count: int) -> list[int]:
    """At most `count` layers, evenly to the last."""
    count = min(count, depth)
    return [round(depth * (n + 1) / count) for n in range(count)]


@torch.inference_mode()
def _read(study: Study, source: Any, indices: npt.NDArray[np.int64]) -> dict[tuple[int, str], npt.NDArray[np.float32]]:
    """{(layer, what is read): (n, poses, columns)}"""
    encoder = study.encoder
    layers = some_layers(encoder.depth, study.config.equivariance.probe_layers)
    parts: _Features = defaultdict(list)
    done = 0
    with study.bar(f"poses, {study.scope.subject}") as progress:
        for images in study.batches(source, _BATCH, indices):
            posed: _Features = defaultdict(list)
            for turns, flip in _POSES:
                found = encoder.forward_features(Posed("", turns, flip, encoder.patch_size).after(images), layers)
                for layer in layers:
                    m = found.maps[layer].float()
                    posed[layer, "map"].append(F.adaptive_avg_pool2d(m, min(_PLACES, m.shape[-1])).flatten(1))
                    posed[layer, "mean"].append(m.mean((2, 3)))
                    if layer in found.cls_at:
                        posed[layer, "cls"].append(found.cls_at[layer].float())
                posed[layers[-1], "embedding"].append(found.cls.float())
            for key, columns in posed.items():
                parts[key].append(torch.stack(columns, 1).cpu())
            done += len(images)
            if progress:
                progress(done, len(indices))
    return {key: torch.cat(columns).numpy() for key, columns in parts.items()}


def _probe(fit: npt.NDArray[np.float32], test: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    """Per test image the fraction of its poses that is read rightly, of features (n, poses, columns)."""
    poses, columns = fit.shape[1:]
    rows = fit.reshape(-1, columns).astype(np.float64)
    state = int(counted_generator(seed, "pose probe").integers(2**31))
    probe = make_pipeline(
        StandardScaler(),
        PCA(min(_COMPONENTS, columns, len(rows) - 1), random_state=state),
        LogisticRegression(C=_STRENGTH, max_iter=1000),
    )
    probe.fit(rows, np.tile(np.arange(poses), len(fit)))
    said = probe.predict(test.reshape(-1, columns).astype(np.float64)).reshape(-1, poses)
    fraction: npt.NDArray[np.float64] = (said == np.arange(poses)).mean(1)
    return fraction


def _record(study: Study, right: npt.NDArray[np.float64], details: dict[str, Any]) -> Record:
    """Wilson's interval with as many trials as images."""
    scope, n, p, z = study.scope, len(right), float(right.mean()), 1.96
    middle, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return scope.record(
        "pose_probe", "top1", 100 * p, n, unit="%", low=100 * max(0.0, low), high=100 * min(1.0, high), details=details
    )
