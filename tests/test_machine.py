"""What a run makes of the machine: threads, the allocator, bf16 by measurement, memory told before and after."""

import json
import logging
import sys

import pytest
import torch

from equimid.engine import RuntimeConfig, settle_precision
from equimid.engine import machine as machine_module
from equimid.engine.async_metrics import AsyncMetrics, LoaderClock
from equimid.engine.health import HealthCheck
from equimid.engine.machine import bf16_units, is_out_of_memory, loader_remedy, set_threads
from helpers.processes import run_program
from helpers.tasks import logged

CPU = RuntimeConfig(accelerator="cpu")


@pytest.fixture
def processor(monkeypatch):
    """Sets the instructions for bf16 that torch finds."""

    def has(amx=False, avx512=False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)

    return has


def test_bf16_is_chosen_where_the_processor_has_it_and_stays_with_the_run(processor, tmp_path):
    processor(avx512=True)
    assert settle_precision(CPU, 192, tmp_path / "fast").precision == "bf16"
    note = json.loads((tmp_path / "fast" / "precision.json").read_text())
    assert note == {"precision": "bf16", "units": "avx512_bf16", "width": 192}
    processor()
    assert settle_precision(CPU, 192, tmp_path / "fast").precision == "bf16", "a run is resumed as it began"
    assert settle_precision(CPU, 192, tmp_path / "slow").precision == "fp32"
    for damaged in ("{", '{"precision": "fp8"}'):
        (tmp_path / "slow" / "precision.json").write_text(damaged)
        assert settle_precision(CPU, 192, tmp_path / "slow").precision == "fp32"
    processor(amx=True, avx512=True)
    assert settle_precision(CPU, 192, tmp_path / "slow").precision == "fp32", "a run is resumed as it began"
    assert settle_precision(CPU, 192, tmp_path / "new").precision == "bf16"
    assert bf16_units() == "amx"


def test_a_run_that_was_begun_before_there_was_a_choice_stays_in_fp32(processor, tmp_path):
    processor(amx=True)
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert settle_precision(CPU, 192, tmp_path).precision == "fp32"


def test_bf16_is_not_chosen_for_narrow_networks_and_several_processes(processor, tmp_path):
    processor(amx=True)
    assert settle_precision(CPU, 96, tmp_path / "narrow").precision == "fp32"
    assert settle_precision(CPU, 192, tmp_path / "several", alone=False).precision == "fp32"
    for given in ("fp32", "bf16"):
        chosen = RuntimeConfig(accelerator="cpu", precision=given)
        assert settle_precision(chosen, 192, tmp_path / "given") == chosen
    assert not (tmp_path / "given").exists()


def test_a_cpu_that_is_asked_for_is_settled_beside_a_gpu_too(processor, tmp_path, monkeypatch):
    processor(amx=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settle_precision(RuntimeConfig(), 192, tmp_path).precision == "auto", "the GPU's own choice"
    assert settle_precision(CPU, 192, tmp_path).precision == "bf16"


def test_several_processes_share_the_cores(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(machine_module, "cores", lambda: 8)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_threads(0, 4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    set_threads(0, 4)
    assert given == [3, 3], "the user's own number"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's number, not the user's
    set_threads(0, 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(0, 1)
    set_threads(0, 3)
    set_threads(0, 16)
    set_threads(5, 4)
    assert given[2:] == [2, 2, 1, 5]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step_and_given_back_on_demand():
    program = """
import resource, sys, torch
from equimid.engine.machine import give_back_freed_memory, keep_freed_memory
assert keep_freed_memory()
def faults(elements):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(elements)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
kept = faults(2**24), faults(2**24 - 2**12)  # older glibc asks for a little more than it gave back
before = resident()
give_back_freed_memory()
print(*kept, before - resident())
"""
    done = run_program([sys.executable, "-c", program])
    first, second, given_back = map(int, done.stdout.split())
    assert first > 10_000  # 64 MiB in pages of 4 KiB
    assert second < first / 10
    assert given_back > 60 * 1024


def test_no_memory_is_recognised_by_kind_and_by_words():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class _Time:
    def __init__(self, monkeypatch, module):
        self.now = 100.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


def test_the_clock_tells_the_share_that_was_spent_on_images(monkeypatch):
    from equimid.engine import async_metrics

    time = _Time(monkeypatch, async_metrics)

    def batches():
        while True:
            time.now += 3
            yield "batch"

    clock, source = LoaderClock(torch.device("cpu")), batches()
    for _ in range(2):
        assert clock.take(source) == "batch"
        time.now += 1
    assert clock.waited() == pytest.approx(6 / 8)
    time.now += 5
    assert clock.waited() == 0


def test_a_waiting_device_is_told_once_with_a_remedy(caplog, monkeypatch):
    monkeypatch.setattr(machine_module, "cores", lambda: 16)
    remedy = loader_remedy(torch.device("cuda"), workers=2, decodes=False)
    assert "runtime.workers" in remedy
    assert "it is 2" in remedy
    assert "pack" in loader_remedy(torch.device("cuda"), workers=15, decodes=False)
    assert loader_remedy(torch.device("cpu"), workers=16, decodes=False) == "", "nothing helps there"
    health = HealthCheck({}, patience=50, start=100, remedy=remedy)
    with caplog.at_level(logging.WARNING, "equimid"):
        for step in range(100, 120):
            health.on_log(step + 1, logged(waiting=0.9), 8)
        for step, waited in enumerate([0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5], start=120):
            health.on_log(step + 1, logged(waiting=waited), 8)
        assert not caplog.records, "workers start, or it is not lasting"
        for step in range(128, 150):
            health.on_log(step + 1, logged(waiting=0.5), 8)
    assert len(caplog.records) == 1
    assert "waits 50% of the time for images" in caplog.text
    assert remedy in caplog.text


def test_a_readout_gives_every_number_and_the_embeddings():
    numbers = {"loss/a": torch.tensor(2.0, requires_grad=True), "stop": torch.tensor(0, dtype=torch.int64)}
    values, cls = AsyncMetrics(7, numbers, torch.ones(3, 2, dtype=torch.bfloat16)).read()
    assert values == {"loss/a": 2.0, "stop": 0.0}
    assert torch.equal(cls, torch.ones(3, 2))
    assert AsyncMetrics(7, {"x": torch.tensor(float("nan"))}).read()[1] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space")
def test_out_of_memory_names_batch_estimate_and_three_settings(tmp_path):
    program = f"""
import resource, sys, torch
from pathlib import Path
from equimid.recipes import configured
from equimid.runs.pretrain import pretrain
import lightning.fabric, torch.utils.tensorboard
config = configured("ser-tiny", ["data.source=digits", "train.batch_size=512", "backbone.image_size=64",
    "runtime.workers=0", "runtime.accelerator=cpu", "runtime.precision=fp32", "runtime.tensorboard=false"])
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
try:
    pretrain(config, Path({str(tmp_path / "run")!r}))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = run_program([sys.executable, "-c", program])
    told = done.stdout
    assert told.startswith("UserError out of memory"), told + done.stderr[-2000:]
    for part in ("512 images", "train.batch_size=512", "GiB of activations", "train.accumulate=2",
                 "runtime.checkpoint_activations=true", "train.batch_size=256"):  # fmt: skip
        assert part in told
