"""The momentum network in a task: without drop path, moved once a step where the method says."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from equimid.addons import ESSLConfig, SERConfig, plan_views
from equimid.config import override
from equimid.engine import OptimConfig, RuntimeConfig, TrainConfig, Trainer, make_fabric
from equimid.errors import UserError
from equimid.methods import BYOLConfig, DINOConfig, MoCoV3Config
from equimid.recipes import recipe
from equimid.runs.pretrain import pretrain
from equimid.task import Task
from equimid.views import ViewDataset, ViewsConfig
from helpers.drawing import drawn
from helpers.tasks import HEADS, TINY, make_task, make_views


def test_drop_path_is_the_students_alone():
    backbone = replace(TINY, drop_path=0.5)
    task = make_task(SERConfig(layers=(1,), hidden=8), backbone)
    views = make_views()
    task.train()
    with torch.no_grad():
        first, again = (task._momentum(views) for _ in range(2))
        own, other = (task._student(views)[1] for _ in range(2))
    assert all(torch.equal(a.cls, b.cls) for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True))
    assert all(not torch.allclose(a, b) for a, b in zip(own, other, strict=True))
    assert {m.drop_prob for m in task.student.modules() if hasattr(m, "drop_prob")} == {0.125, 0.25, 0.375, 0.5}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (HEADS, ["update_teacher", "forward", "forward", "update"]),
        (DINOConfig(out_dim=12, hidden=8, bottleneck=6), ["forward", "forward", "update", "update_teacher"]),
        (BYOLConfig(hidden=12, dim=8), ["forward", "forward", "update", "update_teacher"]),
    ],
)
def test_the_momentum_network_follows_once_a_step_where_its_method_says(method, expected, tmp_path, monkeypatch):
    addons = {"essl": ESSLConfig(size=16), "ser": SERConfig(layers=(1,), hidden=8)}
    runtime = RuntimeConfig(accelerator="cpu", workers=0, tensorboard=False)
    plan = plan_views(ViewsConfig(), TINY, addons, 6)
    task, order = Task(TINY, method, addons, plan, 0), []

    def noting(name, call):
        return lambda *args, **kwargs: order.append(name) or call(*args, **kwargs)

    for name in ("update_teacher", "forward"):
        monkeypatch.setattr(task, name, noting(name, getattr(task, name)))
    monkeypatch.setattr(torch.optim.AdamW, "step", noting("update", torch.optim.AdamW.step))
    dataset, train = ViewDataset(drawn(12, (40, 36)), plan, 0), TrainConfig(batch_size=12, steps=2, accumulate=2)
    Trainer(
        make_fabric(runtime), task, dataset, train=train, optim=OptimConfig(), runtime=runtime,
        seed=0, folder=tmp_path, run={},
    ).fit()  # fmt: skip
    assert order == expected * 2
    assert MoCoV3Config().build(8).ema_last is False


def test_the_network_that_is_asked_for_is_exported_and_told(tmp_path):
    """DINO's own measure is of its teacher; the default is the student (law 8: it is said which)."""
    quick = ["data.source=digits", "train.batch_size=16", "train.steps=3", "backbone.embed_dim=32", "runtime.workers=0",
             "runtime.tensorboard=false", "method.hidden=16", "optim.warmup_epochs=0"]  # fmt: skip
    pretrain(override(recipe("dino-tiny"), quick), tmp_path / "run", finish=False)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    saved = load_file(folder / "model.safetensors")
    for name in ("student", "momentum"):
        config = override(recipe("dino-tiny"), [*quick, f"evaluation.network={name}"])
        pretrain(config, tmp_path / "run", finish=False)  # trained already: exported anew
        weights = load_file(tmp_path / "run" / "backbone" / "model.safetensors")
        assert all(torch.equal(value, saved[f"{name}.{key}"]) for key, value in weights.items())
        assert json.loads((tmp_path / "run" / "backbone" / "config.json").read_text())["network"] == name
    other = override(recipe("simclr-tiny"), [*quick, "evaluation.network=momentum"])
    with pytest.raises(UserError, match="simclr has no momentum network; use student"):
        pretrain(other, tmp_path / "other", finish=False)
