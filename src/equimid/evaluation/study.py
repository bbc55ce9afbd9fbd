"""A study: one network to be measured, and how. Every measurement takes one, with the name of the data.

A measurement is a function (study, data, train) -> records:
    data:  what the user named: images to measure on; where it needs a training part and `train` is None, both parts
           are in it
    train: labelled training images that lie elsewhere, or None
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equimid.backbones import Encoder
from equimid.data import Source, check_images, data_home, open_source
from equimid.distributed import any_rank, barrier, gather_in_order, rank, world_size
from equimid.errors import UserError
from equimid.evaluation.cache import cached, store
from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.preprocessing import FeatureTable, Preprocessing, Progress, image_batches
from equimid.randomness import counted_generator
from equimid.records import Record, Subject

__all__ = ["Study", "images_of", "labelled_splits", "readable", "same_place", "sample_images"]

logger = logging.getLogger("equimid")

Bar = Callable[[str], AbstractContextManager[Progress | None]]
Details = dict[str, Any]  # of a record
T = TypeVar("T")

_Z = 1.959963984540054  # 97.5 % of the normal distribution lies below


@dataclass(frozen=True)
class Scope:
    """What records are about: the fields that all records of a measurement share.

    Attributes:
        subject:    a `Subject`
        data:       what the user named
        seed:       of the probe's own randomness
        checkpoint: short hash of the weights, "" for a reference
    """

    subject: str
    data: str
    seed: int
    checkpoint: str

    @property
    def tag(self) -> str:
        """8 hex digits of subject and data: files of others stay beside those that have it in their name."""
        return hashlib.blake2b(repr((str(self.subject), self.data)).encode(), digest_size=4).hexdigest()

    def record(
        self, evaluation: str, metric: str, value: float | None, n: int, *, subject: str | None = None, **more: Any
    ) -> Record:
        """A record of what this is about. more: unit, low, high, details, picture."""
        return Record(
            evaluation, metric, value, n, subject or self.subject, self.data, self.seed, self.checkpoint, **more
        )

    def accuracy(self, evaluation: str, correct: npt.NDArray[np.bool_ | np.floating[Any]], details: Details) -> Record:
        """Top-1 in percent with Wilson's 95 % interval, of each image's answer (n,): right or wrong, or the fraction of
        several answers that is right."""
        n, p = len(correct), float(correct.mean())
        whole = 2 * (n + _Z**2)
        middle, reach = (2 * n * p + _Z**2) / whole, _Z / whole * math.sqrt(4 * n * p * (1 - p) + _Z**2)
        low, high = 0.0 if p == 0 else 100 * (middle - reach), 100.0 if p == 1 else 100 * (middle + reach)
        return self.record(evaluation, "top1", 100 * p, n, unit="%", low=low, high=high, details=details)

    def mean(
        self, evaluation: str, metric: str, values: npt.NDArray[np.floating[Any]], details: dict[str, Any],
        subject: str | None = None,
    ) -> Record:  # fmt: skip
        """Mean over images with a normal 95 % interval."""
        middle, interval = float(values.mean()), {}
        if len(values) > 1:
            error = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
            interval = {"low": middle - error, "high": middle + error}
        return self.record(evaluation, metric, middle, len(values), subject=subject, details=details, **interval)

    def missing(self, evaluation: str, metric: str, details: dict[str, Any], subject: str | None = None) -> Record:
        """A record without a value: its details say why."""
        return self.record(evaluation, metric, None, 0, subject=subject, details=details)


@contextmanager
def _no_bar(what: str) -> Iterator[Progress | None]:
    yield None


@dataclass(frozen=True)
class Study:
    """One network that is measured, and how.

    Attributes:
        encoder: the network, in eval mode
        scope:   what its records say that they are about
        config:  how it is measured
        folder:  of the records; pictures go into its `pictures`
        device:  where the network runs
        workers: processes that load images
        bar:     progress bar for what is named
    """

    encoder: Encoder
    scope: Scope
    config: EvaluationConfig
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    bar: Bar = field(default=_no_bar, repr=False)

    def __post_init__(self) -> None:
        self.encoder.to(self.device)

    def about(self, encoder: Encoder, subject: str) -> "Study":
        """The same study of another network, a reference without a checkpoint."""
        return replace(self, encoder=encoder, scope=replace(self.scope, subject=subject, checkpoint=""))

    def random_baseline(self) -> "Study | None":
        """The study of the same network with weights drawn from the seed, shown the same images; None where there is
        no such network."""
        if self.encoder.random is None:
            return None
        random_baseline = self.encoder.random(self.scope.seed)
        random_baseline.pretrained_cfg = self.encoder.pretrained_cfg
        return self.about(random_baseline, Subject.RANDOM)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images must look to the network."""
        return Preprocessing.of(self.encoder.pretrained_cfg)

    @cached_property
    def identity(self) -> str:
        """Of the network's weights; computed once."""
        return self.encoder.identity

    @cached_property
    def heads(self) -> dict[str, Any]:
        """Linear heads that were trained on crops, by the stamp of their images: each costs many passes."""
        return {}

    def batches(
        self, source: Source, batch_size: int = 64, indices: npt.NDArray[np.int64] | None = None
    ) -> Iterator[Tensor]:
        """Preprocessed images (b, 3, S, S) in order, on the device."""
        for images in image_batches(
            source, self.preprocessing, batch_size=batch_size, workers=self.workers, indices=indices
        ):
            yield images.to(self.device, non_blocking=True)

    def track(
        self, items: Iterable[T], what: str, total: int, size: Callable[[T], int] = lambda item: 1
    ) -> Iterator[T]:
        """The items, with a progress bar for `what`. Iterate where it is called: a generator that is kept closes its
        bar late.

        Args:
            total: that the bar counts to.
            size:  how many of them an item is, counted when it has been used.
        """
        done = 0
        with self.bar(f"{what}, {self.scope.subject}") as progress:
            for item in items:
                yield item
                done += size(item)
                if progress:
                    progress(min(done, total), total)

    @torch.no_grad()  # not inference_mode: what is trained on these tokens needs them for its gradient
    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (b, D, h, w) of the last block after the final norm, float32, of preprocessed images (b, 3, H, W).

        Raises:
            UserError: the network has no token maps.
        """
        encoder = self.encoder
        maps = encoder.forward_features(images.to(self.device), [encoder.depth]).maps
        if encoder.depth not in maps:
            raise UserError(f"{self.scope.subject} has no token maps, and this needs them; give a vision transformer")
        return encoder.final_norm(maps[encoder.depth].movedim(1, -1)).movedim(-1, 1).float()

    def columns(self, images: Tensor) -> Tensor:
        """The features that a linear probe reads, (b, D) or (b, 4 D): see `evaluation.linear_features`."""
        count = 4 if self.config.linear_features == "last4" else 1
        return self._embeddings(images)[:, -count * self.encoder.embed_dim :]

    def features(self, source: Source) -> FeatureTable:
        """Final embeddings (n, D) of labelled images, from the cache where they were computed before."""
        table = self._table(source)
        return FeatureTable(table.features[:, -self.encoder.embed_dim :], table.labels)

    def probe_features(self, source: Source) -> FeatureTable:
        """`columns` of labelled images, (n, D) or (n, 4 D), from the cache where they were computed before."""
        if self.config.linear_features == "cls":
            return self.features(source)
        return self._table(source)

    def _table(self, source: Source) -> FeatureTable:
        """Embeddings of the last four blocks, so that one pass serves every probe; each rank takes its share."""
        if source.labels is None:
            raise UserError(f"{source.name} has no labels, and a probe needs them: give folders of classes")
        key = (self.identity, source.stamp(), repr(self.preprocessing))
        features = cached(*key)
        missing = features is None or len(features) != len(source)
        # ranks on other machines have other disks, and all must take part
        if any_rank(missing, self.device) or features is None:
            features = self._compute(source)
            if rank() == 0:
                store(features, *key)
            barrier()  # before the next measurement asks for it
        return FeatureTable(features, torch.as_tensor(source.labels))

    @torch.inference_mode()
    def _compute(self, source: Source) -> Tensor:
        mine = np.arange(rank(), len(source), world_size())
        batches, ranks = self.batches(source, indices=mine), world_size()
        parts = [
            self._embeddings(images).float().cpu()
            for images in self.track(batches, "features", len(source), lambda images: len(images) * ranks)
        ]
        if not parts:  # a rank without images; it still has columns
            side = self.preprocessing.size
            parts = [self._embeddings(torch.zeros(1, 3, side, side, device=self.device))[:0].float().cpu()]
        return gather_in_order(torch.cat(parts), torch.from_numpy(mine), self.device)

    def _embeddings(self, images: Tensor) -> Tensor:
        """(b, up to 4 D): CLS (where the output pools patches, the mean token) of the blocks before the last, each
        through the final norm, then the final embedding."""
        encoder = self.encoder
        layers = range(max(1, encoder.depth - 3), encoder.depth)
        features = encoder.forward_features(images, layers)
        earlier = [features.cls_at[layer] for layer in layers if layer in features.cls_at]
        if not encoder.reads_cls or not features.cls_at:
            earlier = [features.maps[layer].mean((2, 3)) for layer in layers]
        return torch.cat([*(encoder.final_norm(x) for x in earlier), features.cls], dim=1)


def readable(source: Source) -> Source:
    """The source without the images that cannot be read; the check is kept, and made once for the same files."""
    image_check = check_images(source, data_home() / "checked" / source.stamp(), smallest_side=1, tolerated=1.0)
    if image_check.unreadable:
        _, first, reason = image_check.unreadable[0]
        logger.warning(
            "%s: %d of %d images cannot be read and are left out, the first %s (%s)",
            source.name, len(image_check.unreadable), len(source), first, reason,
        )  # fmt: skip
    return image_check.apply(source)


def images_of(data: str) -> Source:
    """The images to measure on where no label is needed: the test part where there is one, else all."""
    return readable(open_source(data, "whole"))


def sample_images(source: Source, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of at most `count` images, drawn once for a seed, in the order drawn: neighbours are of any classes."""
    return counted_generator(seed, "equivariance").permutation(len(source))[:count]


