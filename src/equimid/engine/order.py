"""Which images make up which batch: a pure function of (seed, epoch), the same for any number of ranks."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from equimid.randomness import counted_generator
from equimid.views import Key, ViewPlan

__all__ = ["MicroBatches"]


class MicroBatches(Sampler[list[Key]]):
    """Keys of this rank's micro-batches, from one step on.

    An epoch is a permutation of the images, cut into global micro-batches; the last, incomplete step is left out.
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
    ) -> None:
        self.images, self.seed, self.plan = images, seed, plan
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
                order = counted_generator(self.seed, "order", epoch).permutation(self.images)
            for micro in range(self.accumulate):
                start = ((step % per_epoch) * self.accumulate + micro) * self.micro_batch
                images = order[start : start + self.micro_batch]
                yield [Key(epoch, int(images[p]), p < posed, int(images[p // unit * unit])) for p in self.positions]
