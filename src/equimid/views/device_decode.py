"""Decode JPEG files of a batch in the training process, to the pixels that a worker would have sent.

On CUDA torchvision decodes them (nvJPEG), and they are cut and resized there in float32; for any other device this is
done on the CPU. The workers draw boxes, flips and photometric parameters as always. Pixels differ from those of a
worker by rounding, and on CUDA by nvJPEG's own interpolation of colour.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from equimid.data.jpeg import decode_jpegs, turn_upright
from equimid.errors import UserError
from equimid.views.batch import Batch, Item
from equimid.views.crops import cut_out
from equimid.views.dataset import ViewDataset

__all__ = ["decode_encoded"]


@torch.no_grad()
def decode_encoded(batch: Batch, dataset: ViewDataset, device: torch.device) -> Batch:
    """Decode, cut and resize every file of a batch, on `device` if it is CUDA, else on the CPU.

    A file that the decoder refuses is done again as a worker does it. Where it is damaged, another image replaces it
    and `unreadable` of the returned batch names it. A batch without files is returned as it is.

    Raises:
        UserError: not one file could be decoded there, though the CPU can; or many images could not be read.
    """
    if batch.files is None:
        return batch
    where = device if device.type == "cuda" else torch.device("cpu")
    lengths = [image.bytes for image in batch.encoded.values()]
    decoded = decode_jpegs([file.clone() for file in batch.files.split(lengths)], where)
    ready: dict[int, list[Tensor]] = {}
    again: dict[int, Item] = {}
    for (place, image), pixels in zip(batch.encoded.items(), decoded, strict=True):
        if pixels is None:
            again[place] = dataset.item(image.key, encoded=False)
            ready[place] = again[place].pixels
        else:
            upright = turn_upright(pixels, image.orientation)
            ready[place] = [cut_out(upright, cut, dataset.plan.interpolation) for cut in image.cuts]
    if len(again) == len(batch.encoded) and not any(item.unreadable for item in again.values()):
        raise UserError(
            f"torchvision cannot decode JPEG files on {where.type}: it refused all {len(again)} of a batch, which the "
            "CPU can read; set runtime.decode=workers"
        )
    cropped = len(batch.crops[0].boxes) if batch.crops else 0
    crops, pairs = (
        [_merged(view.pixels, j, places, ready, where) for j, view in enumerate(views)]
        for views, places in (
            (batch.crops, range(cropped)),
            (batch.posed[::2], range(cropped, len(batch.indices))),
        )
    )
    return replace(_mended(batch, again, cropped).with_pixels(crops, pairs), encoded={}, files=None)


def _merged(others: Tensor, j: int, places: range, ready: Mapping[int, list[Tensor]], where: torch.device) -> Tensor:
    """Pixels j of the images at these places: those that are ready, and the others in order."""
    rest = iter(others.to(where, non_blocking=True))
    return torch.stack([ready[p][j].to(where) if p in ready else next(rest) for p in places])


def _mended(batch: Batch, again: Mapping[int, Item], cropped: int) -> Batch:
    """With index, boxes and photometric parameters of the items that were done again."""
    indices = batch.indices.clone()
    crops, posed = (
        [replace(view, boxes=view.boxes.clone(), photometric=view.photometric.clone()) for view in views]
        for views in (batch.crops, batch.posed)
    )
    for place, item in again.items():
        indices[place] = item.index
        row = place - cropped if item.posed else place
        for v, view in enumerate(posed if item.posed else crops):
            view.boxes[row] = item.boxes[v // 2 if item.posed else v]
            view.photometric[row] = item.photometric[v]
    unreadable = batch.unreadable + tuple(index for item in again.values() for index in item.unreadable)
    return replace(batch, indices=indices, crops=crops, posed=posed, unreadable=unreadable)
