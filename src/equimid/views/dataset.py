"""What a loader's worker does: draw crops, flips and photometric parameters, then decode once for all of them.

All draws are functions of (seed, epoch, index), so neither the number of workers nor a resume changes them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from equimid.data.jpeg import ImageSource, JpegPicture, open_picture
from equimid.errors import UnreadableImage, UserError
from equimid.randomness import counted_generator
from equimid.views.batch import EncodedImage, Item, Key
from equimid.views.crops import Cut, centre_crop, choose_scale, cut_out, sample_crop, sample_shared_crop
from equimid.views.photometric import draw, share_colours, untouched
from equimid.views.plan import CentreView, CropView, ViewPlan

__all__ = ["ViewDataset"]

_TRIES = 100  # an image and the replacements of one that cannot be read
_TOGETHER = 16  # JPEG files whose views are drawn before the first of them is decoded


class ViewDataset(Dataset[Item]):
    """Views of images by Key.

    Args:
        source: of the images.
        plan: which views.
        seed: of all draws.
        decode: "workers" gives pixels; "device" gives plain JPEG files as they are, with what is to be cut from them,
            for `decode_encoded`.
    """

    def __init__(
        self, source: ImageSource, plan: ViewPlan, seed: int, decode: Literal["workers", "device"] = "workers"
    ) -> None:
        self.source, self.plan, self.seed, self.decode = source, plan, seed, decode

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item:
        return self.item(key, encoded=self.decode == "device")

    def __getitems__(self, keys: Sequence[Key]) -> list[Item]:
        """The items of a batch, for the loader. All views of a group are drawn before its first image is decoded. This
        takes a twelfth less time, since decoding takes the processor's caches from Python."""
        groups = (keys[first : first + _TOGETHER] for first in range(0, len(keys), _TOGETHER))
        return [item for group in groups for item in self._together(group)]

    def _together(self, keys: Sequence[Key]) -> list[Item]:
        encoded = self.decode == "device"
        try:
            begun = [self._begin(key, key.index, (), encoded) for key in keys]
            return [finish() for finish in begun]
        except UnreadableImage:
            return [self.item(key, encoded=encoded) for key in keys]

    def item(self, key: Key, *, encoded: bool) -> Item:
        """The views of an image, or of another one where it cannot be read: a file can be damaged after the check.

        Args:
            encoded: leave plain JPEG files undecoded.

        Raises:
            UserError: many images could not be read.
        """
        unreadable: list[int] = []
        for attempt in range(_TRIES):
            index = self._candidate(key, attempt)
            if index in unreadable:
                continue
            try:
                return self._begin(key, index, tuple(unreadable), encoded)()
            except UnreadableImage:
                unreadable.append(index)
        raise UserError(
            f"image number {key.index} could not be read, nor could {_TRIES - 1} images drawn in its place; "
            "is the disk still there?"
        )

    def _candidate(self, key: Key, attempt: int) -> int:
        """Replacements are drawn, since neighbours go bad together: a folder, a shard."""
        if attempt == 0:
            return key.index
        rng = counted_generator(self.seed, "replacement", key.epoch, key.index, attempt)
        return int(rng.integers(len(self.source)))

    def _begin(self, key: Key, index: int, unreadable: tuple[int, ...], encoded: bool) -> Callable[[], Item]:
        """Open an image and draw its views; the function that is returned decodes it and cuts them.

        Raises:
            UnreadableImage: here or in that function.
        """
        picture = open_picture(self.source, index)
        # counted by the key, not by the image that may replace an unreadable one
        rng = counted_generator(self.seed, "view", key.epoch, key.index)
        posed = key.posed and self.plan.posed is not None
        cuts, rows = self._draw_posed(picture.size, rng) if posed else self._draw_crops(picture.size, rng, key)
        boxes = torch.from_numpy(np.array([cut.fractions(picture.size) for cut in cuts], dtype=np.float32))
        photometric = torch.from_numpy(np.array(rows))

        def finish() -> Item:
            encoded_image = None
            if encoded and isinstance(picture, JpegPicture):
                encoded_image = EncodedImage(key, picture.orientation, tuple(cuts), len(picture.content))
                pixels = [picture.file()]
            else:
                whole, scale = picture.pixels(choose_scale(cuts, picture.scales))
                pixels = [cut_out(whole, cut, self.plan.interpolation, scale) for cut in cuts]
            return Item(index, posed, pixels, boxes, photometric, unreadable, encoded_image)

        if isinstance(picture, JpegPicture):
            return finish
        item = finish()  # at once: its pixels are decoded already, and those of several images would be held
        return lambda: item

    def _draw_crops(
        self, size: tuple[int, int], rng: np.random.Generator, key: Key
    ) -> tuple[list[Cut], list[npt.NDArray[np.float32]]]:
        """What to cut for the standard and then the extra views, and their photometric rows."""
        if self.plan.aligned and key.pair < 0:
            raise ValueError(f"the views are aligned in pairs, but the key of image {key.index} names no pair")
        shared = counted_generator(self.seed, "pair", key.epoch, key.pair) if self.plan.aligned else None
        drawn = [_draw_view(view, size, rng, shared) for view in self.plan.crops]
        # last, so that the standard views are the same with and without an add-on
        drawn += [_draw_view(extra.view, size, rng, None) for extra in self.plan.extra.values()]
        return [cut for cut, _ in drawn], [row for _, row in drawn]

    def _draw_posed(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[list[Cut], list[npt.NDArray[np.float32]]]:
        """What to cut for every pair of posed views, and the photometric row of each."""
        posed = self.plan.posed
        assert posed is not None
        cuts, rows = [], []
        for first in range(0, len(posed.sizes), 2):
            view = self.plan.crops[first]
            box = sample_crop(size, view.scale, rng) if posed.shared_crop else (0.0, 0.0, *size)
            flipped = posed.shared_crop and rng.random() < view.flip
            cuts.append(Cut(box, posed.sizes[first], flipped))
            rows += [draw(crop.photometric, rng) for crop in self.plan.crops[first : first + 2]]
        return cuts, rows


def _draw_view(
    view: CropView | CentreView, size: tuple[int, int], rng: np.random.Generator, shared: np.random.Generator | None
) -> tuple[Cut, npt.NDArray[np.float32]]:
    """What to cut from an image of (width, height) px, and the photometric row."""
    if isinstance(view, CentreView):
        return Cut(centre_crop(size, view.fraction), view.size, False), untouched()
    box = sample_crop(size, view.scale, rng) if shared is None else sample_shared_crop(size, view.scale, shared)
    flipped = rng.random() < view.flip
    row = draw(view.photometric, rng)
    if shared is not None:
        row = share_colours(draw(view.photometric, shared), row)
    return Cut(box, view.size, flipped), row
