"""ImageNet-P: how often a prediction flips along a video in which an image is perturbed little by little.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019, arXiv 1903.12261. Letters: n videos, m frames of each, C classes; f(x_j) the prediction for frame j, σ(i) the rank
in frame j of the class that is ranked i in the frame it is compared with: the frame before, of noise frame 1.

    FR  = mean over videos and over frames j >= 2 of 1[f(x_j) != f(x_ref)]
    T5D = the same of Σ_{i=1..5} |min(i, 6) - min(σ(i), 6)|
    mFR = mean over the 10 test perturbations of FR / FR^AlexNet,   mT5D likewise
    mean top-1 = mean over the 10 test perturbations of the fraction of frames with the right class

AlexNet's FR and T5D were never published with the code, so that mFR and mT5D need a file of them.

Layout as released: <root>/[group/]<perturbation>/<wnid>/<video>.mp4; a folder of frames may stand for a video. Frames
are 224 px: they are not cropped again, and resized for a network of another size.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from equimid.data import IMAGE_SUFFIXES, loaded_batches, open_image
from equimid.distributed import gather_in_order, rank, world_size
from equimid.errors import UnreadableImage, UserError
from equimid.evaluation.preprocessing import Preprocessing
from equimid.evaluation.probes.heads import predicted
from equimid.evaluation.probes.linear import Classifier, fit_linear
from equimid.evaluation.robustness.folders import (
    ClassFolders,
    first_names,
    full_crop,
    named_folders,
    set_folder,
    summary,
    training_images,
)
from equimid.evaluation.study import Study
from equimid.records import Record

__all__ = ["TEST_PERTURBATIONS", "Normaliser", "flip_rate", "measure_imagenet_p", "top5_distance"]

logger = logging.getLogger("equimid")

TEST_PERTURBATIONS = (
    *("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow"),
    *("brightness", "translate", "rotate", "tilt", "scale"),
)
# for validation, and noise of greater steps: not in mFR
_OTHERS = (
    *("speckle_noise", "gaussian_blur", "spatter", "shear"),
    *(f"{noise}_noise_{level}" for noise in ("gaussian", "shot", "speckle") for level in (2, 3)),
)
_METRICS = ("flip_rate", "top5_distance")


def flip_rate(predictions: Tensor, to_first: bool) -> Tensor:
    """Share (...) in [0, 1] of the frames whose class differs from that of the frame they are compared with.

    Args:
        predictions: classes (..., m), m of 2 or more.
        to_first:    compare with frame 1 (noise), else with the frame before.
    """
    reference = predictions[..., :1] if to_first else predictions[..., :-1]
    return (predictions[..., 1:] != reference).double().mean(-1)


def top5_distance(rankings: Tensor, to_first: bool) -> Tensor:
    """Mean (...) over the frames of how far the five best classes moved, in [0, 15].

    Args:
        rankings: classes (..., m, C), the best first, m of 2 or more.
        to_first: compare with frame 1 (noise), else with the frame before.
    """
    later, reference = rankings[..., 1:, :], rankings[..., :1, :] if to_first else rankings[..., :-1, :]
    five = reference[..., :5].expand(*later.shape[:-1], -1)
    rank_of_class = later.argsort(-1)  # from 0, of each class
    moved = rank_of_class.gather(-1, five).clamp(max=5) - torch.arange(five.shape[-1])
    return moved.abs().sum(-1).double().mean(-1)


@dataclass(frozen=True)
class Normaliser:
    """AlexNet's values by perturbation: flip rates in (0, 1], top-5 distances above 0."""

    flip_rate: Mapping[str, float]
    top5_distance: Mapping[str, float]

    @staticmethod
    def read(file: Path) -> "Normaliser":
        """From JSON: {"flip_rate": {"snow": 0.1, ...}, "top5_distance": {"snow": 2.5, ...}}, all ten perturbations.

        Raises:
            UserError: no such file, or not that.
        """
        expected = 'expected {"flip_rate": {"snow": 0.1, ...}, "top5_distance": {"snow": 2.5, ...}}'
        try:
            content = json.loads(file.expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"evaluation.robustness.alexnet_p: cannot read {file} ({error.strerror})") from None
        except ValueError as error:
            raise UserError(f"{file} is not JSON ({error}); {expected}") from None
        values: dict[str, dict[str, float]] = {}
        for metric, most in zip(_METRICS, (1.0, 15.0), strict=True):
            table = content.get(metric) if isinstance(content, dict) else None
            if not isinstance(table, dict):
                raise UserError(f"{file} has no table {metric!r}; {expected}")
            missing = [name for name in TEST_PERTURBATIONS if name not in table]
            if missing:
                raise UserError(f"{file}: {metric} lacks {', '.join(missing)}; expected all ten test perturbations")
            for name, value in table.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
                    raise UserError(f"{file}: {metric} of {name} is {value!r}; expected a number in (0, {most:g}]")
            values[metric] = {name: float(table[name]) for name in TEST_PERTURBATIONS}
        return Normaliser(**values)


