"""Numbers are read a step later, as on a GPU: the same bits, every row once, and every stop at the right place."""

import csv
import os
import re
import signal

import pytest
import torch

from equimid.addons import SERConfig, plan_views
from equimid.backbones import BackboneConfig
from equimid.engine import OptimConfig, Outcome, RuntimeConfig, TrainConfig, Trainer, latest_checkpoint, make_fabric
from equimid.errors import UnreadableImage, UserError
from equimid.methods import MoCoV3Config
from equimid.testing import on_ranks
from equimid.views import ViewDataset, ViewsConfig
from helpers.ranks import Drawn, as_torchrun_sets
from helpers.tasks import make_task

NETWORK = BackboneConfig(
    name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, cls_layer=2
)
SER = SERConfig(layers=(2,), hidden=8, fraction=0.5)


def trainer(folder, behind, images=None, epochs=2, batch=8, every=3, tolerated=1.0):
    """Five steps an epoch; its numbers are read `behind` steps later."""
    folder.mkdir(parents=True, exist_ok=True)
    runtime = RuntimeConfig(
        accelerator="cpu", precision="fp32", workers=0, tensorboard=False, log_every=1, checkpoint_every=every,
        keep_checkpoints=100,
    )  # fmt: skip
    fabric = make_fabric(runtime)
    fabric.launch()
    plan = plan_views(ViewsConfig(), NETWORK, {"ser": SER}, batch)
    made = Trainer(
        fabric, make_task(SER, NETWORK, MoCoV3Config(hidden=12, dim=6), batch=batch),
        ViewDataset(images or Drawn(), plan, seed=1), runtime=runtime, seed=1, folder=folder, run={},
        train=TrainConfig(batch_size=batch, epochs=epochs), optim=OptimConfig(lr=5e-3, warmup_epochs=1),
        tolerated_unreadable=tolerated,
    )  # fmt: skip
    made.behind = behind
    return made


def rows(folder):
    """Of metrics.csv, without what a clock says."""
    clocked = ("seconds", "images_per_second", "waiting")
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{name: text for name, text in row.items() if name not in clocked} for row in csv.DictReader(stream)]


def before_step(made, number, act):
    """Call `act` when the trainer comes to that step."""
    take = made._step

    def step(at, *rest):
        if at == number:
            act()
        return take(at, *rest)

    made._step = step


def checkpoints(folder):
    return sorted(int(found.name[5:]) for found in (folder / "checkpoints").glob("step-*"))


def assert_same_bits(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("behind", [1, 3])
def test_reading_later_changes_no_bit_and_no_row(tmp_path, behind):
    at_once, later = (trainer(tmp_path / str(lag), lag) for lag in (0, behind))
    assert at_once.fit() == later.fit() == Outcome(10, 10, None)
    assert_same_bits(later.task, at_once.task)
    assert rows(tmp_path / str(behind)) == rows(tmp_path / "0")
    assert [row["step"] for row in rows(tmp_path / "0")] == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_within_a_step(tmp_path, behind, number):
    whole = trainer(tmp_path / "whole", 0)
    whole.fit()
    stopped = trainer(tmp_path / "run", behind)
    before_step(stopped, 4, lambda: os.kill(os.getpid(), number))
    outcome = stopped.fit()
    assert (outcome.steps, outcome.stopped_by) == (5 + behind, number)
    assert len(rows(tmp_path / "run")) == outcome.steps
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == outcome.steps
    again = trainer(tmp_path / "run", behind)
    assert again.fit().stopped_by is None
    assert_same_bits(again.task, whole.task)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def spoil(made):
    """Weights that give no finite loss from the next forward pass on."""
    with torch.no_grad():
        made.task.student.norm.weight.fill_(float("nan"))


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize(("step", "good"), [(2, 0), (4, 3), (7, 6), (8, 6)])
def test_a_loss_that_is_not_finite_is_never_saved(tmp_path, behind, step, good):
    made = trainer(tmp_path / "run", behind)
    before_step(made, step, lambda: spoil(made))
    said = f"the checkpoint of step {good} is the last good one" if good else "no good checkpoint was saved yet"
    with pytest.raises(UserError, match=rf"stopped at step {step + 1} because .*{re.escape(said)}"):
        made.fit()
    assert checkpoints(tmp_path / "run") == list(range(3, good + 1, 3))
    assert [row["step"] for row in rows(tmp_path / "run")] == [str(n) for n in range(1, step + 1)]


@pytest.mark.parametrize("behind", [0, 1])
def test_a_checkpoint_whose_weights_give_no_finite_loss_is_removed(tmp_path, behind):
    made = trainer(tmp_path / "run", behind)
    before_step(made, 6, lambda: spoil(made))
    with pytest.raises(UserError, match="the checkpoint of step 3 is the last good one"):
        made.fit()
    assert checkpoints(tmp_path / "run") == [3]


class Gone(Drawn):
    """Every tenth image cannot be read."""

    def load(self, index):
        if index % 10 == 3:
            raise UnreadableImage("truncated")
        return super().load(index)


@pytest.mark.parametrize("behind", [0, 1])
def test_too_many_unreadable_images_stop_before_the_next_checkpoint(tmp_path, behind):
    made = trainer(tmp_path / "run", behind, Gone(), every=1, tolerated=0.05)
    with pytest.raises(UserError, match="3 of 40 images could not be read in training"):
        made.fit()
    assert checkpoints(tmp_path / "run") == list(range(1, len(rows(tmp_path / "run")) + 1))


def of_two(rank, ranks, root):
    """The second rank is told to stop; then images go bad that both ranks meet in some epoch."""
    as_torchrun_sets(rank, ranks)
    stopped = trainer(root / "signal", 1)
    if rank:
        before_step(stopped, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = stopped.fit()
    # four of forty images, some of them met by both ranks in four epochs, are 10 % and not more
    patient = trainer(root / "patient", 1, Gone(), epochs=4, tolerated=0.1)
    patient.fit()
    return {
        "stopped": torch.tensor([outcome.steps, outcome.stopped_by or 0]),
        "counted": torch.tensor(patient.counted),
    }


def test_ranks_stop_together_and_count_an_image_once(tmp_path):
    found = on_ranks(of_two, 2, (tmp_path,))
    assert [result["stopped"].tolist() for result in found] == [[6, signal.SIGTERM]] * 2
    (sums, different), other = (result["counted"].tolist() for result in found)
    assert [sums, different] == other
    assert sums > 4, "else no image was met by both"
    assert different == 4
    listed = (tmp_path / "patient" / "unreadable.csv").read_text().splitlines()
    assert len(set(listed)) == 4
