"""What a training step costs: with SER and without, packed and apart, ours and the plain reading of the papers.

Every side is a whole step on drawn images, as training has it: photometric and posing on the device, EMA, forward,
backward, AdamW. All sides of a comparison take turns. A FLOP is counted where a matrix product does it;
their rate is compared with that of one large product of the same precision, measured in the same rounds.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from statistics import mean

import numpy as np
import torch
from lib.options import StepOptions
from lib.reference_step import PlainStep
from lib.subprocess_side import SubprocessSide
from lib.timing import Result, Row, Timing, choose_device, describe_machine, growth, paired, ratio
from torch import Tensor

from equimid.backbones import compile_blocks
from equimid.config import Config
from equimid.engine.machine import cpu_precision, keep_freed_memory, keep_kernels
from equimid.engine.optimizer import build_optimizer, set_rates
from equimid.errors import UserError
from equimid.poses import Pose
from equimid.randomness import counted_generator, counted_torch_seed
from equimid.recipes import recipe
from equimid.runs.flops import step_flops
from equimid.schedules import StepInfo
from equimid.task import Task
from equimid.views import (
    FIELDS,
    Batch,
    CentreView,
    CropView,
    ViewBatch,
    ViewPlan,
    Views,
    draw,
    sample_poses,
    to_device_views,
)

__all__ = ["DrawnStep", "bench_step", "drawn_batch"]

_SIDE = 4096  # of the square matrices whose product is the measure
DRAWS = 3
_WHEN = StepInfo(1000, 100_000, 1000)


def bench_step(options: StepOptions) -> Result:
    """Time the step; see the module.

    Raises:
        UserError: the device is not there, or the sizes do not go together.
    """
    device = choose_device(options.device)
    batch = options.batch_size or (256 if device.type == "cuda" else 16)
    if not 0 <= options.posed <= batch:
        raise UserError(f"posed is {options.posed}, of a batch of {batch}; give 0 (the recipe's share) to {batch}")
    keep_kernels()
    base, ser = _configs(options, batch)
    kept = device.type == "cpu" and keep_freed_memory()
    steps = DrawnStep(base, device), DrawnStep(ser, device)
    chosen = _precision(options.precision, steps[0].task, device)
    # on a CPU float32 first: there the plain reading computes in it too
    precisions = list(dict.fromkeys(["fp32", chosen])) if device.type == "cpu" else [chosen]
    if options.compile:
        for step in steps:
            compile_blocks(step.task)
    apart = SubprocessSide(_plain_side, ser, device) if device.type == "cpu" else None
    plain_precision, plain = _plain_precision(device), apart or _plain_side(ser, device)

    sides: dict[str, Callable[[], object]] = {}
    for precision in precisions:
        sides |= {
            f"product {precision}": _Product(device, precision),
            f"base {precision}": _InTurn(partial(steps[0], precision)),
            f"ser {precision}": _InTurn(partial(steps[1], precision)),
            f"packed {precision}": _InTurn(_Passes(steps[1], precision, packed=True)),
            f"separate {precision}": _InTurn(_Passes(steps[1], precision, packed=False)),
        }
    sides |= {f"product {plain_precision}": _Product(device, plain_precision), f"plain {plain_precision}": plain}
    # kernels for a shape, and compiled code, are made in the first steps
    times = paired(sides, options.repeats, device, warmup=DRAWS)
    memory = {name: growth(side, device) for name, side in sides.items() if side is not apart}
    if apart is not None:
        memory[f"plain {plain_precision}"] = apart.growth()
        apart.close()

    done = {"base": step_flops(base, whole=False) * batch}
    done["ser"], done["plain"] = (steps[1].flops(whole) * batch for whole in (False, True))
    flop_ratio = done["ser"] / done["base"]
    rows = [_row(name, times, memory[name], done, batch) for name in times if name.split()[0] != "product"]
    ratios: dict[str, float] = {"FLOPs with SER / without": flop_ratio}
    for precision in precisions:
        with_ser = times[f"ser {precision}"]
        wall = ratio(with_ser, times[f"base {precision}"])
        ratios |= {
            f"time with SER / without, {precision}": wall,
            f"the same / FLOP ratio, {precision}": wall / flop_ratio,
            f"separate passes / packed pass, {precision}": ratio(
                times[f"separate {precision}"], times[f"packed {precision}"]
            ),
            f"plain reading in {plain_precision} / ours in {precision}": ratio(
                times[f"plain {plain_precision}"], with_ser
            ),
        }
    return Result(
        "step",
        "python benchmarks/bench.py step",
        {**asdict(options), "batch_size": batch, "posed": steps[1].posed, "precision": chosen},
        rows,
        ratios,
        _notes(steps[1], kept, chosen if options.precision == "auto" else "", plain_precision, device),
        describe_machine(device),
    )


def _configs(options: StepOptions, batch: int) -> tuple[Config, Config]:
    """MoCo-v3 alone and with SER, of one size."""
    made = []
    for name in ("mocov3-imagenet", "ser-imagenet"):
        config = recipe(name)
        config = replace(
            config,
            backbone=replace(config.backbone, name=options.name, image_size=options.image_size),
            train=replace(config.train, batch_size=batch, accumulate=1),
        )
        if options.posed and config.addons:
            fraction = options.posed / batch
            config = replace(config, addons={"ser": replace(config.addons["ser"], fraction=fraction)})  # type: ignore[call-arg]
        made.append(config)
    return made[0], made[1]


def _precision(asked: str, task: Task, device: torch.device) -> str:
    if asked in ("fp32", "bf16"):
        return asked
    if asked != "auto":
        raise UserError(f"precision is {asked!r}; expected auto, fp32 or bf16")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return cpu_precision(task.student.embed_dim)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


class _InTurn:
    """A side, which meets the draws of poses in the order in which every other does: a round compares the same work."""

    def __init__(self, run: Callable[[int], object]) -> None:
        self.run, self.number = run, 0

    def __call__(self) -> None:
        self.number = self.number % DRAWS + 1  # again and again the same: the first product of a shape costs more
        self.run(self.number)


class DrawnStep:
    """Our step, on one drawn batch. The number of a step says which poses it draws."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.plan, self.device = config, config.plan(), device
        self.task = Task(config.backbone, config.method, config.addons, self.plan, config.seed).to(device)
        self.optimizer = build_optimizer(self.task, config.optim)
        self.batch = drawn_batch(self.plan, config.train.batch_size, config.seed)
        if device.type == "cuda":
            self.batch = self.batch.pin_memory()

    @property
    def posed(self) -> int:
        return self.plan.posed.count if self.plan.posed else 0

    def poses(self, number: int) -> list[Pose]:
        return sample_poses(self.plan, 0, number, 0, 1)

    def views(self, number: int) -> Views:
        """Always of the same images."""
        return to_device_views(self.batch, self.plan, self.poses(number), self.device)

    def patches(self) -> float:
        """Of a posed view, the mean over the draws."""
        return mean(h * w for number in range(1, DRAWS + 1) for h, w in (pose.grid for pose in self.poses(number)))

    def flops(self, whole: bool) -> float:
        """Per image, the mean over the draws."""
        drawn = range(1, DRAWS + 1)
        return mean(step_flops(self.config, whole=whole, poses=self.poses(number)) for number in drawn)

    def __call__(self, precision: str, number: int = 1) -> None:
        set_rates(self.optimizer, self.config.optim, _WHEN, self.config.train.batch_size)
        views = self.views(number)
        self.task.update_teacher(_WHEN)
        with _autocast(self.device, precision), counted_torch_seed(0, "dropout", number):
            total = self.task(views, _WHEN).total
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _plain_precision(device: torch.device) -> str:
    return "fp16" if device.type == "cuda" else "fp32"


