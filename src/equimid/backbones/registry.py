"""timm's way in: importing this module registers `equimid_vit` with timm."""

from collections.abc import Sequence
from typing import Any

from timm.models import load_pretrained, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from equimid.backbones.vit import LateCLSViT, build
from equimid.errors import UserError

__all__ = ["equimid_vit"]


@register_model  # type: ignore[untyped-decorator]
def equimid_vit(
    pretrained: bool = False,
    arch: str = "vit_small_patch16_224",
    cls_layer: int = 3,
    taps: Sequence[int] = (),
    pretrained_cfg: dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    num_classes: int = 0,
    **kwargs: Any,
) -> LateCLSViT:
    """A late-CLS network as a timm model; `timm.create_model("local-dir:RUN/backbone", pretrained=True)` gives
    these arguments from the folder's config.json.

    Args:
        arch: timm's name of the architecture.
        cls_layer, taps: see `create_backbone`.
        kwargs: timm's own.
    """
    model = build(LateCLSViT, arch, cls_layer, taps, **kwargs)
    # timm's own weights of the architecture are none of ours
    model.pretrained_cfg = {**_plain(pretrained_cfg), **_plain(pretrained_cfg_overlay)}
    model.default_cfg = model.pretrained_cfg
    if pretrained:
        if not model.pretrained_cfg.get("file"):
            raise UserError('equimid_vit has no weights of its own; load "local-dir:RUN/backbone", or give a file')
        load_pretrained(model, model.pretrained_cfg, num_classes=0, filter_fn=checkpoint_filter_fn, strict=True)
    if num_classes:
        model.reset_classifier(num_classes)
    return model


def _plain(config: Any) -> dict[str, Any]:
    settings = config.to_dict() if hasattr(config, "to_dict") else config or {}
    return {key: value for key, value in settings.items() if value is not None}
