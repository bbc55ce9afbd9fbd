"""FSDP: every rank keeps its rows of weights, gradients and optimizer state, and gets the others' while it needs them.

Letters: W ranks, n rows (the first dimension of a tensor). Rank r keeps rows ceil(n / W) r to ceil(n / W) (r + 1), as
`torch.chunk` and DTensor's Shard(0) cut them; the last ranks may keep none.

A block of a network is a unit: its weights are whole during its own forward and backward pass. Everything else (heads,
embeddings, norms) is one more unit, whole during the step. The packed forward pass calls a block's layers and not the
block, so a unit is made of the layers.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from equimid.backbones import Backbone

__all__ = ["is_sharded", "own_part", "rows_of", "shard", "whole_state"]


def shard(task: nn.Module, mesh: Any) -> nn.Module:
    """Turn every parameter into its rows of this rank, in place; the module's parameters are new objects.

    Args:
        mesh: as Fabric's ModelParallelStrategy gives it; its "data_parallel" dimension holds all ranks.
    """
    ranks = mesh["data_parallel"]
    for network in task.modules():
        if isinstance(network, Backbone):
            for block in network.blocks:
                fully_shard(_layers(block), mesh=ranks)
    fully_shard(task, mesh=ranks)  # in place
    return task


def _layers(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that are called and hold all its parameters, in the order in which they are called."""
    attention: Any = block.attn
    named = [
        block.norm1, attention.qkv, attention.q_norm, attention.k_norm, attention.norm, attention.proj, block.ls1,
        block.norm2, block.mlp, block.ls2,
    ]  # fmt: skip
    return [layer for layer in named if isinstance(layer, nn.Module) and any(True for _ in layer.parameters())]


def is_sharded(module: nn.Module) -> bool:
    """Whether the module went through `shard`."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def own_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor; any other as it is.

    Raises:
        ValueError: it is cut in another way than by rows.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if tuple(tensor.placements) != (Shard(0),):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is cut as {tensor.placements}; expected rows")
    return tensor.to_local()


def rows_of(count: int, ranks: int, rank: int) -> tuple[int, int]:
    """First row of `count` that a rank keeps, and one past its last."""
    each = -(-count // ranks)
    return min(each * rank, count), min(each * (rank + 1), count)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """State of a module in whole tensors on the CPU, whether it is sharded or not. Every rank calls it and gets it."""
    state = module.state_dict()
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in state.items()
    }
