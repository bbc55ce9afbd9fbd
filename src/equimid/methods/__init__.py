"""Base objectives on the final embedding. Each is one file; `Method` is what the task asks of it."""

from equimid.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from equimid.methods.base import METHODS, Method, MethodConfig, unordered_pairs, view_pairs
from equimid.methods.dino import DINO, DINOConfig
from equimid.methods.mocov3 import MoCoV3, MoCoV3Config
from equimid.methods.simclr import SimCLR, SimCLRConfig
from equimid.methods.simsiam import SimSiam, SimSiamConfig
from equimid.methods.vicreg import VICReg, VICRegConfig

__all__ = [
    "DINO",
    "METHODS",
    "BarlowTwins",
    "BarlowTwinsConfig",
    "DINOConfig",
    "Method",
    "MethodConfig",
    "MoCoV3",
    "MoCoV3Config",
    "SimCLR",
    "SimCLRConfig",
    "SimSiam",
    "SimSiamConfig",
    "VICReg",
    "VICRegConfig",
    "unordered_pairs",
    "view_pairs",
]
