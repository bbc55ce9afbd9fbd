"""What differs between two recordings, in lines for a person; no line means that they are the same."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Difference", "compare", "told"]

# keys of `hashes.fingerprint`
_FINGERPRINT = {"tensors", "any order", "names", "by name"}
_LINES = 80  # that are told of a case
_LONG, _SHORT = 120, 24  # characters of a value that are shown, and of a detail that names a record


@dataclass(frozen=True)
class Difference:
    """
    place: keys from the outermost to the innermost
    text:  what happened there
    """

    place: tuple[str, ...]
    text: str


def compare(before: Any, after: Any, place: tuple[str, ...] = ()) -> list[Difference]:
    """All differences of two contents of JSON; what was only renamed or reordered is told as that."""
    if _same(before, after):
        return []
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if set(before) & set(after) >= _FINGERPRINT:
            return [Difference(place, _of_tensors(before, after))]
        return _of_mappings(before, after, place)
    if isinstance(before, list) and isinstance(after, list):
        return _of_lists(before, after, place)
    return [Difference(place, " -> ".join(_shown(before, after)))]


def told(differences: Sequence[Difference]) -> list[str]:
    """As lines: one for all places inside of which the same happened, and not too many."""
    groups: dict[tuple[tuple[str, ...], str], list[Difference]] = {}
    for difference in differences:
        groups.setdefault((difference.place[1:], difference.text), []).append(difference)
    lines = []
    for (inner, text), group in groups.items():
        first = group[0].place[:1]
        many = f" (and in {len(group) - 1} more)" if len(group) > 1 else ""
        lines.append(f"{': '.join([*first, *inner])}{many}: {text}")
    more = [f"and {len(lines) - _LINES} more differences"] if len(lines) > _LINES else []
    return [*lines[:_LINES], *more]


def _same(before: Any, after: Any) -> bool:
    """As JSON has them: 1, 1.0 and true are three values, and NaN is itself."""
    return json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)


def _of_tensors(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    changes = _of_mappings(before["by name"], after["by name"], ())
    names = "; ".join(told(changes))
    if before["tensors"] == after["tensors"]:
        return f"the same bits under other names: {names}"
    if before["any order"] == after["any order"]:
        return f"the same bits under other names, in another order: {names}"
    renamed = "" if before["names"] == after["names"] else ", and names are others"
    first = next((c.place[0] if c.place else c.text for c in changes), "")
    return f"BITS CHANGED in {len(changes)} of {len(before['by name'])} groups of tensors, first {first}{renamed}"


def _of_mappings(before: Mapping[str, Any], after: Mapping[str, Any], place: tuple[str, ...]) -> list[Difference]:
    found = []
    gone = {key: value for key, value in before.items() if key not in after}
    new = {key: value for key, value in after.items() if key not in before}
    for old_name, new_name in _renamed(gone, new):
        found.append(Difference((*place, old_name), f"renamed to {new_name}, the same content"))
        del gone[old_name], new[new_name]
    found += [Difference((*place, key), "gone") for key in gone]
    found += [Difference((*place, key), "new") for key in new]
    for key in before:
        if key in after:
            found += compare(before[key], after[key], (*place, key))
    return found


def _renamed(gone: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of equal content that nothing else has: of what moved the last part of the name stays, of short values,
    which much may have by chance, all other parts."""
    pairs = []
    for name, value in gone.items():
        others = [other for other in new if _same(new[other], value)]
        alike = [other for other in gone if _same(gone[other], value)]
        moved = [other for other in others if _parts(other)[1] == _parts(name)[1]]
        if _is_short(value):
            others, alike = ([o for o in found if _parts(o)[0] == _parts(name)[0]] for found in (others, alike))
        if len(moved) == 1 and "." in name:
            pairs.append((name, moved[0]))
        elif len(others) == len(alike) == 1:
            pairs.append((name, others[0]))
    taken = Counter(new_name for _, new_name in pairs)
    return [(name, new_name) for name, new_name in pairs if taken[new_name] == 1]


def _parts(name: str) -> tuple[str, str]:
    """All but the last part of a dotted name, and the last."""
    parent, _, last = name.rpartition(".")
    return parent, last


def _is_short(value: Any) -> bool:
    return not isinstance(value, Mapping | list) and len(str(value)) < 12


def _of_lists(before: list[Any], after: list[Any], place: tuple[str, ...]) -> list[Difference]:
    if len(before) != len(after):
        gone = [f"gone {_shown(value)[0]}" for value in before if value not in after]
        new = [f"new {_shown(value)[0]}" for value in after if value not in before]
        return [Difference(place, "; ".join([f"{len(before)} entries -> {len(after)}", *[*gone, *new][:4]]))]
    if sorted(map(repr, before)) == sorted(map(repr, after)):
        return [Difference(place, "the same entries in another order")]
    changed = [k for k, (old, new) in enumerate(zip(before, after, strict=True)) if not _same(old, new)]
    inside = compare(before[changed[0]], after[changed[0]])
    details = before[changed[0]].get("details", {}) if isinstance(before[changed[0]], Mapping) else {}
    where = {key: value for key, value in details.items() if len(str(value)) <= _SHORT}
    first = "; ".join(": ".join([*difference.place, difference.text]) for difference in inside[:3])
    about = f" {where}" if where else ""
    return [
        Difference(place, f"{len(changed)} of {len(before)} changed, first number {changed[0] + 1}{about}: {first}")
    ]


def _shown(*values: Any) -> list[str]:
    """Hexadecimal numbers also as decimal ones; of long texts what is around the place where they part."""
    texts = [f"{v} ({float.fromhex(v):.9g})" if re.match(r"-?0x[\d.]", str(v)) else str(v) for v in values]
    if max(map(len, texts)) <= _LONG:
        return texts
    common = next((k for k, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    start = max(0, common - 30)
    cut = [text[start : start + _LONG] for text in texts]
    return [("..." if start else "") + text + "..." * (len(text) == _LONG) for text in cut]
