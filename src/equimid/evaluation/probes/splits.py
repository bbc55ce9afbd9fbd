"""The part of the training images that chooses settings."""

import torch
from torch import Tensor

from equimid.data import holdout
from equimid.errors import UserError

__all__ = ["check_classes", "split_to_choose"]


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


def split_to_choose(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(fit, held) indices into labels (n,): the held-out part chooses, classes in proportion. See `data.holdout`.

    Raises:
        UserError: one class, or no class with two images.
    """
    check_classes(labels)
    fit, held = holdout(labels.numpy(), share, seed)
    return torch.from_numpy(fit), torch.from_numpy(held)
