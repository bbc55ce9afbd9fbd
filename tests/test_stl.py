"""STL: its definition and laws, whom it trains, the same over ranks, and views that are aligned in pairs."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons import AddonContext, STLConfig, StudentOutputs
from equimid.errors import UserError
from equimid.features import Features
from equimid.testing import assert_same_on_ranks, assert_trains
from equimid.views import FIELDS, Key, Photometric, ViewDataset, ViewsConfig, collate, to_device_views
from equimid.views.plan import standard_views

D, TAU, WEIGHT = 5, 0.3, 0.25
PLAN = standard_views(ViewsConfig(), 16, 8)
SETTING = AddonContext(batch=8, image_size=16, patch_size=8, cls_layer=0)
SMALL = STLConfig(temperature=TAU, trans_weight=WEIGHT, trans_dim=4, hidden=7, dim=6)


def make_case(config=SMALL, n=6):
    """The add-on and features of n images of both views, float64."""
    rng = torch.Generator().manual_seed(0)
    vectors = [torch.randn(n, D, generator=rng, dtype=torch.float64) for _ in range(2)]
    torch.manual_seed(0)
    return config.build(D, PLAN).double(), vectors


def see(vectors):
    return StudentOutputs([Features(x) for x in vectors])


def two_layers(net, x):
    h = x @ net[0].weight.T
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * net[1].weight + net[1].bias
    return h.relu() @ net[3].weight.T


def info_nce(a, b, form):
    """Row by row."""
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    m, losses = len(a), []
    if form == "comparison":
        for q, k in ((a, b.detach()), (b, a.detach())):
            for i in range(m):
                s = torch.stack([q[i] @ k[j] for j in range(m)]) / TAU
                losses.append(2 * TAU * (s.logsumexp(0) - s[i]))
    else:
        z = torch.cat([a, b])
        for i in range(2 * m):
            s = torch.stack([z[i] @ z[j] for j in range(2 * m) if j != i]) / TAU
            losses.append(s.logsumexp(0) - z[i] @ z[(i + m) % (2 * m)] / TAU)
    return torch.stack(losses).mean()


def defined(addon, y1, y2, form):
    """The definition, image by image, by plain formulas."""
    n = len(y1)
    t12 = two_layers(addon.trans_net, torch.cat([y1, y2], 1))
    t21 = two_layers(addon.trans_net, torch.cat([y2, y1], 1))
    H = addon.hypernetwork.weight.view(D, D, -1)
    moved1, moved2 = [], []
    for i in range(n):
        other = i + 1 if i % 2 == 0 else i - 1
        moved1.append((H @ t21[other]) @ y2[i])
        moved2.append((H @ t12[other]) @ y1[i])
    p = [two_layers(addon.projector, x) for x in (y1, y2, torch.stack(moved1), torch.stack(moved2))]
    even, odd = ([i for i in range(n) if i % 2 == k] for k in (0, 1))
    q = [two_layers(addon.trans_projector, torch.cat([t12[rows], t21[rows]])) for rows in (even, odd)]
    return info_nce(torch.cat(p[:2]), torch.cat(p[2:]), form) + WEIGHT * info_nce(*q, form)


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_stl_is_its_definition(form):
    addon, vectors = make_case(replace(SMALL, form=form))
    found, expected = addon(see(vectors)), defined(addon, *vectors, form)
    assert torch.allclose(found, expected, rtol=1e-10)
    names, trained = zip(*addon.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(loss, trained) for loss in (found, expected))
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-11), name


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_stl_law_pairs_and_views_have_no_order(form):
    addon, (y1, y2) = make_case(replace(SMALL, form=form))
    loss = addon(see([y1, y2]))
    swapped, pairs = [1, 0, 3, 2, 5, 4], [4, 5, 0, 1, 2, 3]
    assert torch.allclose(addon(see([y2, y1])), loss)  # the views
    assert torch.allclose(addon(see([y1[swapped], y2[swapped]])), loss)  # the two of each pair
    assert torch.allclose(addon(see([y1[pairs], y2[pairs]])), loss)  # the pairs
    others = [5, 0, 1, 2, 3, 4]  # but who belongs to whom does matter
    assert not torch.allclose(addon(see([y1[others], y2[others]])), loss, rtol=1e-3)


def test_stl_law_the_transformation_comes_from_the_other_image():
    """The moved vector of an image follows its partner's transformation and no other image's."""
    addon, (y1, y2) = make_case()
    addon.eval()  # a batch norm would mix all images
    moved = []

    def note(y, t):
        moved.append(torch.cat([y, t], 1))
        return type(addon).move(addon, y, t)

    def moves(y1, y2):
        moved.clear()
        addon.move = note
        addon(see([y1, y2]))
        return torch.stack(moved)[:, :, D:]  # the t of both directions

    before, changed = moves(y1, y2), y2.clone()
    changed[3] += 1
    different = (moves(y1, changed) - before).abs().sum(2) > 0
    assert different.tolist() == [[False, False, True, False, False, False]] * 2


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_stl_trains_its_parameters(form):
    addon, vectors = make_case(replace(SMALL, form=form))
    vectors = [x.requires_grad_() for x in vectors]
    still = torch.zeros(6, D, dtype=torch.float64, requires_grad=True)
    read = [(f"features {i}", x) for i, x in enumerate(vectors)]
    assert_trains(addon(see([*vectors, still])), [*addon.named_parameters(), *read], [("a third view", still)])


def on_these_ranks(rank, ranks):
    """Pairs stay whole; one of three ranks has none."""
    edges, results = {1: [0, 6], 2: [0, 4, 6], 3: [0, 4, 4, 6]}[ranks], {}
    mine = slice(edges[rank], edges[rank + 1])
    for form in ("comparison", "original"):
        addon, vectors = make_case(replace(SMALL, form=form))
        vectors = [x.requires_grad_() for x in vectors]
        loss = addon(see([x[mine] for x in vectors]))
        loss.backward()
        results |= {f"{form} loss": loss} | {f"{form} {n}": p.grad for n, p in addon.named_parameters()}
        results |= {f"{form} features {i}": x.grad for i, x in enumerate(vectors)}
    return results


def test_stl_over_ranks():
    """Also the original's fault: pairs counted over the global batch."""
    assert_same_on_ranks(on_these_ranks, rtol=1e-9)


