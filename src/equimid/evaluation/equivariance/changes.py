"""What is done to an image, and what an equivariant layer's map would have done with it.

Letters: n images, C channels, D width, S side of the image in pixels, p of a patch, g = S / p, T compared tokens.

A change g gives two images of one, x0 (most often x itself) and x1 = g x, and says which T tokens of their maps show
the same places: `carry` takes the map of x0 to rho(g) f(x0), `select` takes the tokens of f(x1) that this is compared
with. Images and maps are resampled by the same interpolation, without antialias, `align_corners=False`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.evaluation.config import EquivarianceConfig
from equimid.poses import Pose, transport

__all__ = ["Change", "Cropped", "Posed", "Resized", "Rotated", "changes", "pose_kinds"]


class Change(ABC):
    """`kind` is what records call it."""

    kind: str

    def before(self, x: Tensor) -> Tensor:
        """x0, of images (n, 3, S, S)."""
        return x

    @abstractmethod
    def after(self, x: Tensor) -> Tensor:
        """x1, of images (n, 3, S, S)."""

    @abstractmethod
    def carry(self, m: Tensor) -> Tensor:
        """(n, D, h, w), a map of x0, to the tokens (n, D, T) that an equivariant layer has for x1."""

    def select(self, m: Tensor) -> Tensor:
        """(n, D, h, w), a map of x1, to the tokens (n, D, T) that are compared."""
        return m.flatten(2)

    @property
    def member(self) -> float | None:
        """Which of its kind it is, where that has records of its own: the angle of a rotation, degrees."""
        return None

    @property
    def place(self) -> tuple[int, int] | None:
        """What `before` depends on, (row, column) in pixels; None where it is the whole image."""
        return None


@dataclass(frozen=True)
class Posed(Change):
    """Flip left-right, then quarter turns: both sides are permutations, so no resampling is involved."""

    kind: str
    turns: int
    flip: bool
    patch: int

    def after(self, x: Tensor) -> Tensor:
        return self._pose(x, x.shape[-1] // self.patch).act(x, self.patch)

    def carry(self, m: Tensor) -> Tensor:
        pose = self._pose(m, m.shape[-1])
        return transport(m, Pose.identity(len(m), pose.grid, m.device), pose).flatten(2)

    def _pose(self, x: Tensor, grid: int) -> Pose:
        upright = Pose.identity(len(x), (grid, grid), x.device)
        return Pose(upright.turns + self.turns, upright.flip ^ self.flip, upright.grid)


@dataclass(frozen=True)
class Resized(Change):
    """The image resized to another number of patches, (h, w)."""

    kind: str
    size: tuple[int, int]
    patch: int
    interpolation: str

    def after(self, x: Tensor) -> Tensor:
        return self._resize(x, (self.size[0] * self.patch, self.size[1] * self.patch))

    def carry(self, m: Tensor) -> Tensor:
        return self._resize(m, self.size).flatten(2)

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(x, size, mode="nearest-exact")  # "nearest" is not symmetric about the centre
        return F.interpolate(x, size, mode=self.interpolation)


@dataclass(frozen=True)
class Rotated(Change):
    """The image turned about its centre, counter-clockwise, mirrored beyond its border; compared are the patches that
    see none of the mirrored border."""

    kind: str
    angle: float
    grid: int
    interpolation: str

    @property
    def member(self) -> float:
        return self.angle

    def after(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        places = self._source(_centres(side).to(x.device)).expand(len(x), -1, -1)
        return _sample(x, places, self.interpolation, "reflection").reshape(*x.shape[:2], side, side)

    def carry(self, m: Tensor) -> Tensor:
        places = self._source(_centres(self.grid)[self.inside]).to(m.device).expand(len(m), -1, -1)
        return _sample(m, places, self.interpolation, "border")

    def select(self, m: Tensor) -> Tensor:
        return m.flatten(2)[..., self.inside.to(m.device)]

    @cached_property
    def inside(self) -> Tensor:
        """(g * g) bool: patches whose four corners come from within the image."""
        half = 1 / self.grid
        corners = [torch.tensor((x, y)) for x in (-half, half) for y in (-half, half)]
        reach = torch.stack([self._source(_centres(self.grid) + c).abs().amax(-1) for c in corners]).amax(0)
        within: Tensor = reach <= 1 + 1e-6
        return within

    def _source(self, places: Tensor) -> Tensor:
        """Where in x0 the value at (x, y) of x1 comes from; the image is [-1, 1] to the right and downwards."""
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        back = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=places.dtype, device=places.device)
        return places @ back.T


@dataclass(frozen=True)
class Cropped(Change):
    """Two crops of one size: x0 from `start`, x1 from `start + offset`, pixels (row, column). Compared are the patches
    of x1 that lie wholly in x0; where the offset is no multiple of the patch, the map of x0 is resampled."""

    kind: str
    start: tuple[int, int]
    offset: tuple[int, int]
    grid: int
    patch: int
    interpolation: str

    def before(self, x: Tensor) -> Tensor:
        return self._cut(x, self.start)

    def after(self, x: Tensor) -> Tensor:
        return self._cut(x, (self.start[0] + self.offset[0], self.start[1] + self.offset[1]))

    @property
    def place(self) -> tuple[int, int]:
        return self.start

    def carry(self, m: Tensor) -> Tensor:
        shift = torch.tensor((self.offset[1], self.offset[0])) * 2 / (self.patch * self.grid)
        places = (_centres(self.grid) + shift)[self.inside].to(m.device).expand(len(m), -1, -1)
        return _sample(m, places, self.interpolation, "border")

    def select(self, m: Tensor) -> Tensor:
        return m.flatten(2)[..., self.inside.to(m.device)]

    @cached_property
    def inside(self) -> Tensor:
        """(g * g) bool: patches of x1 that lie wholly in x0."""
        first = torch.arange(self.grid) * self.patch
        rows, columns = (
            (first + offset >= 0) & (first + self.patch + offset <= self.grid * self.patch) for offset in self.offset
        )
        return (rows[:, None] & columns).flatten()

    def _cut(self, x: Tensor, start: tuple[int, int]) -> Tensor:
        side = self.grid * self.patch
        return x[..., start[0] : start[0] + side, start[1] : start[1] + side]


def changes(grid: int, patch: int, config: EquivarianceConfig, any_size: bool = True) -> list[Change]:
    """All that equivariance is measured under, for images of `grid` x `grid` patches.

    Without `any_size`, what keeps the image's size. Crops need a grid of 5 patches or more; a rotation, one of which
    a patch stays inside.
    """
    found: list[Change] = []
    for kind, poses in pose_kinds(grid).items():
        for turns, flip, size in poses:
            if kind != "scale":
                found.append(Posed(kind, turns, flip, patch))
            elif any_size:
                name = "isotropic scale" if size[0] == size[1] else "anisotropic scale"
                found.append(Resized(name, size, patch, config.interpolation))
    rotations = [Rotated("rotation", angle, grid, config.interpolation) for angle in config.angles]
    found += [rotation for rotation in rotations if rotation.inside.any()]
    if any_size and grid >= 5:
        found += _crops(grid, patch, config.interpolation)
    return found


def pose_kinds(grid: int) -> dict[str, list[tuple[int, bool, tuple[int, int]]]]:
    """The poses (turns, flip, grid) of each kind, for an upright map of `grid` x `grid` patches; scales are of 0.7 and
    1.3 times the area, the range that SER trains on, other than the grid's own."""
    small, large = max(2, round(grid * 0.7**0.5)), round(grid * 1.3**0.5)
    small, large = min(small, grid - 1) or 1, max(large, grid + 1)
    upright = (grid, grid)
    return {
        "quarter turns": [(1, False, upright), (2, False, upright), (3, False, upright)],
        "flip": [(0, True, upright)],
        "scale": [(0, False, size) for size in ((small, small), (large, large), (small, large), (large, small))],
    }


def _crops(grid: int, patch: int, interpolation: str) -> Sequence[Change]:
    """Along both diagonals, by about a fifth of the image, and by half a patch more."""
    apart = max(1, round(grid / 5))
    side = grid - apart - 1
    whole, half = apart * patch, apart * patch + patch // 2
    return [
        Cropped(kind, start, offset, side, patch, interpolation)
        for kind, d in (("aligned crops", whole), ("unaligned crops", half))
        for start, offset in (((0, 0), (d, d)), ((0, d), (d, -d)))
    ]


def _centres(side: int) -> Tensor:
    """(side * side, 2): the centres (x, y) of the cells of [-1, 1] squared, row by row."""
    line = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _sample(x: Tensor, places: Tensor, interpolation: str, padding: str) -> Tensor:
    """(n, C, H, W) at (n, T, 2) places to (n, C, T)."""
    places = places[:, None].to(x.dtype)
    found = F.grid_sample(x, places, mode=interpolation, padding_mode=padding, align_corners=False)
    return found[:, :, 0]
