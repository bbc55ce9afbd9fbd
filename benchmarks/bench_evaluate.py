"""What an evaluation costs beside the bare forward pass: ViT-S/16 at 224 px, kNN and linear probe, an empty cache.

Both sides read the same drawn JPEGs through the same loader and the same network, in the same process, turn by turn:
the bare side reads training and test images once and keeps the final embedding, the evaluation is
`measure_knn` and `measure_linear` with 20 learning rates.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lib.options import EvaluateOptions
from lib.timing import Result, Row, choose_device, describe_machine, paired, ratio, refuse_below
from PIL import Image

from equimid.backbones import TimmEncoder, create_backbone
from equimid.data import open_source
from equimid.evaluation import EvaluationConfig, Scope, Study
from equimid.evaluation.probes import measure_knn, measure_linear

__all__ = ["bench_evaluate"]

RATES = tuple(float(rate) for rate in np.logspace(-4, 1.5, 20))


def bench_evaluate(options: EvaluateOptions) -> Result:
    """Seconds of both sides, and their ratio."""
    device = choose_device(options.device)
    refuse_below({"classes": 2, "images": 10 * options.classes, "epochs": 1, "workers": 0, "repeats": 1}, vars(options))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _draw(root / "data", options.images, options.classes)
        torch.manual_seed(0)
        encoder = TimmEncoder(create_backbone("vit_small_patch16_224"), "ViT-S/16").to(device)
        config = EvaluationConfig(linear_rates=RATES, linear_epochs=options.epochs)
        scope = Scope("backbone", str(root / "data"), 0, "")
        study = Study(encoder, scope, config, root, device, options.workers)
        found: dict[str, float] = {}

        def probes() -> None:
            with _empty_cache(root):
                records = [*measure_knn(study, study.scope.data), *measure_linear(study, study.scope.data)]
            found.update({r.evaluation: r.value for r in records if r.value is not None})

        sides = {"forward pass": lambda: _forward(study), "kNN and linear probe": probes}
        timings = paired(sides, options.repeats, device, warmup=0)
    rows: list[Row] = [{"side": side, "seconds": timing.median} for side, timing in timings.items()]
    return Result(
        "evaluate",
        f"python benchmarks/bench.py evaluate --images {options.images} --classes {options.classes} "
        f"--epochs {options.epochs}",
        asdict(options),
        rows,
        {"probes / forward pass": ratio(timings["kNN and linear probe"], timings["forward pass"])},
        [f"{name} {value:.1f} % on drawn images" for name, value in found.items()],
        describe_machine(device),
    )


@contextmanager
def _empty_cache(root: Path) -> Iterator[None]:
    before = os.environ.get("EQUIMID_DATA")
    with tempfile.TemporaryDirectory(dir=root) as cache:
        os.environ["EQUIMID_DATA"] = cache
        try:
            yield
        finally:
            if before is None:
                del os.environ["EQUIMID_DATA"]
            else:
                os.environ["EQUIMID_DATA"] = before


def _draw(root: Path, images: int, classes: int) -> None:
    """JPEGs of 256 px in class folders: coarse random colours, tinted by the class."""
    rng = np.random.default_rng(0)
    tints = rng.integers(0, 128, (classes, 3))
    for number in range(images):
        label = number % classes
        part = "test" if (number // classes) % 5 == 4 else "train"
        folder = root / part / f"{label:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        cells = rng.integers(0, 128, (16, 16, 3)) + tints[label]
        image = Image.fromarray(cells.astype(np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)


@torch.inference_mode()
def _forward(study: Study) -> None:
    """The bare pass over training and test images."""
    for part in ("train", "test"):
        source = open_source(study.scope.data, part)
        torch.cat([study.encoder.forward_features(images).cls.float().cpu() for images in study.batches(source)])
