"""python -m golden_runs record|check [PART[/CASE] ...]"""

import argparse
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from golden_runs import files
from golden_runs.compare import compare, told
from golden_runs.machine import commit, differing, machine
from golden_runs.process import CaseError, load_libraries

_RECORDS = Path(__file__).parent / "records"
# what these hold does not depend on how a processor rounds
_OF_ANY_MACHINE = ("names", "recipes", "commands")
_SAME, _CHANGED, _MISTAKE, _NO_EVIDENCE = 0, 1, 2, 3


Cases = Mapping[str, Mapping[str, Callable[[], Any]]]


def main() -> int:
    """Exit status: 0 all the same, 1 something changed, 2 a mistake, 3 something differs that was recorded on another
    machine."""
    parser = argparse.ArgumentParser("golden_runs", description="Compare bits, records and names with recorded ones.")
    parser.add_argument("act", choices=("record", "check"))
    parser.add_argument("parts", nargs="*", metavar="PART[/CASE]", help="by default all; recorded are whole parts only")
    parser.add_argument("--records", type=Path, default=_RECORDS, help="folder of the recorded files")
    given = parser.parse_args()
    os.nice(10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the case that runs ends too
    # before a library is loaded: other numbers of threads add in other orders
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    load_libraries()
    from golden_runs.parts import all_cases

    _say(f"equimid of {_sources()}")
    with tempfile.TemporaryDirectory(prefix="golden-runs-") as folder:
        every = all_cases(Path(folder).resolve())
        try:
            chosen = _chosen(every, given.parts, given.act == "record")
            if given.act == "record":
                _record(chosen, given.records.resolve())
                status = _SAME
            else:
                status = _check(every, chosen, given.records.resolve())
        except CaseError as error:
            _say(str(error))
            return _MISTAKE
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    _say(f"{sum(u.ru_utime + u.ru_stime for u in used):.0f} seconds of processor time")
    return status


def _chosen(every: Cases, words: Sequence[str], whole: bool) -> Cases:
    chosen: dict[str, dict[str, Callable[[], Any]]] = {}
    for word in words or every:
        part, _, case = word.partition("/")
        if part not in every or (case and case not in every[part]):
            known = every if part not in every else [f"{part}/{name}" for name in every[part]]
            raise CaseError(f"there is no {word!r}; there are: {'; '.join(known)}")
        if case and whole:
            raise CaseError(f"record {part} as a whole, so that its file is of one machine and one commit")
        chosen.setdefault(part, {}).update({case: every[part][case]} if case else every[part])
    return chosen


def _record(chosen: Cases, records: Path) -> None:
    for part, cases in chosen.items():
        found = {}
        for name, case in cases.items():
            began = time.monotonic()
            found[name] = case()
            _tell(part, name, f"recorded, {time.monotonic() - began:.0f} s")
        files.write(records / f"{part}.json", machine(), commit(_sources()), found)


def _check(every: Cases, chosen: Cases, records: Path) -> int:
    verdicts = []
    for part, cases in chosen.items():
        file = records / f"{part}.json"
        if not file.exists():
            verdicts.append(_tell(part, "", "NOT RECORDED"))
            continue
        recorded = files.read(file)
        other = differing(recorded["machine"], machine())
        if other and part in _OF_ANY_MACHINE:
            other = []
        elif other:
            _tell(part, "", "recorded on another machine: bits that differ are NO EVIDENCE of a change", other)
        verdicts += [_verdict(part, name, case, recorded["cases"], bool(other)) for name, case in cases.items()]
        dropped = set(recorded["cases"]) - set(every[part])
        verdicts += [_tell(part, name, "NOT RUN: table.py has it no more") for name in sorted(dropped)]
    same = verdicts.count("same")
    sys.stdout.write(f"{same} of {len(verdicts)} are the same\n")
    if same == len(verdicts):
        return _SAME
    return _NO_EVIDENCE if set(verdicts) <= {"same", "differs, no evidence"} else _CHANGED


def _verdict(part: str, name: str, case: Callable[[], Any], recorded: Mapping[str, Any], elsewhere: bool) -> str:
    if name not in recorded:
        return _tell(part, name, "NOT RECORDED")
    try:
        found = json.loads(json.dumps(case()))  # as a file would hold it
    except CaseError as error:
        return _tell(part, name, "FAILED", str(error).splitlines())
    differences = told(compare(recorded[name], found))
    changed = "differs, no evidence" if elsewhere else "CHANGED"
    return _tell(part, name, changed if differences else "same", differences)


def _tell(part: str, name: str, verdict: str, lines: Sequence[str] = ()) -> str:
    sys.stdout.write("\n".join([f"{part:13} {name:33} {verdict}", *(f"    {line}" for line in lines)]) + "\n")
    sys.stdout.flush()
    return verdict


def _sources() -> Path:
    """Where the equimid lies that is measured."""
    found = importlib.util.find_spec("equimid")
    if found is None or not found.origin:
        raise SystemExit("equimid is not installed here; set PYTHONPATH to its src")
    return Path(found.origin).parent


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
