"""Runs' records as Markdown tables: accuracies, and of every layer place with its references and retrieval.

python benchmarks/records_table.py RUN RUN ...      # RUN or NAME=RUN; records on the run's own images alone
"""

import sys
from pathlib import Path

from equimid.config import load_config
from equimid.records import Record, read_records

NAMES = {"backbone": "carried", "not_carried": "not carried", "mismatched": "other images", "random": "random network"}


def cell(record: Record | None) -> str:
    if record is None:
        return "not measured"
    if record.value is None:
        return "not measurable"
    if record.unit != "%":
        return f"{record.value:.3f}"
    interval = "" if record.low is None or record.high is None else f" [{record.low:.1f}, {record.high:.1f}]"
    return f"{record.value:.1f}{interval}"


def of_own_images(run: Path) -> list[Record]:
    """A run that was also measured on other images has records of both."""
    own = load_config(run / "config.yaml").data.source
    return [r for r in read_records(run / "records.jsonl") if r.data == own]


def main(runs: dict[str, Path]) -> None:
    records = {name: of_own_images(run) for name, run in runs.items()}
    print("| run | subject | kNN top-1 | linear top-1 | n |\n|---|---|---|---|---|")
    for name, found in records.items():
        for subject in ("backbone", "random", "pixels"):
            top1 = {r.evaluation: r for r in found if r.metric == "top1" and r.subject == subject}
            knn, linear = top1.get("knn"), top1.get("linear")
            if counted := knn or linear:
                print(f"| {name} | {subject} | {cell(knn)} | {cell(linear)} | {counted.n} |")
    of_kinds = {
        name: [r for r in found if r.evaluation == "equivariance" and "kind" in r.details and "angle" not in r.details]
        for name, found in records.items()
    }
    layers = sorted({r.details["layer"] for found in of_kinds.values() for r in found})
    for kind in dict.fromkeys(r.details["kind"] for found in of_kinds.values() for r in found):
        for metric, subjects in (("place", NAMES), ("retrieval", ("backbone", "random"))):
            title, chance = f"{kind}, {metric}", ""
            if metric == "retrieval":
                chances = [r.details["chance"] for found in of_kinds.values() for r in found
                           if (r.metric, r.details["kind"]) == (metric, kind)]  # fmt: skip
                chance = " in %" + (f" (chance {chances[0]:.2f})" if chances else "")
            print(f"\n{title}{chance}:\n")
            print("| run | subject | " + " | ".join(f"layer {layer}" for layer in layers) + " |")
            print("|---" * (len(layers) + 2) + "|")
            for name, found in of_kinds.items():
                for subject in subjects:
                    row = {
                        r.details["layer"]: r
                        for r in found
                        if (r.metric, r.subject, r.details["kind"]) == (metric, subject, kind)
                    }
                    print(f"| {name} | {NAMES[subject]} | " + " | ".join(cell(row.get(n)) for n in layers) + " |")


if __name__ == "__main__":
    # of NAME=RUN; a path may hold an equals sign of its own, as those of a sweep
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    main({name: Path(path) if path and not Path(f"{name}={path}").is_dir() else Path(f"{name}{sign}{path}")
          for name, sign, path in pairs})  # fmt: skip
