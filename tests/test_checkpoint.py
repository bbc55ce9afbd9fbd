"""Checkpoints: restored bit for bit, damaged ones named, a full disk survived."""

import json
import logging
import resource
import signal

import pytest
import torch

from equimid.engine.checkpoint import latest_checkpoint, save_checkpoint
from equimid.errors import UserError
from helpers.tensors import same_bits


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    task = torch.nn.Linear(300, 50)
    optimizer = torch.optim.AdamW(task.parameters())
    for step in (1, 2):
        task(torch.ones(1, 300)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        save_checkpoint(tmp_path, step, task, optimizer, {"images": 3}, keep=2)
    return tmp_path, task, optimizer


def test_a_checkpoint_restores_weights_and_optimizer_bit_for_bit(saved):
    folder, task, optimizer = saved
    other = torch.nn.Linear(300, 50)
    again = torch.optim.AdamW(other.parameters(), lr=5.0)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint.step == 2
    assert checkpoint.run == {"images": 3}
    checkpoint.restore(other, again)
    for one, two in ((task, optimizer), (other, again)):
        one(torch.ones(1, 300)).pow(2).sum().backward()
        two.step()
        two.zero_grad()
    assert same_bits(task.state_dict(), other.state_dict())
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_old_checkpoints_go(saved):
    folder, task, optimizer = saved
    save_checkpoint(folder, 3, task, optimizer, {}, keep=2)
    assert sorted(f.name for f in folder.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(saved, name, damage, caplog):
    folder, *_ = saved
    file = folder / "step-00000002" / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(b"step") if name == "state.json" else len(content) - 5
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with caplog.at_level(logging.WARNING, "equimid"):
        assert latest_checkpoint(folder).step == 1
    assert str(file) in caplog.text
    (folder / "step-00000001" / "state.json").write_text("")
    with pytest.raises(UserError, match="whole"):
        latest_checkpoint(folder)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"checksum": 3}'])
def test_any_content_of_state_json_is_survived(saved, content):
    folder, *_ = saved
    (folder / "step-00000002" / "state.json").write_text(content)
    assert latest_checkpoint(folder).step == 1


def test_a_changed_step_is_noticed(saved):
    folder, *_ = saved
    file = folder / "step-00000002" / "state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 1'))
    assert latest_checkpoint(folder).step == 1


def test_a_write_that_stopped_halfway_is_ignored(saved):
    folder, task, optimizer = saved
    (folder / ".writing-00000003").mkdir()
    (folder / ".writing-00000003" / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(folder).step == 2
    save_checkpoint(folder, 3, task, optimizer, {}, keep=2)
    assert not list(folder.glob(".writing-*"))


def test_a_full_disk_leaves_the_older_checkpoint_valid(saved):
    """The kernel refuses to let the file grow, as a full disk would."""
    folder, task, optimizer = saved
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(UserError, match=r"could not write the checkpoint of step 3 .* step 2 is still valid"):
            save_checkpoint(folder, 3, task, optimizer, {}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert latest_checkpoint(folder).step == 2
    assert sorted(f.name for f in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_nothing_is_unpickled(saved):
    folder, *_ = saved
    files = sorted(f.name for f in (folder / "step-00000002").iterdir())
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json"]
    json.loads((folder / "step-00000002" / "state.json").read_text())
