"""The page's explorer: what `record_explorer` recorded, as data in the page, and the script that shows it.

Nothing is fetched: pictures are data: URLs in a block of JSON, and the page's policy lets exactly this script run, by
the hash of its text.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equimid.records import Record, Subject
from equimid.report.blocks import read, template
from equimid.report.read_run import Run
from equimid.report.series import NAMES, grouped

__all__ = ["Explorer", "explorer"]


@dataclass(frozen=True)
class Explorer:
    """Pieces of the page.

    Attributes:
        html:   the section.
        style:  its rules.
        policy: the source that script-src allows.
    """

    html: str
    style: str
    policy: str


def explorer(runs: Sequence[Run]) -> Explorer | None:
    """The explorer of all that the runs recorded for one, or None where they recorded nothing."""
    photographs: dict[str, int] = {}  # runs that saw the same images share their photographs
    subjects: list[dict[str, Any]] = []
    missing: list[str] = []
    for run in runs:
        recorded = [r for r in run.records if r.evaluation == "explorer" and r.picture is not None]
        places = grouped(recorded, lambda r: (r.subject, r.data))
        for (subject, data), records in places.items():
            images: dict[int, dict[str, Any]] = {}
            for r in records:
                try:
                    layer, number = _layer(run, r), r.details["image"]
                    photograph = photographs.setdefault(_picture(run, str(r.details["photograph"])), len(photographs))
                except (KeyError, TypeError, ValueError):
                    missing.append(f"{r.picture} of {run.name} is missing or damaged: run equimid evaluate again.")
                    continue
                image = {"image": number, "class": r.details.get("class"), "photograph": photograph, "layers": []}
                images.setdefault(number, image)["layers"].append(layer)
            if images:
                label = run.name
                if subject != run.subject:
                    label += f", {NAMES.get(subject, subject)}"
                label += f", {data}" if len({d for s, d in places if s == subject}) > 1 else ""
                subjects.append({"label": label, "images": [images[number] for number in sorted(images)]})
    if not subjects and not missing:
        return None
    return _rendered(subjects, [*photographs], missing)


def _rendered(subjects: list[dict[str, Any]], photographs: list[str], missing: list[str]) -> Explorer:
    style, script = read("explorer.css"), read("explorer.js")
    data = json.dumps({"subjects": subjects, "photographs": photographs}, separators=(",", ":"))
    # a class may be called </script>: no < of the data stays one
    data = data.replace("<", r"\u003c")
    filled = bool(subjects)
    section = template("explorer.html.j2").render(data=data, script=script, missing=missing, filled=filled)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Explorer(section, style, f"'sha256-{digest}'")


def _layer(run: Run, r: Record) -> dict[str, Any]:
    """What the script needs of a record. Raises what a record of another shape raises."""
    details = r.details
    grids, elements = [int(grid) for grid in details["grids"]], len(details["elements"])
    numbers = {name: details[key] for name, key in (("cosine", "centred_cosine"), ("error", "relative_error"))}
    if "place" in details:  # an older version recorded none
        numbers["place"] = details["place"]
    if not grids or any([len(row) for row in rows] != [elements] * len(grids) for rows in numbers.values()):
        raise ValueError("a number for each pose, None where it is not measurable")
    return {
        "layer": int(details["layer"]),
        "regularised": details["layer"] in run.ser_layers and r.subject == Subject.BACKBONE,
        "side": int(details["side"]),
        "grids": grids,
        "upright": int(details["upright"]),
        "levels": int(details["error_levels"]),
        "top": float(details["error_top"]),
        **numbers,
        "sprite": _picture(run, str(r.picture)),
    }


def _picture(run: Run, name: str) -> str:
    source = run.picture(name)
    if not source:
        raise ValueError("no picture")
    return source
