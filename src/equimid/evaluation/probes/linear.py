"""Linear probe on frozen features: every learning rate of a grid trained at once, one head of them tested once.

Letters: G learning rates, C classes, D columns. SGD with momentum 0.9, no weight decay, cosine per epoch, rates times
B / 256, as the linear probes of MoCo-v3 (`main_lincls.py`: the final CLS) and DINO (`eval_linear.py`: CLS of the last
four blocks), which SER follows. MoCo-v3 and DINO report the best epoch of the test images. Here learning rate and epoch
(of the last fifth, as SER) are chosen on a held-out part of the training images; the head is then trained anew on all
of them, to that epoch of the same schedule, and the test images are used once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from equimid.data import Source
from equimid.distributed import rank, world_size
from equimid.evaluation.classifier import Classifier
from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.preprocessing import FeatureTable
from equimid.evaluation.probes.heads import (
    Chooser,
    HeadGrid,
    cosine,
    last_fifth,
    predicted,
    split_to_choose,
    warn_at_grid_edge,
)
from equimid.evaluation.probes.linear_crops import fit_on_crops
from equimid.evaluation.study import Study, labelled_splits
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["choose_linear", "fit_linear", "measure_linear"]


def measure_linear(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the chosen head on the test images."""
    fit, test = labelled_splits(data, train)
    head = fit_linear(study, fit)
    table = study.probe_features(test)
    correct = (predicted(head.of_features(table.features)) == table.labels).numpy()
    return [study.scope.accuracy("linear", correct, dict(head.details))]


def fit_linear(study: Study, source: Source) -> Classifier:
    """The network with the linear head that the labelled images of `source` give.

    Raises:
        UserError: no labels, one class, or no class with two images.
    """
    if study.config.linear_crops:
        # several measurements of one study read the same head
        stamp = source.stamp()
        if stamp not in study.heads:
            study.heads[stamp] = fit_on_crops(study, source)
        head: Classifier = study.heads[stamp]
        return replace(head, details=dict(head.details))
    table, config = study.probe_features(source), study.config
    weight, bias, details = choose_linear(table, len(source.classes), config, study.scope.seed, study.device)
    details["features"] = config.linear_features
    return Classifier(study, weight, bias, source.classes, details)


def choose_linear(
    table: FeatureTable, classes: int, config: EvaluationConfig, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Weight (C, D) and bias (C,) that labelled features (n, D) give, and how they were found."""
    fit, held = split_to_choose(table.labels, config.held_out, seed)
    x, y, rates = table.features.to(device), table.labels.to(device), config.linear_rates
    chooser, x_held, y_held = Chooser(rates, last_fifth(config.linear_epochs)), x[held], y[held]
    for epoch, heads in _epochs(x[fit], y[fit], classes, rates, config, seed):
        if epoch >= chooser.first:
            chooser.see(epoch, heads.scores(x_held, y_held))
    best = chooser.best
    assert best is not None
    rate = rates[best.number]
    for epoch, heads in _epochs(x, y, classes, (rate,), config, seed):  # noqa: B007
        if epoch == best.epoch:
            break
    details: dict[str, Any] = {
        "rate": rate, "epoch": best.epoch, "epochs": config.linear_epochs, "held_out_top1": best.top1,
        **warn_at_grid_edge(rate, rates),
    }  # fmt: skip
    return *heads.head(0), details


def _epochs(
    x: Tensor, y: Tensor, classes: int, rates: Sequence[float], config: EvaluationConfig, seed: int
) -> Iterator[tuple[int, HeadGrid]]:
    """The heads after each epoch, counted from 1."""
    rng = counted_generator(seed, "linear probe")
    heads = HeadGrid(rates, classes, x.shape[1], rng, x.device)
    batch = min(config.linear_batch, len(x))
    for epoch in range(config.linear_epochs):
        scale = batch / 256 * cosine(epoch, config.linear_epochs)
        order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        for rows in order.split(batch):
            mine = rows[rank() :: world_size()]  # the heads sum their gradients over ranks
            heads.step(x[mine], y[mine], scale, len(rows))
        yield epoch + 1, heads
