"""EquiMod (Devillers and Lefort 2023, ICLR, "EquiMod: An Equivariance Module to Improve Visual Instance
Discrimination").

From the clean image and what was drawn for view v, the module predicts the embedding of view v:

    y_v = proj(h(t_v(x))),    y^_v = pred([proj(h(clean)), net(t_v)]),    L pulls y_v and y^_v together,

t_v the 18 numbers that describe the view (`PARAMETERS`), standardised. The rows of both views are compared at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from equimid.addons.base import ADDONS, Addon, AddonContext, EmbeddingAddonConfig, StudentOutputs
from equimid.addons.equimod_constants import PARAMETERS, Constants, find_constants, parameters
from equimid.addons.forms import FORMS, Form, check_form
from equimid.distributed import CrossRankBatchNorm1d
from equimid.heads import mlp_head
from equimid.views import Batch, CentreView, ExtraView, ViewPlan

__all__ = ["EquiMod", "EquiModConfig"]

_SHARE = 224 / 256  # of the shorter side: Resize 256, CenterCrop 224


@ADDONS.register
@dataclass(frozen=True)
class EquiModConfig(EmbeddingAddonConfig):
    """
    temperature: tau
    hidden:      width of the projector (the SER paper's comparison: 384);  dim: of what is compared
    form:        of the loss; "original" is not told whether a view was solarised: its augmentations have none
    constants:   file with the constants of these views; none = the package's own
    """

    name: ClassVar[str] = "equimod"

    temperature: float = 0.2
    hidden: int = 2048
    dim: int = 128
    form: Form = "comparison"
    constants: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_form(self.name, self.form, self.temperature, hidden=self.hidden, dim=self.dim)

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """Adds the clean view, which the base objective does not see."""
        plan = super().extend(plan, context)
        # a run's folder can be read where its file of constants is not: they are in its checkpoint
        if not self.constants or Path(self.constants).exists():
            find_constants(plan, self.constants)
        clean = ExtraView(CentreView(context.image_size, _SHARE))
        return replace(plan, extra={**plan.extra, self.name: clean})

    def build(self, embed_dim: int, plan: ViewPlan) -> "EquiMod":
        return EquiMod(self, embed_dim, find_constants(plan, self.constants))


class EquiMod(Addon):
    """Projector, parameter net, predictor, and the loss."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EquiModConfig, embed_dim: int, constants: Constants) -> None:
        super().__init__()
        self.config = config
        P = len(PARAMETERS) - (config.form == "original")  # solarised is the last
        self.projector = mlp_head((embed_dim, config.hidden, config.hidden, config.dim))
        norm = CrossRankBatchNorm1d(config.dim)
        norm.bias.requires_grad_(False)  # the predictor's norm takes it out again
        self.parameter_net = nn.Sequential(nn.Linear(P, config.dim, bias=False), norm)
        self.predictor = mlp_head((2 * config.dim, config.dim))
        self.register_buffer("mean", torch.tensor(constants.mean[:P]))
        self.register_buffer("std", torch.tensor(constants.std[:P]))

    def forward(self, outputs: StudentOutputs) -> Tensor:
        if outputs.views.batch is None:
            raise ValueError("EquiMod needs what was drawn for the views, and found views without their batch")
        # one batch of all three views for the projector's norms, as in the original
        features = (*outputs.extra[self.config.name], *outputs.crops[:2])
        clean, first, second = self.projector(torch.cat([self.config.read(f) for f in features])).chunk(3)
        predicted = self.predict(clean, self.parameters_of(outputs.views.batch))
        return FORMS[self.config.form](torch.cat([first, second]), predicted, self.config.temperature)

    def predict(self, clean: Tensor, drawn: Tensor) -> Tensor:
        """Embeddings of both views (2b, dim) from that of the clean one (b, dim) and the parameters (2b, P)."""
        told = self.parameter_net(drawn)
        predicted: Tensor = self.predictor(torch.cat([clean.repeat(2, 1), told], dim=1))
        return predicted

    def parameters_of(self, batch: Batch) -> Tensor:
        """Standardised parameters of the first view's b images, then of the second's: (2b, P)."""
        views = zip(batch.crop_boxes[:2], batch.crop_rows[:2], strict=True)
        drawn = [parameters(boxes, rows) for boxes, rows in views]
        # a rank may have posed images only
        raw = torch.cat(drawn) if drawn else self.mean.new_zeros(0, len(PARAMETERS))
        raw = raw[:, : len(self.mean)].to(self.mean, non_blocking=True)
        return torch.where(self.std > 0, (raw - self.mean) / self.std, 0.0)
