"""E-SSL: its definition, its laws, whom the gradient reaches, over ranks; its labels from real batches."""

from dataclasses import fields, replace
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons import AddonContext, ESSLConfig, StudentOutputs
from equimid.addons.essl import turn_loss
from equimid.errors import UserError
from equimid.features import Features
from equimid.testing import assert_same_on_ranks, assert_trains
from equimid.views import ExtraView, Key, Photometric, ViewDataset, ViewsConfig, collate, to_device_views
from equimid.views.plan import standard_views

D = 5
SMALL = ESSLConfig(widths=(7, 6, 4))
PLAN = standard_views(ViewsConfig(), 224, 16)
SETTING = AddonContext(batch=8, image_size=224, patch_size=16, cls_layer=3)


def values(count, seed, grad=False):
    x = torch.randn(count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(grad)


def make_seen(turned):
    return StudentOutputs([], {"essl": [Features(x) for x in turned]})


def make_addon(config=SMALL):
    torch.manual_seed(0)
    return config.build(D, PLAN).double()


def linear(state, place, row):
    weight, bias = (state[f"head.{place}.{part}"].tolist() for part in ("weight", "bias"))
    return [sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weight, bias, strict=True)]


def normed(row):
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    return [(x - mean) / sqrt(variance + 1e-5) for x in row]


def test_essl_is_its_definition():
    addon, turned = make_addon(), [values(3, seed) for seed in range(4)]
    state, losses = addon.state_dict(), []
    for turn, rows in enumerate(turned):
        for row in rows.tolist():
            for place in (0, 3):
                row = [max(0.0, x) for x in normed(linear(state, place, row))]
            logits = linear(state, 8, normed(linear(state, 6, row)))
            losses.append(-log(exp(logits[turn]) / sum(exp(x) for x in logits)))
    assert len(state) == 14  # four linears and three layer norms, all with biases
    assert addon(make_seen(turned)).item() == pytest.approx(sum(losses) / 12, rel=1e-10)


def test_essl_law_of_features_that_tell_nothing_or_everything():
    same = values(6, 0)
    addon = make_addon()
    assert addon(make_seen([same] * 4)).item() > log(4)  # whatever the head, the turn cannot be read
    with torch.no_grad():
        addon.head[-1].weight.zero_()
        addon.head[-1].bias.zero_()
    assert addon(make_seen([same] * 4)).item() == pytest.approx(log(4), rel=1e-12)
    addon.head = torch.nn.Identity()
    told = [50 * torch.eye(4, dtype=torch.float64)[turn].expand(6, 4) for turn in range(4)]
    assert addon(make_seen(told)).item() < 1e-20
    assert addon(make_seen(told[1:] + told[:1])).item() == pytest.approx(50)


def test_essl_trains_its_parameters():
    """And the turned crops' features, nothing else."""
    turned, standard = [values(3, seed, grad=True) for seed in range(4)], values(3, 9, grad=True)
    addon = make_addon()
    seen = replace(make_seen(turned), crops=[Features(standard)])
    assert_trains(addon(seen), addon.named_parameters())
    assert all(x.grad.abs().min() > 0 for x in turned)
    assert standard.grad is None


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_essl_reads_its_layer_and_no_other(pool):
    torch.manual_seed(0)
    turned = [
        Features(
            values(3, seed, grad=True),
            {layer: torch.randn(3, D, 2, 2).double().requires_grad_() for layer in (1, 2)},
            {layer: values(3, seed + 10 * layer, grad=True) for layer in (1, 2)},
        )
        for seed in range(4)
    ]
    config = replace(SMALL, layer=2, pool=pool)
    assert config.taps == (2,)
    loss = make_addon(config)(StudentOutputs([], {"essl": turned}))
    loss.backward()
    read = [f.maps[2].mean((2, 3)) if pool == "mean" else f.cls_at[2] for f in turned]
    assert torch.allclose(loss, make_addon()(make_seen(read)))
    for f in turned:
        reached = [name for name, x in (("mean", f.maps[2]), ("cls", f.cls_at[2])) if x.grad is not None]
        assert reached == [pool]
        assert all(x.grad is None for x in (f.cls, f.maps[1], f.cls_at[1]))


def shared(rank, ranks):
    """E-SSL on 9 images, of which a rank has one or none."""
    mine = [[slice(0, 9)], [slice(0, 1), slice(1, 9)], [slice(0, 2), slice(2, 2), slice(2, 9)]][ranks - 1][rank]
    everything = [values(9, seed) for seed in range(4)]
    turned = [x[mine].requires_grad_() for x in everything]
    addon = make_addon()
    loss = addon(make_seen(turned))
    loss.backward()
    results = {"loss": loss.detach(), **{name: p.grad for name, p in addon.named_parameters()}}
    for turn, x in enumerate(turned):
        results[f"z{turn}"] = torch.zeros_like(everything[turn])
        results[f"z{turn}"][mine] = x.grad
    return results


