"""Attentive probe: one learned query attends to the tokens of the last layer, then a linear layer (V-JEPA, Bardes et
al. 2024, appendix; CAE, Chen et al. 2022). What the patches hold, though CLS does not.

Letters: B images, N patches, D columns, M heads of d = D / M columns, C classes.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from equimid.data import Source
from equimid.errors import UserError
from equimid.evaluation.probes.heads import HeadTrainer, predicted
from equimid.evaluation.study import Study, labelled_splits
from equimid.records import Record

__all__ = ["AttentivePooling", "measure_attentive"]

_GIB = 4.0  # tokens stay in memory where they take no more; otherwise every epoch passes the images anew


def measure_attentive(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the probe on the test images, shown as centre crops throughout.

    Raises:
        UserError: a network without tokens, or with a width that `evaluation.attentive_heads` does not divide.
    """
    encoder, config = study.encoder, study.config
    if encoder.depth < 1:
        raise UserError(f"{study.scope.subject} has no tokens to attend to; expected a vision transformer")
    if encoder.embed_dim % config.attentive_heads:
        raise UserError(
            f"evaluation.attentive_heads is {config.attentive_heads}; it must divide the width, {encoder.embed_dim}"
        )
    fit, test = labelled_splits(data, train)
    assert fit.labels is not None
    assert test.labels is not None

    def build(_: npt.NDArray[np.int64]) -> nn.Module:
        pooling = AttentivePooling(encoder.embed_dim, config.attentive_heads)
        return nn.Sequential(pooling, nn.Linear(encoder.embed_dim, len(fit.classes)))

    head, details = HeadTrainer(
        build,
        _Tokens(study, fit).batches,
        torch.as_tensor(fit.labels),
        config.attentive_rates,
        config.attentive_epochs,
        config.held_out,
        study.scope.seed,
        study.device,
    ).fit()
    everything = np.arange(len(test))
    with torch.no_grad():
        classes = torch.cat([predicted(head(x)).cpu() for x in _Tokens(study, test, False).batches(everything, 64)])
    details["heads"] = config.attentive_heads
    return [study.scope.accuracy("attentive", (classes == torch.as_tensor(test.labels)).numpy(), details)]


class AttentivePooling(nn.Module):
    """Tokens (B, N, D) to (B, D): multi-head cross attention with one learned query.

    As there is one query, its product with the keys' matrix is one row a head, and the values' matrix acts on the M
    pooled rows instead of on N tokens: the same function at a small part of the cost. A bias of the keys would cancel
    in the softmax.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        query = self.query.unflatten(0, (self.heads, -1))  # (M, d)
        rows = torch.einsum("md,mdc->mc", query, self.key.weight.unflatten(0, (self.heads, -1)))  # (M, D)
        weights = (torch.einsum("bnc,mc->bmn", x, rows) * self.scale).softmax(-1)
        pooled = weights @ x  # (B, M, D)
        value = self.value.weight.unflatten(0, (self.heads, -1))  # (M, d, D)
        attended: Tensor = self.out(torch.einsum("bmc,mdc->bmd", pooled, value).flatten(1) + self.value.bias)
        return attended


class _Tokens:
    """Tokens (b, N, D) of the last layer after the final norm, of images by index."""

    def __init__(self, study: Study, source: Source, keep: bool = True) -> None:
        self.study, self.source = study, source
        side = study.preprocessing.size // study.encoder.patch_size
        self.kept = keep and len(source) * side**2 * study.encoder.embed_dim * 4 <= _GIB * 2**30
        self.all = cache(self._all)

    def batches(self, indices: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        if not self.kept:
            yield from self._pass(indices, size)
            return
        for rows in torch.from_numpy(indices).split(size):
            yield self.all()[rows].to(self.study.device)

    def _all(self) -> Tensor:
        total = len(self.source)
        return torch.cat([x.cpu() for x in self.study.track(self._pass(np.arange(total), 64), "tokens", total, len)])

    def _pass(self, indices: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        for images in self.study.batches(self.source, size, indices):
            yield self.study.tokens(images).flatten(2).transpose(1, 2)
