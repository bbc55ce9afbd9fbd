"""A backbone's folder: `model.safetensors` and `config.json` in timm's layout, architecture "equimid_vit"."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from equimid.backbones import Backbone, create_backbone
from equimid.errors import UserError

__all__ = ["load_backbone", "save_backbone"]


def save_backbone(
    backbone: Backbone,
    folder: Path,
    arch: str,
    arguments: dict[str, Any],
    preprocessing: dict[str, Any],
    checkpoint: str = "",
    network: str = "student",
    initialisation: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder beside its place and rename it.

    Args:
        arch: timm's name of the architecture.
        arguments: what `create_backbone` got beside the name, cls_layer and taps.
        preprocessing: timm's keys of how images must look: input_size, mean, std, interpolation, crop_pct.
        checkpoint: identity of the checkpoint that the weights are from, for records.
        network: which one they are, "student" or "momentum"; config.json says it.
        initialisation: "seed" and "backbone" (the fields of `BackboneConfig`) that its first weights were drawn from,
            so that it can be measured beside them; None = not known.
    """
    config = {
        "architecture": "equimid_vit",
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "global_pool": "token",
        "checkpoint": checkpoint,
        "network": network,
        "initialisation": None if initialisation is None else dict(initialisation),
        "model_args": {
            "arch": arch,
            "cls_layer": backbone.cls_after,
            "taps": list(backbone.taps),
            **arguments,
        },
        "pretrained_cfg": {"num_classes": 0, "fixed_input_size": False, **preprocessing},
    }
    beside = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
        (beside / "config.json").write_text(json.dumps(config, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(
            f"could not write the backbone into {folder}: {error}; free some space and run again"
        ) from error


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone of a folder that a run wrote (RUN/backbone, or RUN itself), in eval mode; strict.

    The preprocessing that it was trained for is in `backbone.pretrained_cfg` (timm's keys), the identity of its
    checkpoint in `backbone.checkpoint`.

    Raises:
        UserError: the folder is missing or not of this layout, or the weights do not match it exactly.
    """
    folder = Path(folder)
    folder = folder / "backbone" if (folder / "backbone" / "config.json").exists() else folder
    try:
        config = json.loads((folder / "config.json").read_text())
        arguments = dict(config["model_args"])
        name, cls_layer, taps = arguments.pop("arch"), arguments.pop("cls_layer"), arguments.pop("taps")
    except FileNotFoundError:
        raise UserError(
            f"no backbone in {folder}: it has no config.json; give a run's folder or its backbone/"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} does not describe an equimid backbone ({error!r})") from None
    # an older version took names with a tag
    backbone = create_backbone(name.partition(".")[0], cls_layer, taps, **arguments)
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, **config["pretrained_cfg"]}
    backbone.checkpoint = config.get("checkpoint", "")
    try:
        backbone.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'model.safetensors'} cannot be read: {error}") from None
    except RuntimeError as error:
        raise UserError(f"{folder / 'model.safetensors'} does not fit {folder / 'config.json'}: {error}") from None
    backbone.eval()
    return backbone
