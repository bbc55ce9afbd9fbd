"""Every loss, method and add-on shows how it is used, and what is shown runs."""

import doctest
import importlib

import numpy as np
import pytest
import torch

import equimid
from equimid import addons, losses, methods, views
from equimid.addons import Addon
from equimid.backbones import BackboneConfig
from equimid.features import Features
from equimid.methods import Method
from equimid.schedules import StepInfo

_ALL = [(getattr(room, name), base) for room, base in ((methods, Method), (addons, Addon)) for name in room.__all__]
_BUILT = [cls for cls, base in _ALL if isinstance(cls, type) and issubclass(cls, base) and cls is not base]
SHOWN = [*(getattr(losses, name) for name in losses.__all__), *_BUILT, equimid.ser_loss]
OTHERS = ["equimid.task", "equimid.statistics"]
KNOWN = {
    "torch": torch, "np": np, "Features": Features, "StepInfo": StepInfo, "BackboneConfig": BackboneConfig,
    **{name: getattr(room, name) for room in (addons, methods, views, equimid) for name in room.__all__},
}  # fmt: skip


def test_nothing_is_missing():
    names = {x.__name__ for x in SHOWN}
    assert {"MoCoV3", "DINO", "BarlowTwins", "SimCLR", "VICReg", "SimSiam", "BYOL"} <= names
    assert {"SER", "AugSelf", "EquiMod", "ESSL", "STL"} <= names
    assert {"patch_ntxent", "info_nce", "DINOLoss", "vicreg_loss"} <= names


@pytest.mark.parametrize("shown", SHOWN, ids=lambda x: x.__name__)
def test_its_docstring_shows_a_use(shown):
    assert "Example:" in shown.__doc__
    assert ">>> " in shown.__doc__


@pytest.mark.parametrize("module", sorted({x.__module__ for x in SHOWN} | set(OTHERS)))
def test_what_is_shown_runs(module):
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(module), extraglobs=KNOWN)
    assert result.attempted
    assert not result.failed
