"""What an evaluation costs beside the bare forward pass: ViT-S/16 at 224 px, kNN and linear probe, an empty cache.

    python benchmarks/evaluation.py --images 10000 --classes 100 --epochs 100 --device cuda --workers 8

Both sides read the same drawn JPEGs through the same loader and the same network, in the same process, turn by turn:
the bare side reads training and test images once and keeps the final embedding, the evaluation is
`measure_knn` and `measure_linear` with 20 learning rates. The ratio is of the medians.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from equimid.backbones import TimmEncoder, create_backbone
from equimid.data import open_source
from equimid.evaluation import EvaluationConfig, Scope, Study
from equimid.evaluation.probes import measure_knn, measure_linear

RATES = tuple(float(rate) for rate in np.logspace(-4, 1.5, 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="training and test images together, four to one")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=100, help="of the linear probe")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root / "data", options.images, options.classes)
        device = torch.device(options.device)
        torch.manual_seed(0)
        encoder = TimmEncoder(create_backbone("vit_small_patch16_224"), "ViT-S/16").to(device)
        config = EvaluationConfig(linear_rates=RATES, linear_epochs=options.epochs)
        scope = Scope("backbone", str(root / "data"), 0, "")
        study = Study(encoder, scope, config, root, device, options.workers)
        bare, whole = [], []
        for number in range(options.rounds):
            os.environ["EQUIMID_DATA"] = str(root / f"cache {number}")
            forward(study)  # files into the page cache, kernels chosen
            bare.append(forward(study))
            whole.append(evaluate(study))
            print(f"round {number + 1}: forward {bare[-1]:.2f} s, evaluation {whole[-1]:.2f} s", flush=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"torch {torch.__version__}, {where}; {options.images} images, {options.classes} classes, {options.epochs} "
        f"epochs, {len(RATES)} rates, {options.workers} workers: {statistics.median(whole):.2f} s against "
        f"{statistics.median(bare):.2f} s, ratio {statistics.median(whole) / statistics.median(bare):.3f}"
    )


def draw(root: Path, images: int, classes: int) -> None:
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
def forward(study: Study) -> float:
    """Seconds of the bare pass over training and test images."""
    start = time.perf_counter()
    for part in ("train", "test"):
        source = open_source(study.scope.data, part)
        torch.cat([study.encoder.look(images).cls.float().cpu() for images in study.batches(source)])
    return time.perf_counter() - start


def evaluate(study: Study) -> float:
    """Seconds of both probes, from the folder's name to the records."""
    start = time.perf_counter()
    records = [*measure_knn(study, study.scope.data), *measure_linear(study, study.scope.data)]
    seconds = time.perf_counter() - start
    print(", ".join(f"{r.evaluation} {r.value:.1f} %" for r in records), flush=True)
    return seconds


if __name__ == "__main__":
    main()
