"""Optimizers: groups, rates by definition, LARS and clipping against loops written out, restored bit for bit."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from equimid.engine.checkpoint import latest_checkpoint, save_checkpoint
from equimid.engine.config import OptimConfig
from equimid.engine.optimizer import build_optimizer, clip_gradients, set_rates
from equimid.errors import UserError
from equimid.schedules import StepInfo
from helpers.tensors import same_bits

STEP = StepInfo(step=3, total=12, steps_per_epoch=4)
DINO = {"weight_decay": 0.04, "weight_decay_end": 0.4, "decay_1d": False, "schedule": "dino"}
BARLOW = {"name": "lars", "lr": 0.2, "lr_1d": 0.0048, "weight_decay": 1e-6, "decay_1d": False, "final_lr": 0.0002}


def small(seed=0):
    """Matrices, biases, a norm, and a frozen layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4, bias=False), nn.Linear(4, 4))
    module[3].requires_grad_(False)
    return module


def give_gradients(module, step, without=()):
    """The same at the same step; none to the parameters named in `without`."""
    generator = torch.Generator().manual_seed(step)
    for name, p in module.named_parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = gradient if p.requires_grad and name not in without else None


def updated(config, steps=(1, 2, 3, 9), batch_size=64):
    """All parameters after some steps of a run of three epochs of four."""
    module = small()
    optimizer = build_optimizer(module, config)
    for step in steps:
        set_rates(optimizer, config, STEP._replace(step=step), batch_size)
        give_gradients(module, step)
        clip_gradients(module.parameters(), config)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# rates


@pytest.mark.parametrize(("schedule", "at_3", "at_4"), [("mocov3", 0.75, 1.0), ("dino", 1.0, 1.0)])
def test_the_rate_is_its_definition(schedule, at_3, at_4):
    """Linear over one epoch of four steps, then a cosine; per 256 images."""
    config = OptimConfig(lr=0.8, final_lr=0.1, warmup_epochs=1, schedule=schedule)
    rates = [config.lr_at(STEP._replace(step=step), 128) for step in range(13)]
    assert rates[0] == 0
    assert rates[3] == pytest.approx(0.4 * at_3)
    assert rates[4] == pytest.approx(0.4 * at_4)
    assert rates[8] == pytest.approx(0.5 * (0.8 + 0.1) / 2)
    assert rates[12] == pytest.approx(0.05)
    assert config.lr_at(STEP, 512) == pytest.approx(4 * rates[3])


@pytest.mark.parametrize("epochs", [0, 0.25, 0.3, 1, 3, 100])
@pytest.mark.parametrize("schedule", ["mocov3", "dino"])
def test_any_length_of_warm_up_gives_a_rate_between_its_ends(schedule, epochs):
    config = OptimConfig(lr=0.8, final_lr=0.1, warmup_epochs=epochs, schedule=schedule)
    rates = [config.lr_at(STEP._replace(step=step), 256) for step in range(12)]
    assert all(0 <= rate < 0.8 + 1e-9 for rate in rates)
    assert epochs >= 3 or max(rates) > 0.75


def test_the_weight_decay_follows_its_cosine_and_spares_1d_parameters():
    config = OptimConfig(**DINO)
    decays = [config.weight_decay_at(STEP._replace(step=step)) for step in range(13)]
    expected = [0.4 - 0.36 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(13)]
    assert decays == pytest.approx(expected)
    assert config.weight_decay_at(STEP, one_d=True) == 0
    assert OptimConfig(weight_decay=0.2).weight_decay_at(STEP) == 0.2


def test_the_rate_of_1d_parameters_is_the_curve_scaled():
    """Barlow Twins: both rates go to a thousandth of their peak."""
    config = OptimConfig(**BARLOW, warmup_epochs=1)
    for step in range(13):
        when = STEP._replace(step=step)
        assert config.lr_at(when, 256, one_d=True) == pytest.approx(config.lr_at(when, 256) * 0.0048 / 0.2)
    assert config.lr_at(STEP._replace(step=12), 256, one_d=True) == pytest.approx(0.0048e-3)


def test_the_rates_of_a_step_do_not_depend_on_the_steps_before():
    config, module = OptimConfig(**DINO), small()
    one, other = build_optimizer(module, config), build_optimizer(module, config)
    for step in range(4):
        set_rates(one, config, STEP._replace(step=step), 64)
    set_rates(other, config, STEP, 64)
    assert one.state_dict() == other.state_dict()


# groups


