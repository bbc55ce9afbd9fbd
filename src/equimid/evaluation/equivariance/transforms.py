"""What is done to an image, what an equivariant layer's map would have done with it, and the poses of test images.

Letters: n images, C channels, D width, H W pixels of an image, p of a patch, h w = H W / p, T compared tokens.

A change g gives two images of one, x0 (most often x itself) and x1 = g x, and says which T tokens of their maps show
the same places: `transport` takes the map of x0 to rho(g) f(x0), `select` takes the tokens of f(x1) to compare
with. `leave` takes the map of x0 as if nothing had been done: what carrying it is worth is the difference. Images and
maps are resampled by the same interpolation, without antialias, `align_corners=False`.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder
from equimid.evaluation.config import EquivarianceConfig
from equimid.poses import Pose, transport

__all__ = [
    "UPRIGHT",
    "Cropped",
    "Grid",
    "NamedPose",
    "Posed",
    "Resized",
    "Rotated",
    "Transform",
    "named_poses",
    "pose_kinds",
    "poses_for",
    "transforms_of",
]

logger = logging.getLogger("equimid")

Grid = tuple[int, int]  # (h, w), patches


class Transform(ABC):
    """`kind` is what records call it, `patch_size` the side of a patch in pixels."""

    kind: str
    patch_size: int

    def before(self, x: Tensor) -> Tensor:
        """x0, of images (n, 3, H, W)."""
        return x

    @abstractmethod
    def after(self, x: Tensor) -> Tensor:
        """x1, of images (n, 3, H, W)."""

    @abstractmethod
    def transport(self, m: Tensor) -> Tensor:
        """(n, D, h, w), a map of x0, to the tokens (n, D, T) that an equivariant layer has for x1."""

    @abstractmethod
    def grid_after(self, grid: Grid) -> Grid:
        """Of the map of x1, for images of `grid` patches."""

    def select(self, m: Tensor) -> Tensor:
        """(n, D, h, w), a map of x1, to the tokens (n, D, T) that are compared."""
        tokens = m.flatten(2)
        return tokens if self.inside is None else tokens[..., self.inside.to(m.device)]

    def leave(self, m: Tensor) -> Tensor:
        """(n, D, h, w), a map of x0, to its tokens (n, D, T) at the places that `select` takes, as far from the centre;
        beyond its border the nearest."""
        grid = self.grid_after((m.shape[2], m.shape[3]))
        if grid == tuple(m.shape[2:]):
            return self.select(m)
        places = _centres(grid) * torch.tensor((grid[1] / m.shape[3], grid[0] / m.shape[2]))
        return _sample(m, places.to(m.device).expand(len(m), -1, -1), "bilinear", "border")

    def cells(self, grid: Grid) -> Tensor:
        """(T, 2) int64: row and column, on the map of x1, of the tokens that are compared."""
        h, w = self.grid_after(grid)
        cells = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        return cells if self.inside is None else cells[self.inside]

    @property
    def inside(self) -> Tensor | None:
        """(h * w) bool: the tokens of x1 that are compared; None where it is all."""
        return None

    @property
    def member(self) -> float | None:
        """Which of its kind it is, where that has records of its own: the angle of a rotation, degrees."""
        return None

    @property
    def place(self) -> tuple[int, int] | None:
        """What `before` depends on, (row, column) in pixels; None where it is the whole image."""
        return None


@dataclass(frozen=True)
class Posed(Transform):
    """Flip left-right, then quarter turns: both sides are permutations, so no resampling is involved."""

    kind: str
    turns: int
    flip: bool
    patch_size: int

    def after(self, x: Tensor) -> Tensor:
        return self._pose(x, (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)).act(x, self.patch_size)

    def transport(self, m: Tensor) -> Tensor:
        grid = (m.shape[2], m.shape[3])
        return transport(m, Pose.identity(len(m), grid, m.device), self._pose(m, grid)).flatten(2)

    def grid_after(self, grid: Grid) -> Grid:
        return (grid[1], grid[0]) if self.turns % 2 else grid

    def _pose(self, x: Tensor, grid: Grid) -> Pose:
        upright = Pose.identity(len(x), grid, x.device)
        return Pose(upright.turns + self.turns, upright.flip ^ self.flip, self.grid_after(grid))


@dataclass(frozen=True)
class Resized(Transform):
    """The image resized to another number of patches, (h, w)."""

    kind: str
    size: Grid
    patch_size: int
    interpolation: str

    def after(self, x: Tensor) -> Tensor:
        return self._resize(x, (self.size[0] * self.patch_size, self.size[1] * self.patch_size))

    def transport(self, m: Tensor) -> Tensor:
        return self._resize(m, self.size).flatten(2)

    def grid_after(self, grid: Grid) -> Grid:
        return self.size

    def _resize(self, x: Tensor, size: Grid) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(x, size, mode="nearest-exact")  # "nearest" is not symmetric about the centre
        return F.interpolate(x, size, mode=self.interpolation)


@dataclass(frozen=True)
class Rotated(Transform):
    """The image turned about its centre, counter-clockwise, mirrored beyond its border; compared are the patches that
    see none of the mirrored border."""

    kind: str
    angle: float
    grid: Grid
    patch_size: int
    interpolation: str

    @property
    def member(self) -> float:
        return self.angle

    def after(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        places = self._source(_centres((h, w)).to(x.device)).expand(len(x), -1, -1)
        return _sample(x, places, self.interpolation, "reflection").reshape(*x.shape[:2], h, w)

    def transport(self, m: Tensor) -> Tensor:
        places = self._source(_centres(self.grid)[self.inside]).to(m.device).expand(len(m), -1, -1)
        return _sample(m, places, self.interpolation, "border")

    def grid_after(self, grid: Grid) -> Grid:
        return grid

    @cached_property
    def inside(self) -> Tensor:
        """(h * w) bool: patches whose four corners come from within the image."""
        h, w = self.grid
        corners = [torch.tensor((x, y)) for x in (-1 / w, 1 / w) for y in (-1 / h, 1 / h)]
        reach = torch.stack([self._source(_centres(self.grid) + c).abs().amax(-1) for c in corners]).amax(0)
        within: Tensor = reach <= 1 + 1e-6
        return within

    def _source(self, places: Tensor) -> Tensor:
        """Where in x0 the value at (x, y) of x1 comes from; the image is [-1, 1] to the right and downwards."""
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        h, w = self.grid
        back = torch.tensor([[cosine, -sine * h / w], [sine * w / h, cosine]], dtype=places.dtype, device=places.device)
        return places @ back.T


@dataclass(frozen=True)
class Cropped(Transform):
    """Two crops of one size: x0 from `start`, x1 from `start + offset`, pixels (row, column). Compared are the patches
    of x1 that lie wholly in x0; where the offset is no multiple of the patch, the map of x0 is resampled."""

    kind: str
    start: tuple[int, int]
    offset: tuple[int, int]
    grid: Grid
    patch_size: int
    interpolation: str

    def before(self, x: Tensor) -> Tensor:
        return self._cut(x, self.start)

    def after(self, x: Tensor) -> Tensor:
        return self._cut(x, (self.start[0] + self.offset[0], self.start[1] + self.offset[1]))

    @property
    def place(self) -> tuple[int, int]:
        return self.start

    def transport(self, m: Tensor) -> Tensor:
        h, w = self.grid
        shift = torch.tensor((self.offset[1] / w, self.offset[0] / h)) * 2 / self.patch_size
        places = (_centres(self.grid) + shift)[self.inside].to(m.device).expand(len(m), -1, -1)
        return _sample(m, places, self.interpolation, "border")

    def grid_after(self, grid: Grid) -> Grid:
        return self.grid

    @cached_property
    def inside(self) -> Tensor:
        """(h * w) bool: patches of x1 that lie wholly in x0."""
        rows, columns = (
            (first + offset >= 0) & (first + self.patch_size + offset <= side * self.patch_size)
            for side, offset in zip(self.grid, self.offset, strict=True)
            for first in [torch.arange(side) * self.patch_size]
        )
        return (rows[:, None] & columns).flatten()

    def _cut(self, x: Tensor, start: tuple[int, int]) -> Tensor:
        h, w = (side * self.patch_size for side in self.grid)
        return x[..., start[0] : start[0] + h, start[1] : start[1] + w]


def transforms_of(grid: Grid, patch_size: int, config: EquivarianceConfig, any_size: bool = True) -> list[Transform]:
    """All that equivariance is measured under, for images of `grid` (h, w) patches.

    Without `any_size`, what keeps the image's size. Crops need a grid of 5 patches or more each way. What
    compares a single patch is left out, but for poses: its place is not measurable.
    """
    transforms: list[Transform] = []
    for kind, poses in pose_kinds(grid).items():
        for turns, flip, size in poses:
            if kind != "scale":
                # a network of one size sees a rectangle lying on its side as another size
                if any_size or turns % 2 == 0 or grid[0] == grid[1]:
                    transforms.append(Posed(kind, turns, flip, patch_size))
            elif any_size and size != (1, 1):
                name = "isotropic scale" if (size[0] < grid[0]) == (size[1] < grid[1]) else "anisotropic scale"
                transforms.append(Resized(name, size, patch_size, config.interpolation))
    parts: list[Rotated | Cropped] = [
        Rotated("rotation", angle, grid, patch_size, config.interpolation) for angle in config.angles
    ]
    if any_size and min(grid) >= 5:
        parts += _crops(grid, patch_size, config.interpolation)
    return [*transforms, *(change for change in parts if change.inside.sum() > 1)]


def pose_kinds(grid: Grid) -> dict[str, list[tuple[int, bool, Grid]]]:
    """The poses (turns, flip, grid) of each kind, for an upright map of `grid` (h, w) patches; scales are of 0.7 and
    1.3 times the area, the range that SER trains on, other than the grid's own."""
    (h0, h1), (w0, w1) = (_scaled(side) for side in grid)
    lying = (grid[1], grid[0])
    return {
        "quarter turns": [(1, False, lying), (2, False, grid), (3, False, lying)],
        "flip": [(0, True, grid)],
        "scale": [(0, False, size) for size in ((h0, w0), (h1, w1), (h0, w1), (h1, w0))],
    }


