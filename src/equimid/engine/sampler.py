"""Which images make up which batch: a pure function of (seed, epoch), the same for any number of ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from equimid.data import DataConfig, ShardSource, Source
from equimid.errors import UserError
from equimid.randomness import counted_generator
from equimid.views import Key, ViewPlan

__all__ = ["EpochOrder", "MicroBatches", "epoch_order"]

Indices = npt.NDArray[np.int64]

# the images of an epoch, each once, in their order
EpochOrder = Callable[[int], Indices]


def epoch_order(source: Source, data: DataConfig, seed: int) -> EpochOrder:
    """The order of the images in every epoch, as `data.shuffle` wants it.

    Raises:
        UserError: by shards, but the images are not packed.
    """
    if data.shuffle == "whole":
        return _whole(len(source), seed)
    if not isinstance(source, ShardSource):
        raise UserError(
            f"data.shuffle is shards, but {data.source} is not packed; pack it (equimid pack {data.source} OUT), or "
            "use data.shuffle=whole"
        )
    return _by_shards(source.shard, data.shards_at_once, seed)


def _whole(images: int, seed: int) -> EpochOrder:
    """A permutation of all images."""
    return lambda epoch: counted_generator(seed, "order", epoch).permutation(images)


def _by_shards(shard: npt.NDArray[np.int32], at_once: int, seed: int) -> EpochOrder:
    """The shards permuted and taken `at_once` at a time; the images of these permuted together."""
    ends = np.cumsum(np.bincount(shard))[:-1]
    images = np.split(np.argsort(shard, kind="stable"), ends)  # of each shard

    def order(epoch: int) -> Indices:
        rng = counted_generator(seed, "order", epoch)
        shards = rng.permutation(len(images))
        groups = [shards[k : k + at_once] for k in range(0, len(shards), at_once)]
        return np.concatenate([rng.permutation(np.concatenate([images[s] for s in group])) for group in groups])

    return order


class MicroBatches(Sampler[list[Key]]):
    """Keys of this rank's micro-batches, from one step on.

    An epoch is a permutation of the images, cut into global micro-batches; the last, incomplete step is left out. The
    plan says which positions of a micro-batch are this rank's, and which are posed.

    Args:
        images: how many there are.
        micro_batch: images of a micro-batch over all ranks.
        accumulate: micro-batches of a step.
        first_step: the first step to be done.
        last_step: one past the last.
        order: from `epoch_order`; None = a permutation of all images.
    """

    def __init__(
        self,
        images: int,
        seed: int,
        *,
        micro_batch: int,
        accumulate: int,
        first_step: int,
        last_step: int,
        plan: ViewPlan,
        rank: int,
        ranks: int,
        order: EpochOrder | None = None,
    ) -> None:
        self.images, self.plan = images, plan
        self.order = order or _whole(images, seed)
        self.micro_batch, self.accumulate = micro_batch, accumulate
        self.first_step, self.last_step = first_step, last_step
        self.positions = plan.positions(micro_batch, rank, ranks)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.images // (self.micro_batch * self.accumulate)
        posed = self.plan.posed.count if self.plan.posed else 0
        unit = self.plan.unit
        epoch, order = -1, None
        for step in range(self.first_step, self.last_step):
            if order is None or step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self.order(epoch)
            for micro in range(self.accumulate):
                start = ((step % per_epoch) * self.accumulate + micro) * self.micro_batch
                images = order[start : start + self.micro_batch]
                yield [Key(epoch, int(images[p]), p < posed, int(images[p // unit * unit])) for p in self.positions]
