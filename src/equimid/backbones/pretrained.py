"""Networks of others, to be measured: any timm or Hugging Face vision transformer by name."""

import importlib.util
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import timm
import torch
from torch import nn

from equimid.backbones.encoder import Encoder, TimmEncoder, require_one_grid
from equimid.backbones.hugging_face import open_hugging_face
from equimid.errors import UserError
from equimid.randomness import counted_torch_seed

__all__ = ["Weights", "open_pretrained", "patience"]

logger = logging.getLogger("equimid")

Weights = Literal["auto", "pretrained", "random"]


def open_pretrained(model: str, weights: Weights = "auto", seed: int = 0) -> tuple[Encoder, bool]:
    """A network by "timm:NAME" or "hf:NAME" (a hub's name, or a folder that `save_pretrained` wrote).

    Another kind of network is refused before any weights are fetched.

    Args:
        weights: "pretrained" or "random"; "auto" takes the pretrained ones, and where they cannot be had (no network,
            none published) says so and takes random ones.
        seed: of random weights.

    Returns:
        The encoder, and whether its weights are pretrained.

    Raises:
        UserError: no such network, another kind of network, pretrained weights that lack some of the network's, or
            none where they are demanded.
    """
    kind, colon, name = model.partition(":")
    if not colon or kind not in ("timm", "hf") or not name:
        raise UserError(f"{model!r} is not a model; expected a run's folder, timm:NAME or hf:NAME")
    with patience():
        build = _timm(name) if kind == "timm" else open_hugging_face(name)
        if weights == "random":
            return build(False, seed), False
        try:
            return build(True, seed), True
        except UserError:
            raise
        except Exception as error:
            # what hubs raise is of many kinds: no network, no such file, no weights published
            reason = " ".join(str(error).split())[:160] or type(error).__name__
    if weights == "pretrained":
        raise UserError(
            f"no pretrained weights for {model} ({reason}); connect to a network, fetch them into the hub's cache "
            "before, or take --weights random"
        )
    logger.warning(
        "%s: the pretrained weights cannot be had here (%s): measured with random weights (seed %d), and "
        "recorded as random; --weights pretrained makes this an error", model, reason, seed,
    )  # fmt: skip
    return build(False, seed), False


def _timm(name: str) -> Callable[[bool, int], Encoder]:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3] or ["vit_small_patch16_224"]
        raise UserError(f"timm has no model {name!r}; it has, among others, {', '.join(near)}")

    def create(pretrained: bool) -> nn.Module:
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # an architecture with one image size
            model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        return model

    try:
        with torch.device("meta"):
            form = create(False)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"timm cannot build {name!r} ({reason}); choose another model or tag") from None
    require_one_grid(TimmEncoder(form, f"timm:{name}"), f"timm:{name}")

    def build(pretrained: bool, seed: int) -> Encoder:
        with counted_torch_seed(seed, f"timm {name}"):
            return TimmEncoder(create(pretrained), f"timm:{name}", lambda seed: build(False, seed))

    return build


@contextmanager
def patience() -> Iterator[None]:
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
    """Whether the hub, or the proxy that stands before it, takes a connection."""
    place = urlsplit(endpoint)
    proxy = getproxies().get(place.scheme)
    if proxy and not proxy_bypass(place.hostname or ""):
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