def _plain_side(config: Config, device: torch.device) -> _InTurn:
    """The plain reading, on the same views."""
    step = DrawnStep(config, device)
    module = PlainStep(config, step.task).to(device)
    optimizer = module.optimizer(config)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def run(number: int) -> None:
        module.step(step.views(number), optimizer, scaler)
        optimizer.zero_grad()  # as ours after a step: the memory in use between steps is of the same things

    return _InTurn(run)


class _Passes:
    """Forward and backward pass of the student alone over the same views: packed, or view after view."""

    def __init__(self, step: DrawnStep, precision: str, packed: bool) -> None:
        self.step, self.precision, self.packed = step, precision, packed

    def __call__(self, number: int) -> None:
        step, views = self.step, self.step.views(number)
        images = [*views.crops, *views.posed]
        network = step.task.student
        with _autocast(step.device, self.precision):
            features = network.forward_packed(images) if self.packed else [network(x) for x in images]
            read: list[Tensor] = [f.cls.float().square().mean() for f in features]
            read += [x.float().square().mean() for f in features[len(views.crops) :] for x in f.maps.values()]
        torch.stack(read).sum().backward()
        step.optimizer.zero_grad()


class _Product:
    """One large matrix product."""

    def __init__(self, device: torch.device, precision: str) -> None:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
        self.a, self.b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))

    def __call__(self) -> None:
        torch.mm(self.a, self.b)


