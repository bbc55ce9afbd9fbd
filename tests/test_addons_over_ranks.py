"""A whole step of several add-ons on one, two and three gloo processes: same losses, same gradients, in float64."""

import numpy as np
import torch
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from equimid.addons import ESSLConfig, SERConfig, STLConfig, plan_views
from equimid.backbones import BackboneConfig
from equimid.methods import MoCoV3Config
from equimid.schedules import StepInfo
from equimid.task import Task
from equimid.testing import assert_same_on_ranks
from equimid.views import (
    Key,
    LocalViews,
    Photometric,
    ViewDataset,
    Views,
    ViewsConfig,
    collate,
    sample_poses,
    to_device_views,
)

BACKBONE = BackboneConfig(
    name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, cls_layer=2,
    positions="learned", freeze_patch_embed=False,
)  # fmt: skip
METHOD = MoCoV3Config(hidden=12, dim=6)
# three posed images become four, so that a pair is whole: of three ranks one has none
ADDONS = {
    "essl": ESSLConfig(size=8, widths=(10,), weight=0.6, layer=3),
    "ser": SERConfig(layers=(1, 2), layer_weights=(0.4, 1.2), hidden=8, fraction=0.25, weight=0.8),
    "stl": STLConfig(trans_dim=6, hidden=8, dim=6, weight=0.7),
}
VIEWS = ViewsConfig(
    first=Photometric(blur=0), second=Photometric(blur=0, solarise=0.3), local=LocalViews(4, 8, (0.1, 0.3))
)
COUNT = 12


class Images:
    """Random pixels, of two shapes in turn."""

    def __len__(self):
        return COUNT

    def load(self, index):
        shape = (20, 30, 3) if index % 2 else (28, 18, 3)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8))


def double(views):
    """The same views in float64."""
    extra = {name: [x.double() for x in turns] for name, turns in views.extra.items()}
    crops, posed = ([x.double() for x in kind] for kind in (views.crops, views.posed))
    return Views(crops, posed, views.poses, views.image_ids, extra, views.batch)


def whole_step(rank, ranks):
    plan = plan_views(VIEWS, BACKBONE, ADDONS, COUNT)
    task = Task(BACKBONE, METHOD, ADDONS, plan, seed=0).double()
    with torch.no_grad():  # the networks differ
        for p in task.student.parameters():
            p.add_(0.02 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)))
    task.update_teacher(StepInfo(1, 10))
    wrapped = task
    if ranks > 1:
        wrapped = DistributedDataParallel(task, find_unused_parameters=False, broadcast_buffers=False)
    dataset = ViewDataset(Images(), plan, seed=0)
    posed = plan.posed.count
    mine = plan.positions(COUNT, rank, ranks)
    batch = collate([dataset[Key(0, p, p < posed, p // 2 * 2)] for p in mine])
    views = double(to_device_views(batch, plan, sample_poses(plan, 0, 0, rank, ranks), torch.device("cpu")))
    result = wrapped(views)
    result.total.backward()
    trained = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    assert all(p.grad is not None for _, p in trained)
    assert all(p.grad is None for n, p in task.named_parameters() if not p.requires_grad)
    found = {f"gradient of {n}": p.grad for n, p in trained}
    found |= {f"buffer {n}": b for n, b in task.named_buffers() if b.is_floating_point()}
    found |= {f"loss {n}": loss for n, loss in result.named.items()}
    return found | {"total": result.total.detach()}


def test_a_whole_step_with_add_ons_is_the_same_on_any_number_of_ranks():
    plan = plan_views(VIEWS, BACKBONE, ADDONS, COUNT)
    assert (plan.label, plan.posed.count, plan.unit) == ("2 x 16 + 8 x 8", 4, 2)
    assert plan.posed.sizes == (16, 16, 8, 8, 8, 8)
    assert [len(plan.positions(4, rank, 3)) for rank in range(3)] == [2, 2, 0]
    assert_same_on_ranks(whole_step, rtol=1e-5)


def test_every_part_of_that_step_counts():
    """Else the comparison above would say nothing of it."""
    found = whole_step(0, 1)
    gradients = {name: x for name, x in found.items() if name.startswith("gradient")}
    assert {name.split(".")[1] for name in gradients if "addons" in name} == set(ADDONS)
    assert all(bool((gradient != 0).any()) for gradient in gradients.values())
    assert all(float(found[f"loss {name}"]) > 0.1 for name in ("mocov3", *ADDONS))
