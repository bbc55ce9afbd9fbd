"""The loop: resume to the same bits, checkpoints that survive, signals, health, order."""

import logging
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from equimid.addons import SERConfig, plan_views
from equimid.backbones import BackboneConfig
from equimid.config import override
from equimid.engine import Trainer, make_fabric
from equimid.engine.callbacks import Callback, CsvLog
from equimid.engine.checkpoint import latest_checkpoint
from equimid.engine.config import OptimConfig, RuntimeConfig, TrainConfig
from equimid.engine.health import HealthCheck, effective_rank, feature_std, map_variance
from equimid.engine.optimizer import build_optimizer, set_rates
from equimid.engine.sampler import MicroBatches
from equimid.errors import UnreadableImage, UserError
from equimid.methods import MoCoV3Config
from equimid.randomness import counted_torch_seed
from equimid.recipes import recipe
from equimid.runs.pretrain import pretrain
from equimid.schedules import StepInfo
from equimid.views import ViewDataset, ViewsConfig, collate, sample_poses, to_device_views
from helpers.processes import run_program, wait_for
from helpers.tasks import TINY, logged, make_task
from helpers.tensors import same_bits

# a network so small that a step takes milliseconds
SMALL = [
    "--recipe", "ser-tiny", "backbone.embed_dim=24", "backbone.depth=3", "backbone.num_heads=2",
    "backbone.image_size=16", "backbone.patch_size=4", "method.hidden=16", "method.dim=8", "ser.hidden=8",
    "train.batch_size=64", "train.epochs=1", "runtime.checkpoint_every=3", "runtime.tensorboard=false",
    "evaluation.linear_epochs=2", "evaluation.equivariance_images=8",
]  # fmt: skip
STEPS = 1437 // 64


def command(folder, *settings):
    return [sys.executable, "-m", "equimid", "pretrain", "digits", "--out", str(folder), *SMALL, *settings]


def run(folder, *settings, **kwargs):
    return run_program(command(folder, *settings), **kwargs)


def final_weights(folder):
    return load_file(folder / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run(folder, "runtime.workers=0")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("workers", "kills"), [(0, (2, 7, 16)), (1, (5, 9, 13)), (2, (4, 8, 19))])
