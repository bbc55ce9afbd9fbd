"""Assertions for methods and add-ons, also of your own: equivariance, training, agreement over ranks."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from equimid.poses import Pose, transport

__all__ = ["assert_equivariant", "assert_same_on_ranks", "assert_trains", "on_ranks"]

Results = Mapping[str, Tensor]


def assert_equivariant(
    f: Callable[[Tensor], Tensor], images: Tensor, source: Pose, target: Pose, patch_size: int, tolerance: float = 1e-5
) -> None:
    """f(image posed by target) equals the map of the image posed by source, transported to target.

    Args:
        f: images (n, 3, H, W) to token maps (n, C, H / patch_size, W / patch_size).
        images: (n, 3, H, W), upright.

    Raises:
        AssertionError: it does not, by more than `tolerance` anywhere.
    """
    carried = transport(f(source.act(images, patch_size)), source, target)
    posed = f(target.act(images, patch_size))
    error = float((posed - carried).abs().max())
    assert error <= tolerance, f"not equivariant: the maps differ by {error:.3g}, tolerated {tolerance:.3g}"


def assert_trains(
    loss: Tensor, trained: Iterable[tuple[str, nn.Parameter]], untouched: Iterable[tuple[str, nn.Parameter]] = ()
) -> None:
    """The loss has a non-zero gradient at every parameter of `trained` and none (or exactly 0) at `untouched`.

    Raises:
        AssertionError: with the names of those where it is otherwise.
    """
    assert loss.requires_grad, "the loss has no gradient at all"
    loss.backward(retain_graph=True)
    dead = [name for name, p in trained if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    reached = [name for name, p in untouched if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    assert not dead, f"no gradient reaches {', '.join(dead)}"
    assert not reached, f"a gradient reaches {', '.join(reached)}"


def assert_same_on_ranks(
    compute: Callable[..., Results], ranks: Sequence[int] = (1, 2, 3), args: tuple[Any, ...] = (), rtol: float = 1e-5
) -> None:
    """`compute(rank, ranks, *args)` gives, averaged over ranks, the same tensors for every number of ranks.

    Results are averaged as DDP averages gradients, so a loss and its gradients of one global batch must agree.

    Args:
        compute: importable by name, as new processes run it; takes its own share of the global batch.
        rtol: of the largest value of each tensor, or of 1e-8 where that is smaller (what is 0 but for rounding).

    Raises:
        AssertionError: with the name of the tensor that differs most.
    """
    means: dict[int, dict[str, Tensor]] = {}
    for count in ranks:
        fractions = on_ranks(compute, count, args)
        means[count] = {name: torch.stack([fraction[name] for fraction in fractions]).mean(0) for name in fractions[0]}
    first = means[ranks[0]]
    for count in ranks[1:]:
        for name, expected in first.items():
            error = float((means[count][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-8))
            assert error <= rtol, f"{name} differs by {error:.3g} (relative) between {ranks[0]} and {count} ranks"


def on_ranks(compute: Callable[..., Results], ranks: int, args: tuple[Any, ...] = ()) -> list[Results]:
    """What `compute(rank, ranks, *args)` returns on each of `ranks` gloo processes, in rank order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    context = spawn(_rank_main, (ranks, port, queue, compute, args), nprocs=ranks, join=False)
    results: dict[int, Any] = {}
    while len(results) < ranks:
        rank, result = queue.get()
        if isinstance(result, str):
            for process in context.processes:
                process.kill()
            raise AssertionError(f"rank {rank} of {ranks} failed:\n{result}")
        results[rank] = {name: torch.from_numpy(value) for name, value in result.items()}
    context.join()
    return [results[rank] for rank in range(ranks)]


def _rank_main(
    rank: int, ranks: int, port: int, queue: Any, compute: Callable[..., Results], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        # as numpy: a tensor sent through a queue lives only as long as its sender
        queue.put((rank, {name: value.detach().numpy() for name, value in compute(rank, ranks, *args).items()}))
        dist.barrier()
    except Exception:
        queue.put((rank, traceback.format_exc()))
        raise
    finally:
        dist.destroy_process_group()
