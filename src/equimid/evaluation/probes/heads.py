"""How probes are trained: a head for each learning rate, on the same mini-batches; rate and epoch chosen held out.

HeadGrid:    linear heads, side by side as one matrix; SGD with momentum 0.9, no weight decay
HeadTrainer: any module; AdamW (weight decay 0.01)

Both: cross-entropy, the learning rate a cosine over epochs. On cached features the chosen rate is trained anew on all
training images, to the chosen epoch of the same schedule. The test images are used once.

Letters: G learning rates, C classes, D columns, b images of a mini-batch (of this rank), B of all ranks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimid import schedules
from equimid.data import holdout
from equimid.distributed import sum_detached, world_size
from equimid.errors import UserError
from equimid.randomness import counted_generator, counted_torch_seed

__all__ = [
    "Choice", "Chooser", "HeadGrid", "HeadTrainer", "Score", "averaged", "check_classes", "cosine", "last_fifth",
    "measure", "predicted", "split_to_choose", "warn_at_grid_edge",
]  # fmt: skip

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
    return schedules.cosine(epoch, epochs, 1.0, 0.0)


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
    classes = len(labels.unique())
    if classes < 2:
        raise UserError(
            f"{len(labels)} training images in {classes} class: a probe tells classes apart; give images of two or more"
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


Indices = npt.NDArray[np.int64]
_BATCH = 256


@dataclass(frozen=True)
class HeadTrainer:
    """Trains a head for each learning rate, and keeps the best.

    Attributes:
        build:    indices of the images to fit -> a head with fresh weights, the same in train and eval mode; it maps
                  (b, ...) to logits (b, C)
        batches:  (indices, b) -> inputs (b, ...) of the training images at these indices, in order, on the device
        labels:   (n,) of the training images
        rates:    learning rates
        epochs:   of the schedule
        held_out: fraction of the training images that chooses
        seed:     of weights, order and the held-out part
        device:   of the heads
    """

    build: Callable[[Indices], nn.Module]
    batches: Callable[[Indices, int], Iterator[Tensor]]
    labels: Tensor
    rates: Sequence[float]
    epochs: int
    held_out: float
    seed: int
    device: torch.device

    def fit(self) -> tuple[nn.Module, dict[str, Any]]:
        """The chosen head in eval mode, and how it was found.

        Raises:
            UserError: one class, or no class with two images.
        """
        fit, held = (part.numpy() for part in split_to_choose(self.labels, self.held_out, self.seed))
        chooser = Chooser(self.rates)
        for epoch, heads in self._epochs(fit, self.rates):
            chooser.see(epoch, self._scores(heads, held))
        best = chooser.best
        assert best is not None
        rate = self.rates[best.number]
        for epoch, (head,) in self._epochs(np.arange(len(self.labels)), (rate,)):  # noqa: B007
            if epoch == best.epoch:
                break
        details: dict[str, Any] = {
            "rate": rate, "epoch": best.epoch, "epochs": self.epochs, "held_out_top1": best.top1,
            **warn_at_grid_edge(rate, self.rates),
        }  # fmt: skip
        return head.eval(), details

    def _epochs(self, indices: Indices, rates: Sequence[float]) -> Iterator[tuple[int, list[nn.Module]]]:
        """The heads after each epoch, counted from 1."""
        heads = []
        for _ in rates:
            with counted_torch_seed(self.seed, "probe, weights"):
                heads.append(self.build(indices).to(self.device))
        optimizers = [torch.optim.AdamW(h.parameters(), lr=r) for h, r in zip(heads, rates, strict=True)]
        for epoch in range(self.epochs):
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * cosine(epoch, self.epochs)
            order = counted_generator(self.seed, "probe, order", epoch).permutation(indices)
            labels = self.labels[torch.from_numpy(order)].to(self.device).split(_BATCH)
            for x, y in zip(self.batches(order, _BATCH), labels, strict=True):
                for head, optimizer in zip(heads, optimizers, strict=True):
                    optimizer.zero_grad()
                    F.cross_entropy(head(x), y).backward()
                    optimizer.step()
            yield epoch + 1, heads

    @torch.no_grad()
    def _scores(self, heads: Sequence[nn.Module], indices: Indices) -> list[Score]:
        """Of the heads on the images at these indices."""
        labels, parts = self.labels[torch.from_numpy(indices)].to(self.device).split(_BATCH), []
        for x, y in zip(self.batches(indices, _BATCH), labels, strict=True):
            parts.append(measure(torch.stack([head(x) for head in heads], dim=1), y))
        return averaged(parts, len(indices))
