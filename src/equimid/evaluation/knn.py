"""Weighted nearest neighbours on unit-length features (Wu et al. 2018; DINO's `eval_knn.py`).

Letters: n test images, N training images, k neighbours, C classes, T temperature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.features import FeatureTable
from equimid.evaluation.scope import Scope
from equimid.records import Record

__all__ = ["knn_predictions", "measure_knn"]


def knn_predictions(train: FeatureTable, test: Tensor, k: int, temperature: float) -> Tensor:
    """Class (n,) of each test row (n, D): the k most similar training rows vote with e^(cosine / T)."""
    keys = F.normalize(train.features, dim=1)
    classes = int(train.labels.max()) + 1
    predictions = []
    for queries in F.normalize(test, dim=1).split(1024):
        similarity, neighbours = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
        # relative to the nearest one, so that small temperatures do not overflow
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
        tally = torch.zeros(len(queries), classes).scatter_add_(1, train.labels[neighbours], votes)
        predictions.append(tally.argmax(1))
    return torch.cat(predictions)


def measure_knn(train: FeatureTable, test: FeatureTable, config: EvaluationConfig, scope: Scope) -> list[Record]:
    """Top-1 of the probe on the test features."""
    predicted = knn_predictions(train, test.features, config.knn_k, config.knn_temperature)
    correct = (predicted == test.labels).numpy()
    details = {"k": config.knn_k, "temperature": config.knn_temperature}
    return [scope.accuracy("knn", correct, details)]
