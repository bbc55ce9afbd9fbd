"""Tries the installed package as the README shows it, in an empty folder: python installed_check.py FOLDER EXAMPLE

Runs in any environment that has equimid, and needs nothing but equimid. FOLDER is empty; EXAMPLE is a copy of
`examples/own_loop.py`. Ends with an exit status that is not 0 where something does not work.
"""

import json
import runpy
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
from PIL import Image


def run(*words: str) -> str:
    """What `equimid WORDS` prints; the module, as `bin` need not be on the path."""
    done = subprocess.run([sys.executable, "-m", "equimid", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"equimid {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def photographs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        colours = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")


def main(folder: Path, example: Path) -> None:
    assert not list(folder.iterdir()), f"{folder} is not empty"
    import equimid

    print(f"equimid {version('equimid')} in {Path(equimid.__file__).parent}")
    assert Path(equimid.__file__).with_name("py.typed").exists()
    (script,) = entry_points(group="console_scripts", name="equimid")
    assert callable(script.load())
    assert "pretrain" in run("--help")
    assert "ser-small" in run("recipes")

    photographs(folder / "photos")
    few = ["train.epochs=1", "train.batch_size=12", "optim.warmup_epochs=0", "evaluation.equivariance_images=4"]
    run("pretrain", str(folder / "photos"), "--recipe", "ser-tiny", "--out", str(folder / "runs/mine"), *few)
    left = {path.name for path in (folder / "runs/mine").iterdir()}
    assert left >= {"report.html", "backbone", "config.yaml", "metrics.csv", "records.jsonl", "unreadable.csv"}, left
    records = [json.loads(line) for line in (folder / "runs/mine/records.jsonl").read_text().splitlines()]
    assert {record["subject"] for record in records} >= {"backbone", "random"}

    import torch

    backbone = equimid.load_backbone(folder / "runs/mine/backbone")
    features = backbone(torch.zeros(2, 3, 32, 32))
    assert features.cls.shape == (2, 128)
    assert {layer: tuple(maps.shape) for layer, maps in features.maps.items()} == {2: (2, 128, 4, 4)}

    losses = runpy.run_path(str(example))["main"](steps=3)
    assert len(losses) == 3
    assert all(np.isfinite(losses))
    print(f"trained on 12 images, loaded the backbone, ran {example.name}: all as the README says")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
