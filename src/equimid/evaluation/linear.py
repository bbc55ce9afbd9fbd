"""Linear probe on frozen features: every learning rate of a grid trained at once, one of them tested once.

Letters: G learning rates, C classes, D columns, b images of a mini-batch. SGD with momentum 0.9, no weight decay,
cosine per epoch, as the linear probes of MoCo-v3 and DINO. The rate is chosen on a held-out part of the training
images, its head trained anew on all of them; the test images are used once.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.data import holdout
from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.features import FeatureTable
from equimid.evaluation.scope import Scope
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["measure_linear"]

_BATCH = 256
_MOMENTUM = 0.9


def measure_linear(train: FeatureTable, test: FeatureTable, config: EvaluationConfig, scope: Scope) -> list[Record]:
    """Top-1 of the chosen head on the test features."""
    classes = int(train.labels.max()) + 1  # not of the test labels: they must not shape the start
    fit, held = (torch.from_numpy(part) for part in holdout(train.labels.numpy(), config.held_out, scope.seed))
    heads = _fit(train.features[fit], train.labels[fit], classes, config.linear_rates, config, scope.seed)
    held_out = [float(x) for x in (_predict(heads, train.features[held]) == train.labels[held]).float().mean(1)]
    best = int(np.argmax(held_out))
    rate = config.linear_rates[best]
    head = _fit(train.features, train.labels, classes, (rate,), config, scope.seed)
    correct = (_predict(head, test.features)[0] == test.labels).numpy()
    details: dict[str, Any] = {"rate": rate, "held_out_top1": 100 * held_out[best], "epochs": config.linear_epochs}
    if rate in (min(config.linear_rates), max(config.linear_rates)):
        details["warning"] = "the best learning rate lies at the end of the grid"
    return [scope.accuracy("linear", correct, details)]


@torch.no_grad()
def _fit(
    x: Tensor, y: Tensor, classes: int, rates: tuple[float, ...], config: EvaluationConfig, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights (G, C, D) and biases (G, C). The softmax regression's gradient is written out: (p - onehot) x."""
    rng = counted_generator(seed, "linear probe")
    start = rng.normal(0, 0.01, size=(1, classes, x.shape[1]))
    weight = torch.from_numpy(start).float().repeat(len(rates), 1, 1)
    bias = torch.zeros(len(rates), classes)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    targets = F.one_hot(y, classes).float()
    batch = min(_BATCH, len(x))
    peak = torch.tensor(rates) * batch / 256
    for epoch in range(config.linear_epochs):
        rate = peak * 0.5 * (1 + math.cos(math.pi * epoch / config.linear_epochs))
        order = torch.from_numpy(rng.permutation(len(x)))
        for rows in order.split(batch):
            p = (torch.einsum("bd,gcd->gbc", x[rows], weight) + bias[:, None]).softmax(-1)
            error = (p - targets[rows]) / len(rows)
            weight_speed.mul_(_MOMENTUM).add_(torch.einsum("gbc,bd->gcd", error, x[rows]))
            bias_speed.mul_(_MOMENTUM).add_(error.sum(1))
            weight.sub_(rate[:, None, None] * weight_speed)
            bias.sub_(rate[:, None] * bias_speed)
    return weight, bias


def _predict(heads: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Classes (G, n); -1, which is never right, where a head has diverged to NaN."""
    weight, bias = heads
    logits = torch.einsum("nd,gcd->gnc", x, weight) + bias[:, None]
    return logits.argmax(-1).masked_fill_(logits.isnan().any(-1), -1)
