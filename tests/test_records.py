"""Records: written whole, replaced by the same measurement, refused when damaged."""

import json
import os

import pytest

from equimid.errors import UserError
from equimid.records import SCHEMA, Record, read_records, write_records


def record(evaluation="knn", data="digits", value=90.0, **changes):
    return Record(evaluation, "top1", value, 360, "backbone", data, 0, "abc", unit="%", **changes)


def test_records_come_back_as_they_were(tmp_path):
    written = [
        record(low=88.5, high=91.25, details={"k": 20, "note": "Größe \u2028 β"}),
        record("feature_maps", value=None, picture="pictures/layer.png", details={"layer": 3, "caption": "a\nb"}),
    ]
    path = tmp_path / "records.jsonl"
    write_records(path, written)
    assert read_records(path) == written
    assert len(path.read_text().splitlines()) == 2


def test_second_measurement_replaces_and_other_data_adds(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(value=10.0), record(value=11.0, details={"k": 1}), record("linear", value=20.0)])
    write_records(path, [record(value=50.0)])
    assert [(r.evaluation, r.value) for r in read_records(path)] == [("linear", 20), ("knn", 50)]
    write_records(path, [record(data="mnist", value=60.0)])
    assert [(r.evaluation, r.data, r.value) for r in read_records(path)] == [
        ("linear", "digits", 20),
        ("knn", "digits", 50),
        ("knn", "mnist", 60),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"evaluation": "knn", "metric"',
        b'{"schema": 1}',
        b'{"evaluation": "knn"}',
        b"[1, 2]",
        b"17",
        b'{"schema": "one"}',
        b"\x00\x00\x00\x00",
        b'{"schema": 1, "evaluation": "\xff\xfe"}',
    ],
)
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    write_records(path, [record()])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"records\.jsonl, line 3 is not a record"):
        read_records(path)


def test_newer_records_ask_for_a_newer_version(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(), record("linear")])
    newer = json.loads(path.read_text().splitlines()[0]) | {"schema": SCHEMA + 1, "unheard_of": 1}
    path.write_text(path.read_text() + json.dumps(newer) + "\n")
    with pytest.raises(UserError, match=r"line 3: written by a newer version.*update"):
        read_records(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="newer version"):
        write_records(path, [record(value=1.0)])
    assert path.read_bytes() == before


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(value=10.0)])
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write_records(path, [record(value=20.0)])
    assert path.read_bytes() == before
    write_records(path, [record(value=30.0)])  # what the failed one left does no harm
    assert [r.value for r in read_records(path)] == [30.0]


def test_records_of_an_older_version_have_the_name_of_today(tmp_path):
    file = tmp_path / "records.jsonl"
    write_records(file, [Record("pose_readback", "top1", 50.0, 10, "backbone", "digits", 0, "abc")])
    assert [r.evaluation for r in read_records(file)] == ["pose_probe"]
