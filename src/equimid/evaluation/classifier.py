"""A frozen network with a linear head: what robustness is measured of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from equimid.evaluation.study import Study

__all__ = ["Classifier"]


@dataclass(frozen=True)
class Classifier:
    """
    study:   the network
    weight:  (C, D) of the head
    bias:    (C,)
    classes: (C) names, those of the training images' folders
    details: how the head was found, for records
    """

    study: Study
    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    details: dict[str, object]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(b, C), on the CPU, of preprocessed images (b, 3, S, S)."""
        return self.of_features(self.study.columns(images.to(self.study.device)).float().cpu())

    def of_features(self, columns: Tensor) -> Tensor:
        """(n, C) of the features that the study calls columns, (n, D)."""
        return columns @ self.weight.T + self.bias
