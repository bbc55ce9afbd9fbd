"""The network behind a name: a run's folder, a backbone's folder, timm:NAME or hf:NAME."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from equimid.backbones import (
    BackboneConfig,
    Encoder,
    TimmEncoder,
    Weights,
    build_backbone,
    create_backbone,
    open_pretrained,
)
from equimid.config import Config, load_config
from equimid.errors import UserError
from equimid.export import load_backbone
from equimid.randomness import counted_torch_seed
from equimid.records import Subject

__all__ = ["first_seed", "images_of", "open_encoder", "open_network", "run_of"]

logger = logging.getLogger("equimid")


def open_encoder(model: str, weights: Weights = "auto", seed: int = 0) -> Encoder:
    """The network behind a run's folder, a backbone's folder, "timm:NAME" or "hf:NAME".

    Raises:
        UserError: there is none.
    """
    return open_network(model, weights, seed)[0]


def open_network(model: str, weights: Weights, seed: int) -> tuple[Encoder, str, str]:
    """Also the subject of its records, and the identity of its checkpoint."""
    if model.startswith(("timm:", "hf:")):
        encoder, pretrained = open_pretrained(model, weights, seed)
        return (encoder, Subject.BACKBONE, encoder.identity) if pretrained else (encoder, Subject.RANDOM, "")
    if not Path(model).exists():
        raise UserError(f"no model {model!r}: expected a run's folder, a backbone's folder, timm:NAME or hf:NAME")
    if weights == "random":
        raise UserError(
            f"--weights random is for timm: and hf: models; beside {model}, --random measures such a network"
        )
    run = run_of(model)
    backbone = load_backbone(model)
    random = _like_run(load_config(run / "config.yaml")) if run else _like_backbone(Path(model))

    opened = TimmEncoder(backbone, model, random)
    return opened, Subject.BACKBONE, backbone.checkpoint or opened.identity


def run_of(model: str) -> Path | None:
    """The run that a folder is, or whose backbone it is."""
    path = Path(model)
    return next((p for p in (path, path.parent) if path.is_dir() and (p / "config.yaml").is_file()), None)


def images_of(model: str) -> str:
    """The images that a run was trained on, as its settings name them.

    Raises:
        UserError: the model is not of a run.
    """
    run = run_of(model)
    if run is None:
        raise UserError(
            f"{model} is not a run's folder, so it names no images of its own; give what it is measured on: --data DATA"
        )
    return load_config(run / "config.yaml").data.source


def _like_run(config: Config) -> Callable[[int], Encoder]:
    taps = sorted({layer for addon in config.addons.values() for layer in addon.taps})
    return lambda seed: TimmEncoder(build_backbone(config.backbone, taps, seed), "random")


def _like_backbone(folder: Path) -> Callable[[int], Encoder]:
    """As its training drew it; of a folder that does not say how, as timm does."""
    content = json.loads((_backbone_folder(folder) / "config.json").read_text())
    arguments, start = content["model_args"], content.get("initialisation")
    name = arguments.pop("arch")

    def build(seed: int) -> Encoder:
        if start is not None:
            try:
                config = BackboneConfig(**start["backbone"])
            except (TypeError, KeyError) as error:
                raise UserError(f"{folder}: 'initialisation' of its config.json cannot be read ({error})") from None
            return TimmEncoder(build_backbone(config, arguments["taps"], seed), "random")
        logger.warning(
            "%s does not say how its weights began (an older version wrote it); the random network beside it is drawn "
            "as timm draws it", folder
        )  # fmt: skip
        with counted_torch_seed(seed, "backbone"):
            return TimmEncoder(create_backbone(name, **arguments), "random")

    return build


def _backbone_folder(folder: Path) -> Path:
    inner = folder / "backbone"
    return inner if (inner / "config.json").is_file() else folder


def first_seed(folder: Path) -> int:
    """The seed that a handed-on backbone was trained with; 0 where it does not say."""
    try:
        start = json.loads((_backbone_folder(folder) / "config.json").read_text()).get("initialisation")
        return int(start["seed"]) if start else 0
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0  # opening it says what is wrong
