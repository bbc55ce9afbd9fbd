"""Non-linear heads: one module for each learning rate, trained on the same batches; rate and epoch chosen held out.

AdamW (weight decay 0.01), cosine per epoch, cross-entropy. As the linear probe: the chosen rate is trained anew on all
training images to the chosen epoch of the same schedule, and the test images are used once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimid.evaluation.probes.heads import (
    Chooser,
    Score,
    averaged,
    cosine,
    measure,
    split_to_choose,
    warn_at_grid_edge,
)
from equimid.randomness import counted_generator, counted_torch_seed

__all__ = ["HeadTrainer"]

Indices = npt.NDArray[np.int64]
_BATCH = 256


@dataclass(frozen=True)
class HeadTrainer:
    """
    build:    indices of the images to fit -> a head with fresh weights, the same in train and eval mode; (b, ...) to
              logits (b, C)
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
