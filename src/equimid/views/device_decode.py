"""Decoding in the training process: JPEG files of a batch to the pixels that a worker would have sent.

On CUDA torchvision decodes them (nvJPEG), and they are cut and resized there in float32; on any other device this
happens on the CPU. Boxes, flips and photometric rows are those of the workers; pixels differ by rounding, and on CUDA
by nvJPEG's own interpolation of colour.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from equimid.data.jpeg import decode_jpegs, turn_upright
from equimid.errors import UserError
from equimid.views.crops import cut_out
from equimid.views.dataset import Batch, Item, ViewDataset

__all__ = ["decode_encoded"]


@torch.no_grad()
def decode_encoded(batch: Batch, dataset: ViewDataset, device: torch.device) -> Batch:
    """The batch with every file decoded, cut and resized, on `device` if it is CUDA, else on the CPU.

    A file that is refused there is done again as a worker does it, and with it the replacement of a damaged one: look
    at `unreadable` of what is returned. A batch without files is returned as it is.

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
    return _filled(_mended(batch, again), ready, where)


def _filled(batch: Batch, ready: Mapping[int, list[Tensor]], where: torch.device) -> Batch:
    """With the pixels (3, S, S) per view of the given places."""
    cropped = len(batch.crop_boxes[0]) if batch.crop_boxes else 0
    crops = [_merged(x, v, range(cropped), ready, where) for v, x in enumerate(batch.crops)]
    upright = [_merged(x, j, range(cropped, len(batch.indices)), ready, where) for j, x in enumerate(batch.upright)]
    return replace(batch, crops=crops, upright=upright, encoded={}, files=None)


def _merged(others: Tensor, view: int, places: range, ready: Mapping[int, list[Tensor]], where: torch.device) -> Tensor:
    rest = iter(others.to(where, non_blocking=True))
    return torch.stack([ready[p][view].to(where) if p in ready else next(rest) for p in places])


def _mended(batch: Batch, again: Mapping[int, Item]) -> Batch:
    """With index, boxes and rows of the items that were done again."""
    if not again:
        return batch
    cropped = len(batch.crop_boxes[0]) if batch.crop_boxes else 0
    indices = batch.indices.clone()
    boxes, rows, upright_rows = (
        [x.clone() for x in many] for many in (batch.crop_boxes, batch.crop_rows, batch.upright_rows)
    )
    for place, item in again.items():
        indices[place] = item.index
        if item.posed:
            for x, row in zip(upright_rows, item.rows, strict=True):
                x[place - cropped] = row
        else:
            for x, y, box, row in zip(boxes, rows, item.boxes, item.rows, strict=True):
                x[place], y[place] = box, row
    unreadable = batch.unreadable + tuple(index for item in again.values() for index in item.unreadable)
    return replace(
        batch, indices=indices, crop_boxes=boxes, crop_rows=rows, upright_rows=upright_rows, unreadable=unreadable
    )
