"""Small tasks and the views they are fed, for tests."""

import torch

from equimid.addons import SERConfig, plan_views
from equimid.backbones import BackboneConfig
from equimid.methods import BarlowTwinsConfig, DINOConfig, MoCoV3Config
from equimid.poses import sample_pose_pair
from equimid.randomness import counted_generator
from equimid.task import Task
from equimid.views import Views, ViewsConfig

TINY = BackboneConfig(
    name="vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3, cls_layer=3,
    freeze_patch_embed=False, positions="learned",
)  # fmt: skip
HEADS = MoCoV3Config(hidden=32, dim=16)


def make_task(addons=None, backbone=TINY, method=HEADS, views=None, batch=8, seed=0):
    """A task with SER (given its settings) or with add-ons by name."""
    addons = {"ser": addons} if isinstance(addons, SERConfig) else addons or {}
    return Task(backbone, method, addons, plan_views(views or ViewsConfig(), backbone, addons, batch), seed)


def make_views(batch=8, posed=4, size=32, patch=8, device="cpu"):
    """Drawn views: two crops of the rest, two posed views of `posed` images."""
    rng = torch.Generator().manual_seed(0)
    poses = sample_pose_pair(posed, (size // patch, size // patch), counted_generator(0, "pose")) if posed else ()
    upright = torch.randn(posed, 3, size, size, generator=rng)
    return Views(
        [torch.randn(batch - posed, 3, size, size, generator=rng).to(device) for _ in range(2)],
        [pose.act(upright, patch).to(device) for pose in poses],
        [pose.to(device) for pose in poses],
        torch.arange(posed, device=device),
    )


OTHER_BASES = {
    "dino": DINOConfig(out_dim=12, hidden=10, bottleneck=7),
    "barlow_twins": BarlowTwinsConfig(hidden=10, dim=5),
}


def ser_on_other_bases(rank, ranks):
    """Losses and gradients of SER on DINO and on Barlow Twins, of this rank's share of 8 images."""
    found = {}
    for name, method in OTHER_BASES.items():
        task, views = make_task(SERConfig(hidden=16), method=method).double(), make_views()
        mine = slice(rank, None, ranks)
        part = Views(
            [x[mine].double() for x in views.crops], [x[mine].double() for x in views.posed],
            [pose[mine] for pose in views.poses], views.image_ids[mine],
        )  # fmt: skip
        losses = task(part)
        losses.total.backward()
        found |= {f"{name}: {key}": value for key, value in losses.named.items()}
        found |= {f"{name}: {key}": p.grad for key, p in task.named_parameters() if p.requires_grad}
    return found


def logged(std=1.0, waiting=0.0, gradients=None, between=None):
    """A row as the trainer logs it, as far as health reads it."""
    row = {"feature/std": std, "waiting": waiting}
    row |= {f"gradient/{name}": value for name, value in (gradients or {}).items()}
    return row | {f"feature/between_images_{layer}": value for layer, value in (between or {}).items()}
