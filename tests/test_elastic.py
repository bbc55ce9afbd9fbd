"""torchrun: a rank is killed, all start again from the last checkpoint, and the run ends with the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.processes import wait_for

STEPS = 40
RUN = [
    "-m", "equimid", "pretrain", "digits", "--recipe", "ser-tiny", "backbone.embed_dim=24", "backbone.depth=3",
    "backbone.num_heads=2", "backbone.image_size=16", "backbone.patch_size=4", "method.hidden=16", "method.dim=8",
    "ser.hidden=8", "train.batch_size=32", f"train.steps={STEPS}", "runtime.checkpoint_every=5",
    "runtime.tensorboard=false", "runtime.log_every=1", "runtime.workers=1", "runtime.accelerator=cpu",
    "runtime.precision=fp32", "evaluation.linear_epochs=1", "evaluation.equivariance_images=8",
]  # fmt: skip
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the ranks are found by /proc")


def torchrun(folder):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    return subprocess.Popen(
        [*launcher, *RUN, "--out", str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ranks_of(process):
    """{rank: process id} of what torchrun started, without the loaders of a rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            variables = dict(v.partition("=")[::2] for v in (entry / "environ").read_text().split("\0"))
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, UnicodeDecodeError):
            continue
        if parent == process.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(entry.name)
    return found


def weights(folder):
    return load_file(folder / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def test_ranks_are_killed_all_start_again_and_the_run_ends_with_the_same_bits(whole, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(folder)
    for rank, step in ((0, 7), (1, 22)):
        wait_for(folder, step, process)
        os.kill(ranks_of(process)[rank], signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert told.count("resuming after step") == 2
    assert (folder / "report.html").exists()
    expected, found = weights(whole), weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    steps = [int(line.split(",")[0]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, STEPS + 1)), "a row is missing or doubled"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = torchrun(folder)
    _, told = process.communicate()
    assert process.returncode == 0, told
    return folder
