"""Detection with frozen networks: runs and networks of others side by side on a folder with boxes, as a table.

    python benchmarks/detection.py --data BCCD --models RUN_A RUN_B timm:vit_tiny_patch16_224 --steps 600 --seeds 0 1 2

--models: folders of runs, or timm:NAME and hf:NAME. Beside them the first one's random twin and its untrained neck.
--out:    a folder for each model's and seed's records, detections and pictures.
--tested-on val: to choose settings, without a look at the test images.

Prints mAP with its interval over images, mAP at 0.5 and at 0.75, recall, mAP of each class, and seconds; with several
seeds also mean and deviation over them.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from equimid.evaluation import EvaluationConfig, Scope, Study
from equimid.evaluation.config import DetectionConfig
from equimid.evaluation.detection import measure_detection
from equimid.records import Record, write_records
from equimid.runs.evaluate import open_encoder

METRICS = ("map", "map_50", "map_75", "mar_100")


def row(label: str, seed: int, records: list[Record], seconds: float | None) -> str:
    whole = {r.metric: r for r in records if r.value is not None and "class" not in r.details}
    best = whole["map"]
    interval = "" if best.low is None else f" [{best.low:.1f}, {best.high:.1f}]"
    cells = [f"{best.value:.1f}{interval}", *(f"{whole[metric].value:.1f}" for metric in METRICS[1:])]
    classes = [f"{r.details['class']} {r.value:.1f}" for r in records if r.metric == "map" and "class" in r.details]
    end = "" if seconds is None else f"{seconds:.0f}"
    return f"| {label} | {seed} | {' | '.join(cells)} | {', '.join(classes)} | {end} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=DetectionConfig.steps)
    parser.add_argument("--image-size", type=int, default=DetectionConfig.image_size)
    parser.add_argument("--tested-on", choices=("test", "val"), default="test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("detection"))
    given = parser.parse_args()
    settings = DetectionConfig(steps=given.steps, image_size=given.image_size, tested_on=given.tested_on)
    config = replace(EvaluationConfig(), detection=settings)
    print(f"torch {torch.__version__}, {given.device}, {torch.get_num_threads()} threads; {settings}")
    print("| network | seed | mAP | mAP 50 | mAP 75 | recall | mAP of classes | s |\n|---|---|---|---|---|---|---|---|")
    found: dict[str, list[float]] = {}
    # seed by seed, so that a run that is cut off has compared what it has
    for seed in given.seeds:
        for number, name in enumerate([*given.models, "random"]):
            random = number == len(given.models)
            encoder = open_encoder(given.models[0] if random else name)
            folder = given.out / f"{Path(name).name.replace(':', '_')}_{number}_{seed}"
            scope = Scope("backbone", given.data, seed, encoder.identity)
            study = Study(encoder, scope, config, folder, torch.device(given.device))
            study = study.random_baseline() if random else study
            started = time.perf_counter()
            records = measure_detection(study, given.data)
            seconds = time.perf_counter() - started
            write_records(folder / "records.jsonl", records)
            untrained = [r for r in records if r.subject == "untrained neck"]
            if untrained and number == 0:
                print(row("untrained neck", seed, untrained, None))
            records = [r for r in records if r.subject == study.scope.subject]
            print(row(name, seed, records, seconds), flush=True)
            found.setdefault(name, []).append(next(r.value for r in records if r.metric == "map"))
    if len(given.seeds) > 1:
        for name, values in found.items():
            print(
                f"{name}: mAP {statistics.mean(values):.2f}, deviation {statistics.stdev(values):.2f}, n {len(values)}"
            )


if __name__ == "__main__":
    main()
