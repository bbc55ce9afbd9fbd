"""Every base method: it is its definition, it obeys a law, it trains its parameters, ranks do not matter."""

import copy
import math

import pytest
import torch
from torch import nn

from equimid.ema import ema_update_
from equimid.errors import UserError
from equimid.losses import DINOLoss, barlow_twins_loss, mocov3_loss, nt_xent, simsiam_loss, vicreg_loss
from equimid.methods import (
    METHODS,
    BarlowTwinsConfig,
    BYOLConfig,
    DINOConfig,
    MoCoV3Config,
    SimCLRConfig,
    SimSiamConfig,
    VICRegConfig,
    unordered_pairs,
    view_pairs,
)
from equimid.schedules import StepInfo
from equimid.testing import assert_same_on_ranks, assert_trains
from helpers.definitions import DEFINITIONS

WIDTH, IMAGES = 6, 9
CONFIGS = {
    "mocov3": MoCoV3Config(hidden=10, dim=5),
    "dino": DINOConfig(out_dim=12, hidden=10, bottleneck=7, teacher_temperature=0.07, teacher_warmup_epochs=4),
    "barlow_twins": BarlowTwinsConfig(hidden=10, dim=5),
    "simclr": SimCLRConfig(hidden=10, dim=5),
    "vicreg": VICRegConfig(hidden=10, dim=5),
    "simsiam": SimSiamConfig(hidden=10, dim=8, bottleneck=5),
    "byol": BYOLConfig(hidden=10, dim=5),
}
STEP = StepInfo(step=5, total=20, steps_per_epoch=2)  # in epoch 2 DINO's teacher temperature is 0.06
every_method = pytest.mark.parametrize("name", CONFIGS)


def values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(name, **changes):
    torch.manual_seed(0)
    method = type(CONFIGS[name])(**(vars(CONFIGS[name]) | changes)).build(WIDTH).double()
    if name == "dino":
        method.loss.center.copy_(values(1, 12, seed=7) / 10)
    return method


def embeddings(views, images=IMAGES):
    base = values(images, WIDTH, seed=3)
    return [base + 0.5 * values(images, WIDTH, seed=10 + v) for v in range(views)]


def call(method, student, momentum=None, when=STEP):
    momentum = [x.detach() + 0.1 for x in student[:2]] if momentum is None else momentum
    return method(student, momentum if method.uses_momentum else [], when)


# ---- (a) the definitions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [2, 3, 6])
@every_method
def test_method_is_its_definition(name, views):
    method = build(name)
    student = embeddings(views)
    momentum = [x + 0.1 for x in student[:2]]
    with torch.no_grad():
        expected = float(DEFINITIONS[name](copy.deepcopy(method), student, momentum))
        assert math.isclose(float(call(method, student, momentum)), expected, rel_tol=1e-9)


def test_mocov3_of_two_views_is_its_loss():
    method, student = build("mocov3"), embeddings(2)
    q1, q2 = (method.predictor(method.projector(x)) for x in student)
    k1, k2 = (method.momentum_projector(x) for x in student)
    assert torch.equal(call(method, student, student), mocov3_loss(q1, q2, k1, k2, 0.2))


# ---- (b) laws --------------------------------------------------------------------------------------------------


def hadamard():
    """(8, 7) centred, orthogonal columns of ones and minus ones."""
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h[:, 1:]


@every_method
def test_method_law_order_of_images_does_not_matter(name):
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    student = embeddings(3)
    one, other = call(build(name), student), call(build(name), [x[order] for x in student])
    assert torch.allclose(one, other, rtol=1e-9)


@every_method
def test_method_law_more_views_keep_the_scale_of_two(name):
    """T19: of views that are all one, six give what two give."""
    x = embeddings(1)[0]
    two, six = call(build(name), [x, x]), call(build(name), [x] * 6)
    assert torch.allclose(two, six, rtol=1e-9)


def test_mocov3_law_sum_over_crops_is_five_times_the_mean():
    student = embeddings(6)
    mean, total = call(build("mocov3"), student), call(build("mocov3", multi_crop="sum"), student)
    assert torch.allclose(5 * mean, total, rtol=1e-9)


def test_dino_law_the_center_takes_away_what_all_teacher_logits_share():
    s, t, shift = values(3 * IMAGES, 12), values(2 * IMAGES, 12, seed=1), values(1, 12, seed=2)
    plain, shifted = DINOLoss(12).double().eval(), DINOLoss(12).double().eval()
    shifted.center.copy_(shift)
    assert torch.allclose(plain(s, t, 0.05), shifted(s, t + shift, 0.05), rtol=1e-10)


def test_dino_law_cross_entropy_is_at_least_the_entropy():
    t = values(2 * IMAGES, 12)
    entropy = torch.distributions.Categorical(logits=t / 0.05).entropy().mean()
    loss = DINOLoss(12).double().eval()
    # the student of one view says exactly what the teacher says of the other
    perfect = t.view(2, IMAGES, 12).flip(0).reshape(-1, 12) * (0.1 / 0.05)
    assert torch.allclose(loss(perfect, t, 0.05), entropy, rtol=1e-10)
    assert float(loss(values(2 * IMAGES, 12, seed=1), t, 0.05)) > float(entropy)


