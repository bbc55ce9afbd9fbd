"""The recorded files: one JSON for each part, an entry a line, so that git shows what changed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read", "write"]

_WIDTH = 160  # a content that is no longer stands in one line


def write(file: Path, machine: Mapping[str, Any], commit: str, cases: Mapping[str, Any]) -> None:
    """The part of that name."""
    stored = {name: _shrunk(found) if _is_table(found) else found for name, found in cases.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_lines({"machine": machine, "commit": commit, "cases": stored}) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """machine, commit, cases."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name, found in content["cases"].items():
        if isinstance(found, dict) and any("like" in row for row in found.values() if isinstance(row, dict)):
            content["cases"][name] = _grown(found)
    return content


def _lines(value: Any, indent: str = "") -> str:
    short = json.dumps(value, ensure_ascii=False)
    if len(short) + len(indent) <= _WIDTH or not isinstance(value, dict | list) or _is_flat_list(value):
        return short
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(v, inner)}" for key, v in value.items()]
    else:
        parts = [_lines(v, inner) for v in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{closing}"


def _is_flat_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(v, dict | list) for v in value)


def _is_table(found: Any) -> bool:
    """Many rows of plain values, most of them alike: recipes."""
    return (
        isinstance(found, dict)
        and len(found) > 50
        and all(isinstance(row, dict) and all(isinstance(v, str) for v in row.values()) for row in found.values())
    )


def _shrunk(table: Mapping[str, dict[str, str]]) -> dict[str, Any]:
    """Every row as its differences from the nearest one above it."""
    stored: dict[str, Any] = {}
    for name, row in table.items():
        nearest, edit = "", dict(row)
        without: list[str] = []
        for other in stored:
            changed = {k: v for k, v in row.items() if table[other].get(k) != v}
            dropped = [k for k in table[other] if k not in row]
            if len(changed) + len(dropped) < len(edit) + len(without):
                nearest, edit, without = other, changed, dropped
        stored[name] = {"like": nearest, "set": edit} | ({"without": without} if without else {})
    return stored


def _grown(stored: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for name, row in stored.items():
        above = table[row["like"]] if row["like"] else {}
        table[name] = {k: v for k, v in above.items() if k not in row.get("without", ())} | row["set"]
    return table
