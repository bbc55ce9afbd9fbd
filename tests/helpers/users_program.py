"""A user's program with every public name; `make check` runs mypy --strict on it. It is not run."""

from pathlib import Path

import numpy as np
import torch

import equimid
from equimid import Pose, create_backbone, patch_projector, sample_pose_pair, ser_loss, transport


def train(images: torch.Tensor) -> float:
    backbone = create_backbone("vit_tiny_patch16_224", cls_layer=3, taps=(3,), img_size=96)
    phi = patch_projector(backbone.embed_dim, 64)
    first, second = sample_pose_pair(len(images), grid=(6, 6), rng=np.random.default_rng(0))
    views = [pose.act(images, patch_size=16) for pose in (first, second)]
    maps = [features.maps[3] for features in backbone.forward_packed(views)]
    loss = ser_loss(phi, maps, [first, second], torch.arange(len(images)), temperature=0.3)
    equimid.assert_trains(loss, phi.named_parameters())
    rows = [phi(x).flatten(2).transpose(1, 2).flatten(0, 1) for x in (maps[0], transport(maps[1], second, first))]
    patches = torch.arange(len(images)).repeat_interleave(first.grid[0] * first.grid[1])
    return float(loss + equimid.patch_ntxent(rows[0], rows[1], patches, temperature=0.3))


def use(data: Path, out: Path) -> list[float]:
    try:
        run = equimid.pretrain(data, out, recipe="ser-tiny", train={"epochs": 5})
    except equimid.UserError as error:
        print(error, equimid.__version__)
        return []
    backbone = equimid.load_backbone(run)
    upright: Pose = Pose.identity(2, (6, 6))
    images = torch.zeros(2, 3, 96, 96)
    equimid.assert_equivariant(lambda x: backbone(x).maps[3], images, upright, ~upright, patch_size=16)
    equimid.assert_same_on_ranks(share, ranks=(1, 2))
    records = equimid.evaluate(run, data, ["knn"])
    return [record.value for record in records if record.value is not None]


def share(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    return {"mean": torch.full((1,), float(rank)) * 0 + ranks / ranks}
