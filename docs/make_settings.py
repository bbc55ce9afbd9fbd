"""Write docs/settings.md from the declarations of all settings: python docs/make_settings.py"""

import re
from itertools import groupby
from pathlib import Path

from equimid.addons import ADDONS
from equimid.evaluation import MEASUREMENTS
from equimid.methods import METHODS
from equimid.recipes.describe import every_setting, written
from equimid.settings import Described, described

PAGE = Path(__file__).parent / "settings.md"

_HEAD = """# Settings

Every setting of a run, as `KEY=VALUE` behind a command. `equimid recipes show NAME` prints those of a recipe, with
its own values. Values are YAML; a list is written `3,6` or `[3,6]`, and `null` is no value. An add-on is left out
by `NAME=null`, such as `ser=null`.

This page is made by `python docs/make_settings.py` from the declarations in the source.

The defaults below are those of the declarations: a recipe has its own.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for group, found in groupby(every_setting(), key=lambda d: d.key.split(".")[0] if "." in d.key else "run"):
        if group == "method":
            for name in METHODS:
                parts.append(_table(f"method, with method.name={name}", list(described(METHODS[name], "method"))))
        elif group in ADDONS:
            parts.append(_table(f"{group}, an add-on", list(found)))
        else:
            parts.append(_table(group, list(found)))
        if group == "evaluation":
            parts.append(_readers())
    return "\n".join(parts)


def _table(title: str, rows: list[Described]) -> str:
    lines = [f"## {title}", "", "| setting | default | what it is | range |", "|---|---|---|---|"]
    for row in rows:
        text = f"{row.text} ({row.unit})" if row.unit else row.text
        limits = row.limits or row.kind
        cells = (f"`{row.key}`", f"`{written(row.default)}`" if row.default != "" else "", text, limits)
        lines.append("| " + " | ".join(re.sub(r"([|*])", r"\\\1", cell) for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _readers() -> str:
    """Which of these settings each measurement reads, besides `evaluation.network` and `evaluation.crop`."""
    lines = ["| measurement | reads |", "|---|---|"]
    for name, measurement in MEASUREMENTS.items():
        if measurement.settings:
            keys = [f"`evaluation.{start}{'*' * start.endswith(('_', '.'))}`" for start in measurement.settings]
            lines.append(f"| `{name}` | {', '.join(keys)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
