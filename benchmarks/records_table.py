"""Runs' records as Markdown tables: accuracies, and equivariance (centred cosine) of every layer.

python benchmarks/records_table.py RUN RUN ...
"""

import sys
from pathlib import Path

from equimid.records import Record, read_records


def cell(record: Record) -> str:
    if record.unit == "%":
        return f"{record.value:.1f} [{record.low:.1f}, {record.high:.1f}]"
    return f"{record.value:.3f}"


def main(runs: list[Path]) -> None:
    records = {run.name: read_records(run / "records.jsonl") for run in runs}
    print("| run | subject | kNN top-1 | linear top-1 | n |\n|---|---|---|---|---|")
    for name, found in records.items():
        for subject in ("backbone", "random", "pixels"):
            top1 = {r.evaluation: r for r in found if r.metric == "top1" and r.subject == subject}
            print(f"| {name} | {subject} | {cell(top1['knn'])} | {cell(top1['linear'])} | {top1['knn'].n} |")
    for kind in ("quarter turns", "flip", "scale"):
        print(f"\n{kind}:\n")
        layers = sorted({r.details["layer"] for r in records[runs[0].name] if r.evaluation == "equivariance"})
        print("| run | subject | " + " | ".join(f"layer {layer}" for layer in layers) + " |")
        print("|---" * (len(layers) + 2) + "|")
        for name, found in records.items():
            for subject in ("backbone", "mismatched", "random"):
                row = {
                    r.details["layer"]: cell(r)
                    for r in found
                    if r.metric == "centred_cosine" and r.subject == subject and r.details["kind"] == kind
                }
                print(f"| {name} | {subject} | " + " | ".join(row[layer] for layer in layers) + " |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
