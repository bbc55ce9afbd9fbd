"""Start a backbone from weights that exist: every tensor is loaded, folded, resampled, drawn or left, and is listed.

The position of the class token is added to the token itself: positions then belong to patches alone, also where the
class token enters late. Positions of another grid are resampled (timm's bicubic `resample_abs_pos_embed`), and so is
the patch embedding of another patch size (`resample_patch_embed`, FlexiViT).
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from equimid.backbones.pretrained import patience
from equimid.backbones.vit import Backbone
from equimid.errors import UserError

__all__ = ["InitialWeights", "embedding_moved", "load_initial_weights"]

State = dict[str, Tensor]

_PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".npz", ".h5", ".msgpack"}
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "student.", "teacher.")
# of a network's end, which features do not need
_HEADS = ("head", "fc_norm.", "pre_logits", "decoder", "mask_token", "projector", "predictor")


@dataclass(frozen=True)
class InitialWeights:
    """What became of every tensor.

    Attributes:
        source:    where the weights come from.
        loaded:    names of the network's tensors that have these weights.
        folded:    tensors of the source that became a part of another one.
        resampled: {name: what was done}.
        drawn:     names of the network's tensors that the source lacks: they keep their initial values.
        left:      names of the source's tensors that the network does not have.
        cls_layer: the block after which CLS enters in the source; 0 = at the start.
        mean, std: of the images that the weights were trained on, where the source says it; else None.
    """

    source: str
    loaded: tuple[str, ...]
    folded: tuple[str, ...]
    resampled: dict[str, str]
    drawn: tuple[str, ...]
    left: tuple[str, ...]
    cls_layer: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{name} {what}" for name, what in self.resampled.items()]
        parts += ["the class token's position is added to the token"] if self.folded else []
        parts += [f"drawn: {_some(self.drawn)}"] if self.drawn else []
        parts += [f"left out: {_some(self.left)}"] if self.left else []
        return f"weights of {self.source}: {'; '.join(parts)}"


@dataclass(frozen=True)
class _Source:
    state: State
    heads: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load_initial_weights(backbone: Backbone, source: str) -> InitialWeights:
    """Load weights into a backbone, in place.

    Args:
        source: "timm:NAME", a .safetensors file, or a folder: a run, a handed-on backbone, or what timm saved.

    Raises:
        UserError: the weights cannot be had or read, or belong to another architecture; the backbone is then as before.

    Example:
        >>> backbone = create_backbone("vit_tiny_patch16_224", cls_layer=0, img_size=96)
        >>> print(load_initial_weights(backbone, "timm:vit_tiny_patch16_224.augreg_in21k"))  # doctest: +SKIP
    """
    found = _from_timm(source) if source.startswith("timm:") else _from_files(source)
    heads = backbone.blocks[0].attn.num_heads
    if found.heads is not None and found.heads != heads:
        raise UserError(
            f"the weights of {source} have {found.heads} attention heads and the network has {heads}; "
            f"set backbone.num_heads={found.heads}"
        )
    state, resampled, folded = _without_prefix(found.state), dict[str, str](), list[str]()
    own = backbone.state_dict()
    _fold_class_position(state, folded, source)
    _resample(state, own, backbone, resampled, source)
    inner = [name for name in state if name not in own and not name.startswith(("tap_norms.", *_HEADS))]
    if inner:
        raise UserError(
            f"the weights of {source} have {_some(inner)}, which the network {type(backbone).__name__} of this "
            "configuration has not: it would compute something else. Choose the architecture of these weights as "
            "backbone.name"
        )
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            raise UserError(
                f"{name} is {tuple(state[name].shape)} in {source} and {tuple(value.shape)} in the network; choose the "
                "architecture of these weights: backbone.name, embed_dim, depth, patch_size"
            )
    missing = [name for name in own if name not in state and not name.startswith(("tap_norms.", "cls_layer"))]
    if missing:
        raise UserError(
            f"{source} lacks {_some(missing)}, of {len(own)} tensors of the network; choose the architecture of these "
            "weights as backbone.name and backbone.depth"
        )
    kept = {name: value for name, value in state.items() if name in own}
    backbone.load_state_dict(kept, strict=False)  # what may be missing was looked at above
    return InitialWeights(
        source=source,
        loaded=tuple(name for name in kept if name != "cls_layer"),
        folded=tuple(folded),
        resampled=resampled,
        drawn=tuple(name for name in own if name not in kept and name != "cls_layer"),
        left=tuple(name for name in state if name not in kept),
        cls_layer=int(state.get("cls_layer", 0)),
        mean=found.mean,
        std=found.std,
    )


def _from_timm(source: str) -> _Source:
    name = source.removeprefix("timm:")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(
            f"timm has no model {architecture!r}; init_from is timm:NAME, such as timm:vit_small_patch16_224.dino"
        )
    try:
        with patience():
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # what hubs raise is of many kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"the weights of {source} cannot be had ({reason}); connect to a network, fetch them into the hub's cache "
            "before, or give a .safetensors file or a folder"
        ) from None
    config, blocks = model.pretrained_cfg, getattr(model, "blocks", None)
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks is not None and len(blocks) else None
    return _Source(dict(model.state_dict()), heads, tuple(config["mean"]), tuple(config["std"]))


def _from_files(source: str) -> _Source:
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"{source} does not exist; init_from is timm:NAME, a .safetensors file, or a folder of a run or a backbone"
        )
    folder = path / "backbone" if (path / "backbone" / "config.json").is_file() else path
    file = folder / "model.safetensors" if folder.is_dir() else folder
    if file.suffix.lower() in _PICKLES:
        raise UserError(
            f"{source} may run code when it is opened, and is not read; save its weights once where you trust it: "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        )
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file} cannot be read as safetensors ({reason}); give such a file, or a folder with one"
        ) from None
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if folder.is_dir() and config.is_file() else {}
        looks = content.get("pretrained_cfg") or {}
        heads = (content.get("model_args") or {}).get("num_heads")
        mean, std = (tuple(looks[key]) if looks.get(key) else None for key in ("mean", "std"))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{config} does not describe a network ({error!r}); restore it, or give the file itself"
        ) from None
    return _Source(state, heads, mean, std)


def _without_prefix(state: State) -> State:
    """Names as the network has them; tensors in float32."""
    prefix = next((p for p in _PREFIXES if f"{p}patch_embed.proj.weight" in state), "")
    named = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {name: value.float() if value.is_floating_point() else value for name, value in named.items()}


def _fold_class_position(state: State, folded: list[str], source: str) -> None:
    positions, token = state.get("pos_embed"), state.get("cls_token")
    if positions is None or positions.ndim != 3 or token is None:
        return
    count = positions.shape[1]
    if math.isqrt(count) ** 2 == count:
        return
    if math.isqrt(count - 1) ** 2 != count - 1:
        raise UserError(
            f"pos_embed of {source} has {count} positions, neither a square of patches nor one and a class token; "
            "weights with register tokens or of rectangles cannot be loaded yet"
        )
    state["cls_token"], state["pos_embed"] = token + positions[:, :1], positions[:, 1:]
    folded.append("pos_embed of the class token")


def _resample(state: State, own: State, backbone: Backbone, resampled: dict[str, str], source: str) -> None:
    grid, name = tuple(backbone.patch_embed.grid_size), "pos_embed"
    if name in state and state[name].ndim == 3 and state[name].shape[1] != own[name].shape[1]:
        side = math.isqrt(state[name].shape[1])
        state[name] = resample_abs_pos_embed(state[name], list(grid), [side, side], num_prefix_tokens=0)
        resampled[name] = f"resampled from {side} x {side} to {grid[0]} x {grid[1]} patches"
    name = "patch_embed.proj.weight"
    if name in state and state[name].ndim == 4 and state[name].shape[2:] != own[name].shape[2:]:
        before, after = tuple(state[name].shape[2:]), tuple(own[name].shape[2:])
        state[name] = resample_patch_embed(state[name], list(after))
        resampled[name] = f"resampled from {before[0]} x {before[1]} to {after[0]} x {after[1]} px"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def embedding_moved(backbone: Backbone, images: Tensor) -> float:
    """Mean cosine of the final embedding of images (n, 3, H, W) with that of the same weights where CLS enters at the
    start: what late CLS changes of a loaded network before the first step."""
    late = copy.deepcopy(backbone).eval()
    early = copy.deepcopy(late)
    early.cls_after = 0
    for block in early.blocks:
        block.passes_cls = False
    with torch.no_grad():
        return float(F.cosine_similarity(late(images).cls, early(images).cls).mean())