def test_the_default_is_one_group_of_what_is_trained():
    module = small()
    optimizer = build_optimizer(module, OptimConfig())
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(group["params"], lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    assert optimizer.state_dict() == plain.state_dict()


@pytest.mark.parametrize("settings", [DINO, BARLOW, {"lr_1d": 0.1}, {"name": "lars", "decay_1d": False}])
def test_1d_parameters_are_apart_where_they_differ(settings):
    module, config = small(), OptimConfig(**settings)
    optimizer = build_optimizer(module, config)
    weights, one_d = optimizer.param_groups
    assert [p.ndim for p in weights["params"]] == [2, 2]
    assert [p.ndim for p in one_d["params"]] == [1, 1, 1]
    start = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    one_d_lr = config.lr if config.lr_1d is None else config.lr_1d
    assert start == [(config.lr, config.weight_decay), (one_d_lr, config.weight_decay * config.decay_1d)]
    set_rates(optimizer, config, STEP, 64)
    for group, is_1d in ((weights, False), (one_d, True)):
        assert group["lr"] == config.lr_at(STEP, 64, one_d=is_1d)
        assert group["weight_decay"] == config.weight_decay_at(STEP, one_d=is_1d)


def test_a_bias_of_more_dimensions_is_1d_and_a_token_is_not():
    module = nn.Module()
    module.bias, module.cls_token = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1, 1, 3))
    weights, one_d = build_optimizer(module, OptimConfig(decay_1d=False)).param_groups
    assert weights["params"] == [module.cls_token]
    assert one_d["params"] == [module.bias]


def test_without_matrices_there_is_one_group():
    (group,) = build_optimizer(nn.LayerNorm(3), OptimConfig(decay_1d=False)).param_groups
    assert group["weight_decay"] == 0


# LARS


def barlow_step(p, gradient, velocity, lr, decay):
    """`LARS.step` of Barlow Twins for one tensor."""
    if p.ndim > 1:
        gradient = gradient + decay * p
        norm, update = p.norm(), gradient.norm()
        gradient = gradient * (0.001 * norm / update if norm > 0 and update > 0 else 1.0)
    velocity = 0.9 * velocity + gradient
    return p - lr * velocity, velocity


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.05])
def test_lars_is_that_of_barlow_twins(decay):
    """Ours divides by |g| + d |w| + 1e-8 where Barlow Twins divides by |g + d w|. The share between them is at most
    1 - |g + d w| / (|g| + d |w|) <= 2 d |w| / |g|: 1e-6 of an update at its decay. 1-D parameters: no difference."""
    config = OptimConfig(**BARLOW | {"weight_decay": decay})
    module = small()
    with torch.no_grad():
        module[2].weight.zero_()  # a weight of norm 0 takes its gradient as it is
    optimizer = build_optimizer(module, config)
    trained = [p for p in module.parameters() if p.requires_grad]
    expected = [p.detach().double() for p in trained]
    velocities = [torch.zeros_like(p) for p in expected]
    fraction = 0.0
    for step in range(1, 6):
        set_rates(optimizer, config, STEP._replace(step=step), 64)
        give_gradients(module, step)
        fraction = max(
            [fraction, *(float(2 * decay * p.detach().norm() / p.grad.norm()) for p in trained if p.ndim > 1)]
        )
        optimizer.step()
        for i, p in enumerate(trained):
            lr = config.lr_at(STEP._replace(step=step), 64, one_d=p.ndim == 1)
            expected[i], velocities[i] = barlow_step(expected[i], p.grad.double(), velocities[i], lr, decay)
    assert fraction < (5e-6 if decay <= 1e-6 else 0.1)
    for p, q, velocity in zip(trained, expected, velocities, strict=True):
        found = optimizer.state[p]["momentum_buffer"].double()
        rounding = 1e-5
        assert (found - velocity).norm() <= (rounding + (fraction if p.ndim > 1 else 0)) * velocity.norm()
        assert (p - q).norm() <= (rounding + (fraction if p.ndim > 1 else 0)) * q.norm()


# clipping