def drawn_batch(plan: ViewPlan, images: int, seed: int) -> Batch:
    """A batch as workers would send it, of drawn pixels with drawn photometric parameters."""
    rng = counted_generator(seed, "bench")
    posed = plan.posed.count if plan.posed else 0

    def pixels(count: int, size: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))

    def rows(count: int, view: CropView | CentreView) -> Tensor:
        if count == 0 or isinstance(view, CentreView):
            return torch.zeros(count, len(FIELDS))
        return torch.from_numpy(np.stack([draw(view.photometric, rng) for _ in range(count)]))

    cropped = images - posed
    kinds = [*plan.crops, *(extra.view for extra in plan.extra.values())]
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])
    crops = [ViewBatch(pixels(cropped, kind.size), whole.repeat(cropped, 1), rows(cropped, kind)) for kind in kinds]
    upright = [pixels(posed, size) for size in plan.posed.sizes[::2]] if plan.posed else []
    views = [
        ViewBatch(upright[v // 2], whole.repeat(posed, 1), rows(posed, kind))
        for v, kind in enumerate(plan.crops if plan.posed else ())
    ]
    return Batch(crops, views, torch.arange(images), ())


def _row(name: str, times: dict[str, Timing], memory: int, done: dict[str, float], batch: int) -> Row:
    """The products of the packed and the separate pass alone are not counted."""
    what, precision = name.split()
    seconds, flops = times[name].median, done.get(what)
    rate = 2 * _SIDE**3 / times[f"product {precision}"].median
    return {
        "side": what,
        "precision": precision,
        "seconds": seconds,
        "images/s": batch / seconds,
        "TFLOP/s": flops / seconds / 1e12 if flops else None,
        "of product": flops / seconds / rate if flops else None,
        "memory MiB": memory / 2**20,
    }


def _notes(step: DrawnStep, kept: bool, chosen: str, plain: str, device: torch.device) -> list[str]:
    """chosen: by `auto`; "" where a precision was asked for"""
    notes: list[str] = [
        f"{step.posed} posed images. base, ser: MoCo-v3 without and with SER. packed, separate: the student's forward "
        "and backward pass alone. plain: the plain reading of both, with SER.",
        f"The plain reading computes in {plain}.",
        f"FLOPs and times are of {DRAWS} draws of poses, a posed view of {step.patches():.0f} patches in the mean.",
        "memory MiB: by which a step raises the peak above what is in use between steps.",
    ]
    if chosen:
        notes.append(f"A run with runtime.precision=auto computes in {chosen} here.")
    if device.type == "cpu":
        kept_there = "keeps its freed memory" if kept else "has the system's allocator"
        notes.append(f"Ours {kept_there}; the plain reading runs in a process of its own, with the system's allocator.")
    return notes
