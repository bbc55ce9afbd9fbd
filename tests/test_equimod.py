"""EquiMod: its definition and laws, whom it trains, the same over ranks. Its parameters: test_equimod_parameters.py."""

from dataclasses import fields, replace

import pytest
import torch

from equimid.addons import EquiModConfig, StudentOutputs
from equimid.addons.equimod import statistics_of
from equimid.features import Features
from equimid.testing import assert_same_on_ranks, assert_trains
from equimid.views import CentreView, ViewBatch, Views, ViewsConfig, to_device_views
from helpers.equimod import PLAN, SMALL, TAU, D, make_batch, make_case, see


def trained_by(addon):
    """All but the bias that the predictor's norm takes out."""
    named = [(name, p) for name, p in addon.named_parameters() if p.requires_grad]
    assert len(named) == len(list(addon.parameters())) - 1
    return named


def part(batch, rows):
    """Those images of a batch; without any, as `collate` leaves it."""
    crops = [ViewBatch(x.pixels[rows], x.boxes[rows], x.photometric[rows]) for x in batch.crops]
    return replace(batch, crops=crops if len(crops[0].boxes) else [])


# --- the loss


def norm(x, bn=None):
    y = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    return y if bn is None or bn.weight is None else y * bn.weight + bn.bias


def defined(addon, vectors, batch, form):
    """The definition, row by row, by plain formulas."""
    clean, first, second = vectors
    n, net = len(clean), addon.projector
    h = torch.cat([clean, first, second]) @ net[0].weight.T
    h = norm(h, net[1]).relu() @ net[3].weight.T
    y = norm(norm(h, net[4]).relu() @ net[6].weight.T)
    told = []
    for view in range(2):
        boxes, rows = batch.crops[view].boxes.tolist(), batch.crops[view].photometric.tolist()
        for box, row in zip(boxes, rows, strict=True):
            told.append([*box, *row[:10], float(row[10] > 0), row[10], row[11]])
    stored = statistics_of(PLAN)
    p = (torch.tensor(told, dtype=torch.float64) - stored[0]) / stored[1]
    p = p if form == "comparison" else p[:, :17]
    p = norm(p @ addon.parameter_net[0].weight.T, addon.parameter_net[1])
    predicted = norm(torch.cat([torch.cat([y[:n], y[:n]]), p], 1) @ addon.predictor[0].weight.T)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (y[n:], predicted))
    losses = []
    if form == "comparison":
        for q, k in ((a, b.detach()), (b, a.detach())):
            for i in range(2 * n):
                s = torch.stack([q[i] @ k[j] for j in range(2 * n)]) / TAU
                losses.append(2 * TAU * (s.logsumexp(0) - s[i]))
        return torch.stack(losses).mean()
    z = torch.cat([a, b])
    for i in range(4 * n):
        others = [j for j in range(4 * n) if j != i]
        s = torch.stack([z[i] @ z[j] for j in others]) / TAU
        losses.append(s.logsumexp(0) - s[others.index((i + 2 * n) % (4 * n))])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_equimod_is_its_definition(form):
    batch = make_batch()
    addon, vectors = make_case(replace(SMALL, form=form))
    found, expected = addon(see(vectors, batch)), defined(addon, vectors, batch, form)
    assert torch.allclose(found, expected, rtol=1e-6)
    names, trained = zip(*trained_by(addon), strict=True)
    ours, theirs = (torch.autograd.grad(loss, trained) for loss in (found, expected))
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8), name


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_equimod_law_right_predictions_have_the_lowest_loss(form, monkeypatch):
    batch = make_batch()
    addon, vectors = make_case(replace(SMALL, form=form))
    n = len(vectors[0])
    right = addon.projector(torch.cat(vectors))[n:].detach()

    def loss_of(predictions):
        monkeypatch.setattr(addon, "predict", lambda clean, drawn: predictions)
        return float(addon(see(vectors, batch)).detach())

    lowest = loss_of(right)
    assert all(loss_of(right.roll(shift, 0)) > lowest + 0.1 for shift in range(1, 2 * n))


