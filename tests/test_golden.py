"""Our numbers against those of the original implementations, recorded in tests/golden."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from equimid.backbones import create_backbone
from equimid.losses import DINOLoss, barlow_twins_loss, mocov3_loss, patch_ntxent, patch_ntxent_cross_view
from equimid.methods import DINOConfig
from equimid.poses import Pose, transport
from equimid.schedules import cosine, dino_warmup_cosine, warmup_cosine

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file}


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_mocov3_loss_and_gradients():
    g = load("mocov3_loss")
    q1, q2 = g["q1"].requires_grad_(), g["q2"].requires_grad_()
    loss = mocov3_loss(q1, q2, g["k1"], g["k2"], float(g["temperature"]))
    loss.backward()
    assert relative(loss.detach(), g["loss"]) < 1e-5
    assert relative(q1.grad, g["grad_q1"]) < 1e-4
    assert relative(q2.grad, g["grad_q2"]) < 1e-4


@pytest.mark.parametrize("name", ["dino_loss_2crops", "dino_loss_6crops"])
def test_dino_loss_gradients_center_and_teacher_temperature(name):
    g = load(name)
    criterion = DINOLoss(int(g["out_dim"]))
    config = DINOConfig(
        teacher_temperature_start=float(g["warmup_teacher_temp"]),
        teacher_temperature=float(g["teacher_temp"]),
        teacher_warmup_epochs=int(g["warmup_teacher_temp_epochs"]),
    )
    for call, epoch in enumerate(g["epochs"].tolist()):
        student = g[f"student_{call}"].requires_grad_()
        loss = criterion(student, g[f"teacher_{call}"], config.teacher_temperature_at(epoch))
        loss.backward()
        assert relative(loss.detach(), g[f"loss_{call}"]) < 1e-5
        assert relative(student.grad, g[f"grad_{call}"]) < 1e-4
        assert criterion.center.shape == g[f"center_after_{call}"].shape
        assert relative(criterion.center, g[f"center_after_{call}"]) < 1e-5


def test_barlow_twins_loss_and_gradients():
    g = load("barlow_loss")
    z1, z2 = g["z1"].requires_grad_(), g["z2"].requires_grad_()
    loss = barlow_twins_loss(z1, z2, float(g["lambd"]))
    loss.backward()
    assert relative(loss.detach(), g["loss"]) < 1e-5
    assert relative(z1.grad, g["grad_z1"]) < 1e-4
    assert relative(z2.grad, g["grad_z2"]) < 1e-4


@pytest.mark.parametrize("name", ["patch_ntxent_tau0.3", "patch_ntxent_tau0.5", "patch_ntxent_uneven"])
def test_patch_ntxent_and_gradients(name):
    g = load(name)
    z0, z1 = g["z0"].requires_grad_(), g["z1"].requires_grad_()
    ids = g["image_ids"] if "image_ids" in g else torch.arange(int(g["images"])).repeat_interleave(int(g["patches"]))
    loss = patch_ntxent(z0, z1, ids, float(g["temperature"]))
    loss.backward()
    assert relative(loss.detach(), g["canonical"]) < 1e-5
    assert relative(z0.grad, g["canonical_grad_z0"]) < 1e-4
    assert relative(z1.grad, g["canonical_grad_z1"]) < 1e-4
    if "released_keys_z0_anchors_z1" in g:
        released = patch_ntxent_cross_view(z1, z0, ids, float(g["temperature"]))
        assert relative(released.detach(), g["released_keys_z0_anchors_z1"]) < 1e-5


@pytest.mark.parametrize("case", range(4))
def test_token_action(case):
    g = load("token_action_complement")
    h0, w0, k0, h1, w1, k1 = g[f"case{case}"].tolist()
    maps = g[f"in{case}"]
    n = len(maps)
    source = Pose(torch.full((n,), k0), torch.zeros(n, dtype=torch.bool), (w0, h0) if k0 % 2 else (h0, w0))
    target = Pose(torch.full((n,), k1 + 2), torch.ones(n, dtype=torch.bool), (w1, h1) if k1 % 2 else (h1, w1))
    assert (transport(maps, source, target) - g[f"out{case}"]).abs().max() < 1e-5


def test_vit_small_with_cls_after_block_3():
    g = np.load(GOLDEN / "vit_small_late_cls_3.npz")
    backbone = create_backbone("vit_small_patch16_224", cls_layer=3, taps=(3,)).eval()
    names = {name.replace("tap_norms.3", "norm_equiv"): p for name, p in backbone.named_parameters()}
    assert set(names) == set(map(str, g["param_names"]))
    with torch.no_grad():
        for name, p in names.items():
            scale = 0.04 if p.ndim > 1 else 0.02
            i = torch.arange(p.numel(), dtype=torch.float64)
            values = scale * torch.sin(0.37 * i + zlib.crc32(name.encode()) % 1000 + 1)
            if "norm" in name and name.endswith("weight"):
                values += 1
            p.copy_(values.view_as(p))
        x = torch.sin(0.013 * torch.arange(2 * 3 * 224 * 224, dtype=torch.float64) + 4).view(2, 3, 224, 224).float()
        features = backbone(x)
    tapped = features.maps[3]
    found = {
        "cls": features.cls,
        "map_mean": tapped.mean((2, 3)),
        "map_corner": tapped[:, :, 0, 0],
        "map_center": tapped[:, :, 7, 5],
    }
    for name, value in found.items():
        assert relative(value, torch.from_numpy(g[name])) < 1e-3, name


def test_schedules():
    g = load("schedules")
    total, warmup = 20 * 7, 4 * 7
    ours = {
        "moco_lr": [warmup_cosine(t, total, warmup, 0.0024) for t in range(total)],
        "moco_m": [cosine(t, total, 0.99, 1.0) for t in range(total)],
        "dino_lr": [dino_warmup_cosine(t, total, warmup, 0.0008, 1e-5) for t in range(total)],
        "dino_wd": [cosine(t, total, 0.04, 0.4) for t in range(total)],
        "dino_m": [cosine(t, total, 0.982, 1.0) for t in range(total)],
    }
    for name, values in ours.items():
        assert relative(torch.tensor(values, dtype=torch.float64), g[name].double()) < 1e-6, name
