"""Colour jitter, grey, blur, solarise: drawn per image as a row of numbers, applied to a batch on its device.

B images of H x W pixels, values in [0, 1]. A data worker draws one row per image (`draw`); `apply` runs the
rows' operations in MoCo-v3's order (jitter, grey, blur, solarise), each image with its own parameters and its
own order of the four jitter operations. The meaning is that of torchvision.transforms.v2 on float tensors:
ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize. Values: Chen et al. 2021 (MoCo-v3), BYOL's views.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from equimid.views.config import Photometric

__all__ = ["FIELDS", "apply", "draw", "share_colours", "untouched"]

# The columns of a row. An operation that is not applied leaves its identity: factor 1, hue 0, sigma 0, bit 0,
# order_s = s. order_s is the jitter operation at place s: 0 brightness, 1 contrast, 2 saturation, 3 hue.
FIELDS: tuple[str, ...] = (
    "jittered",  # 0 or 1
    *(f"order_{place}" for place in range(4)),
    "brightness",  # factor
    "contrast",  # factor
    "saturation",  # factor
    "hue",  # fraction of a full turn, [-0.5, 0.5]
    "grey",  # 0 or 1
    "sigma",  # standard deviation of the blur in pixels
    "solarised",  # 0 or 1
)
_COLUMN = {name: column for column, name in enumerate(FIELDS)}
_ORDER = FIELDS[1:5]
_UNTOUCHED: dict[str, float] = {
    **dict.fromkeys(FIELDS, 0.0),
    **{name: float(operation) for operation, name in enumerate(_ORDER)},
    **dict.fromkeys(("brightness", "contrast", "saturation"), 1.0),
}

# Elements worked on at a time. On a CPU a few images at 224 px, so that their temporaries stay in a core's
# cache (1.7 times as fast as the whole batch); elsewhere only a bound on memory.
_CHUNK_CPU, _CHUNK_DEVICE = 2**19, 2**26
_TILE = 32  # pixels of a row that one matrix product of the blur writes


def draw(config: Photometric, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """One image's row, (len(FIELDS),). Takes the same 13 uniform numbers from `rng` whatever is applied."""
    u = rng.random(13).tolist()
    row = dict(_UNTOUCHED)
    if u[0] < config.jitter:
        row["jittered"] = 1
        row.update(zip(_ORDER, sorted(range(4), key=u[1:5].__getitem__), strict=True))
        for name, fraction in zip(("brightness", "contrast", "saturation"), u[5:8], strict=True):
            reach = getattr(config, name)
            lowest = max(0.0, 1 - reach)
            row[name] = lowest + fraction * (1 + reach - lowest)
        row["hue"] = config.hue * (2 * u[8] - 1)
    row["grey"] = u[9] < config.grey
    if u[10] < config.blur:
        row["sigma"] = config.blur_sigma[0] + u[11] * (config.blur_sigma[1] - config.blur_sigma[0])
    row["solarised"] = u[12] < config.solarise
    return np.array(list(row.values()), dtype=np.float32)


def untouched() -> npt.NDArray[np.float32]:
    """The row of an image that nothing is done to."""
    return np.array(list(_UNTOUCHED.values()), dtype=np.float32)


