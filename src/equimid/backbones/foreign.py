"""Networks of others, to be measured: any timm or Hugging Face vision transformer by name."""

import importlib.util
import inspect
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import timm
from torch import Tensor, nn

from equimid.backbones.encoder import Encoder, TimmEncoder
from equimid.errors import UserError
from equimid.features import Features
from equimid.randomness import counted_torch_seed

__all__ = ["HuggingFaceEncoder", "Weights", "open_foreign"]

logger = logging.getLogger("equimid")

Weights = Literal["auto", "pretrained", "random"]


def open_foreign(model: str, weights: Weights = "auto", seed: int = 0) -> tuple[Encoder, bool]:
    """A network by "timm:NAME" or "hf:NAME" (a hub's name, or a folder that `save_pretrained` wrote).

    Args:
        weights: "pretrained" or "random"; "auto" takes the pretrained ones, and where they cannot be had (no network,
            none published) says so and takes random ones.
        seed: of random weights.

    Returns:
        The encoder, and whether its weights are pretrained.

    Raises:
        UserError: no such network, another kind of network, or no pretrained weights where they are demanded.
    """
    kind, colon, name = model.partition(":")
    if not colon or kind not in ("timm", "hf") or not name:
        raise UserError(f"{model!r} is not a model; expected a run's folder, timm:NAME or hf:NAME")
    make = _timm if kind == "timm" else _hugging_face
    build = make(name)
    if weights == "random":
        return build(False, seed), False
    try:
        with _patience():
            return build(True, seed), True
    except UserError:
        raise
    except Exception as error:
        # what hubs raise is of many kinds: no network, no such file, no weights published
        reason = " ".join(str(error).split())[:160]
        if weights == "pretrained":
            raise UserError(
                f"no pretrained weights for {model} ({reason}); connect to a network, fetch them into the hub's cache "
                "before, or take --weights random"
            ) from None
        logger.warning(
            "%s: the pretrained weights cannot be had here (%s): measured with random weights (seed %d), and "
            "recorded as random; --weights pretrained makes this an error", model, reason, seed,
        )  # fmt: skip
        return build(False, seed), False


def _timm(name: str) -> Callable[[bool, int], Encoder]:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3] or ["vit_small_patch16_224"]
        raise UserError(f"timm has no model {name!r}; it has, among others, {', '.join(near)}")

    def build(pretrained: bool, seed: int) -> Encoder:
        with counted_torch_seed(seed, f"timm {name}"):
            try:
                model = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
            except TypeError:  # an architecture with one image size
                model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        return TimmEncoder(model, f"timm:{name}", lambda seed: build(False, seed))

    return build


def _hugging_face(name: str) -> Callable[[bool, int], Encoder]:
    if importlib.util.find_spec("transformers") is None:
        raise UserError("hf: models need the package transformers; install it: pip install 'equimid[hf]'")
    from transformers import AutoConfig, AutoModel

    try:
        with _patience():
            config = AutoConfig.from_pretrained(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"hf:{name} cannot be opened: {reason}; give a hub's name or a folder with its files") from None

    def build(pretrained: bool, seed: int) -> Encoder:
        with counted_torch_seed(seed, f"hf {name}"):
            model = AutoModel.from_pretrained(name) if pretrained else AutoModel.from_config(config)
        folder = name if Path(name).is_dir() else None
        return HuggingFaceEncoder(model, f"hf:{name}", lambda seed: build(False, seed), _statistics(folder))

    return build


def _statistics(folder: str | None) -> dict[str, Any]:
    """Mean and deviation from the folder's image processor, ImageNet's where it has none."""
    import json

    file = Path(folder or "") / "preprocessor_config.json"
    given = json.loads(file.read_text()) if folder and file.is_file() else {}
    return {
        "mean": tuple(given.get("image_mean") or (0.485, 0.456, 0.406)),
        "std": tuple(given.get("image_std") or (0.229, 0.224, 0.225)),
    }


class HuggingFaceEncoder(Encoder):
    """A vision transformer of transformers (ViT, DINOv2 and their like): its hidden states are its layers.

    Args:
        model: gives `hidden_states`, of which the last tokens are the patches in row-major order.
        statistics: mean and std of its images.

    Raises:
        UserError: it is another kind of network.
    """

    def __init__(
        self, model: Any, name: str, random: Callable[[int], Encoder] | None = None,
        statistics: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        config = model.config
        wanted = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
        if not isinstance(model, nn.Module) or any(type(getattr(config, key, None)) is not int for key in wanted):
            raise UserError(
                f"{name} is a {type(model).__name__}; expected a vision transformer with hidden_size, "
                "num_hidden_layers, patch_size and image_size in its config, such as ViTModel or Dinov2Model"
            )
        self.model, self.name, self.random = model, name, random
        self.depth, self.width, self.patch = config.num_hidden_layers, config.hidden_size, config.patch_size
        size = config.image_size // self.patch * self.patch
        self.pretrained_cfg = {"input_size": (3, size, size), "crop_pct": 0.875, **(statistics or _statistics(None))}
        self._options = {"output_hidden_states": True}
        if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            self._options["interpolate_pos_encoding"] = True
        self.eval().requires_grad_(False)

    def look(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        found = self.model(images, **self._options)
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        count = grid[0] * grid[1]
        prefix = found.last_hidden_state.shape[1] - count
        states = {layer: found.hidden_states[layer] for layer in sorted(set(layers))}
        maps = {layer: s[:, prefix:].movedim(1, -1).unflatten(-1, grid) for layer, s in states.items()}
        if not prefix:
            return Features(found.last_hidden_state.mean(1), maps)
        return Features(found.last_hidden_state[:, 0], maps, {layer: s[:, 0] for layer, s in states.items()})

    def final_norm(self, tokens: Tensor) -> Tensor:
        norm = getattr(self.model, "layernorm", None)
        return tokens if norm is None else norm(tokens)

    def _architecture(self) -> str:
        return f"{self.model.config.to_json_string()}"


@contextmanager
def _patience() -> Iterator[None]:
    """Where the hub does not answer, only its cache is asked: it would try for a minute before it gives up."""
    if importlib.util.find_spec("huggingface_hub") is None:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    place = urlsplit(endpoint)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
