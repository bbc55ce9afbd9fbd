"""SER and the task: whom the gradient reaches, what the loss does, the faults of the release (T1, T5 and so on)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from equimid.addons import SER, SERConfig, StudentOutputs, plan_views, ser_loss
from equimid.backbones import BackboneConfig
from equimid.distributed import CrossRankBatchNorm1d
from equimid.errors import UserError
from equimid.features import Features
from equimid.heads import mlp_head
from equimid.losses import patch_ntxent, patch_ntxent_cross_view
from equimid.methods import MoCoV3Config
from equimid.poses import Pose, sample_pose_pair, transport
from equimid.randomness import counted_generator
from equimid.schedules import StepInfo
from equimid.testing import assert_trains, on_ranks
from equimid.views import Views, ViewsConfig
from helpers.tasks import HEADS, TINY, make_task, make_views


def reached_by_ser(task, layer):
    """Parameters that L_eq at `layer` must train, and all others that are trained."""

    def belongs(name):
        if name.startswith("addons."):
            return True
        early = [f"student.blocks.{i}." for i in range(layer)]
        return name.startswith((*early, "student.patch_embed", "student.pos_embed", "student.tap_norms"))

    named = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    return [x for x in named if belongs(x[0])], [x for x in named if not belongs(x[0])]


def ser_alone(task, views):
    """L_eq with its gradient, as the task computes it."""
    student = task.student.forward_packed([*views.crops, *views.posed])
    with torch.no_grad():
        momentum = task.momentum.forward_packed(views.posed)
    return task.addons["ser"](StudentOutputs(student[:2], posed=student[2:], momentum_posed=momentum, views=views))


@pytest.mark.parametrize("form", ["canonical", "cross_view"])
def test_ser_alone_trains_the_blocks_up_to_its_layer_and_nothing_else(form):
    """T1 and law 1. CLS, the later blocks, the final norm and the heads get exactly nothing."""
    task = make_task(SERConfig(layers=(3,), form=form, hidden=16))
    trained, untouched = reached_by_ser(task, layer=3)
    assert len(trained) > 30
    assert any("blocks.4" in name for name, _ in untouched)
    assert_trains(ser_alone(task, make_views()), trained, untouched)


def ser_gradients(rank, ranks):
    task = make_task(SERConfig(layers=(3,), hidden=16))
    views = make_views()
    mine = slice(rank, None, ranks)
    views = Views(
        [x[mine] for x in views.crops], [x[mine] for x in views.posed], [p[mine] for p in views.poses],
        views.image_ids[mine],
    )  # fmt: skip
    ser_alone(task, views).backward()
    trained, untouched = reached_by_ser(task, layer=3)
    return {
        "least trained": torch.stack([p.grad.abs().sum() for _, p in trained]).min(),
        "most untouched": torch.stack(
            [p.new_zeros(()) if p.grad is None else p.grad.abs().sum() for _, p in untouched]
        ).max(),
    }


def test_ser_alone_on_two_ranks_trains_the_same_parameters():
    for found in on_ranks(ser_gradients, 2):
        assert found["least trained"] > 0
        assert found["most untouched"] == 0


def test_the_step_trains_everything_and_the_momentum_network_nothing():
    task = make_task(SERConfig(layers=(1, 3), hidden=16))
    trained = [(n, p) for n, p in task.named_parameters() if "momentum" not in n]
    frozen = [(n, p) for n, p in task.named_parameters() if "momentum" in n]
    assert_trains(task(make_views()).total, trained, frozen)
    assert all(p.grad is None for _, p in frozen)


def test_total_is_base_plus_weighted_add_on():
    views = make_views()
    losses = make_task(SERConfig(weight=0.3, hidden=16))(views)
    expected = losses.named["mocov3"] + 0.3 * losses.named["ser"]
    assert torch.allclose(losses.total.detach(), expected)
    nothing = make_task(SERConfig(weight=0.0, hidden=16))
    result = nothing(views)
    assert torch.equal(result.total.detach(), result.named["mocov3"])
    result.total.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in nothing.addons.parameters())


def test_gradient_watch_separates_base_and_add_on():
    task = make_task(SERConfig(weight=1.0, layers=(3,), hidden=16))
    task(make_views()).total.backward()
    assert task.watch.norms["stream"] > 0
    assert task.watch.norms["taps"] > 0
    silent = make_task(SERConfig(weight=0.0, layers=(3,), hidden=16))
    silent(make_views()).total.backward()
    assert float(silent.watch.norms["taps"]) == 0
    assert float(silent.watch.norms["stream"]) > 0


def test_ema_moves_only_the_follower():
    """Law 6 and T5: the student stays bit-identical, nothing is shared, phi is not part of the momentum network."""
    task = make_task(SERConfig(hidden=16))
    student = {n: p for n, p in task.named_parameters() if p.requires_grad}
    teacher = {n: p for n, p in task.named_parameters() if n.startswith("momentum") or "momentum_projector" in n}
    assert not {p.data_ptr() for p in student.values()} & {p.data_ptr() for p in teacher.values()}
    assert not any("addons" in n for n in teacher)
    with torch.no_grad():
        for p in student.values():
            p.add_(1.0)
    before = {n: p.clone() for n, p in student.items()}
    start = {n: p.clone() for n, p in teacher.items()}
    task.update_teacher(StepInfo(0, 10))  # coefficient 0.99
    assert all(torch.equal(p, before[n]) for n, p in student.items())
    moved = [n for n, p in teacher.items() if not torch.equal(p, start[n])]
    leaders = {n: n.replace("momentum.", "student.").replace("momentum_projector", "projector") for n in teacher}
    for n in moved:
        expected = 0.99 * start[n] + 0.01 * before[leaders[n]]
        assert torch.allclose(teacher[n], expected, atol=1e-6), n
    assert len(moved) == len(teacher)


def test_keys_come_from_the_momentum_network_after_its_ema():
    task = make_task()
    views = make_views(posed=0)
    with torch.no_grad():
        for p in task.student.parameters():
            p.mul_(1.5)
    one = float(task(views).named["mocov3"])
    task.update_teacher(StepInfo(9, 10))
    assert float(task(views).named["mocov3"]) != one


def test_the_transported_side_passes_phi_without_gradient():
    """T21: with momentum maps only the student's side trains phi."""
    task = make_task(SERConfig(hidden=16, layers=(3,)))
    phi = task.addons["ser"].projectors["3"]
    poses = sample_pose_pair(3, (4, 4), counted_generator(0, "pose"))
    maps = [torch.randn(3, 24, *pose.grid) for pose in poses]
    other = [torch.randn(3, 24, *pose.grid) for pose in poses]
    ids = torch.arange(3)
    loss = ser_loss(phi, maps, poses, ids, 0.3, momentum_maps=other)
    (found,) = torch.autograd.grad(loss, phi.layers[0].weight)
    detached = [
        patch_ntxent(
            _rows(phi(maps[a])), _rows(transport(phi(other[b]).detach(), poses[b], poses[a])), _ids(poses[a]), 0.3
        )
        for a, b in ((0, 1), (1, 0))
    ]
    (expected,) = torch.autograd.grad(sum(detached) / 2, phi.layers[0].weight)
    assert torch.allclose(found, expected, atol=1e-6)


