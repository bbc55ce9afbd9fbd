"""AugSelf: its definition, its laws, whom the gradient reaches, over ranks; its targets from real batches."""

from dataclasses import fields, replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons import AddonContext, AugSelf, AugSelfConfig, StudentOutputs
from equimid.addons.augself import colour_widths, differences
from equimid.errors import UserError
from equimid.features import Features
from equimid.testing import assert_same_on_ranks, assert_trains
from equimid.views import (
    FIELDS,
    Batch,
    Key,
    Photometric,
    ViewBatch,
    ViewDataset,
    Views,
    ViewsConfig,
    collate,
    draw,
    to_device_views,
)
from equimid.views.plan import standard_views

D = 5
ALL = AugSelfConfig(crop=0.5, colour=0.7, flip=0.3, blur=0.2, hidden=6)
PLAN = standard_views(ViewsConfig(), 32, 8)
SETTING = AddonContext(batch=8, image_size=32, patch_size=8, cls_layer=3)


def drawn(count, seed=0):
    """Per view, boxes (count, 5) and photometric rows (count, P) as workers draw them."""
    rng = np.random.default_rng(seed)
    boxes = [np.column_stack([rng.random((count, 4)) / 2, rng.random(count) < 0.5]) for _ in range(2)]
    rows = [np.stack([draw(view.photometric, rng) for _ in range(count)]) for view in PLAN.crops]
    return [torch.tensor(b, dtype=torch.float32) for b in boxes], [torch.from_numpy(r) for r in rows]


def values(count, seed, grad=False):
    x = torch.randn(count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(grad)


def make_seen(z1, z2, boxes, rows):
    crops = [ViewBatch(torch.empty(0), *drawn) for drawn in zip(boxes, rows, strict=True)]
    batch = Batch(crops, [], torch.arange(len(z1)), ())
    return StudentOutputs([Features(z1), Features(z2)], views=Views([], batch=batch))


def make_addon(config=ALL):
    torch.manual_seed(0)
    return config.build(D, PLAN).double()


def between(boxes, rows, a=0, b=1, plan=PLAN):
    return differences(boxes[a], rows[a], boxes[b], rows[b], colour_widths(plan.crops))


def by_hand(state, name, x):
    """A predictor on rows: linear, batch norm, ReLU, twice, then a linear with bias."""
    for place in (0, 3):
        x = x @ state[f"predictors.{name}.{place}.weight"].numpy().T
        x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
    return x @ state[f"predictors.{name}.6.weight"].numpy().T + state[f"predictors.{name}.6.bias"].numpy()


def wanted(name, box1, row1, box2, row2):
    """The target of one image."""
    row1, row2 = (dict(zip(FIELDS, row, strict=True)) for row in (row1, row2))
    if name == "crop":
        y1, y2 = (top + height / 2 for top, _, height, _, _ in (box1, box2))
        x1, x2 = (1 - left - w / 2 if flipped else left + w / 2 for _, left, _, w, flipped in (box1, box2))
        return [y1 - y2, x1 - x2, box1[2] - box2[2], box1[3] - box2[3]]
    if name == "colour":
        widths = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.4, "hue": 0.2}
        return [(row1[n] - row2[n]) / width for n, width in widths.items()]
    return [float(box1[4] == box2[4])] if name == "flip" else [row1["sigma"] - row2["sigma"]]


def test_augself_is_its_definition():
    boxes, rows = drawn(7)
    z = [values(7, 1), values(7, 2)]
    addon, expected = make_addon(), 0.0
    for name, weight in (("crop", 0.5), ("colour", 0.7), ("flip", 0.3), ("blur", 0.2)):
        orders = [(i, a, b) for a, b in ((0, 1), (1, 0)) for i in range(7)]
        p = by_hand(addon.state_dict(), name, np.stack([np.concatenate([z[a][i], z[b][i]]) for i, a, b in orders]))
        t = np.array([wanted(name, *(x[v][i].tolist() for v in (a, b) for x in (boxes, rows))) for i, a, b in orders])
        bce = -t * np.log(1 / (1 + np.exp(-p))) - (1 - t) * np.log(1 / (1 + np.exp(p)))
        expected += weight * (bce if name == "flip" else (np.tanh(p) - t) ** 2).mean()
    assert addon(make_seen(*z, boxes, rows)).item() == pytest.approx(expected, rel=1e-6)


