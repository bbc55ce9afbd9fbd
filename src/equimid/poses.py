"""Poses: the eight lattice symmetries of the square times a target grid, acting on images and on token maps.

Letters: n images, C channels, H W pixels or patches, h w the target grid in patches.

A pose is r^turns s^flip followed by a resize to its grid: flip left-right first, then quarter turns
(`torch.rot90` over H, W), then resize. On the lattice (no resize) it moves values and changes none, bit for
bit, for every dtype; scaling resamples images and maps with one interpolation (bicubic, no antialias,
`align_corners=False`).

Source: SER (ICLR 2026, arXiv 2603.06693), the known action on the patch grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Pose", "fixed_grids", "sample_grid", "sample_pose_pair", "transport"]

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Pose:
    """Per image an element of the dihedral group of the square, and one target grid for the batch.

    Attributes:
        turns: (n,) int64, quarter turns counter-clockwise (taken modulo 4)
        flip:  (n,) bool, mirror left-right before turning
        grid:  (h, w) of the posed map, in patches

    `p @ q` poses by q first, then by p, and has the grid of p. `~p` undoes the element of p and keeps its grid
    (a resize has no inverse; `transport` returns to any grid).

    Raises:
        ValueError: turns and flip are not two (n,) tensors of integers and booleans, or the grid is not positive.
    """

    turns: Tensor
    flip: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.turns.ndim != 1 or self.turns.shape != self.flip.shape:
            raise ValueError(
                f"turns {tuple(self.turns.shape)} and flip {tuple(self.flip.shape)} must both have shape (n,)"
            )
        if self.turns.dtype != torch.int64 or self.flip.dtype != torch.bool:
            raise ValueError(f"turns must be int64 and flip bool, found {self.turns.dtype} and {self.flip.dtype}")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid must be two positive numbers of patches (h, w), found {self.grid}")
        object.__setattr__(self, "turns", self.turns % 4)
        object.__setattr__(self, "grid", (int(self.grid[0]), int(self.grid[1])))

    @staticmethod
    def identity(n: int, grid: Grid, device: torch.device | str | None = None) -> Pose:
        """The pose of n upright images on `grid`."""
        return Pose(
            torch.zeros(n, dtype=torch.int64, device=device),
            torch.zeros(n, dtype=torch.bool, device=device),
            grid,
        )

    def __len__(self) -> int:
        return len(self.turns)

    def __matmul__(self, other: Pose) -> Pose:
        # s r = r^-1 s: a flip reverses every turn that it is moved past
        _same_length(self, other)
        turns = self.turns + torch.where(self.flip, -other.turns, other.turns)
        return Pose(turns, self.flip ^ other.flip, self.grid)

    def __invert__(self) -> Pose:
        # a reflection is its own inverse
        return Pose(torch.where(self.flip, self.turns, -self.turns), self.flip, self.grid)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pose):
            return NotImplemented
        return self.grid == other.grid and torch.equal(self.turns, other.turns) and torch.equal(self.flip, other.flip)

    __hash__ = None  # type: ignore[assignment]  # tensors inside: a value, but not a key

    def __getitem__(self, images: Any) -> Pose:
        """The poses of some of the images (slice, mask or indices), on the same grid."""
        return Pose(self.turns[images], self.flip[images], self.grid)

    def to(self, device: torch.device | str) -> Pose:
        """The same pose on another device."""
        # towards a device the copy is queued; the other way the host must wait before it reads
        queued = torch.device(device).type != "cpu"
        turns, flip = (x.to(device, non_blocking=queued) for x in (self.turns, self.flip))
        return Pose(turns, flip, self.grid)

    def act(self, x: Tensor, patch_size: int = 1, interpolation: str = "bicubic") -> Tensor:
        """Pose images, or token maps (patch_size 1).

        Args:
            x: (n, C, H, W) of any dtype where no resize is needed; of a floating one where it is.
            patch_size: side of a patch in the units of x.
            interpolation: of `torch.nn.functional.interpolate`, without antialias.

        Returns:
            (n, C, h * patch_size, w * patch_size)

        Raises:
            ValueError: x is not a batch of n maps.
            TypeError: an integer or boolean x would have to be resized.
        """
        if x.ndim != 4 or len(x) != len(self):
            raise ValueError(f"expected ({len(self)}, C, H, W) for {len(self)} poses, found {tuple(x.shape)}")
        h, w = self.grid[0] * patch_size, self.grid[1] * patch_size
        turns, flip = self.turns.to(x.device), self.flip.to(x.device)
        # Resampling commutes with the eight elements, so it comes first: images that will lie on their side are
        # resized to the transposed grid, and one gather then moves every value of the batch to its place.
        if h == w:
            flat = _resize(x, (h, w), interpolation).flatten(2)
        elif x.is_floating_point() or x.is_complex():
            lying = (turns % 2 == 1)[:, None, None]
            upright_flat = _resize(x, (h, w), interpolation).flatten(2)
            flat = torch.where(lying, _resize(x, (w, h), interpolation).flatten(2), upright_flat)
        else:
            lying_all = bool((turns % 2 == 1).all())
            if not lying_all and bool((turns % 2 == 1).any()):
                raise TypeError(f"{x.dtype} maps cannot be resized, and on a {h} x {w} grid half of these must be")
            flat = _resize(x, (w, h) if lying_all else (h, w), interpolation).flatten(2)
        places = _source_places(turns, flip, h, w)
        posed: Tensor = flat.gather(2, places[:, None, :].expand(-1, x.shape[1], -1)).unflatten(2, (h, w))
        return posed


def transport(x: Tensor, source: Pose, target: Pose, interpolation: str = "bicubic") -> Tensor:
    """Carry token maps from one pose's frame to another's: act by `target @ ~source`.

    Args:
        x: (n, C, *source.grid), the maps of images posed by `source`.
        source, target: n poses each.

    Returns:
        (n, C, *target.grid): where f is equivariant, the maps of the same images posed by `target`.

    Raises:
        ValueError: x does not lie on the grid of `source`, or the numbers of images differ.
    """
    if tuple(x.shape[-2:]) != source.grid:
        raise ValueError(f"the maps are {tuple(x.shape[-2:])}, the source pose's grid is {source.grid}: must be equal")
    return (target @ ~source).act(x, interpolation=interpolation)


def _same_length(p: Pose, q: Pose) -> None:
    if len(p) != len(q):
        raise ValueError(f"{len(p)} poses and {len(q)} poses do not compose: the numbers of images must be equal")


def _resize(x: Tensor, size: Grid, interpolation: str) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    if not x.is_floating_point():
        raise TypeError(f"{x.dtype} maps of {tuple(x.shape[-2:])} cannot be resized to {size}: pass a floating dtype")
    corners = False if interpolation in ("bilinear", "bicubic") else None
    return F.interpolate(x, size=size, mode=interpolation, align_corners=corners)


def _source_places(turns: Tensor, flip: Tensor, h: int, w: int) -> Tensor:
    """For each place of the posed (h, w) map, in row-major order, the place its value comes from: (n, h * w).

    For odd turns the map that is read is (w, h).
    """
    row = torch.arange(h, device=turns.device)[:, None].expand(h, w).reshape(1, -1)
    column = torch.arange(w, device=turns.device)[None, :].expand(h, w).reshape(1, -1)
    turn = turns[:, None]
    odd = turn % 2 == 1
    width = torch.where(odd, h, w)  # of the map that is read
    # rot90: out[i, j] = in[j, w_in - 1 - i]; 180 degrees: in[h - 1 - i, w - 1 - j]; 270: in[h_in - 1 - j, i]
    source_row = torch.where(
        odd, torch.where(turn == 1, column, w - 1 - column), torch.where(turn == 2, h - 1 - row, row)
    )
    source_column = torch.where(
        odd, torch.where(turn == 1, h - 1 - row, row), torch.where(turn == 2, w - 1 - column, column)
    )
    source_column = torch.where(flip[:, None], width - 1 - source_column, source_column)
    return source_row * width + source_column


def sample_grid(
    grid: Grid,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.7, 1.3),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Grid:
    """A grid of area U(area) times that of the upright grid and log-uniform aspect h/w in `aspect`, sides rounded, at
    least 2.

    Source: the SER release's ranges (its `builder/utils.py`), area fraction [0.7, 1.3], aspect [3/4, 4/3].
    """
    fraction, log_aspect = rng.uniform(*area), rng.uniform(math.log(aspect[0]), math.log(aspect[1]))
    return _rounded(grid, fraction, log_aspect)


def _rounded(grid: Grid, fraction: float, log_aspect: float) -> Grid:
    patches, ratio = grid[0] * grid[1] * fraction, math.exp(log_aspect) * grid[0] / grid[1]
    return max(2, round(math.sqrt(patches * ratio))), max(2, round(math.sqrt(patches / ratio)))


@lru_cache
def fixed_grids(
    grid: Grid, count: int, area: tuple[float, float] = (0.7, 1.3), aspect: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[Grid, ...]:
    """`count` grids that stand for the law of `sample_grid`: few shapes, so that what is made for a shape is made once.

    Areas at evenly spaced quantiles, aspects at those of a golden-ratio sequence, every grid beside its mirror image
    (two grids may be equal). The start of the sequence is the one of 64 whose mean number of patches is nearest to the
    law's.
    """

    def at(u: float, v: float) -> Grid:
        low, high = math.log(aspect[0]), math.log(aspect[1])
        return _rounded(grid, area[0] + u * (area[1] - area[0]), low + v * (high - low))

    def patches(grids: Sequence[Grid]) -> float:
        return sum(h * w for h, w in grids) / len(grids)

    places = [(i + 0.5) / 64 for i in range(64)]
    law = patches([at(u, v) for u in places for v in places])
    pairs = count // 2
    candidates = []
    for start in places:
        halves = [((i + 0.5) / pairs, (start + i * (math.sqrt(5) - 1) / 2) % 1 / 2) for i in range(pairs)]
        mirrored = [at(u, 0.5 + side * v) for u, v in halves for side in (1, -1)]
        candidates.append(mirrored + [at(0.5, 0.5)] * (count % 2))
    errors = [abs(patches(grids) - law) for grids in candidates]
    return tuple(candidates[errors.index(min(errors))])


def sample_pose_pair(
    n: int,
    grid: Grid,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.7, 1.3),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    complement: bool = False,
    grids: int = 0,
) -> tuple[Pose, Pose]:
    """Poses of the two posed views of n images, on the CPU: per-image elements, one grid per view, drawn by
    `sample_grid` or, where `grids` is given, uniformly from as many `fixed_grids`.

    Independent by default: each view's elements are uniform over the eight. With `complement` as in the SER
    release: quarter turns are one draw per view, half turn and flip are drawn per image for view 0 and
    complemented for view 1, so that every relative element is a reflection.
    """
    if grids:
        fixed = fixed_grids(grid, grids, area, aspect)
        view_grids = [fixed[number] for number in rng.integers(0, grids, size=2)]
    else:
        view_grids = [sample_grid(grid, rng, area, aspect) for _ in range(2)]
    if complement:
        quarter = rng.integers(0, 4, size=2)
        half, flip = rng.random((2, n)) < 0.5
        elements = [(quarter[0] + 2 * half, flip), (quarter[1] + 2 * ~half, ~flip)]
    else:
        elements = [(rng.integers(0, 4, size=n), rng.random(n) < 0.5) for _ in range(2)]
    first, second = (
        Pose(torch.as_tensor(turns, dtype=torch.int64), torch.as_tensor(flips), view_grid)
        for (turns, flips), view_grid in zip(elements, view_grids, strict=True)
    )
    return first, second