def _scaled(side: int) -> tuple[int, int]:
    small, large = max(2, round(side * 0.7**0.5)), round(side * 1.3**0.5)
    return min(small, side - 1) or 1, max(large, side + 1)


def _crops(grid: Grid, patch_size: int, interpolation: str) -> Sequence[Cropped]:
    """Along both diagonals, by about a fifth of the image, and by half a patch more."""
    apart = [max(1, round(side / 5)) for side in grid]
    size = (grid[0] - apart[0] - 1, grid[1] - apart[1] - 1)
    return [
        Cropped(kind, start, offset, size, patch_size, interpolation)
        for kind, more in (("aligned crops", 0), ("unaligned crops", patch_size // 2))
        for d, e in [[side * patch_size + more for side in apart]]
        for start, offset in (((0, 0), (d, e)), ((0, e), (d, -e)))
    ]


def _centres(grid: Grid) -> Tensor:
    """(h * w, 2): the centres (x, y) of the cells of [-1, 1] squared, row by row."""
    y, x = (((2 * torch.arange(side) + 1) / side - 1) for side in grid)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


def _sample(x: Tensor, places: Tensor, interpolation: str, padding: str) -> Tensor:
    """(n, C, H, W) at (n, T, 2) places to (n, C, T)."""
    places = places[:, None].to(x.dtype)
    values = F.grid_sample(x, places, mode=interpolation, padding_mode=padding, align_corners=False)
    return values[:, :, 0]


UPRIGHT = "none"  # the kind of the pose that changes nothing


@dataclass(frozen=True)
class NamedPose:
    """One pose of all test images.

    Attributes:
        kind: "none", "quarter turns", "flip" or "scale"
        name: within its kind, such as "90 degrees"
        turns, flip, grid: as in `Pose`
    """

    kind: str
    name: str
    turns: int
    flip: bool
    grid: tuple[int, int]

    def of(self, images: int) -> Pose:
        """As a pose of so many images."""
        return Pose(torch.full((images,), self.turns), torch.full((images,), self.flip), self.grid)


def named_poses(grid: int) -> list[NamedPose]:
    """Of an upright map of `grid` x `grid` patches; the first is upright, the others those of `pose_kinds`."""
    poses = [NamedPose(UPRIGHT, "upright", 0, False, (grid, grid))]
    for kind, members in pose_kinds((grid, grid)).items():
        for turns, flip, size in members:
            name = {
                "quarter turns": f"{90 * turns} degrees",
                "flip": "mirrored left-right",
                "scale": f"{size[0]} x {size[1]} patches",
            }[kind]
            poses.append(NamedPose(kind, name, turns, flip, size))
    return poses


def poses_for(encoder: Encoder, grid: int, what: str) -> list[NamedPose]:
    """`named_poses` that this network can be shown: one that takes images of one size alone gets no other scales, and
    a warning says so of `what` is measured."""
    poses = named_poses(grid)
    if encoder.any_size:
        return poses
    logger.warning("this network takes images of one size: its %s under other scales is not measured", what)
    return [pose for pose in poses if pose.kind != "scale"]
