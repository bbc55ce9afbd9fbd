"""Logistic regression on all training images, and on a few of each class.

`logistic`: softmax regression to convergence (AugSelf's linear evaluation, after Kornblith et al. 2019). It has no
learning rate, no epochs and no batch; its one setting is the strength of the L2 penalty.

Letters: n images, C classes, D columns, λ the penalty. Minimised by L-BFGS in float64, from the strongest penalty of
the grid to the weakest, each starting where the last one ended: 45 values from 1e-6 to 1e5. λ is chosen on a held-out
part of the training images and the head fitted anew on all of them. For scikit-learn's, C = 1 / (n λ).

`fewshot`: n images of each class, over several draws of these images. Features are centred by the drawn images and
brought to unit length (CL2N of SimpleShot, Wang et al. 2019): a few images a class estimate a mean, but not the
variance of every column. The penalty is fixed: there are no images to choose it by, and on unit length it means the
same for every network.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.stats import t as student
from torch import Tensor

from equimid.errors import UserError
from equimid.evaluation.preprocessing import FeatureTable
from equimid.evaluation.probes.heads import check_classes, predicted, split_to_choose, warn_at_grid_edge
from equimid.evaluation.study import Study, labelled_splits
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = [
    "PENALTIES", "LogisticHead", "choose_logistic", "draw_images", "fewshot_top1", "fit_logistic", "measure_fewshot",
    "measure_logistic", "penalty_of",
]  # fmt: skip

logger = logging.getLogger("equimid")

PENALTIES = tuple(float(x) for x in np.logspace(5, -6, 45))

_ROWS = 65536  # whose logits are in memory at once
_STEPS_OF_THE_PATH, _STEPS = 100, 1000
_FEWSHOT_C = 10.0  # scikit-learn's C: of the summed cross-entropy against half the squared norm


def measure_logistic(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the probe on the test images; it reads what the linear probe reads."""
    fit, test = labelled_splits(data, train)
    head, details = choose_logistic(
        study.probe_features(fit), len(fit.classes), study.config.held_out, study.scope.seed, study.device
    )  # fmt: skip
    table = study.probe_features(test)
    details["features"] = study.config.linear_features
    correct = (predicted(head.logits(table.features)) == table.labels).numpy()
    return [study.scope.accuracy("logistic", correct, details)]


@dataclass(frozen=True)
class LogisticHead:
    """weight (C, D), bias (C,) in float64; converged: the gradient vanished within the steps allowed."""

    weight: Tensor
    bias: Tensor
    converged: bool

    def logits(self, x: Tensor) -> Tensor:
        """(n, C) of rows (n, D), on the CPU."""
        weight, bias = self.weight.cpu(), self.bias.cpu()
        return torch.cat([torch.addmm(bias, rows.double(), weight.T) for rows in x.cpu().split(_ROWS)])


def choose_logistic(
    table: FeatureTable, classes: int, held_out: float, seed: int, device: torch.device
) -> tuple[LogisticHead, dict[str, Any]]:
    """The head of the penalty that is best on the held-out part (of equals the strongest), and how it was found.

    Raises:
        UserError: one class, or no class with two images.
    """
    fit, held = split_to_choose(table.labels, held_out, seed)
    device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    x, y = table.features.to(device), table.labels.to(device)
    best, chosen, head = -1.0, PENALTIES[0], None
    for penalty in PENALTIES:
        head = fit_logistic(x[fit], y[fit], classes, penalty, head, steps=_STEPS_OF_THE_PATH)
        top1 = 100 * float((predicted(head.logits(x[held])) == table.labels[held]).float().mean())
        if top1 > best:
            best, chosen = top1, penalty
    head = fit_logistic(x, y, classes, chosen)
    details = {"penalty": chosen, "held_out_top1": best, **warn_at_grid_edge(chosen, PENALTIES, "penalty")}
    if not head.converged:
        details["warning"] = f"not converged after {_STEPS} steps of L-BFGS"
    return head, details


def penalty_of(strength: float, images: int, classes: int) -> float:
    """The penalty with which `fit_logistic` finds the minimum of scikit-learn's LogisticRegression(C=strength). Of two
    classes scikit-learn has one row of weights: here there are two, each half as long."""
    return (2 if classes == 2 else 1) / (strength * images)


