"""docs/evidence.md, written from the studies and their cells: means, paired differences, what would decide.

    python experiments/evidence.py            # writes docs/evidence.md
    python experiments/evidence.py --check    # fails where it is not what the cells give

An endpoint is the mean over its parts; a part is the mean over the records of a cell that have its evaluation, its
metric, its subject ("backbone" where none is named), its data (the study's where none are named) and its details, and
none of the details that `without` names.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equimid.runs.experiment import Experiment, read_experiment
from equimid.statistics import LEVEL, holm, mean_of, paired_difference, seeds_needed, verdict

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "evidence.md"
Cell = Mapping[str, Any]

INTRODUCTION = """\
# Evidence

What SER does, measured over seeds against the control with weight 0. Each study was declared in a file before its first
run; each finished cell is a file of records in this repository. `python experiments/evidence.py` writes this page from
them.

A difference is paired by seed, with Student's 95 % interval; p is of the paired t test after Holm's correction over the
table. "Equivalent within x" says that the whole interval lies within the difference that was declared to matter. The
last column is the number of seeds with which a paired t test, at the most strict level of Holm's correction, finds the
difference with probability 0.8: if it is as large as seen, and if it is as large as declared. Few seeds estimate it."""


def cells_of(file: Path) -> dict[str, dict[int, Cell]]:
    """{arm: {seed: cell}} of the study's finished cells."""
    found: dict[str, dict[int, Cell]] = {}
    for cell_file in sorted(file.with_suffix("").glob("*.json")):
        cell = json.loads(cell_file.read_text())
        found.setdefault(cell["arm"], {})[cell["seed"]] = cell
    return found


def part_value(part: Mapping[str, Any], cell: Cell) -> float | None:
    """The mean over the matching records; None without one."""
    values = [
        r["value"]
        for r in cell["records"]
        if (r["evaluation"], r["metric"], r["subject"])
        == (part["evaluation"], part["metric"], part.get("subject", "backbone"))
        and r.get("data") == part.get("data")
        and part.get("details", {}).items() <= r["details"].items()
        and not set(part.get("without", ())) & set(r["details"])
    ]
    return sum(values) / len(values) if values else None


def values_of(endpoint: Mapping[str, Any], cells: Mapping[int, Cell]) -> dict[int, float]:
    """{seed: value}."""
    found = {}
    for seed, cell in cells.items():
        parts = [part_value(part, cell) for part in endpoint["of"]]
        if all(value is not None for value in parts):
            found[seed] = sum(value or 0.0 for value in parts) / len(parts)
    return found


def places(endpoint: Mapping[str, Any]) -> int:
    return 2 if "%" in endpoint["name"] else 3


def means_table(
    study: Experiment, cells: Mapping[str, Mapping[int, Cell]], endpoints: Sequence[Mapping[str, Any]]
) -> list[str]:
    lines = [
        "| arm | " + " | ".join(e["name"] for e in endpoints) + " |",
        "|---" * (len(endpoints) + 1) + "|",
    ]
    for arm in study.arms:
        row = []
        for endpoint in endpoints:
            values = values_of(endpoint, cells.get(arm, {}))
            row.append(mean_of(list(values.values())).text(places(endpoint)) if values else "not run yet")
        lines.append(f"| {arm} | " + " | ".join(row) + " |")
    return lines