def test_essl_over_ranks():
    assert_same_on_ranks(shared, rtol=1e-9)


class Skies:
    """Images that are brighter towards the top."""

    def __len__(self):
        return 6

    def load(self, index):
        height, width = 300 + 20 * index, 400 - 20 * index
        grey = np.linspace(200, 50, height)[:, None, None] * np.ones((1, width, 3))
        return Image.fromarray(grey.round().astype(np.uint8))


def brighter_side(images):
    """(b, 4): how much brighter the top, left, bottom and right halves are than their opposites."""
    grey = images.mean(1).double()
    half = images.shape[-1] // 2
    down = grey[:, :half].mean((1, 2)) - grey[:, half:].mean((1, 2))
    right = grey[:, :, :half].mean((1, 2)) - grey[:, :, half:].mean((1, 2))
    return torch.stack([down, right, -down, -right], 1)


def test_essl_labels_are_the_turns_of_a_real_batch():
    """A sky once turned counter-clockwise is bright on the left: label k is what turn k shows, in every crop."""
    plan = SMALL.extend(PLAN, SETTING)
    batch = collate([ViewDataset(Skies(), plan, seed=1)[Key(0, index, False)] for index in range(6)])
    views = to_device_views(batch, plan, [], torch.device("cpu"))
    assert [tuple(x.shape) for x in views.extra["essl"]] == [(6, 3, 96, 96)] * 4
    told = torch.cat([brighter_side(images) for images in views.extra["essl"]])
    assert float(turn_loss(told * 1e3)) < 1e-6
    area = batch.crops[2].boxes[:, 2] * batch.crops[2].boxes[:, 3]
    assert 0.045 < area.min() < area.max() < 0.145


CHANGES = {
    "size": 64, "scale": (0.1, 0.2), "flip": 0.1, "photometric": Photometric(blur=1.0), "widths": (3,), "layer": 2,
    "pool": "cls", "weight": 0.4,
}  # fmt: skip


def test_every_setting_of_essl_has_an_effect():
    """T26. The weight is the task's; here it need only be there."""
    assert set(CHANGES) == {f.name for f in fields(ESSLConfig)}
    torch.manual_seed(1)
    turned = [Features(values(3, s), {2: torch.randn(3, D, 1, 1).double()}, {2: values(3, s + 5)}) for s in range(4)]
    found = {}
    for name, value in {"": None, **CHANGES}.items():
        base = replace(SMALL, layer=2) if name == "pool" else SMALL
        config = replace(base, **{name: value}) if name else base
        loss = make_addon(config)(StudentOutputs([], {"essl": turned})).item()
        found[name] = (config.extend(PLAN, SETTING._replace(cls_layer=0)).extra["essl"], round(loss, 6))
    assert found.pop("weight") == found[""]
    assert len(set(found.values())) == len(found)


def test_defaults_are_the_comparisons_and_the_originals_head_can_be_had():
    made = ESSLConfig().extend(PLAN, SETTING)
    extra = made.extra["essl"]
    assert (extra.view.size, extra.view.scale, extra.view.flip, extra.turns) == (96, (0.05, 0.14), 0.5, 4)
    drawn = extra.view.photometric
    assert (drawn.jitter, drawn.grey, drawn.blur, drawn.solarise) == (0.8, 0.2, 0.1, 0.0)
    assert made.crops == PLAN.crops
    assert made.label == "2 x 224 + 4 x 96"

    def shapes(config, width):
        return [tuple(m.weight.shape) for m in config.build(width, made).head if isinstance(m, torch.nn.Linear)]

    assert shapes(ESSLConfig(), 384) == [(384, 384), (384, 384), (256, 384), (4, 256)]
    assert shapes(ESSLConfig(widths=(2048, 2048, 128)), 384) == [(2048, 384), (2048, 2048), (128, 2048), (4, 128)]


def test_views_of_other_add_ons_stay():
    other = ExtraView(PLAN.crops[0])
    assert list(SMALL.extend(replace(PLAN, extra={"other": other}), SETTING).extra) == ["other", "essl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0.2, 0.1)}, r"essl\.scale is \[0\.2, 0\.1\]"),
        ({"flip": 1.5}, r"essl\.flip is 1\.5"),
        ({"widths": (4, 0)}, r"essl\.widths\.1 is 0"),
        ({"weight": -1}, r"essl\.weight is -1"),
        ({"size": 100}, r"essl\.size is 100, not a multiple of the 16 px patch; try 96"),
        ({"size": 256}, r"essl\.size is 256, larger than the image of 224 px; use essl\.size=224 or less"),
        ({"layer": 2, "pool": "cls"}, r"essl\.pool=mean"),
    ],
)
def test_bad_settings_of_essl_are_refused(change, message):
    with pytest.raises(UserError, match=message) as caught:
        ESSLConfig(**change).extend(PLAN, SETTING)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(5, 4), (4, 3), (4,)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="4b, 4"):
        turn_loss(torch.zeros(shape))