def _rows(maps):
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def _ids(pose):
    return torch.arange(len(pose)).repeat_interleave(pose.grid[0] * pose.grid[1])


def test_without_momentum_maps_both_sides_are_the_student():
    ser = SER(SERConfig(hidden=16, layers=(1,)), embed_dim=24)
    poses = sample_pose_pair(3, (4, 4), counted_generator(0, "pose"))
    maps = [torch.randn(3, 24, *pose.grid, requires_grad=True) for pose in poses]
    posed = [Features(m[:, :, 0, 0], {1: m}) for m in maps]
    ser(StudentOutputs([], posed=posed, views=Views([], [], poses, torch.arange(3)))).backward()
    assert all(float(m.grad.abs().min(1).values.max()) > 0 for m in maps)


def test_an_equivariant_map_has_a_lower_loss_than_one_read_with_the_wrong_pose():
    """The definition's point: the known action pairs the right patches."""
    pose = Pose(torch.tensor([0, 1, 2]), torch.tensor([False, True, True]), (4, 4))
    other = Pose(torch.tensor([3, 3, 1]), torch.tensor([True, False, False]), (4, 4))
    content = torch.randn(3, 24, 4, 4)
    maps = [pose.act(content), other.act(content)]
    right = ser_loss(torch.nn.Identity(), maps, [pose, other], torch.arange(3), 0.1)
    wrong_pose = Pose(other.turns + 1, other.flip, (4, 4))
    wrong = ser_loss(torch.nn.Identity(), maps, [pose, wrong_pose], torch.arange(3), 0.1)
    assert float(right) < 0.2 * float(wrong)


