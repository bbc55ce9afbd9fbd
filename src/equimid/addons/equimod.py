"""EquiMod (Devillers and Lefort 2023, ICLR, "EquiMod: An Equivariance Module to Improve Visual Instance
Discrimination").

From the clean image and what was drawn for view v, the module predicts the embedding of view v:

    y_v = proj(h(t_v(x))),    y^_v = pred([proj(h(clean)), net(t_v)]),    L pulls y_v and y^_v together,

t_v the 18 numbers that describe the view (`PARAMETERS`), standardised by what the views of this run draw: mean and
deviation of 10,000 draws of each view, made when the add-on is built (the error of a mean is 0.7 % of the deviation).
The crop is in fractions of the image, so they depend on a data set only by the shape of its images: half of the draws
are on 500 x 375 px, half on 375 x 500. The rows of both views are compared at once.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from equimid.addons.base import Addon, StudentOutputs
from equimid.addons.config import EquiModConfig
from equimid.addons.forms import FORMS
from equimid.distributed import CrossRankBatchNorm1d
from equimid.heads import mlp_head
from equimid.randomness import counted_generator
from equimid.views import FIELDS, Batch, CropView, ViewPlan, draw
from equimid.views.crops import sample_crop

__all__ = ["PARAMETERS", "EquiMod", "draw_parameters", "parameters", "statistics_of"]


_SIGMA = FIELDS.index("sigma")
# of one view, in this order: crop and flip, jitter and grey, whether blurred, how much, solarised
PARAMETERS: tuple[str, ...] = (
    "top", "left", "height", "width", "flip", *FIELDS[:_SIGMA], "blurred", *FIELDS[_SIGMA:],
)  # fmt: skip
_SHAPES = ((500, 375), (375, 500))  # width, height in px
_DRAWS = 10_000  # of each view


class EquiMod(Addon):
    """Projector, parameter net, predictor, and the loss.

    Example:
        >>> config = EquiModConfig()
        >>> plan = plan_views(ViewsConfig(), BackboneConfig(), {"equimod": config}, batch_size=8)
        >>> addon = EquiMod(config, 384, plan)
        >>> drawn = [ViewBatch(torch.empty(0), torch.rand(8, 5), torch.rand(8, len(FIELDS))) for _ in range(2)]
        >>> views = Views([], batch=Batch(drawn, [], torch.arange(8), ()))  # a data loader makes this batch
        >>> first, second, clean = [Features(torch.randn(8, 384)) for _ in range(3)]
        >>> loss = addon(StudentOutputs([first, second], {"equimod": [clean]}, views=views))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EquiModConfig, embed_dim: int, plan: ViewPlan) -> None:
        super().__init__()
        self.config = config
        P = len(PARAMETERS) - (config.form == "original")  # solarised is the last
        self.projector = mlp_head((embed_dim, config.hidden, config.hidden, config.dim))
        norm = CrossRankBatchNorm1d(config.dim)
        norm.bias.requires_grad_(False)  # the predictor's norm takes it out again
        self.parameter_net = nn.Sequential(nn.Linear(P, config.dim, bias=False), norm)
        self.predictor = mlp_head((2 * config.dim, config.dim))
        mean, std = statistics_of(plan)
        self.register_buffer("mean", mean[:P])
        self.register_buffer("std", std[:P])

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
        code = self.parameter_net(drawn)
        predicted: Tensor = self.predictor(torch.cat([clean.repeat(2, 1), code], dim=1))
        return predicted

    def parameters_of(self, batch: Batch) -> Tensor:
        """Standardised parameters of the first view's b images, then of the second's: (2b, P)."""
        drawn = [parameters(view.boxes, view.photometric) for view in batch.crops[:2]]
        # a rank may have posed images only
        raw = torch.cat(drawn) if drawn else self.mean.new_zeros(0, len(PARAMETERS))
        raw = raw[:, : len(self.mean)].to(self.mean, non_blocking=True)
        return torch.where(self.std > 0, (raw - self.mean) / self.std, 0.0)


def parameters(boxes: Tensor, rows: Tensor) -> Tensor:
    """Boxes (b, 5) and photometric rows (b, F) of a batch's view to (b, len(PARAMETERS))."""
    return torch.cat([boxes, rows[:, :_SIGMA], (rows[:, _SIGMA : _SIGMA + 1] > 0).to(rows), rows[:, _SIGMA:]], 1)


def draw_parameters(view: CropView, sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> Tensor:
    """Parameters of `view` of images of those (width, height), (n, len(PARAMETERS)), as a data worker draws them."""
    boxes: list[list[float]] = []
    rows: list[npt.NDArray[np.float32]] = []
    for width, height in sizes:
        left, top, right, bottom = sample_crop((width, height), view.scale, rng)
        flipped = float(rng.random() < view.flip)
        boxes.append([top / height, left / width, (bottom - top) / height, (right - left) / width, flipped])
        rows.append(draw(view.photometric, rng))
    return parameters(torch.tensor(boxes), torch.from_numpy(np.stack(rows)))


def statistics_of(plan: ViewPlan, draws: int = _DRAWS) -> tuple[Tensor, Tensor]:
    """Mean and deviation (len(PARAMETERS),) of what the plan's first two views draw; 0 = it never varies."""
    rng = counted_generator(0, "equimod constants")
    sizes = [_SHAPES[i % 2] for i in range(draws)]
    with torch.device("cpu"):  # also where the network is built without memory, to count its FLOPs
        drawn = torch.cat([draw_parameters(view, sizes, rng) for view in plan.crops[:2]]).double()
        mean, std = drawn.mean(0).tolist(), drawn.std(0, correction=0).tolist()
    return torch.tensor(mean), torch.tensor(std)