def normalised_mean(values: Mapping[str, float], alexnet: Mapping[str, float]) -> float:
    """Mean over the ten test perturbations of value / AlexNet's, in percent: mFR or mT5D."""
    return 100 * float(np.mean([values[name] / alexnet[name] for name in TEST_PERTURBATIONS]))


# --- videos on disk


@dataclass(frozen=True)
class PerturbedVideos:
    """What of ImageNet-P lies in a folder.

    Attributes:
        name:   what the user typed
        videos: by perturbation, (files or folders of frames, class of each)
    """

    name: str
    videos: Mapping[str, tuple[list[Path], list[int]]]

    @staticmethod
    def find(data: str, classes: tuple[str, ...]) -> "PerturbedVideos":
        """What of ImageNet-P lies in the folder.

        Raises:
            UserError: nothing of it, or class folders that the classifier does not know.
        """
        videos: dict[str, tuple[list[Path], list[int]]] = {}
        for perturbation, folder in named_folders(set_folder(data), (*TEST_PERTURBATIONS, *_OTHERS)).items():
            files: list[Path] = []
            labels: list[int] = []
            for name, label in ClassFolders.find(folder, classes).labels.items():
                of_class = [path for path in sorted((folder / name).iterdir()) if _is_video(path)]
                files += of_class
                labels += [label] * len(of_class)
            if files:
                videos[perturbation] = files, labels
        if not videos:
            raise UserError(
                f"nothing of ImageNet-P in {data}: expected PERTURBATION/CLASS/VIDEO.mp4 with or without a group "
                "above, such as snow/n01440764/ILSVRC2012_val_00000293.mp4; check the path"
            )
        return PerturbedVideos(data, videos)


def _is_video(path: Path) -> bool:
    return not path.name.startswith(".") and (path.suffix.lower() == ".mp4" or path.is_dir())