def test_augself_crop_target_is_the_originals():
    with np.load(Path(__file__).parent / "golden" / "augself_crop_target.npz") as file:
        g = {key: torch.from_numpy(np.asarray(file[key])) for key in file}
    boxes = [torch.cat([g[f"crop{v}"], g[f"flip{v}"].float()[:, None]], 1) for v in (1, 2)]
    found = between(boxes, [torch.zeros(len(boxes[0]), len(FIELDS))] * 2)
    assert (found["crop"] - g["target"]).abs().max() < 1e-5
    assert torch.equal(found["flip"][:, 0], (g["flip1"] == g["flip2"]).float())


def test_augself_law_of_the_targets():
    """Equal parameters differ by 0, exchanged views negate, and a mirrored crop of the mirrored image is the crop."""
    boxes, rows = drawn(20)
    there, back, none = between(boxes, rows), between(boxes, rows, 1, 0), between(boxes, rows, 0, 0)
    for name in ("crop", "colour", "blur"):
        assert there[name].abs().max() > 0.1
        assert torch.equal(back[name], -there[name])
        assert not none[name].any()
    assert torch.equal(back["flip"], there["flip"])
    assert none["flip"].all()
    assert 0 < there["flip"].mean() < 1
    mirrored = boxes[0].clone()
    mirrored[:, 1] = 1 - boxes[0][:, 1] - boxes[0][:, 3]
    mirrored[:, 4] = 1 - boxes[0][:, 4]
    found = between([mirrored, boxes[1]], rows)
    assert torch.allclose(found["crop"], there["crop"], atol=1e-6)
    assert torch.equal(found["flip"], 1 - there["flip"])


def test_augself_law_of_exchanged_views():
    (boxes, rows), z1, z2 = drawn(7), values(7, 1), values(7, 2)
    found = make_addon()(make_seen(z1, z2, boxes, rows))
    assert torch.allclose(make_addon()(make_seen(z2, z1, boxes[::-1], rows[::-1])), found)
    assert not torch.allclose(make_addon()(make_seen(z2, z1, boxes, rows)), found)


def test_colour_is_counted_in_the_larger_range_and_0_where_there_is_none():
    kinds = Photometric(contrast=1.5, saturation=0), Photometric(brightness=0.2, saturation=0, hue=0.3)
    views = [replace(PLAN.crops[0], photometric=kind) for kind in kinds]
    assert colour_widths(views) == pytest.approx((0.8, 2.5, 0.0, 0.6))  # a factor is not below 0
    rows = drawn(5)[1]
    found = between([torch.zeros(5, 5)] * 2, rows, plan=replace(PLAN, crops=views))["colour"]
    expected = (rows[0] - rows[1])[:, [FIELDS.index(n) for n in ("brightness", "contrast", "saturation", "hue")]]
    assert torch.allclose(found[:, [0, 1, 3]], expected[:, [0, 1, 3]] / torch.tensor([0.8, 2.5, 0.6]))
    assert not found[:, 2].any()


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_augself_trains_its_parameters(form):
    """And the features that it reads: of the second view not in the original form."""
    boxes, rows = drawn(7)
    z1, z2, third = (values(7, seed, grad=True) for seed in (1, 2, 3))
    addon = make_addon(replace(ALL, form=form))
    seen = make_seen(z1, z2, boxes, rows)
    seen = replace(seen, crops=[*seen.crops, Features(third)])
    assert_trains(addon(seen), addon.named_parameters())
    assert z1.grad.abs().min() > 0
    assert z2.grad is None if form == "original" else z2.grad.abs().min() > 0
    assert third.grad is None
    assert {name.split(".")[1] for name, _ in addon.named_parameters()} == {"crop", "colour", "flip", "blur"}


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_augself_reads_its_layer_and_no_other(pool):
    boxes, rows = drawn(6)
    config = replace(ALL, layer=2, pool=pool)
    assert config.taps == (2,)
    crops = []
    for seed in (1, 2):
        maps = {layer: torch.randn(6, D, 2, 2).double().requires_grad_() for layer in (1, 2)}
        cls_at = {layer: values(6, seed + 10 * layer, grad=True) for layer in (1, 2)}
        crops.append(Features(values(6, seed, grad=True), maps, cls_at))
    seen = replace(make_seen(crops[0].cls, crops[1].cls, boxes, rows), crops=crops)
    loss = make_addon(config)(seen)
    loss.backward()
    read = [f.maps[2].mean((2, 3)) if pool == "mean" else f.cls_at[2] for f in crops]
    assert torch.allclose(loss, make_addon()(make_seen(*read, boxes, rows)))
    for f in crops:
        reached = [name for name, x in (("mean", f.maps[2]), ("cls", f.cls_at[2])) if x.grad is not None]
        assert reached == [pool]
        assert all(x.grad is None for x in (f.cls, f.maps[1], f.cls_at[1]))


