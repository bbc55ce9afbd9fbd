"""Add-ons: losses beside the base objective. Each declares the views and the taps that it needs."""

from equimid.addons.augself import AugSelf, AugSelfConfig
from equimid.addons.base import ADDONS, Addon, AddonConfig, AddonContext, EmbeddingAddonConfig, StudentOutputs
from equimid.addons.equimod import EquiMod, EquiModConfig
from equimid.addons.equimod_constants import (
    Constants,
    check_constants_file,
    find_constants,
    measure_constants,
    store_constants,
)
from equimid.addons.essl import ESSL, ESSLConfig
from equimid.addons.ser import SER, SERConfig, ser_loss
from equimid.addons.stl import STL, STLConfig

__all__ = [
    "ADDONS",
    "ESSL",
    "SER",
    "STL",
    "Addon",
    "AddonConfig",
    "AddonContext",
    "AugSelf",
    "AugSelfConfig",
    "Constants",
    "ESSLConfig",
    "EmbeddingAddonConfig",
    "EquiMod",
    "EquiModConfig",
    "SERConfig",
    "STLConfig",
    "StudentOutputs",
    "check_constants_file",
    "find_constants",
    "measure_constants",
    "ser_loss",
    "store_constants",
]
