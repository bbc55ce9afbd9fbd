"""Vision transformers of transformers (ViT, DeiT, DINOv2, CLIP's, SigLIP's, MAE and their like), as encoders."""

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equimid.backbones.encoder import Encoder, not_a_vit, require_one_grid
from equimid.errors import UserError
from equimid.features import Features
from equimid.randomness import counted_torch_seed

__all__ = ["HuggingFaceEncoder", "open_hugging_face"]

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def open_hugging_face(name: str) -> Callable[[bool, int], Encoder]:
    """What builds the network of a hub's name or a folder: (pretrained, seed of random weights) -> encoder.

    Raises:
        UserError: transformers is not installed, no such network, or another kind of network; of what is built:
            weights of the network that the checkpoint lacks.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("hf: models need the package transformers; install it: pip install 'equimid[hf]'")
    from transformers import AutoConfig, AutoModel

    title = f"hf:{name}"
    try:
        with _silence():
            config = AutoConfig.from_pretrained(name)
            looks = _looks(name)
            with torch.device("meta"):
                form = AutoModel.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{title} cannot be opened: {reason}; give a hub's name or a folder with its files") from None
    require_one_grid(HuggingFaceEncoder(form, title, looks=looks), title)

    def build(pretrained: bool, seed: int) -> Encoder:
        with counted_torch_seed(seed, f"hf {name}"), _silence():
            if pretrained:
                model, report = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
                lacking = [key for key in sorted(report["missing_keys"]) if not _unread(model, key)]
            else:
                model, lacking = AutoModel.from_config(config, dtype=torch.float32), []
        if lacking:
            raise UserError(
                f"{title}: the checkpoint lacks {len(lacking)} of the network's weights, among them {lacking[0]}; "
                "expected all but the pooler's: fetch or save it anew"
            )
        return HuggingFaceEncoder(model, title, lambda seed: build(False, seed), looks)

    return build


class HuggingFaceEncoder(Encoder):
    """A vision transformer of transformers; what its list of blocks gives are its layers.

    Args:
        model: its tokens are some tokens of no place, CLS first, then the patches in row-major order.
        looks: input side ("size"), "crop_pct", "mean" and "std" of its images; without, `config.image_size` and
            ImageNet's.

    Raises:
        UserError: it is another kind of network.
    """

    def __init__(
        self, model: Any, name: str, random: Callable[[int], Encoder] | None = None,
        looks: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        config: Any = getattr(model, "config", None)
        needed = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
        numbers: list[Any] = [getattr(config, key, None) for key in needed]
        if not isinstance(model, nn.Module) or any(type(number) is not int for number in numbers):
            raise not_a_vit(name, model)
        self.model: Any = model
        self.name, self.random = name, random
        self.embed_dim, self.depth, self.patch_size, size = numbers
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == self.depth]
        if not lists:
            raise not_a_vit(name, model)
        self._blocks = [*lists[0]]  # a plain list: the model holds them
        looks = looks or {}
        size = (looks.get("size") or size) // self.patch_size * self.patch_size
        self.pretrained_cfg = {
            "input_size": (3, size, size),
            "crop_pct": looks.get("crop_pct") or 0.875,
            "mean": looks.get("mean") or _IMAGENET["mean"],
            "std": looks.get("std") or _IMAGENET["std"],
        }
        # of a masked autoencoder, every patch is kept, in order
        self._masks = "noise" in inspect.signature(model.forward).parameters
        if self._masks:
            config.mask_ratio = 0.0
        self._options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            self._options["interpolate_pos_encoding"] = True
        self._pools = _pools(model)
        has_cls = any(key.endswith("cls_token") or "class_embedding" in key for key, _ in model.named_parameters())
        self.reads_cls = has_cls and not self._pools
        self.eval().requires_grad_(False)

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        grid, ascending = self.grid(images), sorted(set(layers))
        hidden: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Any, Any, Any], None]:
            # some of these models show the last block's tokens only after the final norm, so the blocks are asked
            def hook(_: Any, __: Any, output: Any) -> None:
                hidden[layer] = output if isinstance(output, Tensor) else output[0]

            return hook

        hooks = [self._blocks[n - 1].register_forward_hook(keep(n)) for n in {*ascending, self.depth}]
        try:
            outputs = self._run(images)
        finally:
            for hook in hooks:
                hook.remove()
        prefix = hidden[self.depth].shape[1] - grid[0] * grid[1]
        if prefix < 0:
            raise not_a_vit(self.name, self.model)
        maps = {n: hidden[n][:, prefix:].movedim(1, -1).unflatten(-1, grid) for n in ascending}
        cls_at = {n: hidden[n][:, 0] for n in ascending} if prefix else {}
        if self._pools:
            return Features(outputs.pooler_output, maps, cls_at)
        last = hidden[self.depth]
        return Features(self.final_norm(last[:, 0]) if prefix else self.final_norm(last).mean(1), maps, cls_at)

    def final_norm(self, tokens: Tensor) -> Tensor:
        norm = _final_norm(self.model)
        return tokens if norm is None else norm(tokens)

    def cls_attention(self, images: Tensor) -> Tensor | None:
        before = getattr(self.model.config, "_attn_implementation", None)
        if before is None or not hasattr(self.model, "set_attn_implementation"):
            return None
        grid = self.grid(images)
        self.model.set_attn_implementation("eager")  # the fused kernels show no weights
        try:
            weights = self._run(images, output_attentions=True).attentions[-1]
        finally:
            self.model.set_attn_implementation(before)
        prefix = weights.shape[-1] - grid[0] * grid[1]
        return weights[:, :, 0, prefix:].unflatten(-1, grid) if prefix else None

    def _run(self, images: Tensor, **options: Any) -> Any:
        if self._masks:
            count = (images.shape[-2] // self.patch_size) * (images.shape[-1] // self.patch_size)
            options["noise"] = torch.arange(count, device=images.device, dtype=torch.float32).expand(len(images), -1)
        return self.model(images, **self._options, **options)


def _final_norm(model: Any) -> Any | None:
    """The norm that the model itself applies last, before or after it pools."""
    places = [getattr(model, key, None) for key in ("layernorm", "post_layernorm", "norm")]
    norms = [*places, getattr(getattr(model, "pooler", None), "layernorm", None)]
    return next((norm for norm in norms if norm is not None and not isinstance(norm, nn.Identity)), None)


def _pools(model: Any) -> bool:
    """Whether its embedding is pooled from patches: by attention (SigLIP), or their normed mean (BEiT)."""
    norm = getattr(getattr(model, "pooler", None), "layernorm", None)
    return norm is not None or getattr(model, "head", None) is not None


def _unread(model: Any, key: str) -> bool:
    return key.startswith("pooler.") and not _pools(model)


def _looks(name: str) -> dict[str, Any]:
    """What the image processor beside the weights does; {} where there is none."""
    from transformers.utils import cached_file

    file = cached_file(
        name, "preprocessor_config.json",
        _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    content = json.loads(Path(file).read_text()) if file else {}
    size, crop = (_side(content.get(key)) for key in ("size", "crop_size"))
    crop = crop if content.get("do_center_crop") else None
    looks = {
        "size": crop or size,
        "crop_pct": (crop / size if crop and size else 1.0) if size else None,
        "mean": tuple(content["image_mean"]) if content.get("image_mean") else None,
        "std": tuple(content["image_std"]) if content.get("image_std") else None,
    }
    return looks if content else {}


def _side(size: Any) -> int | None:
    """Of 224, {"height": 224, "width": 224} or {"shortest_edge": 256}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) and size > 0 else None


@contextmanager
def _silence() -> Iterator[None]:
    """transformers' report of what it loaded, and its bars, are ours to give."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