def shared(rank, ranks):
    """AugSelf on 9 images, of which a rank has one or none."""
    mine = [[slice(0, 9)], [slice(0, 1), slice(1, 9)], [slice(0, 2), slice(2, 2), slice(2, 9)]][ranks - 1][rank]
    (boxes, rows), everything, results = drawn(9), [values(9, 1), values(9, 2)], {}
    boxes, rows = ([x[mine] for x in side] if len(boxes[0][mine]) else [] for side in (boxes, rows))
    for form, read in (("comparison", 2), ("original", 1)):
        z = [x[mine].requires_grad_() for x in everything]
        addon = make_addon(replace(ALL, form=form))
        loss = addon(make_seen(*z, boxes, rows))
        loss.backward()
        results[f"{form} loss"] = loss.detach()
        results |= {f"{form} {name}": p.grad for name, p in addon.named_parameters()}
        for v in range(read):
            results[f"{form} z{v}"] = torch.zeros_like(everything[v])
            results[f"{form} z{v}"][mine] = z[v].grad
    return results


def test_augself_over_ranks():
    assert_same_on_ranks(shared, rtol=1e-9)


class Ramp:
    """Images whose red is x and whose green is y, as shares of their width and height, and whose blue is constant."""

    def __len__(self):
        return 6

    def load(self, index):
        height, width = 120 + 20 * index, 200 - 20 * index
        y, x = (np.mgrid[:height, :width].astype(float) + 0.5) / np.array([height, width]).reshape(2, 1, 1)
        return Image.fromarray((np.stack([x, y, np.full_like(x, 0.4)], 2) * 255).round().astype(np.uint8))


def test_augself_targets_of_a_real_batch_are_what_was_drawn():
    """Place, size and flip read off the ramps, brightness off the blue."""
    bright = Photometric(contrast=0, saturation=0, hue=0, grey=0, blur=0)
    plan = replace(standard_views(ViewsConfig(first=bright, second=bright), 32, 8), mean=(0, 0, 0), std=(1, 1, 1))
    batch = collate([ViewDataset(Ramp(), plan, seed=1)[Key(0, index, False)] for index in range(6)])
    views = to_device_views(batch, plan, [], torch.device("cpu"))
    measured = []
    for crops, realised in zip(batch.crops, views.crops, strict=True):
        x, y = (crops.pixels[:, c].double() / 255 for c in (0, 1))
        across, down = (x.mean(1)[:, -1] - x.mean(1)[:, 0]) * 32 / 31, (y.mean(2)[:, -1] - y.mean(2)[:, 0]) * 32 / 31
        flipped, centre = across < 0, x.mean((1, 2))
        place = torch.stack([y.mean((1, 2)), torch.where(flipped, 1 - centre, centre), down, across.abs()], 1)
        measured.append((place, flipped, realised[:, 2].mean((1, 2)) / 0.4))
    found = between([x.boxes for x in batch.crops], [x.photometric for x in batch.crops], plan=plan)
    assert (found["crop"] - (measured[0][0] - measured[1][0])).abs().max() < 0.02
    assert found["crop"].abs().amax(0).min() > 0.1
    assert torch.equal(found["flip"][:, 0] == 1, measured[0][1] == measured[1][1])
    assert 0 < found["flip"].mean() < 1
    assert (found["colour"][:, 0] - (measured[0][2] - measured[1][2]) / 0.8).abs().max() < 0.01
    assert not found["colour"][:, 1:].any()