def test_dino_law_the_center_moves_in_training_only():
    loss, s, t = DINOLoss(12).double(), values(2 * IMAGES, 12), values(2 * IMAGES, 12, seed=1)
    loss.eval()(s, t, 0.05)
    assert torch.equal(loss.center, torch.zeros_like(loss.center))
    loss.train()(s, t, 0.05)
    assert torch.allclose(loss.center, 0.1 * t.mean(0, keepdim=True))


def test_barlow_twins_law_equal_views_with_uncorrelated_columns_are_perfect():
    z = hadamard()
    assert float(barlow_twins_loss(z, 3 * z + 1)) < 1e-8
    assert math.isclose(float(barlow_twins_loss(z, -z)), 4 * 7, rel_tol=1e-4)


def test_simclr_law_equal_rows_give_the_logarithm_of_the_others():
    z = torch.ones(IMAGES, 4, dtype=torch.float64)
    assert math.isclose(float(nt_xent(z, z, 0.1)), math.log(2 * IMAGES - 1), rel_tol=1e-12)


def test_vicreg_law_equal_views_with_spread_and_no_covariance_are_perfect():
    z = hadamard()
    assert float(vicreg_loss(z, z)) == 0
    collapsed = torch.ones(8, 7, dtype=torch.float64)
    assert math.isclose(float(vicreg_loss(collapsed, collapsed)), 25 * (1 - 0.01), rel_tol=1e-12)


def test_simsiam_law_minus_one_for_equal_rows_and_no_gradient_to_the_projection():
    p, z = values(IMAGES, 4).requires_grad_(), values(IMAGES, 4, seed=1).requires_grad_()
    loss = simsiam_loss(p, z)
    loss.backward()
    assert -1 <= float(loss.detach()) <= 1
    assert p.grad.abs().sum() > 0
    assert z.grad is None
    assert math.isclose(float(simsiam_loss(z, 2 * z).detach()), -1, rel_tol=1e-12)


def test_byol_law_zero_for_a_perfect_prediction_four_for_its_opposite_and_lengths_do_not_matter():
    method, student = build("byol"), embeddings(2)
    # the predictor is the identity: with equal heads and equal views the prediction is perfect
    method.predictor = nn.Identity()
    x = student[0]
    assert abs(float(call(method, [x, x], [x, x]).detach())) < 1e-12
    loss = call(method, student, student)
    assert 0 < float(loss.detach()) < 4
    with torch.no_grad():
        for p in (method.momentum_projector[-1].weight, method.momentum_projector[-1].bias):
            p.mul_(3)
    assert torch.allclose(call(method, student, student), loss, rtol=1e-12)
    with torch.no_grad():
        for p in (method.momentum_projector[-1].weight, method.momentum_projector[-1].bias):
            p.mul_(-1)
    assert math.isclose(float(call(method, [x, x], [x, x]).detach()), 4, rel_tol=1e-12)
    assert torch.allclose(call(method, student, student), 4 - loss, rtol=1e-12)


def test_byol_of_two_views_is_symmetric():
    method, (x, y) = build("byol"), embeddings(2)
    assert torch.allclose(call(method, [x, y], [x, y]), call(method, [y, x], [y, x]), rtol=1e-12)


# ---- (c) gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [2, 4])
@every_method
def test_method_trains_its_parameters(name, views):
    method = build(name)
    student = [x.requires_grad_() for x in embeddings(views)]
    followers = {id(p) for teacher, _ in method.momentum_heads() for p in teacher.parameters()}
    named = list(method.named_parameters())
    assert method.uses_momentum == bool(followers)
    assert all(p.requires_grad != (id(p) in followers) for _, p in named)
    assert_trains(
        call(method, student),
        [pair for pair in named if id(pair[1]) not in followers],
        [pair for pair in named if id(pair[1]) in followers],
    )
    assert all(x.grad.abs().sum() > 0 for x in student)


# ---- (d) ranks -------------------------------------------------------------------------------------------------


def methods_of_rank(rank, ranks):
    """Losses and gradients of all methods; 4 + 5 images over two ranks, 6 + 0 + 3 over three."""
    mine = torch.arange(IMAGES).split({1: [9], 2: [4, 5], 3: [6, 0, 3]}[ranks])[rank]
    found = {}
    for name in CONFIGS:
        method = build(name)
        student = [x[mine].requires_grad_() for x in embeddings(3)]
        loss = call(method, student)
        loss.backward()
        found[f"{name}: loss"] = loss.detach()
        for v, x in enumerate(student):
            found[f"{name}: gradient of view {v}"] = torch.zeros(IMAGES, WIDTH).double().index_put_((mine,), x.grad)
        found |= {f"{name}: gradient of {n}": p.grad for n, p in method.named_parameters() if p.requires_grad}
        found |= {f"{name}: buffer {n}": b for n, b in method.named_buffers() if b.is_floating_point()}
    return found


