"""The plain reading is the same step: the comparison with it is of speed alone."""

from dataclasses import replace

import pytest
import torch
from lib.reference_step import PlainStep

from equimid.addons import ESSLConfig, SERConfig
from equimid.config import Config
from equimid.engine import TrainConfig
from equimid.errors import UserError
from equimid.methods import SimSiamConfig
from equimid.schedules import StepInfo
from helpers.tasks import HEADS, TINY, make_task, make_views


def both(addons=None, **kwargs):
    """A task whose momentum network has moved away from the student, and the plain reading of it, in float64."""
    task = make_task(addons, **kwargs)
    chosen = {"ser": addons} if addons else {}
    config = Config(backbone=TINY, method=HEADS, addons=chosen, train=TrainConfig(batch_size=8))
    plain = PlainStep(config, task)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for ours, theirs in (
            (task.momentum, plain.momentum_student),
            (task.method.momentum_projector, plain.momentum_projector),
        ):
            for p in ours.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
            theirs.load_state_dict(ours.state_dict(), strict=False)
        if addons:
            layer = str(addons.layers[0])
            plain.momentum_norm.load_state_dict(task.momentum.tap_norms[layer].state_dict())
    return task.double(), plain.double()


def doubled(views):
    views.crops = [x.double() for x in views.crops]
    views.posed = [x.double() for x in views.posed]
    return views


@pytest.mark.parametrize("config", [None, SERConfig(layers=(2,), hidden=16), SERConfig(layers=(4,), hidden=16)])
def test_the_plain_reading_has_our_losses_and_our_gradients(config):
    task, plain = both(config)
    views = doubled(make_views(posed=4 if config else 0))
    found, expected = task(views), plain(views)
    assert set(found.named) == set(expected)
    for name, value in expected.items():
        assert float(found.named[name]) == pytest.approx(value.item(), rel=1e-6), name
    found.total.backward()
    (expected["mocov3"] + (config.weight * expected["ser"] if config else 0)).backward()
    names = {f"student.{name}": p for name, p in plain.student.named_parameters()}
    names |= {f"method.projector.{name}": p for name, p in plain.projector.named_parameters()}
    names |= {f"method.predictor.{name}": p for name, p in plain.predictor.named_parameters()}
    if config:
        layer = config.layers[0]
        names |= {f"student.tap_norms.{layer}.{name}": p for name, p in plain.norm.named_parameters()}
        names |= {f"addons.ser.projectors.{layer}.layers.{n}": p for n, p in plain.phi.named_parameters()}
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in names.items() if p.requires_grad}
    for name in trained:
        ours, theirs = task.get_parameter(name).grad, names[name].grad.view_as(task.get_parameter(name))
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max()) + 1e-12, name


def test_a_step_of_the_plain_reading_moves_what_ours_moves():
    config = SERConfig(layers=(3,), hidden=16)
    task, plain = both(config)
    views = doubled(make_views())
    settings = Config(backbone=TINY, method=HEADS, addons={"ser": config}, train=TrainConfig(batch_size=8))
    losses = plain.step(views, plain.optimizer(settings), torch.amp.GradScaler("cpu", enabled=False))
    task.update_teacher(StepInfo(0, 10))  # coefficient 0.99
    optimizer = torch.optim.AdamW(
        [p for p in task.parameters() if p.requires_grad], lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.1
    )
    found = task(views)
    found.total.backward()
    optimizer.step()
    assert losses == pytest.approx({name: float(value) for name, value in found.named.items()}, rel=1e-6)
    for name, p in plain.student.named_parameters():
        assert torch.allclose(p, task.student.get_parameter(name), atol=1e-6), name
    for name, p in plain.momentum_student.named_parameters():
        assert torch.allclose(p, task.momentum.get_parameter(name), atol=1e-9), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": SimSiamConfig()}, "mocov3"),
        ({"addons": {"essl": ESSLConfig(size=16)}}, "mocov3"),
        ({"addons": {"ser": SERConfig(layers=(1, 3))}}, "one layer"),
        ({"addons": {"ser": SERConfig(form="cross_view")}}, "canonical"),
    ],
)
def test_what_it_does_not_read_is_refused(change, message):
    config = Config(backbone=TINY, method=HEADS, train=TrainConfig(batch_size=8))
    with pytest.raises(UserError, match=message):
        PlainStep(replace(config, **change), make_task())