@pytest.mark.parametrize("clip", [0.5, 3.0, 100.0])
def test_clipping_per_parameter_is_a_loop(clip):
    module, config = small(), OptimConfig(clip=clip, clip_per_parameter=True)
    give_gradients(module, 1, without=("2.weight",))
    expected = []
    for p in module.parameters():
        if p.grad is not None:
            coefficient = clip / (p.grad.norm(2) + 1e-6)
            expected.append(p.grad * coefficient if coefficient < 1 else p.grad.clone())
    clip_gradients(module.parameters(), config)
    found = [p.grad for p in module.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_global_clipping_keeps_the_direction():
    module = small()
    give_gradients(module, 1, without=("0.bias",))
    before = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    for clip, norm in ((100.0, before.norm()), (0.5, torch.tensor(0.5)), (0.0, torch.tensor(0.5))):
        clip_gradients(module.parameters(), OptimConfig(clip=clip))
        after = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        assert torch.allclose(after, before * norm / before.norm(), atol=1e-6)


# settings

ADAMW = {"warmup_epochs": 1, "lr": 0.1, "final_lr": 0.01}
LARS = ADAMW | {"name": "lars", "lr": 5.0}
CHANGES = [
    (ADAMW, {"name": "lars"}),
    (LARS, {"momentum": 0.5}),
    (ADAMW, {"lr": 0.2}),
    (LARS, {"weight_decay": 0.3}),
    (ADAMW, {"weight_decay": 0.3}),
    (ADAMW, {"weight_decay_end": 0.4}),
    (LARS, {"weight_decay_end": 0.4}),
    (ADAMW, {"decay_1d": False}),
    (LARS, {"decay_1d": False}),
    (LARS | {"weight_decay": 0.0}, {"decay_1d": False}),
    (ADAMW, {"lr_1d": 0.3}),
    (LARS, {"lr_1d": 0.0}),
    (ADAMW, {"betas": (0.8, 0.999)}),
    (ADAMW, {"betas": (0.9, 0.9)}),
    (ADAMW, {"warmup_epochs": 2}),
    (ADAMW, {"final_lr": 0.05}),
    (ADAMW, {"schedule": "dino"}),
    (ADAMW, {"clip": 0.5}),
    (ADAMW | {"clip": 5.0}, {"clip_per_parameter": True}),
    (LARS | {"clip": 5.0, "decay_1d": False}, {"clip_per_parameter": True}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "change"), CHANGES)
def test_every_setting_changes_the_update(settings, change):
    base = OptimConfig(**settings)
    one, other = updated(base), updated(dataclasses.replace(base, **change))
    assert torch.equal(one, updated(base))
    assert (one - other).abs().max() > 1e-5


def test_no_setting_is_left_out_above():
    assert {name for _, change in CHANGES for name in change} == {f.name for f in dataclasses.fields(OptimConfig)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "sgd"}, "'adamw' or 'lars'"),
        ({"schedule": "linear"}, "'mocov3' or 'dino'"),
        *(({name: bad}, f"optim.{name}") for name in ("lr", "weight_decay", "weight_decay_end", "lr_1d",
          "warmup_epochs", "final_lr", "clip") for bad in (-1.0, math.nan, math.inf)),
        ({"name": "lars", "momentum": 1.0}, r"in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"optim\.betas\.1 is 1\.0; it must be less than 1"),
        ({"betas": (0.9,)}, r"optim\.betas\.1 has no value"),
        ({"momentum": 0.5}, "optim.name=lars"),
        ({"name": "lars", "betas": (0.9, 0.95)}, "optim.name=adamw"),
        ({"clip_per_parameter": True}, "optim.clip"),
        ({"lr": 0.0, "lr_1d": 0.1}, "above 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        OptimConfig(**settings)


# checkpoints


@pytest.mark.parametrize(
    "settings",
    [{}, DINO, BARLOW, {"name": "lars"}, {"name": "lars", "momentum": 0.0}],
    ids=["adamw", "adamw-dino", "lars-barlow", "lars", "lars-no-momentum"],
)
def test_a_restored_run_goes_on_with_the_same_bits(tmp_path, settings):
    """One parameter has had no gradient until then, as DINO's last layer in its first epoch."""
    config = OptimConfig(**{"lr": 0.1, "warmup_epochs": 1} | settings)
    module = small()
    optimizer = build_optimizer(module, config)

    def advance(module, optimizer, steps):
        for step in steps:
            set_rates(optimizer, config, STEP._replace(step=step), 64)
            give_gradients(module, step, without=("2.weight",) if step < 4 else ())
            clip_gradients(module.parameters(), config)
            optimizer.step()

    advance(module, optimizer, range(3))
    has_state = {id(p) for p, state in optimizer.state.items() if state}
    expected = {id(p) for n, p in module.named_parameters() if p.requires_grad and n != "2.weight"}
    assert has_state == (set() if settings.get("momentum") == 0 else expected)
    save_checkpoint(tmp_path, 3, module, optimizer, {}, keep=1)
    other = small(seed=1)
    again = build_optimizer(other, config)
    latest_checkpoint(tmp_path).restore(other, again)
    saved, restored = copy.deepcopy(optimizer.state_dict()), again.state_dict()
    assert saved["state"].keys() == restored["state"].keys()
    advance(module, optimizer, range(3, 8))
    advance(other, again, range(3, 8))
    assert same_bits(module.state_dict(), other.state_dict())
    one, two = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert one.keys() == two.keys()
    assert all(same_bits(one[number], two[number]) for number in one)


def test_the_course_of_the_rate_is_said_and_a_warm_up_without_end_is_warned_of():
    optim = OptimConfig(lr=1e-3, warmup_epochs=2)
    said = optim.describe_schedule(total=50, steps_per_epoch=10, batch_size=128)
    assert "50 steps, 20 of them warm-up" in said
    assert "at most 0.0005" in said
    assert "lower optim.warmup_epochs" not in said
    short = OptimConfig(lr=1e-3, warmup_epochs=10).describe_schedule(total=50, steps_per_epoch=10, batch_size=256)
    assert "10 epochs and the run has 5" in short
    assert "reaches 49% of optim.lr" in short
    assert "lower optim.warmup_epochs" in short


@pytest.mark.parametrize("schedule", ["mocov3", "dino"])
@pytest.mark.parametrize("warmup", [0, 0.01, 0.5, 1.3, 7])
def test_the_largest_rate_is_that_of_all_steps(schedule, warmup):
    optim = OptimConfig(lr=1e-3, warmup_epochs=warmup, schedule=schedule)
    rates = [optim.lr_at(StepInfo(step, 25, 5), 256) for step in range(25)]
    assert f"at most {max(rates):.2g}," in optim.describe_schedule(25, 5, 256)
