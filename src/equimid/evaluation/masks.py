"""Images with masks, for segmentation.

DATA/images and DATA/masks, or the two in DATA/train and in DATA/test (or val, validation). The mask of images/a/b.jpg
is masks/a/b.png, of the image's size: the number of a class at each pixel (a PNG of grey levels or with a palette), 255
where nothing is said. DATA/classes.txt names the classes, one a line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from equimid.data import IMAGE_SUFFIXES, FileSource
from equimid.data.sources import pack_paths
from equimid.errors import UnreadableImage, UserError
from equimid.randomness import counted_generator

__all__ = ["IGNORED", "MaskedImages", "open_masks"]

IGNORED = 255
_TEST_FOLDERS = ("test", "val", "valid", "validation", "dev")
_LAYOUT = "expected images/ and masks/ in it, or train/ and test/ (or val/) with those two in each"


@dataclass(frozen=True)
class MaskedImages:
    """Images and the files of their masks.

    Attributes:
        source: n images
        masks:  (n) files
    """

    source: FileSource
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, indices: npt.NDArray[np.int64]) -> "MaskedImages":
        """The images at these indices, in this order."""
        return MaskedImages(self.source.take(indices), tuple(self.masks[i] for i in indices))

    def mask(self, i: int) -> npt.NDArray[np.uint8]:
        """Classes (H, W), IGNORED where nothing is said.

        Raises:
            UserError: the file is no image of class numbers.
        """
        file = self.masks[i]
        try:
            with Image.open(file) as image:
                mode, values = image.mode, np.asarray(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the mask {file} cannot be read ({reason}); replace it, or remove its image") from None
        if values.ndim != 2:
            raise UserError(
                f"the mask {file} is a colour image ({mode}); expected a PNG of class numbers, one channel or a "
                "palette: convert colours to numbers"
            )
        if not 0 <= values.min() <= values.max() <= IGNORED:
            raise UserError(
                f"the mask {file} has values from {values.min()} to {values.max()}; expected class numbers from 0 to "
                "254, and 255 where nothing is said"
            )
        return values.astype(np.uint8)

    def classes(self, names: Sequence[str]) -> int:
        """Number of classes that the masks need, 1 + the greatest; every image and mask is read and checked.

        Raises:
            UserError: also a mask of another size than its image, or a class beyond `names` where there are names.
        """
        most = 0
        for i, file in enumerate(self.masks):
            mask = self.mask(i)
            try:
                width, height = self.source.load(i).size  # decoded: the header may lie on its side
            except UnreadableImage as error:
                raise UserError(
                    f"{self.source.describe(i)} cannot be read ({error.reason}); remove it and its mask"
                ) from None
            if mask.shape != (height, width):
                raise UserError(
                    f"the mask {file} has {mask.shape[1]} x {mask.shape[0]} pixels and its image {width} x {height}; "
                    "expected the same size"
                )
            known = mask[mask != IGNORED]
            largest = int(known.max()) + 1 if known.size else 0
            if names and largest > len(names):
                raise UserError(
                    f"the mask {file} has class {largest - 1}, and classes.txt names {len(names)}, from 0 to "
                    f"{len(names) - 1}; name all classes, or give 255 to what is none"
                )
            most = max(most, largest)
        return most


def open_masks(data: str, train: str | None = None) -> tuple[MaskedImages, MaskedImages, tuple[str, ...]]:
    """Training images, test images and the names of the classes, () where there is no classes.txt. Without a split,
    every fifth of a fixed random order is tested on.

    Raises:
        UserError: no such layout, no image, or images without a mask.
    """
    fit, test = _part(train or data, "train", whole=bool(train)), _part(data, "test", whole=bool(train))
    return fit, test, _names(data) or _names(train or data)


def _part(data: str, split: str, whole: bool) -> MaskedImages:
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UserError(f"{data} is not a folder; {_LAYOUT}")
    if _has_both(root):
        everything = _pairs(data, "all", root)
        if whole:
            return everything
        order = counted_generator(0, "segmentation split").permutation(len(everything))
        tested = max(1, math.ceil(0.2 * len(everything)))
        chosen = np.sort(order[:tested] if split == "test" else order[tested:])
        part = everything.take(chosen)
        return MaskedImages(replace(part.source, split=split), part.masks)
    names = ("train",) if split == "train" else _TEST_FOLDERS
    folder = next((root / name for name in names if _has_both(root / name)), None)
    if folder is None:
        raise UserError(f"{data} has no images and masks to {split} on; {_LAYOUT}")
    return _pairs(data, split, folder)


def _has_both(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _pairs(data: str, split: str, folder: Path) -> MaskedImages:
    images = folder / "images"
    files = sorted(
        file.relative_to(images)
        for file in images.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not any(p.startswith(".") for p in file.relative_to(images).parts)
    )
    if not files:
        raise UserError(f"no image in {images}; expected files that end in {' '.join(sorted(IMAGE_SUFFIXES))}")
    masks = [folder / "masks" / file.with_suffix(".png") for file in files]
    missing = [str(file) for file, mask in zip(files, masks, strict=True) if not mask.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} images in {images} have no mask: {', '.join(missing[:5])}"
            f"{' and more' if len(missing) > 5 else ''}; expected {folder / 'masks'}/NAME.png for images/NAME.jpg"
        )
    source = FileSource(name=data, split=split, root=images, files=pack_paths(str(file) for file in files))
    return MaskedImages(source, tuple(masks))


def _names(data: str) -> tuple[str, ...]:
    file = Path(data).expanduser() / "classes.txt"
    if not file.is_file():
        return ()
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{file} cannot be read as UTF-8 text; expected a class a line") from None
    if len(set(names)) < len(names) or len(names) > IGNORED:
        raise UserError(f"{file} has {len(names)} names; expected at most 255, each once")
    return names
