"""Which images make up which batch: a pure function of (seed, epoch), the same for any number of ranks."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from equimid.randomness import counted_generator
from equimid.views import Key

__all__ = ["MicroBatches"]


class MicroBatches(Sampler[list[Key]]):
    """Keys of this rank's micro-batches, from one step on.

    An epoch is a permutation of the images, cut into global micro-batches; the last, incomplete step is left out.
    Position p of a micro-batch belongs to rank p mod W, and is posed if p < posed.
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
        posed: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.images, self.seed, self.posed = images, seed, posed
        self.micro_batch, self.accumulate = micro_batch, accumulate
        self.first_step, self.last_step = first_step, last_step
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.images // (self.micro_batch * self.accumulate)
        epoch, order = -1, None
        for step in range(self.first_step, self.last_step):
            if order is None or step // per_epoch != epoch:
                epoch = step // per_epoch
                order = counted_generator(self.seed, "order", epoch).permutation(self.images)
            for micro in range(self.accumulate):
                start = ((step % per_epoch) * self.accumulate + micro) * self.micro_batch
                yield [
                    Key(epoch, int(order[start + p]), p < self.posed)
                    for p in range(self.rank, self.micro_batch, self.ranks)
                ]
