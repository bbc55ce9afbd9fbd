"""Mean and deviation of what the views draw, by which EquiMod standardises the parameters of a view.

They are measured from our own draws and stored with their settings and date, never copied: the SER release's were
those of other augmentations. The crop is in fractions of the image, so they depend on a data set only by the
shape of its images: half of the draws are on 500 x 375 px, half on 375 x 500. View size, kernel and threshold draw
nothing and play no part.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from equimid.errors import UserError
from equimid.randomness import counted_generator
from equimid.views import FIELDS, CropView, ViewPlan, draw
from equimid.views.crops import sample_crop

__all__ = ["PARAMETERS", "Constants", "check_constants_file", "find_constants", "measure_constants", "store_constants"]

_SIGMA = FIELDS.index("sigma")
# of one view, in this order: crop and flip, jitter and grey, whether blurred, how much, solarised
PARAMETERS: tuple[str, ...] = (
    "top", "left", "height", "width", "flip", *FIELDS[:_SIGMA], "blurred", *FIELDS[_SIGMA:],
)  # fmt: skip

_SHAPES = ((500, 375), (375, 500))  # width, height in px
_UNDRAWN = ("blur_kernel", "solarise_threshold")
_PACKAGED = files("equimid.addons").joinpath("equimod_constants.json")


@dataclass(frozen=True)
class Constants:
    """Of the two views that `views` describes, taken together.

    views:   per view, what decides its draws
    command: that measured them;  draws: per view
    std:     0 where a parameter never varies
    """

    views: list[dict[str, Any]]
    measured: str
    command: str
    draws: int
    names: list[str]
    mean: list[float]
    std: list[float]

    def __post_init__(self) -> None:
        if self.names != list(PARAMETERS):
            raise ValueError(f"names are {self.names}, expected {list(PARAMETERS)}")
        settings = [x for view in self.views for setting in view.values() for x in _listed(setting)]
        if len(self.views) != 2 or not all(isinstance(x, int | float) for x in settings):
            raise ValueError("expected the settings of two views, in numbers")
        if not len(self.mean) == len(self.std) == len(self.names):
            raise ValueError(f"expected {len(self.names)} means and deviations")
        if not all(math.isfinite(x) for x in self.mean) or not all(0 <= x < math.inf for x in self.std):
            raise ValueError("means must be finite, deviations 0 or more")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parameters(boxes: Tensor, rows: Tensor) -> Tensor:
    """Boxes (b, 5) and photometric rows (b, F) of a batch's view to (b, len(PARAMETERS))."""
    return torch.cat([boxes, rows[:, :_SIGMA], (rows[:, _SIGMA : _SIGMA + 1] > 0).to(rows), rows[:, _SIGMA:]], 1)


