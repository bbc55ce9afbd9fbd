"""What a measurement is about: the fields that all its records share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from equimid.records import Record

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """
    subject:    "backbone", "random" or "pixels"
    data:       what the user named
    seed:       of the probe's own randomness
    checkpoint: short hash of the weights, "" for a reference
    """

    subject: str
    data: str
    seed: int
    checkpoint: str

    def accuracy(self, evaluation: str, correct: npt.NDArray[np.bool_], details: dict[str, Any]) -> Record:
        """Top-1 in percent with Wilson's 95 % interval."""
        interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
        return Record(
            evaluation,
            "top1",
            100 * float(correct.mean()),
            len(correct),
            self.subject,
            self.data,
            self.seed,
            self.checkpoint,
            unit="%",
            low=100 * interval.low,
            high=100 * interval.high,
            details=details,
        )

    def mean(
        self, evaluation: str, metric: str, values: npt.NDArray[np.floating[Any]], details: dict[str, Any],
        subject: str | None = None,
    ) -> Record:  # fmt: skip
        """Mean over images with a normal 95 % interval."""
        error = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
        middle = float(values.mean())
        return Record(
            evaluation,
            metric,
            middle,
            len(values),
            subject or self.subject,
            self.data,
            self.seed,
            self.checkpoint,
            low=None if error is None else middle - error,
            high=None if error is None else middle + error,
            details=details,
        )

    def missing(self, evaluation: str, metric: str, details: dict[str, Any], subject: str | None = None) -> Record:
        """A record without a value: its details say why."""
        return Record(
            evaluation, metric, None, 0, subject or self.subject, self.data, self.seed, self.checkpoint, details=details
        )
