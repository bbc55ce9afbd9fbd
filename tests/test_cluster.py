"""The same training on 1, 2 and 4 gloo processes, under DDP and FSDP, and resumed on other numbers of them.

Networks are tiny and everything is float32: what differs is the order in which sums are rounded.
"""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from equimid.addons import SERConfig, plan_views
from equimid.backbones import BackboneConfig
from equimid.engine import OptimConfig, RuntimeConfig, TrainConfig, Trainer, make_fabric
from equimid.engine.sharding import is_sharded, whole_state
from equimid.methods import MoCoV3Config
from equimid.testing import on_ranks
from equimid.views import ViewDataset, ViewsConfig
from helpers.ranks import Drawn, as_torchrun_sets
from helpers.tasks import make_task

STEPS = 20
NETWORK = BackboneConfig(
    name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, cls_layer=2
)
SER = SERConfig(layers=(2,), hidden=8)


def train(folder, strategy="ddp", steps=STEPS, clip=0.0, accumulate=1):
    """Train into a folder as one of the processes that are there; returns the final weights."""
    plan = plan_views(ViewsConfig(), NETWORK, {"ser": SER}, 16 // accumulate)
    runtime = RuntimeConfig(
        accelerator="cpu", precision="fp32", workers=0, tensorboard=False, log_every=1, checkpoint_every=10,
        strategy=strategy,
    )  # fmt: skip
    fabric = make_fabric(runtime)
    fabric.launch()
    task = make_task(SER, NETWORK, MoCoV3Config(hidden=12, dim=6), batch=16 // accumulate)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        fabric, task, ViewDataset(Drawn(), plan, seed=1), runtime=runtime, seed=1, folder=folder, run={},
        train=TrainConfig(batch_size=16, steps=steps, accumulate=accumulate),
        optim=OptimConfig(lr=5e-3, warmup_epochs=2, clip=clip),
    )  # fmt: skip
    assert is_sharded(task) is (strategy == "fsdp" and fabric.world_size > 1)
    trainer.fit()
    return whole_state(task)


def halfway(folder, name):
    """A copy of a run of which only the first ten steps are left."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS:08d}")
    (copy / "metrics.csv").unlink()
    return copy


def prefixed(name, state):
    return {f"{name}:{key}": value for key, value in state.items()}


def on_two(rank, ranks, root):
    as_torchrun_sets(rank, ranks)
    found = {}
    for strategy in ("ddp", "fsdp"):
        found |= prefixed(f"two-{strategy}", train(root / f"two-{strategy}", strategy))
    for strategy in ("ddp", "fsdp"):
        folder = root / f"two-split-{strategy}"
        found |= prefixed(folder.name, train(folder, strategy, steps=4, clip=1.0, accumulate=2))
    return found


def on_four(rank, ranks, root):
    as_torchrun_sets(rank, ranks)
    found = prefixed("four-ddp", train(root / "four-ddp"))
    for before, now in (("ddp", "fsdp"), ("fsdp", "ddp")):
        name = f"four-{now}-after-{before}"
        found |= prefixed(name, train(root / name, now))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All runs: their folders and, by "run:tensor", their final weights."""
    root = tmp_path_factory.mktemp("cluster")
    weights = prefixed("one", train(root / "one")) | prefixed(
        "one-split", train(root / "one-split", steps=4, clip=1.0, accumulate=2)
    )
    weights |= on_ranks(on_two, 2, (root,))[0]
    for before, other in (("ddp", "fsdp"), ("fsdp", "ddp")):
        halfway(root / f"two-{before}", f"four-{other}-after-{before}")
        name = f"one-after-{before}"
        weights |= prefixed(name, train(halfway(root / f"two-{before}", name)))
    weights |= on_ranks(on_four, 4, (root,))[0]
    return root, weights


def losses(folder: Path) -> dict[int, torch.Tensor]:
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name.startswith("loss/")]
    assert len(names) == 3
    return {int(row["step"]): torch.tensor([float(row[name]) for name in names]) for row in rows}


def of(weights, run):
    return {key.partition(":")[2]: value for key, value in weights.items() if key.startswith(f"{run}:")}


def with_gradient(state):
    """Without what has no gradient but for rounding, which AdamW makes steps of: the keys' biases cancel in the
    softmax, and a number that is added to every CLS is taken away by the first batch norm."""
    shifts = {f"{network}.norm.bias" for network in ("student", "momentum")}
    shifts |= {f"method.{projector}.1.running_mean" for projector in ("projector", "momentum_projector")}
    assert shifts <= set(state)
    kept = {name: value for name, value in state.items() if name not in shifts}
    for name, value in kept.items():
        if name.endswith("attn.qkv.bias"):
            queries, _, values = value.chunk(3)
            kept[name] = torch.cat([queries, values])
    return kept


def assert_same_weights(found, expected):
    found, expected = with_gradient(found), with_gradient(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=1e-5), name


@pytest.mark.parametrize("run", ["two-ddp", "two-fsdp", "four-ddp"])
def test_the_number_of_processes_and_the_strategy_change_no_loss(trained, run):
    root, _ = trained
    one, other = losses(root / "one"), losses(root / run)
    assert list(one) == list(other) == list(range(1, STEPS + 1))
    assert not torch.allclose(one[1], one[STEPS], rtol=1e-2), "nothing was trained"
    for step, expected in one.items():
        assert torch.allclose(other[step], expected, rtol=1e-5, atol=0), step


RESUMED = ["one-after-ddp", "one-after-fsdp", "four-ddp-after-fsdp", "four-fsdp-after-ddp"]


@pytest.mark.parametrize("run", RESUMED)
def test_a_checkpoint_of_two_resumes_on_one_and_on_four(trained, run):
    root, weights = trained
    whole, resumed = losses(root / "two-ddp"), losses(root / run)
    assert list(resumed) == list(range(11, STEPS + 1)), "the first steps were done again"
    for step, found in resumed.items():
        assert torch.allclose(found, whole[step], rtol=1e-5, atol=0), step
    assert_same_weights(of(weights, run), of(weights, "two-ddp"))


@pytest.mark.parametrize("run", ["two-split-ddp", "two-split-fsdp"])
def test_accumulation_and_clipping_are_the_same_over_processes(trained, run):
    root, weights = trained
    one, other = losses(root / "one-split"), losses(root / run)
    for step, expected in one.items():
        assert torch.allclose(other[step], expected, rtol=1e-5, atol=0), step
    assert_same_weights(of(weights, run), of(weights, "one-split"))


def test_a_sharded_checkpoint_is_of_as_many_files_as_processes(trained):
    root, _ = trained
    files = sorted(f.name for f in (root / "four-fsdp-after-ddp" / "checkpoints" / f"step-{STEPS:08d}").iterdir())
    expected = [f"{kind}-{r:05d}-of-00004.safetensors" for kind in ("model", "optimizer") for r in range(4)]
    assert files == [*expected, "state.json"]
    plain = sorted(f.name for f in (root / "four-ddp-after-fsdp" / "checkpoints" / f"step-{STEPS:08d}").iterdir())
    assert plain == ["model.safetensors", "optimizer.safetensors", "state.json"]
