"""Equivariance over depth, of untrained networks: the figures and the picture of docs/equivariance.md.

    python benchmarks/equivariance_depth.py FOLDER_OF_IMAGES [--images 32] [--picture docs/equivariance_depth.png]

Every network has random weights (seed 0). Printed are the centred cosine and the relative error of every other layer,
and for the first network what the interpolation changes.
"""

import argparse
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from equimid.backbones import open_foreign
from equimid.evaluation import EvaluationConfig, Scope
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import measure_equivariance
from equimid.evaluation.study import Study
from equimid.records import Record

NETWORKS = ("vit_small_patch16_224", "deit3_small_patch16_224", "eva02_tiny_patch14_224")
SHOWN = ("quarter turns", "flip", "isotropic scale", "rotation", "aligned crops", "unaligned crops")
Table = dict[tuple[str, str, str, int], float]  # (metric, subject, kind, layer)


def measure(network: str, data: str, images: int, interpolation: str = "bicubic") -> Table:
    """The kinds' means."""
    encoder, _ = open_foreign(f"timm:{network}", "random", seed=0)
    config = EvaluationConfig(
        equivariance_images=images,
        equivariance=EquivarianceConfig(interpolation=interpolation, angles=(5.0, 10.0, 15.0, 30.0)),  # type: ignore[arg-type]
    )
    # as the measured network, so that the mismatched images are measured too
    study = Study(encoder, Scope("backbone", data, 0, ""), config, Path(tempfile.gettempdir()))
    records: list[Record] = measure_equivariance(study, data)
    return {
        (r.metric, r.subject, r.details["kind"], r.details["layer"]): r.value
        for r in records
        if "angle" not in r.details and r.value is not None
    }


def print_table(title: str, table: Table, metric: str, layers: list[int]) -> None:
    print(f"\n{title}\n\n| layer | {' | '.join(SHOWN)} |\n|---|{'---|' * len(SHOWN)}")
    for layer in layers:
        values = ((table[metric, s, kind, layer] for s in ("backbone", "mismatched")) for kind in SHOWN)
        print(f"| {layer} | " + " | ".join(" / ".join(f"{v:.2f}" for v in pair) for pair in values) + " |")


def draw(tables: dict[str, Table], file: Path) -> None:
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    for number, kind in enumerate(SHOWN, start=1):
        axes = figure.add_subplot(2, 3, number)
        for index, (network, table) in enumerate(tables.items()):
            depth = max(layer for *_, layer in table)
            x = [(layer) / depth for layer in range(1, depth + 1)]
            for subject, dash in (("backbone", "-"), ("mismatched", ":")):
                y = [table["centred_cosine", subject, kind, layer] for layer in range(1, depth + 1)]
                axes.plot(x, y, dash, color=f"C{index}", label=network if subject == "backbone" else None)
        axes.set_title(kind, fontsize=10)
        axes.set_ylim(-0.15, 1.03)
        axes.grid(alpha=0.3)
        if number > 3:
            axes.set_xlabel("layer / depth")
        if number % 3 == 1:
            axes.set_ylabel("centred cosine")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    tables = {}
    for network in NETWORKS:
        tables[network] = measure(network, given.data, given.images)
        depth = max(layer for *_, layer in tables[network])
        layers = sorted({1, *range(2, depth + 1, 2)})
        for metric in ("centred_cosine", "relative_error"):
            print_table(f"{network}, {metric}: same image / other image", tables[network], metric, layers)
    kernels = {"bicubic": tables[NETWORKS[0]]}
    for interpolation in ("bilinear", "nearest"):
        kernels[interpolation] = measure(NETWORKS[0], given.data, given.images, interpolation)
    resampled = ("isotropic scale", "anisotropic scale", "rotation", "unaligned crops")
    for metric in ("centred_cosine", "relative_error"):
        print(f"\n{NETWORKS[0]}, {metric} at layer 1 / 6 / 12\n")
        print(f"| kernel | {' | '.join(resampled)} |\n|---|---|---|---|---|")
        for interpolation, table in kernels.items():
            values = ([table[metric, "backbone", kind, layer] for layer in (1, 6, 12)] for kind in resampled)
            print(
                f"| {interpolation} | " + " | ".join(" / ".join(f"{v:.3f}" for v in three) for three in values) + " |"
            )
    if given.picture:
        draw(tables, given.picture)


if __name__ == "__main__":
    main()
