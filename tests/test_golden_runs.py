"""The comparer of golden runs finds what changed, tells what was only renamed, and is silent otherwise."""

import copy

import pytest

from golden_runs import files
from golden_runs.compare import compare, told
from golden_runs.hashes import fingerprint, hexadecimal
from golden_runs.machine import differing

TENSORS = {
    "student.blocks.0.weight": ("F32", (2,), b"one and "),
    "student.blocks.1.weight": ("F32", (2,), b"another1"),
    "student.norm.bias": ("F32", (1,), b"more"),
}
RECORDS = {
    "equivariance/place/backbone": [
        {"details": {"layer": layer}, "n": 6, "value": hexadecimal(0.1 * layer)} for layer in (1, 2, 3)
    ]
}
NAMES = {
    "equimid.poses.Pose": ["class", "(turns: Tensor, flip: Tensor)", {"act": "(self, x: Tensor) -> Tensor"}],
    "equimid.poses.transport": ["function", "(x: Tensor, source: Pose, target: Pose) -> Tensor"],
}
RUN = {"scalars": {"loss/ser": [hexadecimal(4.5), hexadecimal(4.25)]}, "final weights": fingerprint(TENSORS)}
EVERYTHING = {"run": RUN, "records": RECORDS, "names": NAMES}


def lines(before, after):
    return told(compare(before, after))


def changed(tensors):
    return lines(RUN, {**RUN, "final weights": fingerprint(tensors)})


def test_the_same_content_has_no_difference():
    assert lines(EVERYTHING, copy.deepcopy(EVERYTHING)) == []


def test_the_last_bit_of_a_loss_is_found():
    after = copy.deepcopy(EVERYTHING)
    after["run"]["scalars"]["loss/ser"][1] = hexadecimal(4.25 + 2**-21)
    (line,) = lines(EVERYTHING, after)
    assert line.startswith("run: scalars: loss/ser: 1 of 2 changed, first number 2: 0x1.1p+2 (4.25) -> 0x1.100002p+2")


def test_the_last_bit_of_a_weight_is_found():
    (line,) = changed({**TENSORS, "student.norm.bias": ("F32", (1,), b"morf")})
    assert line == "final weights: BITS CHANGED in 1 of 2 groups of tensors, first student.norm.bias"
    (line,) = changed({**TENSORS, "student.norm.bias": ("F32", (1, 1), b"more")})
    assert "BITS CHANGED" in line, "another shape is another tensor"


def test_two_weights_of_exchanged_names_are_told():
    first, second, third = TENSORS
    (line,) = changed({first: TENSORS[second], second: TENSORS[first], third: TENSORS[third]})
    assert "another order" in line


@pytest.mark.parametrize(("prefix", "order"), [("student.layers.", ""), ("zzz.", "in another order")])
def test_renamed_weights_are_no_changed_bits(prefix, order):
    after = {name.replace("student.blocks.", prefix): content for name, content in TENSORS.items()}
    (line,) = changed(after)
    assert line.startswith("final weights: the same bits under other names")
    assert order in line
    assert f"student.blocks.*.weight: renamed to {prefix}*.weight" in line


def test_a_changed_record_is_found_and_named():
    after = copy.deepcopy(EVERYTHING)
    after["records"]["equivariance/place/backbone"][2]["value"] = hexadecimal(0.25)
    (line,) = lines(EVERYTHING, after)
    assert "1 of 3 changed, first number 3 {'layer': 3}: value: " in line
    assert line.endswith("(0.3) -> 0x1p-2 (0.25)")
    del after["records"]["equivariance/place/backbone"][2]
    (line,) = lines(EVERYTHING, after)
    assert line.startswith("records: equivariance/place/backbone: 3 entries -> 2; gone {'details': {'layer': 3}")
    after["records"]["equivariance/place/backbone"] = RECORDS["equivariance/place/backbone"][::-1]
    assert lines(EVERYTHING, after) == ["records: equivariance/place/backbone: the same entries in another order"]


def test_changed_gone_new_and_moved_names_are_found():
    pose, transport = NAMES.values()
    assert lines(NAMES, {"equimid.poses.Pose": pose}) == ["equimid.poses.transport: gone"]
    assert lines({"equimid.poses.Pose": pose}, NAMES) == ["equimid.poses.transport: new"]
    moved = {"equimid.poses.Pose": pose, "equimid.geometry.transport": transport}
    told_of = "equimid.poses.transport: renamed to equimid.geometry.transport, the same content"
    assert lines(NAMES, moved) == [told_of]
    other = {**NAMES, "equimid.poses.Pose": [pose[0], pose[1], {"act": "(self, x: Tensor, size: int) -> Tensor"}]}
    (line,) = lines(NAMES, other)
    assert line.startswith("equimid.poses.Pose: 1 of 3 changed")


def test_one_line_for_what_happened_to_many():
    before = {name: {"ser.weight": "1.0", "ser.hidden": "512"} for name in ("a", "b", "c")}
    after = {name: {"ser.weight": "1.0", "ser.width": "512"} for name in before}
    assert lines(before, after) == ["a: ser.hidden (and in 2 more): renamed to ser.width, the same content"]
    after = {name: {"ser.weight": "1.0", "ser.width": "256"} for name in before}
    assert lines(before, after) == ["a: ser.hidden (and in 2 more): gone", "a: ser.width (and in 2 more): new"]


def test_kinds_of_values_are_told_apart():
    assert lines({"n": 1}, {"n": 1.5}) == ["n: 1 -> 1.5"]
    assert lines({"n": True}, {"n": 1}) == ["n: True -> 1"]


def test_of_long_values_the_change_is_shown():
    (line,) = lines({"f": "x" * 300 + "size=1"}, {"f": "x" * 300 + "size=2"})
    assert "size=1 -> " in line
    assert line.endswith("size=2")
    assert len(line) < 200


def test_another_machine_is_named():
    here = {"processor": "A", "flags": "avx2", "torch": "2.14"}
    assert differing(here, dict(here)) == []
    assert differing(here, {**here, "flags": "avx2 amx_bf16"}) == ["flags: avx2 there, avx2 amx_bf16 here"]


def test_files_hold_what_was_written(tmp_path):
    recipes = {f"{k}-tiny": {"seed": "0", "ser.weight": str(k)} | {"odd": "x"} for k in range(60)}
    recipes["59-tiny"].pop("odd")
    cases = {"run": RUN, "all": recipes}
    files.write(tmp_path / "part.json", {"processor": "A"}, "abc", cases)
    assert files.read(tmp_path / "part.json") == {"machine": {"processor": "A"}, "commit": "abc", "cases": cases}
    assert '"like": "0-tiny"' in (tmp_path / "part.json").read_text()