def test_killed_three_times_it_ends_with_the_same_bits(uninterrupted, tmp_path, workers, kills):
    folder = tmp_path / "run"
    settings = [f"runtime.workers={workers}", "runtime.log_every=1"]
    for step in kills:
        process = subprocess.Popen(
            command(folder, *settings), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_for(folder, step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    done = run(folder, *settings)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    assert same_bits(final_weights(folder), final_weights(uninterrupted))
    steps = [int(line.split(",")[0]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, STEPS + 1)), "a row is missing or doubled"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(uninterrupted, tmp_path, number, status):
    folder = tmp_path / "run"
    settings = ["runtime.workers=1", "runtime.log_every=1", "runtime.checkpoint_every=1000"]
    process = subprocess.Popen(command(folder, *settings), stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(folder, 4, process)
    os.killpg(process.pid, number)  # the whole group, as a terminal does: loader workers too
    _, told = process.communicate()
    assert process.returncode == status, told
    assert "Traceback" not in told
    assert "the checkpoint is written" in told
    assert "Run the same command again" in told
    stopped = latest_checkpoint(folder / "checkpoints").step
    assert 4 <= stopped < STEPS
    done = run(folder, *settings)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {stopped} of {STEPS}" in done.stderr
    assert same_bits(final_weights(folder), final_weights(uninterrupted))


def test_two_processes_train_what_one_trains(uninterrupted, tmp_path):
    """The command line with runtime.devices=2: DDP, unused parameters not searched for."""
    folder = tmp_path / "run"
    done = run(folder, "runtime.devices=2", "runtime.workers=0", "runtime.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    rows = [(f / "metrics.csv").read_text().splitlines() for f in (uninterrupted, folder)]
    header, *one = [line.split(",") for line in rows[0]]
    _, *two = [line.split(",") for line in rows[1]]
    assert len(one) == len(two) > 10
    for a, b in zip(one, two, strict=True):
        first, other = (dict(zip(header, map(float, row), strict=True)) for row in (a, b))
        # rounding grows over the steps, in gradients more than in losses
        for name in ("loss/total", "loss/mocov3", "loss/ser", "feature/std", "lr"):
            assert other[name] == pytest.approx(first[name], rel=2e-3), (name, first["step"])
        for name in ("gradient/base", "gradient/ser"):
            assert other[name] == pytest.approx(first[name], rel=2e-2), (name, first["step"])


def test_a_finished_run_is_not_trained_again(uninterrupted):
    before = (uninterrupted / "metrics.csv").read_text()
    done = run(uninterrupted)
    assert done.returncode == 0, done.stderr
    assert (uninterrupted / "metrics.csv").read_text() == before


def test_another_setting_on_the_same_folder_is_refused_by_name(uninterrupted):
    done = run(uninterrupted, "ser.weight=0.5")
    assert done.returncode == 2
    assert "ser.weight was 3.0 and is now 0.5" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(
        command(folder, "train.epochs=50", "runtime.log_every=1"), stderr=subprocess.PIPE, text=True
    )
    wait_for(folder, 2, first)
    second = run(folder, "train.epochs=50", "runtime.log_every=1")
    first.terminate()
    first.communicate()
    assert second.returncode == 2
    assert "in use by another equimid process" in second.stderr
    assert first.returncode == 143


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    done = run(folder, "optim.lr=1e12", "optim.warmup_epochs=0.2", "runtime.checkpoint_every=1")
    assert done.returncode == 2
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    kept = latest_checkpoint(folder / "checkpoints")
    said = re.search(r"the checkpoint of step (\d+) is the last good one", done.stderr)
    assert kept.step == int(said[1])
    weights = load_file(kept.folder / "model.safetensors")
    assert max(float(value.abs().max()) for value in weights.values()) < 1e6, "weights that gave no finite loss"


class _Drawn:
    """Images drawn from their number; one of them has gone bad."""

    def __len__(self):
        return 8

    def load(self, index):
        if index == 3:
            raise UnreadableImage("truncated")
        return Image.new("RGB", (16, 16), (30 * index, 255 - 30 * index, 90))

    def describe(self, index):
        return f"drawn {index}"


def test_what_goes_bad_in_training_is_replaced_and_listed(tmp_path):
    """With two micro-batches a step."""
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, cls_layer=2
    )
    ser = SERConfig(layers=(2,), hidden=8)
    train, views = TrainConfig(batch_size=8, epochs=2, accumulate=2), ViewsConfig()
    runtime = RuntimeConfig(accelerator="cpu", workers=0, tensorboard=False)
    trainer = Trainer(
        make_fabric(runtime),
        make_task(ser, backbone, MoCoV3Config(hidden=12, dim=6), views, train.micro_batch),
        ViewDataset(_Drawn(), plan_views(views, backbone, {"ser": ser}, train.micro_batch), seed=0),
        train=train, optim=OptimConfig(), runtime=runtime, seed=0, folder=tmp_path, run={},
    )  # fmt: skip
    outcome = trainer.fit()
    assert (outcome.steps, outcome.total, outcome.stopped_by) == (2, 2, None)
    assert (tmp_path / "unreadable.csv").read_text().splitlines() == ["drawn 3,found in training"]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    assert float(dict(zip(rows[0].split(","), rows[1].split(","), strict=True))["gradient/ser"]) > 0


class Recorder(Callback):
    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def on_start(self, step, total):
        self.calls.append(("start", step, total))

    def on_step(self, step, losses, images_per_second):
        self.calls.append(("step", step, sorted(losses), images_per_second > 0))
        if step == self.fail_at:
            raise RuntimeError("stop here")

    def on_log(self, step, row, images):
        self.calls.append(("log", step, row["step"], images))

    def on_checkpoint(self, step, folder):
        self.calls.append(("checkpoint", step, (folder / "checkpoints").is_dir()))

    def on_end(self, outcome):
        self.calls.append(("end", outcome and outcome.steps))


def test_callbacks_see_every_step_row_and_checkpoint_and_the_end(tmp_path):
    seen, failing = Recorder(), Recorder(fail_at=2)
    quick = ["train.steps=3", "train.batch_size=32", "runtime.workers=0", "runtime.tensorboard=false",
             "runtime.checkpoint_every=2", "data.source=digits"]  # fmt: skip
    config = override(recipe("mocov3-tiny"), quick)
    pretrain(config, tmp_path / "run", finish=False, callbacks=[seen])
    names = ["mocov3", "total"]
    steps = [entry for n in (1, 2, 3) for entry in (("log", n, n, 32), ("step", n, names, True))]
    steps.insert(4, ("checkpoint", 2, True))
    assert seen.calls == [("start", 0, 3), *steps, ("checkpoint", 3, True), ("end", 3)]
    with pytest.raises(RuntimeError, match="stop here"):
        pretrain(config, tmp_path / "other", finish=False, callbacks=[failing])
    assert failing.calls[-1] == ("end", None), "also after an error"


# ---- order, metrics, health, settings ----------------------------------------------------------------------------


def keys(first_step=0, rank=0, ranks=1, seed=0, accumulate=1):
    plan = plan_views(ViewsConfig(), TINY, {"ser": SERConfig(fraction=0.1)}, 4)
    order = MicroBatches(
        21, seed, micro_batch=4 // accumulate, accumulate=accumulate, first_step=first_step, last_step=12, plan=plan,
        rank=rank, ranks=ranks,
    )  # fmt: skip
    batches = list(order)
    assert len(order) == len(batches)
    return batches


def test_order_is_a_permutation_per_epoch_and_a_function_of_seed_and_epoch():
    batches = keys()
    epochs = [[k.index for b in batches[e * 5 : e * 5 + 5] for k in b] for e in range(2)]
    assert all(len(set(e)) == 20 for e in epochs)
    assert epochs[0] != epochs[1]
    assert keys() == batches
    assert keys(seed=1) != batches
    assert keys(first_step=7) == batches[7:], "a resumed order is the rest of the order"
    assert [k.posed for k in batches[0]] == [True, True, False, False]
    assert [k.epoch for b in batches for k in b] == [0] * 20 + [1] * 20 + [2] * 8


def test_ranks_share_the_batches_of_one():
    whole, parts = keys(), [keys(rank=r, ranks=2) for r in range(2)]
    for batch, even, odd in zip(whole, *parts, strict=True):
        assert [batch[0], batch[2]] == even
        assert [batch[1], batch[3]] == odd


def test_accumulated_batches_hold_the_same_images():
    whole, parts = keys(), keys(accumulate=2)
    assert [[k.index for k in b] for b in whole] == [
        [k.index for k in a + b] for a, b in zip(parts[::2], parts[1::2], strict=True)
    ]


def test_metrics_drop_what_came_after_the_checkpoint(tmp_path):
    metrics = CsvLog(tmp_path, 0)
    for step in range(1, 6):
        metrics.on_log(step, {"step": step, "seconds": 2.0 * step}, 8)
    with metrics.file.open("a") as stream:
        stream.write("6,0.")  # killed while it wrote
    resumed = CsvLog(tmp_path, 3)
    assert resumed.seconds == 6, "time goes on where the kept rows end"
    resumed.on_log(4, {"step": 4, "seconds": 7.5}, 8)
    assert metrics.file.read_text().split() == ["step,seconds", "1,2", "2,4", "3,6", "4,7.5"]


def test_feature_statistics():
    assert feature_std(torch.ones(8, 4)) == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))) == pytest.approx(1, abs=0.02)
    assert effective_rank(torch.cat([torch.eye(6), -torch.eye(6)])) == pytest.approx(6, rel=1e-4)
    line = torch.outer(torch.linspace(-1, 1, 9), torch.ones(5))
    assert effective_rank(line) == pytest.approx(1, rel=1e-3)


