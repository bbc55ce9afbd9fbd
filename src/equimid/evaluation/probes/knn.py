"""Weighted nearest neighbours on unit-length features (Wu et al. 2018; DINO's `eval_knn.py`).

Letters: n test images, N training images, k neighbours, C classes, T temperature.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.evaluation.preprocessing import FeatureTable
from equimid.evaluation.study import Study, labelled_splits
from equimid.records import Record

__all__ = ["knn_predictions", "measure_knn"]

logger = logging.getLogger("equimid")

_SIMILARITIES = 2**26  # in memory at once


def knn_predictions(
    train: FeatureTable, test: Tensor, k: int, temperature: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Class (n,) of each test row (n, D): the k most similar training rows vote with e^(cosine / T).

    With fewer than k training rows, all of them vote.
    """
    keys, labels = F.normalize(train.features.to(device), dim=1), train.labels.to(device)
    classes = int(labels.max()) + 1
    predictions = []
    for rows in test.split(max(1, min(1024, _SIMILARITIES // len(keys)))):
        queries = F.normalize(rows.to(device), dim=1)
        similarity, neighbours = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
        # relative to the nearest one, so that small temperatures do not overflow
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
        tally = torch.zeros(len(queries), classes, device=device).scatter_add_(1, labels[neighbours], votes)
        predictions.append(tally.argmax(1).cpu())
    return torch.cat(predictions)


def measure_knn(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the probe on the test images."""
    fit, test = (study.features(source) for source in labelled_splits(data, train))
    config = study.config
    predicted = knn_predictions(fit, test.features, config.knn_k, config.knn_temperature, study.device)
    details: dict[str, Any] = {"k": config.knn_k, "temperature": config.knn_temperature}
    if len(fit.labels) < config.knn_k:
        details |= {"k": len(fit.labels), "warning": f"{config.knn_k} neighbours asked for, all that there are vote"}
        logger.warning(
            "kNN: %d neighbours asked for, but there are %d training images; all of them vote",
            config.knn_k, len(fit.labels),
        )  # fmt: skip
    return [study.scope.accuracy("knn", (predicted == test.labels).numpy(), details)]
