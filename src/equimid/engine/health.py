"""Health of a run: numbers that show a dead term or a collapse, and the warnings made from them."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from equimid.engine.callbacks import Callback

__all__ = ["HealthCheck", "effective_rank", "feature_std", "map_variance"]

logger = logging.getLogger("equimid")


def feature_std(cls: Tensor) -> float:
    """Mean standard deviation over the batch of the columns of unit-length embeddings (b, D), times sqrt(D).

    1 where the embeddings point everywhere, 0 where they are all the same.
    """
    unit = torch.nn.functional.normalize(cls.float(), dim=1)
    return float(unit.std(0, correction=0).mean() * math.sqrt(cls.shape[1]))


def effective_rank(cls: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of the centred embeddings (b, D); at least 1.

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    centred = cls.double().cpu()
    centred -= centred.mean(0)
    # singular values from the smaller Gram matrix: of 4,096 embeddings in milliseconds
    gram = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    fraction = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(fraction * fraction.clamp(min=1e-12).log()).sum()))


def map_variance(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(between, total) sums of squares of maps (n, D, h, w): of the images' mean tokens, and of all tokens, about the
    mean token. between / total is the fraction of the variance that lies between images; 1 = place is lost. Over ranks
    the sums add up, each about its own rank's mean."""
    tokens = maps.float().flatten(2)  # (n, D, T)
    own = tokens.mean(2)
    mean = own.mean(0)
    between = (own - mean).square().sum() * tokens.shape[2]
    return between, (tokens - mean[:, None]).square().sum()


_BETWEEN, _NORM = "feature/between_images_", "gradient/"


class HealthCheck(Callback):
    """Warns once of each trouble.

    Args:
        weights: of the losses, by name; a loss of weight 0 may have no gradient.
        patience: steps after which nearly equal embeddings are a collapse and not a beginning.
        start: the first step of this process; no waiting is counted while workers start.
        remedy: what to do about a device that waits for images; "" = nothing helps on this machine.
    """

    COLLAPSED = 0.02
    BETWEEN = 0.9  # fraction of a regularised map's variance
    WAITING = 0.2  # fraction of the time
    ROWS = 5  # in a row, after the first STARTING steps
    STARTING = 20

    def __init__(self, weights: Mapping[str, float], patience: int, start: int = 0, remedy: str = "") -> None:
        self.weights, self.patience, self.start, self.remedy = dict(weights), patience, start, remedy
        self.waiting: list[float] = []
        self.warned: set[str] = set()

    def on_log(self, step: int, row: Mapping[str, float | int], images: int) -> None:
        maps, gradients = ({k.removeprefix(p): v for k, v in row.items() if k.startswith(p)} for p in (_BETWEEN, _NORM))
        self._check_maps(step - 1, maps)
        self._check_features(step - 1, row["feature/std"], gradients, images)
        self._check_loader(step - 1, row["waiting"])

    def _check_loader(self, step: int, waited: float) -> None:
        """Check what fraction of the time the device waited for images since the last call, 0..1."""
        if step - self.start < self.STARTING or waited <= self.WAITING:
            self.waiting.clear()
            return
        self.waiting.append(waited)
        if len(self.waiting) == self.ROWS and self.remedy:
            fraction = sum(self.waiting) / self.ROWS
            self._warn(
                "loader", f"step {step + 1}: the device waits {fraction:.0%} of the time for images; {self.remedy}"
            )

    def _check_maps(self, step: int, between: Mapping[str, float]) -> None:
        """Check what fraction of the variance of each regularised map lies between images, 0..1."""
        for name, fraction in between.items():
            if step >= self.patience and fraction > self.BETWEEN:
                layer = name.replace("_", " ")
                self._warn(
                    f"place at {layer}",
                    f"step {step + 1}: place is being lost at {layer}: {fraction:.0%} of the variance of its map lies "
                    "between images, so its patches say which image they are of and hardly where they lie in it; try "
                    "ser.negatives=all (patches of the same image as negatives) or a lower ser.weight",
                )

    def _check_features(self, step: int, std: float, gradients: Mapping[str, float], images: int) -> None:
        """Check the standard deviation of features and the gradient norms, which have names of losses ("base",
        add-ons), or of several joined by "+". step: from 0."""
        for name, norm in gradients.items():
            if norm == 0 and any(self.weights.get(part, 1.0) > 0 for part in name.split("+")):
                self._warn(
                    f"dead {name}",
                    f"step {step + 1}: no gradient of the {name} loss reaches the tapped layer; "
                    "it does not train anything there",
                )
        if step >= self.patience and images > 1 and std < self.COLLAPSED:
            self._warn(
                "collapse",
                f"step {step + 1}: the features collapse, all images get nearly the same embedding "
                f"(standard deviation {std:.4f}, healthy is 0.2 to 1); try a lower optim.lr or a larger batch",
            )

    def _warn(self, trouble: str, message: str) -> None:
        if trouble not in self.warned:
            self.warned.add(trouble)
            logger.warning(message)
