"""Equivariance over depth, of untrained networks: the figures and the picture of docs/equivariance.md.

    python benchmarks/equivariance_depth.py FOLDER_OF_IMAGES [--images 32] [--picture docs/equivariance_depth.png]

Every network has random weights (seed 0). Printed are, of every other layer, place with its references (not carried,
other images) and retrieval with its chance; and for the first network what the interpolation changes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from equimid.backbones import open_pretrained
from equimid.evaluation import EvaluationConfig, Scope
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import measure_equivariance
from equimid.evaluation.study import Study

NETWORKS = ("vit_small_patch16_224", "deit3_small_patch16_224", "eva02_tiny_patch14_224")
SHOWN = ("quarter turns", "flip", "isotropic scale", "rotation", "aligned crops", "unaligned crops")
RESAMPLED = ("isotropic scale", "anisotropic scale", "rotation", "unaligned crops")
REFERENCES = {"backbone": "-", "not_carried": "-.", "mismatched": ":"}
Key = tuple[str, str, str, int]  # (metric, subject, kind, layer)


@dataclass(frozen=True)
class Table:
    """The kinds' means; None where there is nothing to measure."""

    values: dict[Key, float | None]
    chances: dict[str, float]  # of retrieval, by kind
    depth: int

    def text(self, metric: str, subject: str, kind: str, layer: int, places: int = 2) -> str:
        value = self.values.get((metric, subject, kind, layer))
        return "not measurable" if value is None else f"{value:.{places}f}"


def measure(network: str, data: str, images: int, interpolation: str = "bicubic") -> Table:
    encoder, _ = open_pretrained(f"timm:{network}", "random", seed=0)
    config = EvaluationConfig(
        equivariance_images=images,
        equivariance=EquivarianceConfig(interpolation=interpolation, angles=(5.0, 10.0, 15.0, 30.0)),  # type: ignore[arg-type]
    )
    # as the measured network, so that its references are measured too
    study = Study(encoder, Scope("backbone", data, 0, ""), config, Path(tempfile.gettempdir()))
    records = [r for r in measure_equivariance(study, data) if "kind" in r.details and "angle" not in r.details]
    return Table(
        {(r.metric, r.subject, r.details["kind"], r.details["layer"]): r.value for r in records},
        {r.details["kind"]: r.details["chance"] for r in records if r.metric == "retrieval"},
        encoder.depth,
    )


def print_network(network: str, table: Table) -> None:
    layers = sorted({1, *range(2, table.depth + 1, 2)})
    head = f"| layer | {' | '.join(SHOWN)} |\n|---|{'---|' * len(SHOWN)}"
    print(f"\n{network}, place: carried / not carried / other images\n\n{head}")
    for layer in layers:
        cells = (" / ".join(table.text("place", s, kind, layer) for s in REFERENCES) for kind in SHOWN)
        print(f"| {layer} | " + " | ".join(cells) + " |")
    print(f"\n{network}, retrieval in %, with its chance\n\n{head}")
    print("| chance | " + " | ".join(f"{table.chances.get(kind, float('nan')):.2f}" for kind in SHOWN) + " |")
    for layer in layers:
        cells = (table.text("retrieval", "backbone", kind, layer, 1) for kind in SHOWN)
        print(f"| {layer} | " + " | ".join(cells) + " |")


def print_kernels(network: str, kernels: dict[str, Table]) -> None:
    depth = next(iter(kernels.values())).depth
    layers = sorted({1, max(1, depth // 2), depth})
    for metric, places in (("place", 3), ("retrieval", 1)):
        print(f"\n{network}, {metric} at layer {' / '.join(map(str, layers))}\n")
        print(f"| kernel | {' | '.join(RESAMPLED)} |\n|---|{'---|' * len(RESAMPLED)}")
        for interpolation, table in kernels.items():
            cells = (" / ".join(table.text(metric, "backbone", kind, n, places) for n in layers) for kind in RESAMPLED)
            print(f"| {interpolation} | " + " | ".join(cells) + " |")


def draw(tables: dict[str, Table], file: Path) -> None:
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    for number, kind in enumerate(SHOWN, start=1):
        axes = figure.add_subplot(2, 3, number)
        for index, (network, table) in enumerate(tables.items()):
            for subject, dash in REFERENCES.items():
                layers = range(1, table.depth + 1)
                found = [(n / table.depth, table.values.get(("place", subject, kind, n))) for n in layers]
                known = [(x, y) for x, y in found if y is not None]
                label = network if subject == "backbone" else None
                axes.plot([x for x, _ in known], [y for _, y in known], dash, color=f"C{index}", label=label)
        axes.set_title(kind, fontsize=10)
        axes.set_ylim(-0.25, 1.03)
        axes.grid(alpha=0.3)
        if number > 3:
            axes.set_xlabel("layer / depth")
        if number % 3 == 1:
            axes.set_ylabel("place")
    for dash, label in (("-.", "not carried"), (":", "other images")):
        axes.plot([], [], dash, color="grey", label=label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names of timm")
    parser.add_argument("--kernels", nargs="*", default=("bilinear", "nearest"), help="beside bicubic")
    given = parser.parse_args(arguments)
    tables = {}
    for network in given.networks:
        tables[network] = measure(network, given.data, given.images)
        print_network(network, tables[network])
    first = given.networks[0]
    kernels = {name: measure(first, given.data, given.images, name) for name in given.kernels}
    if kernels:
        print_kernels(first, {"bicubic": tables[first], **kernels})
    if given.picture:
        draw(tables, given.picture)


if __name__ == "__main__":
    main()
