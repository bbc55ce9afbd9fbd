"""Losses: tensors and numbers in, a scalar out."""

from equimid.losses.barlow_twins import barlow_twins_loss
from equimid.losses.dino import DINOLoss
from equimid.losses.info_nce import info_nce, mocov3_loss
from equimid.losses.nt_xent import nt_xent
from equimid.losses.patch_ntxent import patch_ntxent, patch_ntxent_cross_view
from equimid.losses.simsiam import simsiam_loss
from equimid.losses.vicreg import vicreg_loss

__all__ = [
    "DINOLoss",
    "barlow_twins_loss",
    "info_nce",
    "mocov3_loss",
    "nt_xent",
    "patch_ntxent",
    "patch_ntxent_cross_view",
    "simsiam_loss",
    "vicreg_loss",
]
