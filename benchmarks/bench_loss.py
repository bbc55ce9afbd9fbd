"""What the patch loss costs beside the bare matrix products that it needs.

Letters: M patches of a view, D columns. The products are the tiles of `patch_ntxent`, into memory that is there
already: the similarities of every pair of patches once, again in the backward pass, and twice the same for the
gradient. The forms of the loss with the same products, those products and one large square product (the measure of the
device) take turns in one process. Memory is the growth of the peak over one loss and its gradient, before anything is
timed.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from lib.flex_patch_ntxent import flex_patch_ntxent
from lib.options import LossOptions
from lib.timing import (
    Result,
    Row,
    choose_device,
    describe_machine,
    growth,
    paired,
    ratio,
)
from scipy.optimize import nnls
from torch import Tensor

from equimid.errors import UserError
from equimid.losses import patch_ntxent
from equimid.losses.patch_ntxent import symmetric_tiles

__all__ = ["bare_products", "bench_loss", "cost_law", "exponents"]

TEMPERATURE = 0.3
SIDE = 14
PATCHES_OF_AN_IMAGE = SIDE**2
# beyond the sizes of the options, on a GPU that is asked for nothing else
LARGE = (50_176, 200_704)

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to compute the loss.

    inputs: precision of the tokens;  products: of the matrix products, "tf32" being float32 on the fast units
    """

    name: str
    inputs: torch.dtype
    products: str
    loss: Loss

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrices that are multiplied."""
        return torch.bfloat16 if self.products == "bf16" else torch.float32

    @property
    def title(self) -> str:
        return f"{self.name}, {_short(self.inputs)} in, {self.products} products"


def bench_loss(options: LossOptions) -> Result:
    """Forward and backward of the loss at every size; see the module.

    On CUDA also in TF32 and through FlexAttention, and by default at 50,176 and 200,704 patches a view.

    Raises:
        UserError: the device is not there, or a size is not positive.
    """
    _check(options)
    device = choose_device(options.device)
    sizes = sorted(set(options.patches))
    if device.type == "cuda" and options.patches == LossOptions().patches:
        sizes += LARGE
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    notes: list[str] = []
    for _, group in groupby(_variants(device), key=lambda variant: (variant.inputs, variant.products)):
        variants = list(group)
        seconds: dict[str, list[float]] = {variant.title: [] for variant in variants}
        for patches in sizes:
            found, compared = _measure(variants, patches, options, device)
            rows += found
            ratios |= {f"{what}, {patches} patches": value for what, value in compared.items()}
            for variant, row in zip(variants, found, strict=True):
                seconds[variant.title].append(float(row["forward s"] or 0) + float(row["backward s"] or 0))
        for title, times in seconds.items():
            ratios |= {f"{title}: {what}": value for what, value in exponents(sizes, times).items()}
            if len(sizes) > 1:
                a, b = cost_law(sizes, times, options.width)
                notes.append(f"{title}: seconds = {a:.3g} M^2 D + {b:.3g} M D, fitted to {len(sizes)} sizes")
    notes.append(_memory_note(device))
    if device.type != "cuda":
        notes.append("bf16 inputs, TF32 and FlexAttention are timed on CUDA only")
    command = f"python benchmarks/bench.py loss --patches {' '.join(map(str, options.patches))} --width {options.width}"
    return Result("loss", command, asdict(options), rows, ratios, notes, describe_machine(device))


def _check(options: LossOptions) -> None:
    for name, values in (("patches", options.patches), ("width", (options.width,)), ("repeats", (options.repeats,))):
        if not values or min(values) < 1:
            raise UserError(f"{name} is {' '.join(map(str, values)) or 'empty'}; expected whole numbers of 1 or more")


def _variants(device: torch.device) -> list[Variant]:
    ours = [
        Variant("tiles", torch.float32, "fp32", patch_ntxent),
        Variant("tiles, negatives=all", torch.float32, "fp32", _with_own_image),
    ]
    if device.type != "cuda":
        return ours
    bf16 = torch.bfloat16

    def flex(z0: Tensor, z1: Tensor, ids: Tensor, temperature: float) -> Tensor:
        return flex_patch_ntxent(z0, z1, ids, temperature, dtype=bf16)

    return [*ours, Variant("tiles", bf16, "tf32", patch_ntxent), Variant("FlexAttention", bf16, "bf16", flex)]


def _with_own_image(z0: Tensor, z1: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """`ser.negatives=all`: patches of the same image are negatives too."""
    place = torch.arange(len(ids), device=ids.device) % PATCHES_OF_AN_IMAGE
    return patch_ntxent(z0, z1, ids, temperature, torch.stack([place // SIDE, place % SIDE], 1))


def _measure(
    variants: Sequence[Variant], patches: int, options: LossOptions, device: torch.device
) -> tuple[list[Row], dict[str, float]]:
    """A row for each variant, all with the same products, and what is compared: medians over rounds."""
    first = variants[0]
    rng = torch.Generator().manual_seed(0)
    z0, z1 = (torch.randn(patches, options.width, generator=rng).to(device, first.inputs) for _ in range(2))
    ids = torch.arange(patches, device=device) // PATCHES_OF_AN_IMAGE
    units = [F.normalize(z.float(), dim=1).to(first.dtype) for z in (z0, z1)]
    z0.requires_grad_()
    z1.requires_grad_()
    losses = {variant.title: _Timed(variant.loss, z0, z1, ids) for variant in variants}
    with _product_precision(first.products):
        few = 2 * PATCHES_OF_AN_IMAGE  # threads and libraries have their memory before the peak is watched
        extra = {}
        for variant in variants:
            variant.loss(z0[:few], z1[:few], ids[:few], TEMPERATURE).backward()
            z0.grad = z1.grad = None
            extra[variant.title] = growth(losses[variant.title], device)
        sides: dict[str, Callable[[], object]] = {
            **losses,
            "products": bare_products(units),
            "square": _square_product(first.dtype, device),
        }
        times = paired(sides, options.repeats, device)
    square = 2 * _side(device) ** 3 / times["square"].median
    flops = _product_flops(patches, options.width, device.type)
    rows: list[Row] = [
        {
            "form": variant.name,
            "inputs": _short(variant.inputs),
            "products": variant.products,
            "patches": patches,
            "forward s": statistics.median(losses[variant.title].forward[-options.repeats :]),
            "backward s": statistics.median(losses[variant.title].backward[-options.repeats :]),
            "products s": times["products"].median,
            "extra MiB": extra[variant.title] / 2**20,
            "dense GiB": (2 * patches) ** 2 * 4 / 2**30,
            "products GFLOP": flops / 1e9,
            "share of peak": flops / times[variant.title].median / square,
        }
        for variant in variants
    ]
    compared = {f"{title}: loss / bare products": ratio(times[title], times["products"]) for title in losses}
    for title in list(losses)[1:]:
        compared[f"{title} / {first.title}"] = ratio(times[title], times[first.title])
    return rows, compared


class _Timed:
    """The loss and its gradient; the seconds of both parts of every call."""

    def __init__(self, loss: Loss, z0: Tensor, z1: Tensor, ids: Tensor) -> None:
        self.loss, self.inputs, self.ids = loss, (z0, z1), ids
        self.forward: list[float] = []
        self.backward: list[float] = []

    def __call__(self) -> None:
        for z in self.inputs:
            z.grad = None
        began = self._now()
        value = self.loss(*self.inputs, self.ids, TEMPERATURE)
        between = self._now()
        value.backward()
        self.forward.append(between - began)
        self.backward.append(self._now() - between)

    def _now(self) -> float:
        if self.ids.device.type == "cuda":
            torch.cuda.synchronize(self.ids.device)
        return time.perf_counter()


def bare_products(z: Sequence[Tensor]) -> Callable[[], None]:
    """The matrix products of the loss of two views (M, D) and of its gradient, and nothing else."""
    device = z[0].device.type
    tiles = list(symmetric_tiles(len(z[0]), device))
    memory = z[0].new_zeros(max((a.stop - a.start) * (b.stop - b.start) for _, a, _, b in tiles))
    gradient = [torch.zeros_like(view) for view in z]

    def run() -> None:
        for backward in (False, True):
            for i, a, j, b in tiles:
                x, y = z[i][a], z[j][b]
                s = memory[: len(x) * len(y)].view(len(x), len(y))
                torch.mm(x, y.T, out=s)
                if backward:
                    torch.mm(s, y, out=gradient[i][a])
                    if (i, a) != (j, b):
                        torch.mm(s.T, x, out=gradient[j][b])

    return run


def _product_flops(patches: int, width: int, device: str) -> float:
    """Of `bare_products`, two for a multiply-add."""
    flops = 0
    for i, a, j, b in symmetric_tiles(patches, device):
        pairs = (a.stop - a.start) * (b.stop - b.start)
        flops += 2 * pairs * width * (3 if (i, a) == (j, b) else 4)
    return flops


def _side(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 2048


def _square_product(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    side = _side(device)
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(side, side, generator=rng).to(device, dtype) for _ in range(2))
    out = torch.empty_like(x)
    return lambda: torch.mm(x, y, out=out)


@contextmanager
def _product_precision(products: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _memory_note(device: torch.device) -> str:
    if device.type == "cuda":
        return "extra MiB: allocated on the device during one loss and its gradient, the gradient included"
    return "extra MiB: growth of resident memory during one loss and its gradient, the gradient included"


def exponents(sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    """x in time ~ M^x between neighbouring sizes; 2 is the law for many patches, 1 for few."""
    pairs = zip(zip(sizes, seconds, strict=True), list(zip(sizes, seconds, strict=True))[1:], strict=False)
    return {f"exponent of time, {m} to {n} patches": math.log(t / s) / math.log(n / m) for (m, s), (n, t) in pairs}


def cost_law(sizes: Iterable[int], seconds: Iterable[float], width: int) -> tuple[float, float]:
    """(a, b) of seconds = a M^2 D + b M D, neither below 0, by least squares of the relative errors."""
    m, t = np.array(list(sizes), float), np.array(list(seconds), float)
    scale = np.array([m[-1] ** 2 * width, m[-1] * width])  # both columns of one order
    columns = np.stack([m**2 * width, m * width], 1) / scale / t[:, None]
    (a, b), _ = nnls(columns, np.ones_like(t))
    return float(a / scale[0]), float(b / scale[1])


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
