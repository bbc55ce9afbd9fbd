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
        return _Whole(len(source), seed)
    if not isinstance(source, ShardSource):
        raise UserError(
            f"data.shuffle is shards, but {data.source} is not packed; pack it (equimid pack {data.source} OUT), or "
            "use data.shuffle=whole"
        )
    return _ByShards(source.shard, data.shards_at_once, seed)


class _Whole:
    """A permutation of all images."""

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed

    def __call__(self, epoch: int) -> Indices:
        return counted_generator(self.seed, "order", epoch).permutation(self.images)


class _ByShards:
    """The shards permuted and taken `at_once` at a time; the images of these permuted together."""

    def __init__(self, shard: npt.NDArray[np.int32], at_once: int, seed: int) -> None:
        self.at_once, self.seed = at_once, seed
        self.images = np.argsort(shard, kind="stable")
        self.ends = np.cumsum(np.bincount(shard))
        self.begins = self.ends - np.bincount(shard)

    def __call__(self, epoch: int) -> Indices:
        rng = counted_generator(self.seed, "order", epoch)
        shards = rng.permutation(len(self.ends))
        groups = [shards[k : k + self.at_once] for k in range(0, len(shards), self.at_once)]
        return np.concatenate(
            [rng.permutation(np.concatenate([self.images[self.begins[s] : self.ends[s]] for s in g])) for g in groups]
        )


class MicroBatches(Sampler[list[Key]]):
    """Keys of this rank's micro-batches, from one step on.

    An epoch is a permutation of the images, cut into global micro-batches; the last, incomplete step is left out.
    order: which permutation, from `epoch_order`; None for one of all images.
    Which positions of a micro-batch are this rank's, and which are posed, is the plan's to say.
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
        self.order = order or _Whole(images, seed)
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
