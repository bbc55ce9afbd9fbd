"""SER, Soft Equivariance Regularization (ICLR 2026, arXiv 2603.06693).

Two posed views of some images of the batch (no crop: the pose is the only geometry). F_v is the token map of view v
after block k, phi two 1x1 convolutions, rho the known action of the pose on the patch grid:

    L_eq = patch_ntxent( phi F_0 , rho_{1->0} phi F_1 ),  and the same with the views exchanged, averaged.

With more than two standard views there is one posed view for each, in pairs of one size, and L_eq is their mean. With a
momentum network the transported side is its map, through the student's phi, without gradient. No
transformation is predicted.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from equimid.addons.base import Addon, StudentOutputs
from equimid.addons.config import SERConfig
from equimid.heads import patch_projector
from equimid.losses import patch_ntxent, patch_ntxent_cross_view
from equimid.poses import Pose, transport

__all__ = ["SER", "ser_loss"]

_FORMS = {"canonical": patch_ntxent, "cross_view": patch_ntxent_cross_view}


class SER(Addon):
    """phi for every regularised layer, and L_eq.

    Example:
        >>> addon = SER(SERConfig(layers=(3,), hidden=64), embed_dim=192)
        >>> poses = sample_pose_pair(4, grid=(6, 6), rng=np.random.default_rng(0))
        >>> posed = [Features(torch.randn(4, 192), {3: torch.randn(4, 192, *pose.grid)}) for pose in poses]
        >>> loss = addon(StudentOutputs([], posed=posed, views=Views([], poses=poses, image_ids=torch.arange(4))))
    """

    def __init__(self, config: SERConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projectors = nn.ModuleDict(
            {str(layer): patch_projector(embed_dim, config.hidden) for layer in config.layers}
        )
        self.layer_weights = config.layer_weights or (1 / len(config.layers),) * len(config.layers)
        if config.detached:
            self.requires_grad_(False)

    def forward(self, outputs: StudentOutputs) -> Tensor:
        """L_eq: the weighted sum over layers of the mean over the pairs of posed views."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.detached):
            weighted = zip(self.layer_weights, self.config.layers, strict=True)
            return torch.stack([weight * self._of_layer(layer, outputs) for weight, layer in weighted]).sum()

    def regularised_maps(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        """Those of the first posed view."""
        return {f"layer_{layer}": outputs.posed[0].maps[layer] for layer in self.config.layers} if outputs.posed else {}

    def _of_layer(self, layer: int, outputs: StudentOutputs) -> Tensor:
        config, projector = self.config, self.projectors[str(layer)]
        student, momentum = ([f.maps[layer] for f in side] for side in (outputs.posed, outputs.momentum_posed))
        # a third full view has no partner: it is posed for the base objective alone
        pairs = [slice(v, v + 2) for v in range(0, len(student) - 1, 2)]
        losses = [
            ser_loss(
                projector, student[pair], outputs.views.poses[pair], outputs.views.image_ids, config.temperature,
                momentum_maps=momentum[pair], form=config.form, negatives=config.negatives,
                negative_distance=config.negative_distance,
            )
            for pair in pairs
        ]  # fmt: skip
        return torch.stack(losses).mean()


def ser_loss(
    projector: nn.Module,
    maps: Sequence[Tensor],
    poses: Sequence[Pose],
    image_ids: Tensor,
    temperature: float,
    *,
    momentum_maps: Sequence[Tensor] = (),
    form: Literal["canonical", "cross_view"] = "canonical",
    negatives: Literal["images", "all"] = "images",
    negative_distance: int = 1,
) -> Tensor:
    """L_eq of one layer (arXiv 2603.06693): the maps of two posed views of n images agree, patch by patch, after the
    map of one view is transported into the frame of the other.

    Args:
        projector: phi, such as `patch_projector(D, hidden)`; give its parameters to the optimizer.
        maps: per posed view v, token maps (n, D, *poses[v].grid).
        poses: of the two views, as `sample_pose_pair` draws them.
        image_ids: (n,) int64, another number for every image; patches of other images are the negatives.
        temperature: tau, above 0 (the paper: 0.3).
        momentum_maps: the same maps by the momentum network, if there is one: the transported side, without gradient.
            Without them both sides are the student's, and one direction holds every pair.
        form: "canonical" (the paper) or "cross_view" (the SER release: negatives in the other view only).
        negatives: "images" (the paper) or "all": patches of the same image are negatives too, ...
        negative_distance: ... but for those within so many rows and columns of the partner.

    Returns:
        Scalar; `equimid.losses.patch_ntxent` says what it means over several processes.

    Raises:
        ValueError: an unknown form or kind of negatives, or shapes that do not fit.

    Example:
        >>> poses = sample_pose_pair(4, grid=(6, 6), rng=np.random.default_rng(0))
        >>> views = [pose.act(torch.randn(4, 3, 96, 96), patch_size=16) for pose in poses]
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=96, taps=[3])
        >>> maps = [features.maps[3] for features in backbone.forward_packed(views)]
        >>> phi = patch_projector(192, hidden=64)
        >>> loss = ser_loss(phi, maps, poses, image_ids=torch.arange(4), temperature=0.3)
    """
    if form not in _FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(_FORMS)}")
    if negatives not in ("images", "all"):
        raise ValueError(f"negatives is {negatives!r}; expected images or all")
    patch_loss = _FORMS[form]
    student = [projector(x) for x in maps]
    if momentum_maps:
        with torch.no_grad():
            other = [projector(x) for x in momentum_maps]
        directions = [(0, 1), (1, 0)]
    else:
        other, directions = student, [(0, 1)] if form == "canonical" else [(0, 1), (1, 0)]
    losses = []
    for here, there in directions:
        h, w = poses[here].grid
        ids = image_ids.repeat_interleave(h * w)
        carried = transport(other[there], poses[there], poses[here])
        cells = _cells(h, w, len(image_ids), ids.device) if negatives == "all" else None
        losses.append(patch_loss(_rows(student[here]), _rows(carried), ids, temperature, cells, negative_distance))
    return torch.stack(losses).mean()


def _cells(h: int, w: int, n: int, device: torch.device) -> Tensor:
    """(n h w, 2): row and column of every patch of n maps, image-major."""
    cells = torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device))
    return cells.repeat(n, 1)


def _rows(maps: Tensor) -> Tensor:
    """(n, D, h, w) to (n h w, D), image-major."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)
