"""Detector on frozen tokens: Faster R-CNN (Ren et al. 2015) over the simple feature pyramid of ViTDet (Li et al. 2022).

Letters: B images, D columns of a token, h w patches, P columns of the pyramid.

The detector has a frame of its own in which a token is 16 wide, whatever the patch: torchvision's pooling knows strides
that are powers of two only.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

__all__ = ["STRIDE", "Detector", "SimpleFeaturePyramid"]

STRIDE = 16  # of a token in the detector's frame
_LEVELS = ("0", "1", "2", "3")


class _LayerNorm(nn.LayerNorm):
    """Over the columns of a map (B, P, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SimpleFeaturePyramid(nn.Module):
    """Five maps of strides 4, 8, 16, 32 and 64 from the last one (B, D, h, w) of a plain vision transformer: by
    deconvolutions, as it is, and by pooling (ViTDet, section 3), each then through 1x1 and 3x3 convolutions with norms.
    """

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.out_channels = width
        half, quarter = max(1, columns // 2), max(1, columns // 4)
        up = nn.ConvTranspose2d(columns, half, 2, 2)
        twice = (up, _LayerNorm(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2))
        scales: list[tuple[nn.Module, int]] = [
            (nn.Sequential(*twice), quarter),
            (nn.ConvTranspose2d(columns, half, 2, 2), half),
            (nn.Identity(), columns),
            # one column or row of tokens can still be halved
            (nn.MaxPool2d(2, 2, ceil_mode=True), columns),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(inner, width, 1, bias=False),
                _LayerNorm(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                _LayerNorm(width),
            )
            for scale, inner in scales
        )

    def forward(self, tokens: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict((name, level(tokens)) for name, level in zip(_LEVELS, self.levels, strict=True))
        maps["pool"] = nn.functional.max_pool2d(maps["3"], 1, 2)
        return maps


class Detector(nn.Module):
    """Everything that is trained: neck, region proposals and box heads; the tokens come from elsewhere.

    The tokens are standardised first, by `standardise`: those of a frozen network share most of their length (96 % of
    their squares in a small network pretrained here), and without that the neck first has to unlearn it. The batch norm
    before the linear probe of MAE (He et al. 2022, appendix A.1) does the same.

    Args:
        columns:   D
        classes:   number of them, without the background
        width:     P
        proposals: regions that the heads see
        anchor:    side of the smallest anchors in the frame; it doubles with each of the five levels
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, columns: int, classes: int, width: int, proposals: int, anchor: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns, 1, 1))
        self.register_buffer("deviation", torch.ones(columns, 1, 1))
        pyramid = SimpleFeaturePyramid(columns, width)
        sides = tuple((anchor * 2**level,) for level in range(5))
        inner = 4 * width  # 1,024 at ViTDet's 256
        self.parts = FasterRCNN(
            pyramid,
            num_classes=None,
            rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5),
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=2 * proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_roi_pool=MultiScaleRoIAlign(list(_LEVELS), output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(width * 49, inner),
            box_predictor=_BoxPredictor(inner, classes + 1),
            box_batch_size_per_image=min(512, proposals),
        )

    def standardise(self, tokens: Tensor) -> None:
        """From now on each column of tokens like these (n, D, h, w) has mean 0 and deviation 1."""
        deviation, mean = torch.std_mean(tokens, dim=(0, 2, 3), keepdim=True)
        self.mean, self.deviation = mean[0], deviation[0].clamp(min=1e-6)

    def losses(self, tokens: Tensor, sizes: Sequence[tuple[float, float]], boxes: Sequence[Tensor],
               labels: Sequence[Tensor]) -> Tensor:  # fmt: skip
        """Sum of the four losses of Faster R-CNN.

        Args:
            tokens: (B, D, h, w).
            sizes: B (height, width) of the images in the frame.
            boxes: B tensors (k, 4), xyxy in the frame; labels: B tensors (k,), 0 to C-1.
        """
        self.train()
        # label 0 is the background
        targets = [{"boxes": box, "labels": label + 1} for box, label in zip(boxes, labels, strict=True)]
        _, losses = self._run(tokens, sizes, targets)
        return torch.stack(list(losses.values())).sum()

    @torch.no_grad()
    def detect(self, tokens: Tensor, sizes: Sequence[tuple[float, float]]) -> list[dict[str, Tensor]]:
        """Of each image at most 100 boxes (k, 4), xyxy in the frame, labels (k,) and scores (k,), best first."""
        self.eval()
        detections, _ = self._run(tokens, sizes, None)
        return [{**each, "labels": each["labels"] - 1} for each in detections]

    def _run(
        self, tokens: Tensor, sizes: Sequence[tuple[float, float]], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        maps = self.parts.backbone((tokens - self.mean) / self.deviation)
        # only the shape of the images is asked for
        canvas = tokens.new_empty(1).expand(len(tokens), 1, *(STRIDE * side for side in tokens.shape[-2:]))
        proposals, rpn_losses = self.parts.rpn(ImageList(canvas, list(sizes)), maps, targets)
        detections, head_losses = self.parts.roi_heads(maps, proposals, list(sizes), targets)
        return detections, {**rpn_losses, **head_losses}


class _BoxPredictor(nn.Module):
    """Class scores and box corrections, started small: with torch's start, the untrained classes are far from even."""

    def __init__(self, columns: int, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(columns, classes), nn.Linear(columns, 4 * classes)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)
