"""The only file with collectives. A name says whether the gradient crosses ranks.

Letters: W ranks, b rows of this rank, D columns. All of it works on one process without a process group, and
with gloo on the CPU. A loss whose rank r returns W times its fraction of the global mean has, after DDP's mean over
ranks, exactly the global gradient, whatever W.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "CrossRankBatchNorm1d",
    "any_rank",
    "barrier",
    "gather_detached",
    "gather_in_order",
    "gather_with_gradient",
    "leave_group",
    "mean_detached",
    "mean_over_ranks",
    "rank",
    "row_counts",
    "row_offset",
    "standardise_over_ranks",
    "sum_detached",
    "sum_with_gradient",
    "world_size",
]


def rank() -> int:
    """This process's number among the ranks; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks W; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


def leave_group() -> None:
    """End this process's part in the group: from here on it is alone."""
    if world_size() > 1:
        barrier()
        dist.destroy_process_group()


def sum_detached(x: Tensor) -> Tensor:
    """Sum over ranks; no gradient."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_detached(x: Tensor) -> Tensor:
    """Mean over ranks; no gradient."""
    return sum_detached(x) / world_size()


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set on any rank (the same answer on all of them)."""
    if world_size() == 1:
        return flag
    return bool(sum_detached(torch.tensor(float(flag), device=device)) > 0)


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_detached(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return sum_detached(grads[0])


def sum_with_gradient(x: Tensor) -> Tensor:
    """Sum over ranks; backward sums the gradients of all ranks."""
    return cast(Tensor, _SumWithGradient.apply(x)) if world_size() > 1 else x


def mean_over_ranks(losses: Tensor) -> Tensor:
    """This rank's share of the mean over the rows of all ranks, times W; a rank may have no rows."""
    if world_size() == 1:
        return losses.sum() * (1 / max(len(losses), 1))
    # filled on the device: a copy from the host would wait for it
    rows = sum_detached(losses.new_full((), len(losses)))
    return losses.sum() * (world_size() / rows.clamp(min=1))


def row_counts(x: Tensor) -> list[int]:
    """How many rows each rank has, in rank order.

    They are exchanged between the processors where the process group has a backend for them ("cpu:gloo,cuda:nccl"), so
    that no process waits for its device; else on the device of x.
    """
    if world_size() == 1:
        return [len(x)]
    device = torch.device("cpu") if "cpu:" in dist.get_backend_config() else x.device
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(counts, counts.new_full((1,), len(x)))
    return cast(list[int], counts.tolist())


def row_offset(x: Tensor) -> int:
    """Where this rank's rows begin among the gathered rows of all ranks."""
    return sum(row_counts(x)[: rank()])


def gather_detached(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, (b, ...) to (sum of b, ...); row counts may differ; no gradient.

    Args:
        counts: `row_counts(x)` where it is known already; saves their exchange.
    """
    if world_size() == 1:
        return x.detach()
    if counts is None:
        counts = row_counts(x)
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])


def gather_in_order(own: Tensor, places: Tensor, device: torch.device) -> Tensor:
    """Rows (n, ...) of all ranks, of which this rank has those at `places` (b,), on the CPU; no gradient."""
    if world_size() == 1:
        return own
    order = gather_detached(places.to(device)).cpu()
    rows = gather_detached(own.to(device)).cpu()
    return torch.empty_like(rows).index_copy_(0, order, rows)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + len(x))
        return gather_detached(x, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return sum_detached(grads[0].contiguous())[ctx.own], None


def gather_with_gradient(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """As `gather_detached`; backward sums over ranks the gradient of this rank's rows."""
    if world_size() == 1:
        return x
    return cast(Tensor, _GatherWithGradient.apply(x, row_counts(x) if counts is None else counts))


def standardise_over_ranks(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Columns with mean 0 and variance 1 over the rows of all ranks, with the exact gradient.

    Returns:
        (b, D) standardised rows, (D,) mean, (D,) biased variance, and the number of rows of all ranks; in float32 or
        wider. Row counts may differ between ranks.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    count = sum_detached(wide.new_full((), len(x)))
    mean = sum_with_gradient(wide.sum(0)) / count
    centred = wide - mean
    variance = sum_with_gradient((centred * centred).sum(0)) / count
    return centred * torch.rsqrt(variance + eps), mean, variance, count


class CrossRankBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the rows of all ranks, on any device (torch's SyncBatchNorm refuses the CPU).

    Statistics have exact gradients, in float32 or wider; row counts may differ between ranks.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = standardise_over_ranks(x, self.eps)
        if self.affine:
            y = y * self.weight + self.bias
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.0)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum or 0.0)
        return y.to(x.dtype)