def read_frames(path: Path) -> Iterator[Image.Image]:
    """RGB frames of an mp4 file, or of a folder of images in order of the numbers in their names.

    Raises:
        UserError: the package av is missing, or a video or frame cannot be read.
    """
    if path.is_dir():
        for file in sorted((f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=_natural):
            try:
                yield open_image(file)
            except UnreadableImage as error:
                raise UserError(f"{file} cannot be read ({error.reason}); mend it and evaluate again") from None
        return
    try:
        import av
    except ImportError:
        raise UserError(f"{path} needs a video decoder: pip install 'equimid[video]'") from None
    try:
        with av.open(str(path)) as video:
            for frame in video.decode(video=0):
                yield frame.to_image()
    except (av.FFmpegError, IndexError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); mend or remove it and evaluate again") from None


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


class _Videos(Dataset[Tensor]):
    """Frames (m, 3, S, S) of each video."""

    def __init__(self, paths: list[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = paths, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        frames = [self.preprocessing(frame) for frame in read_frames(path)]
        if len(frames) < 2:
            raise UserError(
                f"{path} has {len(frames)} frame(s), and a flip needs two; mend or remove it and evaluate again"
            )
        return torch.stack(frames)


# --- the measurement


def measure_imagenet_p(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Flip rate, top-5 distance and top-1 of every perturbation; of all ten the mean top-1, and with AlexNet's values
    mFR and mT5D.

    Raises:
        UserError: no training images, nothing of ImageNet-P in `data`, unknown classes, an unreadable video, or a file
            of AlexNet's values that is none.
    """
    file = study.config.robustness.alexnet_p
    normaliser = None if file is None else Normaliser.read(Path(file))
    fit = training_images(train, "ImageNet-P")
    videos = PerturbedVideos.find(data, fit.classes)
    return imagenet_p_records(fit_linear(study, fit), videos, normaliser)


def imagenet_p_records(classifier: Classifier, videos: PerturbedVideos, normaliser: Normaliser | None) -> list[Record]:
    """The records of `measure_imagenet_p`. Values are means over videos, and so are their intervals."""
    scope = classifier.study.scope
    records: list[Record] = []
    means: dict[str, dict[str, float]] = {metric: {} for metric in (*_METRICS, "top1")}
    for perturbation, (paths, labels) in videos.videos.items():
        values = _of_videos(classifier, paths, labels, to_first="noise" in perturbation)
        for metric, column, scale in (("flip_rate", 0, 100), ("top5_distance", 1, 1), ("top1", 2, 100)):
            record = scope.mean("imagenet_p", metric, scale * values[:, column], {"perturbation": perturbation})
            records.append(replace(record, unit="%" if scale == 100 else ""))
            means[metric][perturbation] = float(values[:, column].mean())
    missing = [name for name in TEST_PERTURBATIONS if name not in videos.videos]
    if missing:
        logger.warning("%s lacks %s: no mean top-1, no mFR and no mT5D", videos.name, first_names(missing))
        return records
    n = sum(len(videos.videos[name][0]) for name in TEST_PERTURBATIONS)
    about: dict[str, object] = dict(classifier.details)
    mean_top1 = 100 * float(np.mean([means["top1"][name] for name in TEST_PERTURBATIONS]))
    records.append(summary(scope, "imagenet_p", "mean_top1", mean_top1, n, about))
    if normaliser is None:
        logger.warning(
            "no mFR and no mT5D: they need AlexNet's values, in a file that evaluation.robustness.alexnet_p names"
        )
    else:
        for metric, of_alexnet, alexnet in (
            ("mfr", "flip_rate", normaliser.flip_rate),
            ("mt5d", "top5_distance", normaliser.top5_distance),
        ):
            value = normalised_mean(means[of_alexnet], alexnet)
            records.append(summary(scope, "imagenet_p", metric, value, n, about))
    return records


@torch.inference_mode()
def _of_videos(classifier: Classifier, paths: list[Path], labels: list[int], to_first: bool) -> npt.NDArray[np.float64]:
    """Flip rate, top-5 distance and fraction of right frames of each video, (n, 3); each rank takes its share."""
    study = classifier.study
    mine = np.arange(rank(), len(paths), world_size())
    videos = _Videos([paths[i] for i in mine], full_crop(study.preprocessing))
    loader = loaded_batches(videos, workers=study.workers, collate=itemgetter(0))
    rows = [torch.zeros(0, 3)]
    for number, frames in study.track(zip(mine, loader, strict=True), paths[0].parent.parent.name, len(mine)):
        logits = classifier.logits(frames)
        rankings = logits.argsort(dim=-1, descending=True, stable=True)
        classes = predicted(logits)
        right = (classes == labels[number]).double().mean()
        rows.append(torch.stack([flip_rate(classes, to_first), top5_distance(rankings, to_first), right])[None].float())
    return gather_in_order(torch.cat(rows), torch.from_numpy(mine), study.device).double().numpy()