def test_equimod_law_order_of_images_and_scale_of_features_do_not_matter():
    batch, shuffled = make_batch(), torch.tensor([4, 0, 5, 1, 3, 2])
    addon, vectors = make_case()
    before = addon(see(vectors, batch))
    assert torch.allclose(addon(see([x[shuffled] for x in vectors], part(batch, shuffled))), before)
    assert torch.allclose(addon(see([1000 * x + 7 for x in vectors], batch)), before, rtol=1e-3)


@pytest.mark.parametrize("form", ["comparison", "original"])
def test_equimod_trains_its_parameters(form):
    addon, vectors = make_case(replace(SMALL, form=form))
    vectors = [x.requires_grad_() for x in vectors]
    still = torch.zeros(6, D, dtype=torch.float64, requires_grad=True)
    seen = see(vectors, make_batch())
    seen = replace(seen, crops=[*seen.crops, Features(still)])
    read = [(f"features {i}", x) for i, x in enumerate(vectors)]
    assert_trains(addon(seen), [*trained_by(addon), *read], [("a third view", still)])


def on_these_ranks(rank, ranks):
    """One of three ranks has no images."""
    edges = {1: [0, 6], 2: [0, 4, 6], 3: [0, 4, 4, 6]}[ranks]
    mine, batch, results = slice(edges[rank], edges[rank + 1]), make_batch(), {}
    for form in ("comparison", "original"):
        addon, vectors = make_case(replace(SMALL, form=form))
        vectors = [x.requires_grad_() for x in vectors]
        loss = addon(see([x[mine] for x in vectors], part(batch, mine)))
        loss.backward()
        results |= {f"{form} loss": loss} | {f"{form} {n}": p.grad for n, p in trained_by(addon)}
        results |= {f"{form} features {i}": x.grad for i, x in enumerate(vectors)}
    return results


def test_equimod_over_ranks():
    assert_same_on_ranks(on_these_ranks, rtol=1e-9)


def test_equimod_every_setting_matters():
    """T26."""
    changes = {
        "temperature": 0.5, "hidden": 9, "dim": 8, "form": "original", "layer": 1, "pool": "cls",
    }  # fmt: skip
    assert {f.name for f in fields(EquiModConfig)} == {*changes, "weight"}  # the task's own
    rng, batch = torch.Generator().manual_seed(1), make_batch()

    def features():
        a, b = (torch.randn(6, D, generator=rng, dtype=torch.float64) for _ in range(2))
        return Features(a, {1: torch.randn(6, D, 2, 2, generator=rng, dtype=torch.float64)}, {1: b})

    clean, first, second = (features() for _ in range(3))
    seen = StudentOutputs([first, second], {"equimod": [clean]}, views=Views([], batch=batch))

    def loss_of(config):
        torch.manual_seed(0)
        # with running statistics: those of a batch undo a change of scale
        return float(config.build(D, PLAN).double().eval()(seen).detach())

    losses = [loss_of(SMALL)]
    for key, value in changes.items():
        losses.append(loss_of(replace(SMALL, **{key: value}, **({"layer": 1} if key == "pool" else {}))))
    assert len({round(x, 9) for x in losses}) == len(losses)


# --- in a task


@pytest.mark.parametrize("layer", [0, 2])
def test_equimod_in_a_task_trains_the_blocks_below_it(layer):
    # here: every rank of the test above would import them
    from equimid.addons import plan_views
    from equimid.backbones import BackboneConfig
    from equimid.methods import MoCoV3Config
    from equimid.task import Task

    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, cls_layer=0,
    )  # fmt: skip
    addons = {"equimod": replace(SMALL, layer=layer)}
    plan = plan_views(ViewsConfig(), backbone, addons, 8)
    assert plan.extra["equimod"].view == CentreView(16, 224 / 256)
    task = Task(backbone, MoCoV3Config(hidden=8, dim=6), addons, plan, seed=0)
    views = to_device_views(make_batch(8, plan), plan, [], torch.device("cpu"))
    seen, read = task._student(views)
    assert len(read) == 2  # the base objective does not see the clean view
    trained = trained_by(task.addons["equimod"])
    last = [("block 2", task.student.blocks[2].mlp.fc2.weight)]
    early = [("block 1", task.student.blocks[1].mlp.fc2.weight)]
    loss = task.addons["equimod"](seen)
    assert_trains(loss, [*trained, *early, *([] if layer else last)], last if layer else [])