def share_colours(shared: npt.NDArray[np.float32], own: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Jitter and grey of one row, blur and solarise of the other."""
    row = shared.copy()
    for name in ("sigma", "solarised"):
        row[_COLUMN[name]] = own[_COLUMN[name]]
    return row


@torch.no_grad()
def apply(images: Tensor, rows: Tensor, config: Photometric) -> Tensor:
    """Images as their rows say: a new tensor of the same shape, dtype and device, in [0, 1].

    `images` (B, 3, H, W), float32 or float64 in [0, 1]; `rows` (B, len(FIELDS)) on the CPU. `config` gives
    what is not drawn: kernel size and threshold. The host decides who gets what from the CPU rows and never
    waits for the device. ValueError on other shapes, dtypes or devices.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"images are {tuple(images.shape)} {images.dtype}; expected (B, 3, H, W) float32 or float64; "
            "convert to RGB in [0, 1] first"
        )
    if rows.shape != (len(images), len(FIELDS)) or rows.device.type != "cpu":
        raise ValueError(
            f"rows are {tuple(rows.shape)} on {rows.device}; expected ({len(images)}, {len(FIELDS)}) on the "
            "cpu; stack one draw() per image and leave it there"
        )
    out = images.clone(memory_format=torch.contiguous_format)
    kind = images.device.type
    step = max(1, (_CHUNK_CPU if kind == "cpu" else _CHUNK_DEVICE) // max(1, math.prod(images.shape[1:])))
    # a surrounding autocast would run the blur's matrix products in half precision
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        for start in range(0, len(out), step):
            _apply_chunk(out[start : start + step], rows[start : start + step], config)
    return out


def _apply_chunk(images: Tensor, rows: Tensor, config: Photometric) -> None:
    """Every operation on the images it is for, in place."""
    plan = _plan(rows.numpy(), config)
    if not plan:
        return
    values = _send(rows.to(images.dtype), images.device)
    # one transfer for all indices
    indices = _send(torch.from_numpy(np.concatenate([chosen for _, _, chosen in plan])), images.device)
    start = 0
    for operation, column, chosen in plan:
        index, start = indices[start : start + len(chosen)], start + len(chosen)
        first, last = chosen[0], chosen[-1]
        if last - first + 1 == len(chosen):  # neighbours: a slice needs no copy
            operation(images[first : last + 1], values[first : last + 1, column].view(-1, 1, 1, 1))
        else:
            part = images.index_select(0, index)
            operation(part, values[:, column].index_select(0, index).view(-1, 1, 1, 1))
            images.index_copy_(0, index, part)


# in place on images (b, 3, H, W), with one value each (b, 1, 1, 1)
_Operation = Callable[[Tensor, Tensor], None]
_Plan = list[tuple[_Operation, int, npt.NDArray[np.int64]]]


def _plan(rows: npt.NDArray[np.float32], config: Photometric) -> _Plan:
    """(operation, its column, the images it is for), in the order of application, without empty entries."""
    plan: list[tuple[_Operation, int, npt.NDArray[np.bool_]]] = []
    for place in range(4):
        order = rows[:, _COLUMN[f"order_{place}"]]
        for number, operation in enumerate((_brightness_, _contrast_, _saturation_, _hue_)):
            column, identity = _COLUMN["brightness"] + number, 0 if operation is _hue_ else 1
            plan.append((operation, column, (order == number) & (rows[:, column] != identity)))

    def blur_(x: Tensor, sigma: Tensor) -> None:
        _blur_(x, sigma, config.blur_kernel)

    def solarise_(x: Tensor, _: Tensor) -> None:
        torch.where(x >= config.solarise_threshold, 1 - x, x, out=x)

    for operation, name in ((_grey_, "grey"), (blur_, "sigma"), (solarise_, "solarised")):
        column = _COLUMN[name]
        plan.append((operation, column, rows[:, column] != 0))
    return [(op, column, np.flatnonzero(chosen)) for op, column, chosen in plan if chosen.any()]


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    # from pinned memory the copy is queued; from pageable memory the host would wait for it
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _luma(x: Tensor) -> Tensor:
    """(b, 1, H, W), torchvision's weights (they sum to 0.9999)."""
    r, g, b = x.unbind(1)
    return (r * 0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).unsqueeze(1)


def _brightness_(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _contrast_(x: Tensor, factor: Tensor) -> None:
    mean = _luma(x).mean(dim=(1, 2, 3), keepdim=True)
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation_(x: Tensor, factor: Tensor) -> None:
    grey = _luma(x).mul_(1 - factor)
    x.mul_(factor).add_(grey).clamp_(0, 1)


def _hue_(x: Tensor, turn: Tensor) -> None:
    """HSV hue turned with saturation and value kept.

    With h in sixths of a turn, each channel is low + span * a trapezium of h: the same map as RGB -> HSV ->
    RGB with its six cases, but without the gathers.
    """
    r, g, b = x.unbind(1)
    top = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    span = top - low
    h = torch.where(top == g, (b - r).add_(span, alpha=2), (r - g).add_(span, alpha=4))
    h = torch.where(top == r, g - b, h)
    # where span is 0 (grey) any hue will do, but not NaN
    h.div_(span.clamp(min=torch.finfo(x.dtype).tiny)).add_(turn.squeeze(1), alpha=6)
    h.sub_(torch.floor(h / 6), alpha=6)
    for channel, centre, sign, offset in ((r, 3, 1, -1), (g, 2, -1, 2), (b, 4, -1, 2)):
        torch.sub(h, centre, out=channel)
        channel.abs_().mul_(sign).add_(offset).clamp_(0, 1).mul_(span).add_(low)


def _grey_(x: Tensor, _: Tensor) -> None:
    x.copy_(_luma(x))


def _blur_(x: Tensor, sigma: Tensor, kernel: int) -> None:
    """Separable Gaussian blur with reflected borders, each image with its own sigma.

    Along an axis, _TILE output pixels are one matrix product with the band matrix of the image's kernel:
    faster on a CPU than grouped convolutions or sums of shifted slices. TF32, where a run allows it in matrix
    products, costs about 5e-4.
    """
    B, C, H, W = x.shape
    radius = min(kernel // 2, H - 1, W - 1)
    distance = torch.arange(radius + 1, device=x.device, dtype=x.dtype)
    weight = torch.exp(-0.5 * (distance / sigma.view(-1, 1)) ** 2)
    # below float32's sight; and denormal weights make a CPU several times slower
    weight = weight * (weight >= 1e-9)
    weight = weight / (2 * weight.sum(1, keepdim=True) - weight[:, :1])
    to, source = torch.arange(_TILE, device=x.device), torch.arange(_TILE + 2 * radius, device=x.device)
    apart = (to[:, None] + radius - source).abs()
    band = F.pad(weight, (0, 1))[:, apart.clamp(max=radius + 1)]  # (B, _TILE, _TILE + 2 radius)

    padded = F.pad(x, (radius, radius, 0, 0), mode="reflect").view(B, C * H, W + 2 * radius)
    rows = x.view(B, C * H, W)
    for start in range(0, W, _TILE):
        size = min(_TILE, W - start)
        span = size + 2 * radius
        rows[:, :, start : start + size] = padded[:, :, start : start + span] @ band[:, :size, :span].mT
    padded = F.pad(x, (0, 0, radius, radius), mode="reflect")
    for start in range(0, H, _TILE):
        size = min(_TILE, H - start)
        span = size + 2 * radius
        x[:, :, start : start + size] = band[:, None, :size, :span] @ padded[:, :, start : start + span]
    x.clamp_(0, 1)  # rounding
