"""Twelve steps of a run: its losses, its weights before and after, what it hands on.

`python -m golden_runs.training RECIPE FOLDER SETTING...` is one run as a program, which Fabric can start twice.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from golden_runs import table
from golden_runs.hashes import fingerprint, hexadecimal, read_tensors
from golden_runs.process import CaseError

__all__ = ["found_in", "train", "train_as_program"]

_INITIAL = "initial.safetensors"


def train(recipe: str, folder: str, settings: Sequence[str]) -> None:
    """A run without its measurements, in this process."""
    _keep_initial_weights(Path(folder))
    table.call("pretrain")(table.call("configured")(recipe, settings), Path(folder), finish=False)


def train_as_program(recipe: str, folder: str, settings: Sequence[str]) -> None:
    """The same in a new process, which may start others.

    Raises:
        CaseError: it failed.
    """
    words = [sys.executable, "-m", "golden_runs.training", recipe, folder, *settings]
    paths = [str(Path(__file__).parent.parent), *(p for p in sys.path if p)]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True
    )
    if done.returncode:
        raise CaseError(f"{recipe}: exit status {done.returncode}\n{done.stderr[-3000:]}")


def found_in(folder: str) -> dict[str, Any]:
    """What the run left."""
    run = Path(folder)
    config = json.loads((run / table.BACKBONE_CONFIG).read_text())
    config.pop(table.CHECKPOINT_KEY, None)
    return {
        "scalars": _scalars(run),
        "initial weights": fingerprint(read_tensors([run / _INITIAL])),
        "final weights": fingerprint(read_tensors([*run.glob(table.WEIGHTS)])),
        "optimizer": fingerprint(read_tensors([*run.glob(table.OPTIMIZER)])),
        "backbone": fingerprint(read_tensors([run / table.BACKBONE])),
        "backbone's config": config,
        "files": _files(run),
    }


def _keep_initial_weights(folder: Path) -> None:
    """Writes the state of the module that Fabric sets up first, before it is touched.

    Fabric's own methods are wrapped, since their names stay when ours change.
    """
    import torch
    from lightning.fabric import Fabric
    from safetensors.torch import save_file

    file = folder / _INITIAL
    for name in ("setup", "setup_module"):
        plain = getattr(Fabric, name)

        def wrapped(self: Any, module: torch.nn.Module, *more: Any, plain: Any = plain, **named: Any) -> Any:
            if self.global_rank == 0 and not file.exists():
                save_file({key: value.detach().clone() for key, value in module.state_dict().items()}, file)
            return plain(self, module, *more, **named)

        setattr(Fabric, name, wrapped)


def _scalars(run: Path) -> dict[str, list[str]]:
    """By tag, the value of every step as hexadecimal float32."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, dict[int, str]] = {}
    for file in sorted(run.glob(table.SCALARS)):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag not in table.UNCOMPARED_SCALARS:
                    found.setdefault(value.tag, {})[event.step] = hexadecimal(value.simple_value)
    steps = list(range(1, table.STEPS + 1))
    short = [tag for tag, values in found.items() if sorted(values) != steps]
    if short or not found:
        raise CaseError(f"{run}: not every step has its {short or 'scalars'}")
    return {tag: [values[step] for step in steps] for tag, values in sorted(found.items())}


def _files(run: Path) -> list[str]:
    """All that it leaves; of TensorBoard's only the folder, since their names have time and host."""
    names = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()} - {_INITIAL}
    return sorted({re.sub(r"(^tensorboard/).*", r"\1", name) for name in names})


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], sys.argv[3:])
