"""Non-linear probe: two layers on frozen features. What it gains on the linear probe lies in the features, but not in
their linear span.

Letters: C classes, D columns, H hidden units.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.preprocessing import FeatureTable
from equimid.evaluation.probes.heads import HeadTrainer, predicted
from equimid.evaluation.study import Study, labelled_splits
from equimid.records import Record

__all__ = ["fit_mlp", "measure_mlp"]


def measure_mlp(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the probe on the test images; it reads what the linear probe reads."""
    fit, test = labelled_splits(data, train)
    head, details = fit_mlp(
        study.probe_features(fit), len(fit.classes), study.config, study.scope.seed, study.device
    )  # fmt: skip
    table = study.probe_features(test)
    with torch.no_grad():
        logits = torch.cat([head(rows.to(study.device)).cpu() for rows in table.features.split(4096)])
    details["features"] = study.config.linear_features
    return [study.scope.accuracy("mlp", (predicted(logits) == table.labels).numpy(), details)]


def fit_mlp(
    table: FeatureTable, classes: int, config: EvaluationConfig, seed: int, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """Columns (n, D), standardised by the images that are fitted, to H units, ReLU, to C logits.

    Raises:
        UserError: one class, or no class with two images.
    """
    x = table.features.to(device)

    def build(indices: npt.NDArray[np.int64]) -> nn.Module:
        fitted, width = x[torch.from_numpy(indices).to(device)], config.mlp_width
        mean, std = fitted.mean(0), fitted.std(0, correction=0)
        std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))  # a column that never changes says nothing
        return nn.Sequential(
            _Standardise(mean, std), nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, classes)
        )

    def batches(indices: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        for rows in torch.from_numpy(indices).to(device).split(size):
            yield x[rows]

    trainer = HeadTrainer(
        build, batches, table.labels, config.mlp_rates, config.mlp_epochs, config.held_out, seed, device
    )
    head, details = trainer.fit()
    return head, {**details, "width": config.mlp_width}


class _Standardise(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