def test_the_variance_between_images_is_that_of_their_mean_tokens():
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 5, 3, 4, generator=rng)
    between, total = map_variance(maps)
    tokens = maps.movedim(1, -1).reshape(6, 12, 5).double().numpy()
    mean = tokens.mean((0, 1))
    assert float(between) == pytest.approx(12 * np.square(tokens.mean(1) - mean).sum(), rel=1e-5)
    assert float(total) == pytest.approx(np.square(tokens - mean).sum(), rel=1e-5)
    repeated = maps.mean((2, 3), keepdim=True).expand_as(maps)
    between, total = map_variance(repeated)
    assert float(between / total) == pytest.approx(1, abs=1e-5), "one vector for the whole image"


def test_health_warns_once_that_place_is_being_lost(caplog):
    health = HealthCheck({"ser": 1.0}, patience=5)
    health.on_log(2 + 1, logged(between={"layer_3": 0.99}), 8)
    health.on_log(9 + 1, logged(between={"layer_3": 0.5}), 8)
    assert not caplog.records
    for step in (9, 10):
        health.on_log(step + 1, logged(between={"layer_3": 0.97, "layer_4": 0.2}), 8)
    (record,) = caplog.records
    assert all(word in record.message for word in ("step 10", "layer 3", "97%", "ser.negatives=all"))


