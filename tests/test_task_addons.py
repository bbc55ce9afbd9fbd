"""A task with add-ons beside each other: the total, whom each gradient reaches, SER over layers and pairs of views."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from equimid.addons import AugSelfConfig, EquiModConfig, ESSLConfig, SERConfig, STLConfig, plan_views, ser_loss
from equimid.engine.health import HealthCheck
from equimid.methods import BYOLConfig, DINOConfig, SimSiamConfig, view_pairs
from equimid.schedules import StepInfo
from equimid.task import Task
from equimid.testing import assert_trains
from equimid.views import Key, LocalViews, Photometric, ViewDataset, ViewsConfig, collate, sample_poses, to_device_views
from helpers.drawing import drawn
from helpers.tasks import HEADS, TINY, logged

CPU = torch.device("cpu")
SOURCE = drawn(12, (40, 36))
SER = SERConfig(layers=(1, 3), layer_weights=(0.3, 1.1), hidden=16, fraction=0.3, weight=0.7)
ADDONS = {
    "augself": AugSelfConfig(layer=2, hidden=12, weight=0.4),
    "equimod": EquiModConfig(hidden=12, dim=8, weight=1.3),
    "essl": ESSLConfig(size=16, widths=(10,), weight=0.6),
    "ser": SER,
    "stl": STLConfig(layer=4, pool="cls", trans_dim=8, hidden=10, dim=8, weight=0.9),
}
LOCAL = LocalViews(count=4, size=16, photometric=Photometric(blur=0.5, grey=0.0))


def make_case(addons=None, views=None, method=HEADS, backbone=TINY, batch=12):
    """A task and its views of a real batch."""
    addons = ADDONS if addons is None else addons
    plan = plan_views(views or ViewsConfig(), backbone, addons, batch)
    task = Task(backbone, method, addons, plan, seed=0)
    return task, _views(plan, batch)


def _views(plan, batch):
    posed = plan.posed.count if plan.posed else 0
    dataset = ViewDataset(SOURCE, plan, seed=1)
    items = collate([dataset[Key(0, p, p < posed, p // plan.unit * plan.unit)] for p in range(batch)])
    return to_device_views(items, plan, sample_poses(plan, 1, 0, 0, 1), CPU)


def gradients(task, views, loss=None):
    task.zero_grad()
    (task(views).total if loss is None else loss(task(views))).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.requires_grad}


@cache
def reference():
    """All five add-ons at once: losses and gradients."""
    task, views = make_case()
    return task(views), gradients(task, views), views


def test_total_is_base_plus_every_weighted_add_on():
    losses, _, _ = reference()
    assert list(losses.named) == ["mocov3", *ADDONS]
    expected = losses.named["mocov3"] + sum(ADDONS[name].weight * losses.named[name] for name in ADDONS)
    assert torch.allclose(losses.total.detach(), expected)
    assert all(float(loss) > 0 for loss in losses.named.values())


@pytest.mark.parametrize("views", [ViewsConfig(), ViewsConfig(full=3), ViewsConfig(local=LOCAL)])
@pytest.mark.parametrize(
    "method",
    [
        HEADS,
        SimSiamConfig(hidden=12, dim=12, bottleneck=8),
        DINOConfig(out_dim=12, hidden=8, bottleneck=6),
        BYOLConfig(hidden=12, dim=8),
    ],
)
def test_one_backward_reaches_every_trained_parameter_and_no_momentum_network(method, views):
    """What DDP with find_unused_parameters=False asks for."""
    task, batch = make_case(views=views, method=method)
    trained = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    rest = [(n, p) for n, p in task.named_parameters() if not p.requires_grad]
    assert_trains(task(batch).total, trained, rest)
    assert all(p.grad is None for _, p in rest)
    assert all(not p.requires_grad for n, p in task.named_parameters() if "momentum" in n)
    assert sum("addons" in n for n, _ in trained) > 20


@pytest.mark.parametrize("silent", list(ADDONS))
def test_an_add_on_of_weight_0_trains_nothing_and_leaves_the_rest_as_without_it(silent):
    full, _, views = reference()
    addons = {**ADDONS, silent: replace(ADDONS[silent], weight=0.0)}
    task = Task(TINY, HEADS, addons, plan_views(ViewsConfig(), TINY, addons, 12), seed=0)
    found = gradients(task, views)
    assert task(views).named.keys() == full.named.keys()
    alone = [f"addons.{silent}."]
    alone += {"augself": ["student.tap_norms.2."], "stl": ["student.tap_norms.4."]}.get(silent, [])
    alone += ["student.tap_norms.1.", "student.tap_norms.3."] if silent == "ser" else []
    own = {n for n in found if n.startswith(tuple(alone))}
    assert len(own) > 2
    assert all(bool((found[n] == 0).all()) for n in own)
    assert all(bool((g != 0).any()) for n, g in found.items() if n not in own)
    # the base and the other add-ons alone: the total of the full task without this term
    whole = Task(TINY, HEADS, ADDONS, plan_views(ViewsConfig(), TINY, ADDONS, 12), seed=0)
    named = dict(zip(ADDONS, whole.addons.values(), strict=True))
    seen, cls = whole._student(views)
    with torch.no_grad():
        crops, posed = whole._momentum(views)
    seen = replace(seen, momentum_posed=posed, momentum_crops=crops)
    keys = [torch.cat([f.cls, p.cls]) for f, p in zip(crops, posed, strict=True)]
    rest = sum(ADDONS[name].weight * named[name](seen) for name in ADDONS if name != silent)
    (whole.method(cls, keys, StepInfo()) + rest).backward()
    for name, p in whole.named_parameters():
        if p.requires_grad and name not in own:
            assert torch.allclose(found[name], p.grad, rtol=1e-3, atol=1e-6), name


def test_the_order_of_add_ons_does_not_matter():
    losses, expected, views = reference()
    turned = dict(reversed(ADDONS.items()))
    plan = plan_views(ViewsConfig(), TINY, turned, 12)
    task = Task(TINY, HEADS, turned, plan, seed=0)
    again = _views(plan, 12)
    assert all(torch.equal(a, b) for a, b in zip(views.crops + views.posed, again.crops + again.posed, strict=True))
    assert all(torch.equal(views.extra[name][0], again.extra[name][0]) for name in ("essl", "equimod"))
    first = Task(TINY, HEADS, ADDONS, plan_views(ViewsConfig(), TINY, ADDONS, 12), seed=0).state_dict()
    assert set(first) == set(task.state_dict())
    assert all(torch.equal(x, first[name]) for name, x in task.state_dict().items())
    found = task(again)
    assert torch.allclose(found.total, losses.total, rtol=1e-5)
    for name, gradient in gradients(task, again).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-6), name


# --- SER


def ser_of(config, views=None, method=HEADS, **others):
    task, batch = make_case({"ser": config, **others}, views, method)
    return task, batch, task(batch)


def test_layer_weights_are_those_of_a_sum_and_the_mean_by_default():
    per_layer = []
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        task, batch, losses = ser_of(replace(SER, layer_weights=weights))
        per_layer.append(float(losses.named["ser"]))
        found = gradients(task, batch, lambda losses: losses.total)
        silent = "3" if weights[1] == 0 else "1"
        own = [n for n in found if n.startswith((f"addons.ser.projectors.{silent}.", f"student.tap_norms.{silent}."))]
        assert len(own) == 4
        assert all(bool((g == 0).all()) == (n in own) for n, g in found.items())
    assert abs(per_layer[0] - per_layer[1]) > 1e-3
    _, _, alone = ser_of(replace(SER, layers=(1,), layer_weights=()))
    assert float(alone.named["ser"]) == pytest.approx(per_layer[0], rel=1e-4)
    for weights, expected in (((0.3, 1.1), (0.3, 1.1)), ((), (0.5, 0.5)), ((2.0, 2.0), (2.0, 2.0))):
        _, _, losses = ser_of(replace(SER, layer_weights=weights))
        assert float(losses.named["ser"]) == pytest.approx(sum(w * x for w, x in zip(expected, per_layer, strict=True)))


def test_detached_ser_is_measured_and_trains_nothing():
    attached, _, expected = ser_of(SER)
    task, batch, losses = ser_of(replace(SER, detached=True))
    assert torch.equal(losses.named["ser"], expected.named["ser"])
    assert torch.allclose(losses.total.detach(), expected.total.detach())
    assert attached.addons["ser"].projectors["1"].layers[0].weight.requires_grad
    rest = [n for n, p in task.named_parameters() if not p.requires_grad and "momentum" not in n]
    assert sorted({n.rsplit(".", 2)[0] for n in rest}) == [
        *(f"addons.ser.projectors.{layer}.layers" for layer in (1, 3)), "student.tap_norms"
    ]  # fmt: skip
    found = gradients(task, batch)
    assert all(bool((g != 0).any()) for g in found.values())
    # nothing of it reaches the rest: the same gradients as with any weight
    for weight in (0.0, 50.0):
        other, batch, _ = ser_of(replace(SER, detached=True, weight=weight))
        assert all(torch.equal(g, found[n]) for n, g in gradients(other, batch).items())
    assert not task.addons["ser"](task._student(batch)[0]).requires_grad
    # a norm that another add-on reads is trained
    shared, batch, _ = ser_of(replace(SER, detached=True), augself=AugSelfConfig(layer=3, hidden=8))
    trained = [(n, p) for n, p in shared.named_parameters() if p.requires_grad]
    assert_trains(shared(batch).total, trained)
    assert [n for n, _ in trained if "tap_norms" in n] == ["student.tap_norms.3.weight", "student.tap_norms.3.bias"]


@pytest.mark.parametrize("method", [HEADS, SimSiamConfig(hidden=12, dim=12, bottleneck=8)])
@pytest.mark.parametrize(("views", "pairs"), [(ViewsConfig(full=3), 1), (ViewsConfig(local=LOCAL), 3)])
def test_ser_of_many_views_is_the_mean_over_pairs(views, pairs, method):
    config = replace(SER, layers=(1,), layer_weights=())
    task, batch = make_case({"ser": config}, views, method)
    if task.momentum is not None:
        with torch.no_grad():  # the networks differ
            for p in task.momentum.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    student = [task.student(x).maps[1] for x in batch.posed]
    momentum = [task.momentum(x).maps[1] for x in batch.posed] if task.momentum is not None else []
    phi = task.addons["ser"].projectors["1"]

    def of_pair(keys, j):
        pair = slice(2 * j, 2 * j + 2)
        return ser_loss(
            phi, student[pair], batch.poses[pair], batch.image_ids, config.temperature, momentum_maps=keys[pair]
        )

    losses = task(batch)
    expected = torch.stack([of_pair(momentum, j) for j in range(pairs)]).detach()
    assert torch.allclose(losses.named["ser"], expected.mean(), rtol=1e-4)
    assert pairs == 1 or float(expected.std()) > 1e-3
    if momentum:
        own = torch.stack([of_pair([m.detach() for m in student], j) for j in range(pairs)])
        assert (own - expected).abs().min() > 1e-4  # of every pair the momentum network's maps are read
    cls = [torch.cat([task.student(c).cls, task.student(p).cls]) for c, p in zip(batch.crops, batch.posed, strict=True)]
    assert len(cls) == len(batch.crops) == (3 if pairs == 1 else 6)
    if task.momentum is None:
        return
    keys = [
        torch.cat([task.momentum(c).cls, task.momentum(p).cls])
        for c, p in zip(batch.crops[:2], batch.posed[:2], strict=True)
    ]
    q = [F.normalize(task.method.predictor(task.method.projector(c)), dim=1) for c in cls]
    k = [F.normalize(task.method.momentum_projector(c), dim=1) for c in keys]
    terms = [F.cross_entropy(q[u] @ k[v].T / 0.2, torch.arange(12)) for v, u in view_pairs(len(q))]
    assert torch.allclose(losses.named["mocov3"], 2 * 2 * 0.2 * torch.stack(terms).mean(), rtol=1e-4)


# --- one layer


@pytest.mark.parametrize(
    ("config", "cls"), [(AugSelfConfig(layer=2, hidden=8), False), (AugSelfConfig(layer=4, pool="cls", hidden=8), True)]
)
def test_a_layer_decoupled_add_on_trains_what_lies_below_and_nothing_else(config, cls):
    task, views = make_case({"augself": config})
    seen, _ = task._student(views)
    loss = task.addons["augself"](seen)
    below = [f"student.blocks.{block}." for block in range(config.layer)]
    starts = [*below, "student.patch_embed.", "student.pos_embed", "addons.", f"student.tap_norms.{config.layer}."]
    starts += ["student.cls_token"] if cls else []
    named = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    trained, untouched = ([x for x in named if x[0].startswith(tuple(starts)) == want] for want in (True, False))
    assert ("student.cls_token" in [n for n, _ in untouched]) != cls
    for name in (f"student.blocks.{config.layer}.", "student.norm.", "method.projector.", "method.predictor."):
        assert any(n.startswith(name) for n, _ in untouched)
    assert_trains(loss, trained, untouched)


def test_watched_names_what_reads_the_last_tapped_layer():
    def watched(**addons):
        return make_case(addons)[0].watched

    assert watched() == watched(essl=ADDONS["essl"]) == {}
    assert watched(ser=SER) == {"base": "stream", "ser": "taps"}
    assert watched(ser=SER, essl=ADDONS["essl"]) == {"base+essl": "stream", "ser": "taps"}
    at_3 = AugSelfConfig(layer=3, hidden=8)
    assert watched(augself=at_3, ser=SER) == {"base": "stream", "augself+ser": "taps"}
    # read below that layer: no gradient of it passes there
    assert watched(augself=ADDONS["augself"], ser=SER) == {"base": "stream", "ser": "taps"}
    assert watched(**ADDONS) == {"base+equimod+essl": "stream", "stl": "taps"}


def test_what_is_read_below_the_watched_layer_does_not_show_there():
    norms = []
    for weight in (0.0, 100.0):
        task, views = make_case({"augself": replace(ADDONS["augself"], weight=weight), "ser": SER})
        task(views).total.backward()
        norms.append([float(task.watch.norms[key]) for key in ("stream", "taps")])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_health_knows_terms_that_share_a_layer(caplog):
    health = HealthCheck({"augself": 0.0, "ser": 0.0, "stl": 1.0}, patience=5)
    health.on_log(1, logged(gradients={"base": 1.0, "augself+ser": 0.0}), 8)
    assert not caplog.messages
    health.on_log(1, logged(gradients={"base": 1.0, "ser+stl": 0.0}), 8)
    assert ["no gradient of the ser+stl loss" in message for message in caplog.messages] == [True]
