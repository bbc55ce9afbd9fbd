"""Checkpoints in parts: read by rows on any number of ranks, whole or not there at all."""

import hashlib
import logging
import os
import resource
import shutil
import signal
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from equimid.engine import checkpoint as checkpoints
from equimid.engine.checkpoint import agreed_checkpoint, latest_checkpoint, save_checkpoint
from equimid.engine.sharding import is_sharded, own_part, rows_of, whole_state
from equimid.errors import UserError
from equimid.testing import on_ranks

# of three ranks the last has rows 4 and 5 of 5, none of 2 and none of 1
SHAPES = ((5, 300), (2, 7), (1, 1, 4))


class Network(nn.Module):
    """Rows that do not divide, a buffer, and a number."""

    def __init__(self, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.tensors = nn.ParameterList(torch.randn(*shape, generator=rng) for shape in SHAPES)
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("mean", torch.randn(3, generator=rng))

    def forward(self):
        return sum((p**3).sum() for p in self.tensors)


def stepped(network, steps=1):
    """An optimizer that has stepped; on every rank with the same gradients."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        network().backward()
        optimizer.step()
    return optimizer


def sharded(seed):
    network = Network(seed)
    fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return network


def moments(optimizer):
    return whole_state_of({f"{n}.{k}": v for n, s in optimizer.state_dict()["state"].items() for k, v in s.items()})


def whole_state_of(tensors):
    return {name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in tensors.items()}


def everything(network, optimizer):
    return {**{f"model:{k}": v for k, v in whole_state(network).items()}, **moments(optimizer)}


def save(rank, ranks, folder):
    """Two sharded checkpoints, then what the second holds; and what two processes are told when something fails."""
    network = sharded(3)
    assert is_sharded(network)
    assert [len(own_part(p)) for p in network.parameters()] == ([3, 1, 1] if rank == 0 else [2, 1, 0])
    optimizer = stepped(network)
    save_checkpoint(folder, 1, network, optimizer, {"images": 3}, keep=2)
    optimizer.zero_grad()
    network().backward()
    optimizer.step()
    save_checkpoint(folder, 2, network, optimizer, {"images": 3}, keep=2)
    found = everything(network, optimizer)
    told = [fill_a_disk(rank, folder, network, optimizer), miss_the_folder(rank, folder)]
    return found | {
        f"told:{i}": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for i, text in enumerate(told)
    }


def fill_a_disk(rank, folder, network, optimizer):
    """The second process's disk is full: what it is told."""
    other = folder / "other"
    if rank == 0:
        for name in ("step-00000001", "step-00000002"):
            shutil.copytree(folder / name, other / name)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    dist.barrier()
    with pytest.raises(UserError) as caught:
        save_checkpoint(other, 3, network, optimizer, {}, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return str(caught.value)


def miss_the_folder(rank, folder):
    """The second process looks into a disk of its own: what it is told."""
    with pytest.raises(UserError) as caught:
        agreed_checkpoint(folder if rank == 0 else folder / "elsewhere")
    return str(caught.value)


def restore(rank, ranks, *folders):
    """The newest checkpoint of each folder into a sharded network."""
    found = {}
    for number, folder in enumerate(folders):
        network = sharded(8)
        optimizer = stepped(network, 3)
        agreed_checkpoint(folder).restore(network, optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.01
        found |= {f"{number} {name}": value for name, value in everything(network, optimizer).items()}
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    first, second = on_ranks(save, 2, (folder,))
    told = [[bytes(of.pop(f"told:{i}").tolist()).decode() for of in (first, second)] for i in range(2)]
    assert all(torch.equal(first[name], second[name]) for name in first)
    return folder, first, told


@pytest.fixture
def saved(two, tmp_path):
    """A copy that a test may damage."""
    for name in ("step-00000001", "step-00000002"):
        shutil.copytree(two[0] / name, tmp_path / name)
    return tmp_path


def restored(folder):
    network = Network(8)
    optimizer = stepped(network, 3)
    latest_checkpoint(folder).restore(network, optimizer)
    return everything(network, optimizer)


def test_rows_are_those_of_chunk():
    for count in range(9):
        for ranks in range(1, 6):
            sizes = [last - first for first, last in (rows_of(count, ranks, r) for r in range(ranks))]
            expected = [len(part) for part in torch.arange(count).chunk(ranks)] if count else []
            assert sizes == expected + [0] * (ranks - len(expected)), (count, ranks)


def test_one_process_reads_what_two_wrote(two):
    folder, expected, _ = two
    checkpoint = latest_checkpoint(folder)
    assert (checkpoint.step, checkpoint.run) == (2, {"images": 3})
    found = restored(folder)
    assert found.keys() == expected.keys()
    assert len(found) == 5 + 3 * 3
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert int(found["model:count"]) == 3


def test_the_weights_are_those_of_one_process(two):
    """What is in the parts is not only consistent: it is what an unsharded network gets."""
    network = Network(3)
    optimizer = stepped(network, 2)
    found = two[1]
    for name, value in everything(network, optimizer).items():
        # the gradients of two ranks are averaged, so they are the same
        assert torch.allclose(found[name].float(), value.float(), rtol=1e-6), name


def test_three_ranks_read_what_two_and_one_wrote(two, tmp_path):
    """Of three ranks the last has no row of two of the tensors."""
    network = Network(5)
    optimizer = stepped(network, 2)
    save_checkpoint(tmp_path, 1, network, optimizer, {}, keep=1)
    expected = {f"0 {name}": value for name, value in two[1].items()}
    expected |= {f"1 {name}": value for name, value in everything(network, optimizer).items()}
    for found in on_ranks(restore, 3, (two[0], tmp_path)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


FILES = [f"{kind}-0000{r}-of-00002.safetensors" for kind in ("model", "optimizer") for r in range(2)]


@pytest.mark.parametrize("name", [*FILES, "state.json"])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_used(saved, name, damage, caplog):
    file = saved / "step-00000002" / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        at = content.index(b"optimizer") if name == "state.json" else len(content) - 3
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with caplog.at_level(logging.WARNING, "equimid"):
        assert latest_checkpoint(saved).step == 1
    assert str(file) in caplog.text


def test_checksums_are_of_the_files_and_identity_is_of_the_weights(two):
    folder, *_ = two
    checkpoint = latest_checkpoint(folder)
    assert sorted(checkpoint.checksums) == FILES
    for name, told in checkpoint.checksums.items():
        assert hashlib.sha256((checkpoint.folder / name).read_bytes()).hexdigest() == told
    before = checkpoints._verified(folder / "step-00000001")
    assert len(checkpoint.identity) == 16
    assert before.identity != checkpoint.identity


def test_a_full_disk_of_one_process_stops_all_and_leaves_the_older_checkpoint(two):
    folder, _, told = two
    for text in told[0]:
        assert "could not write the checkpoint of step 3" in text
        assert "the checkpoint of step 2 is still valid" in text
    assert latest_checkpoint(folder / "other").step == 2
    assert sorted(f.name for f in (folder / "other").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_folder_that_one_process_does_not_see_is_told(two):
    first, second = two[2][1]
    assert "storage that all nodes share" in first
    assert "storage that all nodes share" in second
    assert "elsewhere" in second


def die_between_the_parts(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    network = sharded(3)
    optimizer = stepped(network)
    if rank == 1:
        write = checkpoints.write_tensors

        def write_and_die(tensors, file, *, rank):
            write(tensors, file, rank=rank)
            os.kill(os.getpid(), signal.SIGKILL)  # its weights are there, its optimizer's state is not

        checkpoints.write_tensors = write_and_die
    save_checkpoint(folder, 3, network, optimizer, {}, keep=1)


def test_a_process_killed_between_two_files_leaves_the_old_checkpoint_valid(saved):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        spawn(die_between_the_parts, (port, saved), nprocs=2)
    written = saved / ".writing-00000003"
    assert (written / FILES[1]).exists()
    assert not (written / "state.json").exists()
    assert latest_checkpoint(saved).step == 2
    save_checkpoint(saved, 4, network := Network(3), stepped(network), {}, keep=1)
    assert [f.name for f in saved.iterdir()] == ["step-00000004"], "what was half-written is gone"