def draw_parameters(view: CropView, sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> Tensor:
    """Parameters of `view` of images of those (width, height), (n, len(PARAMETERS)), as a data worker draws them."""
    boxes: list[list[float]] = []
    rows: list[npt.NDArray[np.float32]] = []
    for width, height in sizes:
        left, top, right, bottom = sample_crop((width, height), view.scale, rng)
        flipped = float(rng.random() < view.flip)
        boxes.append([top / height, left / width, (bottom - top) / height, (right - left) / width, flipped])
        rows.append(draw(view.photometric, rng))
    return parameters(torch.tensor(boxes), torch.from_numpy(np.stack(rows)))


def measure_constants(plan: ViewPlan, draws: int, command: str = "") -> Constants:
    """Constants of the plan's first two views.

    Args:
        draws: of each view; the error of a mean is its deviation / sqrt(2 draws).

    Raises:
        UserError: fewer than two draws.
    """
    if draws < 2:
        raise UserError(f"{draws} draws measure nothing; use 100000")
    rng = counted_generator(0, "equimod constants")
    sizes = [_SHAPES[i % 2] for i in range(draws)]
    drawn = torch.cat([draw_parameters(view, sizes, rng) for view in plan.crops[:2]]).double()
    mean, deviation = ([float(f"{x:.6g}") for x in row.tolist()] for row in (drawn.mean(0), drawn.std(0, correction=0)))
    return Constants(_settings(plan), date.today().isoformat(), command, draws, list(PARAMETERS), mean, deviation)


def find_constants(plan: ViewPlan, file: str = "") -> Constants:
    """The stored constants of the plan's first two views.

    Args:
        file: that `store_constants` wrote; none = the package's own.

    Raises:
        UserError: there are none, or the file is damaged; the command that measures them is told.
    """
    missing = bool(file) and not Path(file).exists()
    wanted, stored = _settings(plan), _load(Path(file) if file and not missing else None)
    told = [_differing(entry.views, wanted) for entry in stored]
    if {} in told and not missing:
        return stored[told.index({})]
    nearest = min(told, key=len) if told else {}
    where, target = file or "equimid's own file", file or "equimod_constants.json"
    apart = "; ".join(f"{key}={new}, stored with {old}" for key, (old, new) in nearest.items())
    settings = "".join(f"{key}={new} " for key, (_, new) in nearest.items())
    found = "does not exist" if missing else "holds no EquiMod constants for these views"
    raise UserError(
        f"{where} {found}{f' (nearest: {apart})' if apart else ''}; measure them: "
        f"equimid constants --recipe NAME {settings}--out {target} (NAME: this run's recipe), "
        f"then set equimod.constants={target}"
    )


def check_constants_file(file: Path) -> None:
    """Before measuring: a UserError where constants cannot be stored."""
    if not file.parent.is_dir():
        raise UserError(f"the folder {file.parent} does not exist; make it, or choose another --out")
    if file.exists():
        _load(file)


def store_constants(constants: Constants, file: Path) -> None:
    """Add to the file's constants, in place of those of the same views.

    Raises:
        UserError: the file is damaged.
    """
    kept = [e for e in (_load(file) if file.exists() else []) if _differing(e.views, constants.views)]
    beside = file.with_name(f".{file.name}.tmp")
    # a line for each field, not for each number
    entries = [",\n ".join(f'"{k}": {json.dumps(x)}' for k, x in asdict(entry).items()) for entry in [*kept, constants]]
    beside.write_text("[{" + "},\n{".join(entries) + "}]\n")
    os.replace(beside, file)


def _load(file: Path | None) -> list[Constants]:
    try:
        text = (file or _PACKAGED).read_text(encoding="utf-8")
        return TypeAdapter(list[Constants]).validate_json(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read as EquiMod constants ({error}); name a file that equimid constants wrote"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".strip(": ")
        raise UserError(
            f"{file or _PACKAGED} is no file of EquiMod constants ({told}); delete it and measure them again with "
            "equimid constants"
        ) from None


def _settings(plan: ViewPlan) -> list[dict[str, Any]]:
    """Of each of the first two views, what decides its draws."""
    views: list[dict[str, Any]] = []
    for view in plan.crops[:2]:
        drawn = {"crop_scale": view.scale, "flip": view.flip, **asdict(view.photometric)}
        views.append({k: list(x) if isinstance(x, tuple) else x for k, x in drawn.items() if k not in _UNDRAWN})
    return views


def _differing(stored: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """{setting: (stored, wanted)}, as one writes them."""

    def strip_slash(views: list[dict[str, Any]]) -> dict[str, str]:
        named = {}
        for place, view in zip(("first", "second"), views, strict=True):
            for key, value in view.items():
                setting = f"views.{key}" if key in ("crop_scale", "flip") else f"views.{place}.{key}"
                named[setting] = ",".join(str(float(x)) for x in _listed(value))
        return named

    old, new = strip_slash(stored), strip_slash(wanted)
    return {key: (old.get(key, "nothing"), new.get(key, "")) for key in {**new, **old} if old.get(key) != new.get(key)}