def test_with_several_layers_the_watched_base_gradient_is_the_base_objective_alone():
    norms = []
    for weight in (0.0, 100.0):
        task = make_task(SERConfig(weight=weight, layers=(1, 3), hidden=16))
        task(make_views()).total.backward()
        norms.append(float(task.watch.norms["stream"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="canonicl"):
        ser_loss(torch.nn.Identity(), [], [], torch.arange(0), 0.3, form="canonicl")


def test_late_cls_alone_and_layer_12_can_be_built():
    """T6 and T7: the controls are runnable, also SER at the last layer."""
    assert make_task().student.cls_after == 3
    last = make_task(SERConfig(layers=(5,), hidden=16))
    assert last(make_views()).named["ser"] > 0
    with pytest.raises(UserError, match="layers 1 to 5"):
        make_task(SERConfig(layers=(6,)))


def test_at_least_two_images_are_posed_and_a_batch_that_cannot_hold_them_is_refused():
    """T11."""
    for batch, fraction, count in ((8, 0.01, 2), (50, 0.01, 2), (256, 0.01, 3), (2048, 0.01, 20), (4, 1.0, 4)):
        plan = plan_views(ViewsConfig(), TINY, {"ser": SERConfig(fraction=fraction)}, batch)
        assert plan.posed.count == count
    with pytest.raises(UserError, match="at least two posed images"):
        plan_views(ViewsConfig(), TINY, {"ser": SERConfig()}, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -1}, "weight is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"fraction": 0}, r"ser\.fraction is 0; it must be in \(0, 1\]"),
        ({"layers": ()}, r"ser\.layers is \(\); it must have 1 value"),
        ({"layers": (3, 3)}, "each once"),
        ({"area": (1.3, 0.7)}, r"ser\.area"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        SERConfig(**change)


def count_macs(task, views):
    with FlopCounterMode(display=False) as counter:
        task(views).total.backward()
    return counter.get_total_flops() / 2


def test_flops_of_a_step_are_those_of_the_specification():
    """Law 10: MoCo-v3 with ViT-S/16 at 224 px costs 36,724,547,584 MACs per image (and its logits)."""
    batch = 4
    plain = make_task(None, BackboneConfig(cls_layer=0), MoCoV3Config()).to("meta")
    plain.student.whole_last_block = plain.momentum.whole_last_block = True
    found = count_macs(plain, make_views(batch, 0, 224, 16, "meta")) / batch
    assert math.isclose(found, 36_724_547_584, rel_tol=1e-3)


def test_ser_costs_at_most_1_008_times_the_base_at_the_papers_share():
    """Shows 8, at r = 0.02; a global batch of 2,048 on the meta device."""
    found = {}
    for name, config in (("base", None), ("ser", SERConfig(fraction=0.02))):
        task = make_task(config, BackboneConfig(cls_layer=3 if config else 0), MoCoV3Config()).to("meta")
        found[name] = count_macs(task, make_views(2048, 41 if config else 0, 224, 16, "meta"))
    assert 0.99 < found["ser"] / found["base"] < 1.008


@pytest.mark.parametrize("form", ["canonical", "cross_view"])
def test_a_step_is_its_definition(form):
    config = SERConfig(weight=0.7, temperature=0.2, layers=(1, 3), form=form, hidden=16)
    task, views = make_task(config, method=replace(HEADS, temperature=0.5)), make_views()
    with torch.no_grad():  # the networks differ
        for p in task.student.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        for p in task.method.projector.parameters():
            p.mul_(-1.3)
    losses = task(views)
    student, momentum = ([net(x) for x in (*views.crops, *views.posed)] for net in (task.student, task.momentum))
    cls = [[torch.cat([f[v].cls, f[2 + v].cls]) for v in range(2)] for f in (student, momentum)]
    q = [F.normalize(task.method.predictor(task.method.projector(c)), dim=1) for c in cls[0]]
    k = [F.normalize(task.method.momentum_projector(c), dim=1) for c in cls[1]]
    base = sum(2 * 0.5 * F.cross_entropy(q[a] @ k[b].T / 0.5, torch.arange(8)) for a, b in ((0, 1), (1, 0)))
    patch_loss = {"canonical": patch_ntxent, "cross_view": patch_ntxent_cross_view}[form]
    parts = []
    for layer in (1, 3):
        phi = task.addons["ser"].projectors[str(layer)]
        for a, b in ((0, 1), (1, 0)):
            carried = transport(phi(momentum[2 + b].maps[layer]), views.poses[b], views.poses[a])
            parts.append(patch_loss(_rows(phi(student[2 + a].maps[layer])), _rows(carried), _ids(views.poses[a]), 0.2))
    assert torch.allclose(losses.named["mocov3"], base, rtol=1e-4)
    assert torch.allclose(losses.named["ser"], torch.stack(parts).mean(), rtol=1e-4)
    assert torch.allclose(losses.cls, cls[0][0], atol=1e-5)


def test_cross_view_without_momentum_has_both_directions():
    poses = sample_pose_pair(3, (4, 4), counted_generator(0, "pose"))
    maps = [torch.randn(3, 8, *pose.grid) for pose in poses]
    found = [ser_loss(nn.Identity(), maps[::d], poses[::d], torch.arange(3), 0.3, form="cross_view") for d in (1, -1)]
    assert torch.allclose(*found)


def test_settings_of_ser_reach_the_plan():
    made = plan_views(ViewsConfig(), TINY, {"ser": SERConfig(complement=True, source="shared_crop")}, 8).posed
    assert (made.complement, made.shared_crop) == (True, True)
    made = plan_views(ViewsConfig(), TINY, {"ser": SERConfig()}, 8).posed
    assert (made.complement, made.shared_crop) == (False, False)


def test_momentum_rises_to_one():
    method = make_task().method
    assert [method.momentum_at(StepInfo(step, 10)) for step in (0, 5, 10)] == pytest.approx([0.99, 0.995, 1.0])


def test_heads_are_moco_v3s():
    head = mlp_head([3, 4, 5, 6])
    kinds = [nn.Linear, CrossRankBatchNorm1d, nn.ReLU] * 2 + [nn.Linear, CrossRankBatchNorm1d]
    assert [type(layer) for layer in head] == kinds
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
    assert [layer.affine for layer in head if isinstance(layer, nn.BatchNorm1d)] == [True, True, False]