def differences_table(
    cells: Mapping[str, Mapping[int, Cell]], pairs: Sequence[Sequence[str]], endpoints: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Paired differences; Holm's correction over all of the table."""
    found = [
        (arm, baseline, endpoint, paired_difference(*(values_of(endpoint, cells.get(a, {})) for a in (arm, baseline))))
        for arm, baseline in pairs
        for endpoint in endpoints
    ]
    adjusted = holm([difference.p if difference else None for *_, difference in found])
    lines = [
        "| difference | endpoint | mean ± 95 % interval | deviation | p, Holm | verdict | seeds that would decide |",
        "|---|---|---|---|---|---|---|",
    ]
    for (arm, baseline, endpoint, difference), p in zip(found, adjusted, strict=True):
        what = f"| {arm} − {baseline} | {endpoint['name']} "
        if difference is None:
            lines.append(what + "| not run yet | | | | |")
            continue
        mean = difference.mean
        spread = None if mean.half is None else spread_of(mean.half, mean.n)
        level = LEVEL / len(found)
        columns = [
            mean.text(places(endpoint), signed=True),
            "" if spread is None else f"{spread:.{places(endpoint)}f}",
            "" if p is None else f"{p:.3f}",
            judged(difference, p, endpoint),
            decided_by(spread, mean.value, endpoint.get("effect"), level),
        ]
        lines.append(what + "| " + " | ".join(columns) + " |")
    return lines


def spread_of(half: float, n: int) -> float:
    """The standard deviation of the differences, from half the width of their mean's interval."""
    from scipy import stats

    return float(half * math.sqrt(n) / stats.t.ppf(0.975, n - 1))


def judged(difference: Any, p: float | None, endpoint: Mapping[str, Any]) -> str:
    said = verdict(difference, p)
    effect, mean = endpoint.get("effect"), difference.mean
    if said == "not distinguishable" and effect and mean.half is not None and max(-mean.low, mean.high) < effect:
        return f"equivalent within {effect:g}"
    return said


def decided_by(spread: float | None, seen: float, effect: float | None, level: float) -> str:
    if spread is None:
        return ""
    words = []
    for what, size in (("as seen", seen), (f"for {effect:g}" if effect else "", effect or 0.0)):
        if what:
            n = seeds_needed(spread, size, level)
            words.append(f"{n if n is not None else 'over 10,000'} {what}")
    return ", ".join(words)


def pilot_table(study: Experiment, cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """The held-out accuracy that chose the weights."""
    lines = ["| arm | held-out linear top-1 (%), by seed | mean | place at layer 2 |", "|---|---|---|---|"]
    for arm in study.arms:
        held, place = {}, {}
        for seed, cell in cells.get(arm, {}).items():
            for r in cell["records"]:
                if (r["evaluation"], r["metric"], r["subject"]) == ("linear", "top1", "backbone"):
                    held[seed] = r["details"]["held_out_top1"]
                wanted = {"layer": 2, "kind": "quarter turns"}
                if (r["metric"], r["subject"]) == ("place", "backbone") and wanted.items() <= r["details"].items():
                    place[seed] = r["value"]
        if not held:
            lines.append(f"| {arm} | not run yet | | |")
            continue
        each = ", ".join(f"{value:.1f} ({seed})" for seed, value in sorted(held.items()))
        means = [sum(v.values()) / len(v) for v in (held, place)]
        lines.append(f"| {arm} | {each} | {means[0]:.2f} | {means[1]:.3f} |")
    return lines


def machines(cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    counted = Counter(
        f"{cell['trained']['processor']}, torch {cell['trained']['torch']}, trained at {cell['trained']['commit']}, "
        f"measured at {cell['measured']['commit']}"
        for by_seed in cells.values()
        for cell in by_seed.values()
    )
    return [f"- {count} cells: {where}" for where, count in sorted(counted.items())]


def page() -> str:
    lines = [INTRODUCTION]
    for file in sorted(HERE.glob("*.yaml")):
        study, cells = read_experiment(file), cells_of(file)
        done = sum(len(by_seed) for arm, by_seed in cells.items() if arm in study.arms)
        lines += ["", f"## {study.name.upper()}: {study.question}", ""]
        lines += [
            f"Declared in `experiments/{file.name}`: arms {', '.join(study.arms)}; "
            f"seeds {', '.join(map(str, study.seeds))}; "
            f"{done} of {len(study.arms) * len(study.seeds)} cells are finished.",
            "",
            "```bash",
            f"equimid sweep experiments/{file.name} --out runs/{study.name}",
            "```",
            "",
        ]
        if study.endpoints:
            lines += [*means_table(study, cells, study.endpoints), "", "The comparison that was declared:", ""]
            lines += differences_table(cells, [study.contrast], study.endpoints)
            more, pairs = study.explored.get("endpoints", []), study.explored.get("pairs", [])
            if more:
                lines += ["", "Explored beside it, on the same networks:", "", *means_table(study, cells, more), ""]
                lines += differences_table(cells, [study.contrast], more)
            if pairs:
                lines += ["", "Explored: other pairs of arms (Holm's correction over this table):", ""]
                lines += differences_table(cells, pairs, study.endpoints)
        else:
            lines += pilot_table(study, cells)
        if done:
            lines += ["", "Where the cells ran:", "", *machines(cells)]
        if study.notes:
            lines += ["", study.notes.strip()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        if PAGE.read_text() != text:
            sys.exit(f"{PAGE} is not what the cells give; run python experiments/evidence.py")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
