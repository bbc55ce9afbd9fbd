"""Losses: tensors and numbers in, a scalar out."""

from equimid.losses.mocov3 import mocov3_loss
from equimid.losses.patch_ntxent import patch_ntxent, patch_ntxent_cross_view

__all__ = ["mocov3_loss", "patch_ntxent", "patch_ntxent_cross_view"]