def fit_logistic(
    x: Tensor, y: Tensor, classes: int, penalty: float, start: LogisticHead | None = None, steps: int = _STEPS
) -> LogisticHead:
    """Minimum of mean cross-entropy + λ / 2 |W|², the bias free, on rows x (n, D) and y (n,).

    Features are centred meanwhile: the bias takes it up, so the minimum is the same and is reached in fewer steps.
    """
    x = x.double()
    centre = x.mean(0)
    x = x - centre
    d = x.shape[1]
    flat = np.zeros(classes * (d + 1))
    if start is not None:
        bias = start.bias + start.weight @ centre
        flat = torch.cat([start.weight, bias[:, None]], dim=1).cpu().numpy().ravel()

    def value_and_gradient(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        both = torch.from_numpy(flat).to(x.device).view(classes, d + 1)
        weight, bias = both[:, :d], both[:, d]
        value = penalty / 2 * (weight**2).sum()
        gradient = torch.cat([penalty * weight, torch.zeros_like(bias)[:, None]], dim=1)
        for rows, labels in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
            log_p = torch.addmm(bias, rows, weight.T).log_softmax(1)
            value += F.nll_loss(log_p, labels, reduction="sum") / len(x)
            error = log_p.exp_()
            error[torch.arange(len(labels), device=x.device), labels] -= 1
            error /= len(x)
            gradient[:, :d] += error.T @ rows
            gradient[:, d] += error.sum(0)
        return float(value), gradient.cpu().numpy().ravel()

    options = {"maxiter": steps, "gtol": 1e-6, "ftol": 64 * np.finfo(float).eps}
    minimum = minimize(value_and_gradient, flat, jac=True, method="L-BFGS-B", options=options)
    both = torch.from_numpy(minimum.x).to(x.device).view(classes, d + 1)
    weight, bias = both[:, :d].contiguous(), both[:, d].clone()
    return LogisticHead(weight, bias - weight @ centre, bool(minimum.success))


def measure_fewshot(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Mean top-1 over draws on all test images, with Student's 95 % interval over the draws, for each n that every
    class has images for. The final embedding is read. The interval is of the draws, not of the test images.

    Raises:
        UserError: one class, or every n is more than the smallest class has.
    """
    config, scope = study.config, study.scope
    fit, test = (study.features(source) for source in labelled_splits(data, train))
    check_classes(fit.labels)
    smallest = int(fit.labels.unique(return_counts=True)[1].min())
    possible = [n for n in config.fewshot_per_class if n <= smallest]
    if not possible:
        raise UserError(
            f"the smallest class of {data} has {smallest} training images; evaluation.fewshot_per_class is "
            f"{config.fewshot_per_class}: give a number that every class has"
        )
    for n in sorted(set(config.fewshot_per_class) - set(possible)):
        logger.warning("few-shot: left out %d images a class, as the smallest class has %d", n, smallest)
    records = []
    for n in possible:
        values = np.array([
            fewshot_top1(fit, test, draw_images(fit.labels, n, scope.seed, draw))
            for draw in range(config.fewshot_draws)
        ])  # fmt: skip
        middle, error = float(values.mean()), None
        if len(values) > 1:
            error = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        records.append(
            scope.record(
                "fewshot",
                "top1",
                middle,
                len(test.labels),
                unit="%",
                low=None if error is None else max(0.0, middle - error),
                high=None if error is None else min(100.0, middle + error),
                details={"per_class": n, "draws": len(values), "C": _FEWSHOT_C},
            )
        )
    return records


def draw_images(labels: Tensor, n: int, seed: int, draw: int) -> npt.NDArray[np.int64]:
    """Indices of n images of each class, ascending; a smaller n draws a part of a larger one's images."""
    order = counted_generator(seed, "few-shot", draw).permutation(len(labels))
    shuffled = labels.numpy()[order]
    chosen = [order[shuffled == label][:n] for label in np.unique(shuffled)]
    return np.sort(np.concatenate(chosen))


def fewshot_top1(train: FeatureTable, test: FeatureTable, drawn: npt.NDArray[np.int64]) -> float:
    """Percent of the test images that the drawn training images classify rightly."""
    rows = torch.from_numpy(drawn)
    centre = train.features[rows].mean(0)
    x, queries = (F.normalize(t - centre, dim=1) for t in (train.features[rows], test.features))
    classes = int(train.labels.max()) + 1
    head = fit_logistic(x, train.labels[rows], classes, penalty_of(_FEWSHOT_C, len(rows), classes))
    return 100 * float((predicted(head.logits(queries)) == test.labels).double().mean())
