"""Linear heads of a grid of learning rates, trained side by side as one matrix.

Letters: G learning rates, C classes, D columns, b images of a mini-batch (of this rank), B of all ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equimid.data import holdout
from equimid.distributed import sum_detached, world_size
from equimid.errors import UserError

__all__ = ["Choice", "Chooser", "HeadGrid", "Score", "averaged", "cosine", "last_fifth", "measure", "predicted"]

Score = tuple[float, float]  # top-1 in percent, mean log-likelihood

_MOMENTUM = 0.9
_ROWS = 16384  # of images whose logits are in memory at once


class HeadGrid:
    """G softmax regressions (C, D) that start alike and read the same mini-batches; SGD, momentum 0.9, no weight decay.

    A step is one matrix product (b, D) (D, G C) forward and one (G C, b) (b, D) for the gradient (p - onehot) x. A head
    that diverges harms no other: no product mixes two heads.
    """

    def __init__(
        self, rates: Sequence[float], classes: int, columns: int, rng: np.random.Generator, device: torch.device
    ) -> None:
        """rates: per 256 images; weights N(0, 0.01²), drawn from `rng`, biases 0."""
        self.count, self.classes = len(rates), classes
        self.rates = torch.tensor(rates, device=device).repeat_interleave(classes)[:, None]  # (G C, 1)
        start = torch.from_numpy(rng.normal(0, 0.01, size=(classes, columns))).float()
        self.weight = start.repeat(self.count, 1).to(device)  # (G C, D)
        self.bias = torch.zeros(self.count * classes, device=device)
        self._speed, self._bias_speed = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor, scale: float, images: int) -> None:
        """One SGD step on this rank's rows x (b, D), y (b,) of a batch of `images` over all ranks; b may be 0."""
        error = self.logits(x).softmax(-1)
        error[torch.arange(len(y), device=y.device), :, y] -= 1
        error = error.flatten(1) / images
        if world_size() == 1:
            self._speed.addmm_(error.T, x, beta=_MOMENTUM)
            self._bias_speed.mul_(_MOMENTUM).add_(error.sum(0))
        else:
            self._speed.mul_(_MOMENTUM).add_(sum_detached(error.T @ x))
            self._bias_speed.mul_(_MOMENTUM).add_(sum_detached(error.sum(0)))
        rate = self.rates * scale
        self.weight.addcmul_(rate, self._speed, value=-1)
        self.bias.addcmul_(rate[:, 0], self._bias_speed, value=-1)

    def logits(self, x: Tensor) -> Tensor:
        """(b, G, C) of rows (b, D)."""
        return torch.addmm(self.bias, x, self.weight.T).view(len(x), self.count, self.classes)

    @torch.no_grad()
    def scores(self, x: Tensor, y: Tensor) -> list[Score]:
        """Of each head (G) on rows x (n, D) with labels y (n,)."""
        rows = max(1, _ROWS // self.count)
        parts = [measure(self.logits(part), labels) for part, labels in zip(x.split(rows), y.split(rows), strict=True)]
        return averaged(parts, len(x))

    def head(self, number: int) -> tuple[Tensor, Tensor]:
        """Copies of weight (C, D) and bias (C,) of one head, on the CPU."""
        rows = slice(number * self.classes, (number + 1) * self.classes)
        return self.weight[rows].cpu().clone(), self.bias[rows].cpu().clone()


def predicted(logits: Tensor) -> Tensor:
    """Classes (...) of logits (..., C); -1, which is never right, where a head has diverged to NaN."""
    return logits.argmax(-1).masked_fill_(logits.isnan().any(-1), -1)


def measure(logits: Tensor, y: Tensor) -> Tensor:
    """Right answers and summed log-likelihood, (G, 2), of logits (b, G, C) and labels (b,)."""
    likelihood = logits.log_softmax(-1)[torch.arange(len(y), device=y.device), :, y].sum(0)
    return torch.stack([(predicted(logits) == y[:, None]).sum(0).float(), likelihood], dim=1)


def averaged(parts: Sequence[Tensor], images: int) -> list[Score]:
    """Scores (G) of parts (G, 2) from `measure`; a head of NaN has the likelihood 0."""
    total = torch.stack(list(parts)).cpu().double().sum(0).nan_to_num(nan=-math.inf, neginf=-math.inf) / images
    return [(100 * right, likelihood) for right, likelihood in total.tolist()]


def cosine(epoch: int, epochs: int) -> float:
    """Factor of the learning rate in `epoch`, from 1 towards 0; constant within it."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def last_fifth(epochs: int) -> int:
    """The first epoch, from 1, that a linear probe may stop after: SER's 40 of 50. Steps are small by then, so that a
    head trained anew ends alike; before, a large rate has a lucky epoch sooner or later."""
    return math.ceil(0.8 * epochs)


@dataclass(frozen=True)
class Choice:
    """Learning rate number `number` after epoch `epoch` (from 1), and its held-out top-1 in percent."""

    number: int
    epoch: int
    top1: float


class Chooser:
    """The best learning rate and epoch by held-out accuracy.

    Few images give many equals: the likelihood decides between them, then the later epoch, then the smaller rate. The
    order of the grid decides nothing. Epochs before `first` are no candidates.
    """

    def __init__(self, rates: Sequence[float], first: int = 1) -> None:
        self.first = first
        self._ascending = sorted(range(len(rates)), key=lambda number: rates[number])
        self.best: Choice | None = None
        self._score: Score = (-1.0, -math.inf)

    def see(self, epoch: int, scores: Sequence[Score]) -> bool:
        """Held-out scores (G) after an epoch (from 1, ascending); whether it has the best so far."""
        number = max(self._ascending, key=lambda g: scores[g])  # the first of equals
        if scores[number] < self._score:
            return False
        self.best, self._score = Choice(number, epoch, scores[number][0]), scores[number]
        return True


def check_classes(labels: Tensor) -> None:
    """
    Raises:
        UserError: all images are of one class.
    """
    found = len(labels.unique())
    if found < 2:
        raise UserError(
            f"{len(labels)} training images in {found} class: a probe tells classes apart; give images of two or more"
        )


def split_to_choose(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(fit, held) indices into labels (n,): the held-out part chooses, classes in proportion. See `data.holdout`.

    Raises:
        UserError: one class, or no class with two images.
    """
    check_classes(labels)
    fit, held = holdout(labels.numpy(), fraction, seed)
    return torch.from_numpy(fit), torch.from_numpy(held)


def warn_at_grid_edge(best: float, grid: Sequence[float], what: str = "learning rate") -> dict[str, str]:
    """Details of a record: a warning where the best of several lies at an end, so that a better one may lie beyond."""
    if len(set(grid)) > 1 and best in (min(grid), max(grid)):
        return {"warning": f"the best {what} lies at the end of the grid"}
    return {}