def test_augself_predictors_start_as_the_originals():
    addon = make_addon(AugSelfConfig())
    assert set(addon.predictors) == {"crop", "colour"}
    for predictor in addon.predictors.values():
        linears = [m for m in predictor if isinstance(m, torch.nn.Linear)]
        assert [tuple(m.weight.shape) for m in linears] == [(512, 2 * D), (512, 512), (4, 512)]
        assert [m.bias is None for m in linears] == [True, True, False]
        for m in linears:
            assert 0.98 < m.weight.abs().max().item() * sqrt(m.in_features) <= 1 + 1e-6


CHANGES = {"weight": 0.3, "layer": 2, "pool": "cls", "crop": 0.1, "colour": 0.1, "flip": 0.0, "blur": 0.0, "hidden": 4,
           "form": "original"}  # fmt: skip


def test_every_setting_of_augself_has_an_effect():
    """T26. The weight is the task's; here it need only be there."""
    assert set(CHANGES) == {f.name for f in fields(AugSelfConfig)}
    boxes, rows = drawn(6)
    torch.manual_seed(1)
    crops = [
        Features(values(6, v, grad=True), {2: torch.randn(6, D, 1, 1).double()}, {2: values(6, v + 5)}) for v in (1, 2)
    ]
    seen = replace(make_seen(crops[0].cls, crops[1].cls, boxes, rows), crops=crops)
    found = {}
    for name, value in {"": None, **CHANGES}.items():
        base = replace(ALL, layer=2) if name == "pool" else ALL
        loss = make_addon(replace(base, **{name: value}) if name else base)(seen)
        second = crops[1].cls if name not in ("layer", "pool") else crops[1].maps[2]
        trained = second.requires_grad and torch.autograd.grad(loss, second, allow_unused=True)[0] is not None
        found[name] = (round(loss.item(), 6), trained)
    assert found.pop("weight") == found[""]
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": -1}, r"augself\.crop is -1"),
        ({"blur": float("nan")}, r"augself\.blur is nan"),
        ({"crop": 0, "colour": 0}, r"use augself\.crop=0\.5"),
        ({"hidden": 0}, r"augself\.hidden is 0"),
        ({"form": "moco"}, r"augself\.form is 'moco'"),
        ({"layer": -1}, r"augself\.layer is -1"),
    ],
)
def test_bad_settings_of_augself_are_refused(change, message):
    with pytest.raises(UserError, match=message) as caught:
        AugSelfConfig(**change)
    assert "\n" not in str(caught.value)


STILL = Photometric(jitter=0, blur=0)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"crop_scale": (1.0, 1.0)}, r"augself\.crop=0, or views\.crop_scale=\[0\.2,1\.0\]"),
        ({"first": STILL, "second": STILL}, r"augself\.colour=0, or views\.first\.jitter=0\.8"),
        ({"flip": 1.0}, r"augself\.flip=0, or views\.flip=0\.5"),
        ({"first": Photometric(blur=0), "second": Photometric(blur=0)}, r"augself\.blur=0, or views\.first\.blur=0\.5"),
    ],
)
def test_a_target_that_never_varies_is_refused(views, message):
    plan = standard_views(ViewsConfig(**views), 32, 8)
    with pytest.raises(UserError, match=message) as caught:
        ALL.extend(plan, SETTING)
    assert "\n" not in str(caught.value)
    one_drawn = replace(plan, crops=(plan.crops[0], PLAN.crops[0]))
    assert ALL.extend(one_drawn, SETTING) is one_drawn


def test_views_without_what_was_drawn_are_refused():
    with pytest.raises(ValueError, match="batch="):
        AugSelf(ALL, D, PLAN)(StudentOutputs([Features(values(2, 1)), Features(values(2, 2))]))