def same_place(one: str, other: str) -> bool:
    """Whether two names of data are of the same images: then their own split keeps training and test apart."""
    return one == other or os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def labelled_splits(data: str, train: str | None = None) -> tuple[Source, Source]:
    """Training and test images with labels over the same classes; with `train`, all of the data are tested on
    that are not its own training part.

    Raises:
        UserError: no such data, no labels, or classes of the two parts that do not agree.
    """
    apart = train is not None and not same_place(train, data)
    fit = open_source(train or data, "fit" if apart else "train")
    test = open_source(data, "whole" if apart else "test")
    trained_on, tested_on = fit.labels, test.labels
    if trained_on is None or tested_on is None:
        bare = fit.name if trained_on is None else test.name
        raise UserError(
            f"{bare} has no labels, or one class alone, and a probe needs two classes or more: give a folder with a "
            "folder for each class, or train/ and test/ with class folders"
        )
    missing = sorted(set(np.unique(tested_on)) - set(np.unique(trained_on)))
    if fit.classes != test.classes or missing:
        trained = {fit.classes[i] for i in np.unique(trained_on)}
        tested = {test.classes[i] for i in np.unique(tested_on)}
        raise UserError(
            "the classes of training and test images do not match: "
            f"{_some(trained - tested)} only in the training images, {_some(tested - trained)} only in the test "
            "images; give both parts the same class folders"
        )
    return readable(fit), readable(test)
