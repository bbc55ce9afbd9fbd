"""An add-on of your own, trained from a recipe: the features of a view shall still tell its mean colour.

    python examples/own_addon.py digits runs/mine meancolour.weight=0.5

Name the class under the entry point group "equimid.addons" of your package instead, and `equimid pretrain` knows it.
"""

import sys
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import nn

from equimid.addons import ADDONS, Addon, EmbeddingAddonConfig, StudentOutputs
from equimid.config import override
from equimid.distributed import mean_over_ranks
from equimid.errors import UserError
from equimid.recipes import recipe
from equimid.runs.pretrain import pretrain
from equimid.settings import setting, settings
from equimid.views import ViewPlan


@ADDONS.register
@settings("meancolour")
class MeanColourConfig(EmbeddingAddonConfig):  # gives weight, layer and pool
    name: ClassVar[str] = "meancolour"
    hidden: Annotated[int, setting("width of the head", ge=1)] = 64

    def build(self, embed_dim: int, plan: ViewPlan) -> Addon:
        return MeanColour(self, embed_dim)


class MeanColour(Addon):
    def __init__(self, config: MeanColourConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Sequential(nn.Linear(embed_dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 3))

    def forward(self, outputs: StudentOutputs) -> torch.Tensor:
        predicted = torch.cat([self.head(self.config.read(features)) for features in outputs.crops])
        colour = torch.cat([images.mean((2, 3)) for images in outputs.views.crops])
        return mean_over_ranks((predicted - colour).pow(2).mean(1))


if __name__ == "__main__":
    data, out, *words = sys.argv[1:]
    try:
        pretrain(override(recipe("mocov3-tiny"), [f"data.source={data}", "meancolour.weight=1", *words]), Path(out))
    except UserError as error:
        sys.exit(str(error))