def test_methods_over_ranks():
    """Also T17: the gradient of Barlow Twins is the whole one, not 1/W of it."""
    assert_same_on_ranks(methods_of_rank, rtol=1e-7)


# ---- momentum, schedules, settings -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mocov3", "dino", "byol"])
def test_momentum_heads_share_nothing_with_their_leaders(name):
    """T5: the EMA moves the follower and leaves the leader as it is."""
    ((teacher, student),) = build(name).momentum_heads()
    before = copy.deepcopy(student.state_dict())
    assert not {t.data_ptr() for t in teacher.state_dict().values()} & {t.data_ptr() for t in before.values()}
    storage = {p.untyped_storage().data_ptr() for p in student.parameters()}
    assert not storage & {p.untyped_storage().data_ptr() for p in teacher.parameters()}
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(1)
    ema_update_(teacher, student, 0.5)
    assert all(torch.equal(t, before[key]) for key, t in student.state_dict().items())
    for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.allclose(p, q + 0.5)


def test_dino_head_survives_copy_and_state_dict():
    x = embeddings(1)[0]
    one, other = build("dino").head, DINOConfig(out_dim=12, hidden=10, bottleneck=7).build(WIDTH).double().head
    assert torch.equal(copy.deepcopy(one)(x), one(x))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_dino_head_starts_as_the_original():
    head = DINOConfig(out_dim=500, hidden=300, bottleneck=40).build(200).head
    gain, direction = head.last_layer.parameters()
    assert torch.equal(gain, torch.ones(500, 1))
    assert torch.allclose(head.last_layer.weight.norm(dim=1), torch.ones(500))
    linears = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    assert all(abs(float(layer.weight.detach().std()) - 0.02) < 0.001 for layer in linears)
    assert all(torch.equal(layer.bias, torch.zeros_like(layer.bias)) for layer in linears)
    assert direction.requires_grad


def test_dino_norm_last_layer_keeps_the_gain():
    method = build("dino", norm_last_layer=True)
    gain, direction = method.head.last_layer.parameters()
    assert_trains(call(method, embeddings(2)), [("direction", direction)], [("gain", gain)])
    assert [id(p) for p in method.frozen_at(StepInfo(0, 10, 5))] == [id(direction)]


def test_dino_freezes_the_last_layer_in_its_first_epochs_only():
    method = build("dino", freeze_last_layer_epochs=2)
    last = {id(p) for p in method.head.last_layer.parameters()}
    frozen = [{id(p) for p in method.frozen_at(StepInfo(step, 40, 10))} for step in (0, 9, 19, 20, 39)]
    assert frozen == [last, last, last, set(), set()]


def test_dino_teacher_temperature_is_linear_per_epoch():
    config = DINOConfig(teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_warmup_epochs=4)
    found = [config.teacher_temperature_at(epoch) for epoch in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert DINOConfig(teacher_temperature=0.05).teacher_temperature_at(0) == 0.05
    method, student = build("dino").eval(), embeddings(2)
    same_epoch = [float(call(method, student, when=StepInfo(step, 40, 10)).detach()) for step in (10, 19, 20)]
    assert same_epoch[0] == same_epoch[1] != same_epoch[2]


@pytest.mark.parametrize(("name", "start"), [("mocov3", 0.99), ("dino", 0.996), ("byol", 0.996)])
def test_momentum_rises_to_one(name, start):
    method = build(name)
    found = [method.momentum_at(StepInfo(step, 100, 10)) for step in (0, 50, 100)]
    assert found == pytest.approx([start, (start + 1) / 2, 1.0])
    assert method.ema_last == (name != "mocov3")


def test_pairs_of_views():
    assert view_pairs(2) == [(0, 1), (1, 0)]
    assert len(view_pairs(6)) == 10
    assert unordered_pairs(2) == [(0, 1)]
    assert unordered_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]


def test_every_method_is_registered():
    assert {name: METHODS[name] for name in CONFIGS} == {name: type(config) for name, config in CONFIGS.items()}
    own = {name for name in METHODS if METHODS[name].__module__.startswith("equimid.")}
    assert own == set(CONFIGS), "a method lacks in CONFIGS: the tests of this file go by it"
    assert own == set(DEFINITIONS), "a method lacks in helpers/definitions.py"
    assert all(config().name == name for name, config in ((n, METHODS[n]) for n in CONFIGS))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (MoCoV3Config, {"temperature": 0.0}),
        (MoCoV3Config, {"momentum": 1.5}),
        (MoCoV3Config, {"multi_crop": "median"}),
        (DINOConfig, {"teacher_temperature": float("nan")}),
        (DINOConfig, {"freeze_last_layer_epochs": -1}),
        (BarlowTwinsConfig, {"off_diagonal_weight": -1.0}),
        (SimCLRConfig, {"hidden": 0}),
        (VICRegConfig, {"covariance": float("inf")}),
        (SimSiamConfig, {"bottleneck": -5}),
        (BYOLConfig, {"momentum": -0.1}),
    ],
)
def test_bad_settings_are_told(config, changes):
    ((field, value),) = changes.items()
    with pytest.raises(UserError, match=rf"method\.{field} is '?{value}'?; it must"):
        config(**changes)
