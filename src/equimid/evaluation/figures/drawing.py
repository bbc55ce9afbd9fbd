"""What all pictures share: colours of token maps, photographs, small files, records."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from equimid.distributed import rank
from equimid.evaluation.preprocessing import Preprocessing
from equimid.evaluation.study import Study
from equimid.files import write_bytes
from equimid.records import Record

__all__ = [
    "as_bytes",
    "photographs",
    "picture_file",
    "picture_record",
    "principal_colours",
    "save_figure",
    "write_beside",
]

Array = npt.NDArray[np.float32]


def principal_colours(maps: list[Tensor]) -> list[Array]:
    """Maps (n, D, h, w), each of its own grid, to pictures (n, h, w, 3) in [0, 1]: first three principal components as
    red, green, blue, from the 2nd to the 98th percentile; one basis and one scale for all of them."""
    maps = [m.detach().cpu().double() for m in maps]
    rows = torch.cat([m.movedim(1, -1).flatten(0, 2) for m in maps])
    mean = rows.mean(0)
    # eigenvectors of (D, D), not the decomposition of all tokens: a fraction of the time; ascending
    basis = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors.flip(1)[:, :3]
    # an eigenvector's sign is arbitrary: the largest entry is made positive, so that every machine draws alike
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    low, high = (torch.from_numpy(np.quantile(((rows - mean) @ basis).numpy(), q, axis=0)) for q in (0.02, 0.98))
    return [
        (((m.movedim(1, -1) - mean) @ basis - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).float().numpy()
        for m in maps
    ]


def photographs(x: Tensor, preprocessing: Preprocessing) -> Array:
    """Preprocessed images (n, 3, S, S) as pictures (n, S, S, 3) in [0, 1]."""
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    photos: Array = (x * std + mean).clamp(0, 1).movedim(1, -1).cpu().numpy()
    return photos


def as_bytes(picture: Array) -> npt.NDArray[np.uint8]:
    """[0, 1] to 0..255."""
    return (picture * 255).round().astype(np.uint8)


def picture_file(study: Study, name: str) -> Path:
    """Where that picture goes; the folder is made. Records of other data and subjects stay beside these, so their
    pictures must too: the file's name tells them apart."""
    folder = study.folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    stem, _, suffix = name.rpartition(".")
    return folder / f"{stem}_{study.scope.tag}.{suffix}"


def save_figure(figure: Figure, file: Path) -> None:
    """As a PNG of at most 256 colours, a third of the size."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    drawn = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = BytesIO()
    drawn.save(small, format="png", optimize=True)
    write_beside(file, small.getvalue())


def write_beside(file: Path, content: bytes) -> None:
    """Written beside and renamed, by the main process: a reader never sees half of it."""
    if rank() > 0:
        return
    write_bytes(file, content)


def picture_record(study: Study, evaluation: str, n: int, file: Path, details: Mapping[str, Any]) -> Record:
    """The record of a picture; `details` has its caption."""
    scope = study.scope
    return scope.record(
        evaluation, "picture", None, n, details=dict(details), picture=file.relative_to(study.folder).as_posix()
    )