def test_health_warns_once_of_a_dead_term_and_of_collapse(caplog):
    health = HealthCheck({"ser": 1.0}, patience=5)
    with caplog.at_level(logging.WARNING, "equimid"):
        health.on_log(0 + 1, logged(std=0.001, gradients={"base": 0.1, "ser": 0.2}), 8)
        assert not caplog.records, "nearly equal features at the start are not a collapse"
        for _ in range(2):
            health.on_log(6 + 1, logged(std=0.001, gradients={"base": 0.1, "ser": 0.0}), 8)
    assert [("no gradient of the ser loss" in m, "collapse" in m) for m in caplog.messages] == [
        (True, False),
        (False, True),
    ]
    HealthCheck({"ser": 0.0}, patience=5).on_log(1, logged(gradients={"ser": 0.0}), 8)
    assert len(caplog.messages) == 2, "a weight of 0 is meant"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(batch_size=0), "batch_size is 0"),
        (lambda: TrainConfig(batch_size=10, accumulate=3), "does not divide"),
        (lambda: TrainConfig(batch_size=10).steps_per_epoch(5), "only 5 images"),
        (lambda: RuntimeConfig(workers=-1), "workers is -1"),
        (lambda: RuntimeConfig(devices=0), "devices is 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_loop_is_its_definition(tmp_path, monkeypatch, clip):
    """Against a loop written out: two micro-batches, drop path, clipping, a rate that changes."""
    norms, update = [], torch.optim.AdamW.step

    def noted(self, *args, **kwargs):  # AdamW itself hardly feels the scale of a gradient
        norms.append(float(nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]])))
        return update(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    from equimid.backbones import BackboneConfig

    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, cls_layer=2,
        drop_path=0.3,
    )  # fmt: skip
    ser, seed, steps = SERConfig(layers=(2,), hidden=8), 3, 4
    train, optim = TrainConfig(batch_size=8, steps=steps, accumulate=2), OptimConfig(lr=0.1, warmup_epochs=2, clip=clip)
    runtime = RuntimeConfig(accelerator="cpu", workers=0, tensorboard=False)
    plan = plan_views(ViewsConfig(), backbone, {"ser": ser}, train.micro_batch)
    dataset = ViewDataset(_Drawn(), plan, seed=seed)
    tasks = [make_task(ser, backbone, MoCoV3Config(hidden=12, dim=6), batch=4, seed=seed) for _ in range(2)]
    Trainer(
        make_fabric(runtime), tasks[0], dataset, train=train, optim=optim, runtime=runtime, seed=seed,
        folder=tmp_path, run={},
    ).fit()  # fmt: skip
    task, optimizer = tasks[1].train(), build_optimizer(tasks[1], optim)
    keys = iter(MicroBatches(8, seed, micro_batch=4, accumulate=2, first_step=0, last_step=steps,
                             plan=plan, rank=0, ranks=1))  # fmt: skip
    for step in range(steps):
        set_rates(optimizer, optim, StepInfo(step, steps, 1), batch_size=8)
        task.update_teacher(StepInfo(step, steps, 1))
        optimizer.zero_grad()
        for micro in range(2):
            batch = collate([dataset[key] for key in next(keys)])
            views = to_device_views(batch, plan, sample_poses(plan, seed, 2 * step + micro, 0, 1), torch.device("cpu"))
            with counted_torch_seed(seed, "dropout", step, micro, 0):
                (task(views, StepInfo(step, steps, 1)).total / 2).backward()
        if clip:
            nn.utils.clip_grad_norm_(task.parameters(), clip)
        optimizer.step()
    assert norms[:steps] == pytest.approx(norms[steps:], rel=1e-4)
    for name, expected in task.state_dict().items():
        assert torch.allclose(tasks[0].state_dict()[name].double(), expected.double(), rtol=1e-4, atol=1e-6), name
