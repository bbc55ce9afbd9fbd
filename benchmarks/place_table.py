"""Place and what can imitate it, for several networks: the table of docs/equivariance.md.

    python benchmarks/place_table.py --data IMAGES --layers 2 random=runs/control MoCo-v3=runs/mocov3 SER=runs/ser

Each network is NAME=MODEL: a run, a folder of a backbone, timm:NAME or hf:NAME. A NAME that begins with "random" stands
for the initial weights of the model. Quarter turns; 256 images.
"""

import argparse
import tempfile
from pathlib import Path

from equimid.evaluation import EvaluationConfig, Scope
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import measure_equivariance
from equimid.evaluation.study import Study
from equimid.records import Record
from equimid.runs.networks import open_encoder

COLUMNS = (
    ("centred cosine", "centred_cosine", "backbone"),
    ("the same, not carried", "centred_cosine", "not_carried"),
    ("the same, other images", "centred_cosine", "mismatched"),
    ("**place**", "place", "backbone"),
    ("place, not carried", "place", "not_carried"),
    ("place, other images", "place", "mismatched"),
    ("retrieval", "retrieval", "backbone"),
)
SHARES = ("between_images", "between_positions", "inside_images")


def measured(model: str, random: bool, data: str, images: int) -> list[Record]:
    encoder = open_encoder(model, "random" if random and ":" in model else "auto")
    if random and ":" not in model:
        assert encoder.random is not None
        encoder, shown = encoder.random(0), encoder
        encoder.pretrained_cfg = shown.pretrained_cfg
    config = EvaluationConfig(equivariance_images=images, equivariance=EquivarianceConfig(angles=()))
    return measure_equivariance(
        Study(encoder, Scope("backbone", data, 0, ""), config, Path(tempfile.gettempdir())), data
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")], default=[2], help="2,6")
    parser.add_argument("--images", type=int, default=256)
    args = parser.parse_args()
    print("| network | layer | " + " | ".join(name for name, *_ in COLUMNS) + " | images / positions / inside (%) |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for network in args.networks:
        name, _, model = network.partition("=")
        records = measured(model, name.startswith("random"), args.data, args.images)
        for layer in args.layers:
            row = []
            for _, metric, subject in COLUMNS:
                (r,) = [
                    r
                    for r in records
                    if (r.metric, r.subject) == (metric, subject)
                    and r.details == r.details | {"layer": layer, "kind": "quarter turns"}
                ]
                if r.value is None:
                    row.append("not measurable")
                elif r.unit == "%":
                    row.append(f"{r.value:.1f} % (chance {r.details['chance']:.1f})")
                else:
                    row.append(f"{r.value:.3f}")
            fractions = [r.value for m in SHARES for r in records if r.metric == m and r.details["layer"] == layer]
            row.append(" / ".join("–" if fraction is None else f"{fraction:.0f}" for fraction in fractions))
            print(f"| {name} | {layer} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