def test_stl_every_setting_matters():
    """T26."""
    changes = {
        "temperature": 0.5, "trans_weight": 0.0, "trans_dim": 3, "hidden": 9, "dim": 8, "form": "original", "layer": 1,
        "pool": "cls",
    }  # fmt: skip
    assert {f.name for f in fields(STLConfig)} == {*changes, "weight"}  # the task's own
    rng = torch.Generator().manual_seed(1)
    a, b, c, d = (torch.randn(6, D, generator=rng, dtype=torch.float64) for _ in range(4))
    maps = [torch.randn(6, D, 2, 2, generator=rng, dtype=torch.float64) for _ in range(2)]
    seen = StudentOutputs([Features(a, {1: maps[0]}, {1: b}), Features(c, {1: maps[1]}, {1: d})])

    def loss_of(config):
        torch.manual_seed(0)
        return float(config.build(D, PLAN).double()(seen).detach())

    losses = [loss_of(SMALL)]
    for key, value in changes.items():
        losses.append(loss_of(replace(SMALL, **{key: value}, **({"layer": 1} if key == "pool" else {}))))
    assert len({round(x, 9) for x in losses}) == len(losses)


# --- views


class Images:
    """Random pixels, of two shapes in turn."""

    def __len__(self):
        return 100

    def load(self, index):
        shape = (38, 50, 3) if index % 2 else (60, 30, 3)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8))


def make_batch(plan, n=40):
    """As the engine's keys: the first image of a pair lends its draws."""
    dataset = ViewDataset(Images(), plan, seed=3)
    return collate([dataset[Key(0, i, posed=False, pair=i // 2 * 2)] for i in range(n)])


def test_pairs_share_crop_and_colours_and_nothing_else():
    views = ViewsConfig(second=Photometric(blur=0.5, solarise=0.5))
    plan = SMALL.extend(standard_views(views, 16, 8), SETTING)
    assert plan.aligned
    assert plan.unit == 2
    batch = make_batch(plan)
    shared = [FIELDS.index(name) for name in FIELDS if name not in ("sigma", "solarised")]
    for view in range(2):
        boxes, rows = batch.crops[view].boxes, batch.crops[view].photometric
        # whole pixels of images of 30 px and more
        assert torch.allclose(boxes[0::2, :4], boxes[1::2, :4], atol=1.5 / 30)
        assert torch.equal(rows[0::2][:, shared], rows[1::2][:, shared])
        own = torch.cat([boxes[:, 4:], rows[:, [FIELDS.index("sigma"), FIELDS.index("solarised")]]], 1)
        differing = (own[0::2] != own[1::2]).any(0)
        assert differing.tolist() == [True, True, view == 1]
        # no two pairs alike
        assert len(boxes[0::2, :4].unique(dim=0)) == len(boxes) // 2
    assert not torch.allclose(batch.crops[0].boxes[:, :4], batch.crops[1].boxes[:, :4])


def test_an_odd_batch_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"it has 7: an odd number; use 8") as told:
        SMALL.extend(PLAN, SETTING._replace(batch=7))
    assert "\n" not in str(told.value)
    addon, vectors = make_case(n=5)
    with pytest.raises(ValueError, match="whole pairs"):
        addon(see(vectors))


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.0), ("trans_weight", -0.1), ("trans_dim", 0), ("hidden", 0), ("dim", 0), ("form", "else"),
     ("weight", -1), ("layer", -1)],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line(key, value):
    with pytest.raises(UserError, match=f"stl.{key} is") as told:
        STLConfig(**{key: value})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("layer", [0, 2])
def test_stl_in_a_task_trains_the_blocks_below_it(layer):
    # here: every rank of the test above would import them
    from equimid.addons import SERConfig, plan_views
    from equimid.backbones import BackboneConfig
    from equimid.methods import MoCoV3Config
    from equimid.task import Task

    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, cls_layer=0,
    )  # fmt: skip
    # three posed images become four, so that whole pairs are cropped, also on each rank
    posed = plan_views(ViewsConfig(), backbone, {"stl": SMALL, "ser": SERConfig(layers=(1,), fraction=3 / 12)}, 12)
    assert posed.posed.count == 4
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            cropped = [p for p in posed.positions(12, rank, ranks) if p >= 4]
            assert cropped[0::2] == [p - 1 for p in cropped[1::2]]
    addons = {"stl": replace(SMALL, layer=layer)}
    plan = plan_views(ViewsConfig(), backbone, addons, 8)
    task = Task(backbone, MoCoV3Config(hidden=8, dim=6), addons, plan, seed=0)
    seen, _ = task._student(to_device_views(make_batch(plan, 8), plan, [], torch.device("cpu")))
    last = [("block 2", task.student.blocks[2].mlp.fc2.weight)]
    trained = [*task.addons.named_parameters(), ("block 1", task.student.blocks[1].mlp.fc2.weight)]
    assert_trains(task.addons["stl"](seen), [*trained, *([] if layer else last)], last if layer else [])
