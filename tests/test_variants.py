"""ImageNet-V2, -R, -Sketch, -A: numbered folders, restricted classes, what is missing."""

import logging

import pytest

from equimid.errors import UserError
from equimid.evaluation.robustness import measure_a, measure_r, measure_sketch, measure_v2
from equimid.evaluation.robustness.folders import ClassFolders
from equimid.evaluation.robustness.imagenet_variants import SKETCH, V2, A, R, variant_records
from helpers.robust import draw_class, draw_training, reader, study

CLASSES = ("n1", "n2", "n3", "n4")
# shuffled: places are those of the sorted names
THOUSAND = tuple(sorted(f"n{k:08d}" for k in range(1000)))


def test_numbered_folders_are_places_in_numeric_order(tmp_path):
    for name in ("0", "2", "10", "100", "999"):
        draw_class(tmp_path / name / "a.png", 0)
    shuffled = THOUSAND[::-1]
    found = ClassFolders.find(tmp_path, shuffled, numbered=True)
    assert {name: shuffled[label] for name, label in found.labels.items()} == {
        name: f"n{int(name):08d}" for name in ("0", "2", "10", "100", "999")
    }
    # a lexical reading would make 10 the third of the five
    assert shuffled[found.labels["10"]] == "n00000010"


def test_v2_by_hand(tmp_path):
    # the reader tells only greys up to 255 apart: classes 0 to 12
    for folder, seen in (("2", 2), ("10", 10), ("11", 3)):
        draw_class(tmp_path / "v2" / folder / "a.jpeg", seen)
    classifier = reader(tmp_path, THOUSAND)
    folders = ClassFolders.find(tmp_path / "v2", THOUSAND, numbered=True)
    (record,) = variant_records(V2, classifier, folders, "v2")
    assert (record.evaluation, record.metric, record.unit) == ("imagenet_v2", "top1", "%")
    assert record.value == pytest.approx(200 / 3)
    assert record.n == 3
    assert "restricted_to" not in record.details


def test_numbered_folders_need_the_thousand_classes(tmp_path):
    draw_class(tmp_path / "0" / "a.png", 0)
    with pytest.raises(UserError, match="have 4 classes"):
        ClassFolders.find(tmp_path, CLASSES, numbered=True)
    draw_class(tmp_path / "1000" / "a.png", 0)
    with pytest.raises(UserError, match="1000"):
        ClassFolders.find(tmp_path, THOUSAND, numbered=True)
    with pytest.raises(UserError, match="does not know"):
        ClassFolders.find(tmp_path, THOUSAND)


def test_classes_that_are_named_by_numbers_are_names(tmp_path):
    draw_class(tmp_path / "2" / "a.png", 0)
    found = ClassFolders.find(tmp_path, ("10", "2"), numbered=True)
    assert found.labels == {"2": 1}


def test_predictions_are_restricted_to_the_classes_that_are_there(tmp_path):
    # seen as n2, which is not in the set; of n1 and n3 both are as near, and n1 comes first; of n3 and n4 n3 is nearer
    for name in ("n1", "n4"):
        draw_class(tmp_path / "r" / name / "a.png", 1)
    draw_class(tmp_path / "r" / "n4" / "b.png", 2)  # nearest of n1 and n4: n4
    folders = ClassFolders.find(tmp_path / "r", CLASSES)
    classifier = reader(tmp_path, CLASSES)
    record, everything = variant_records(R, classifier, folders, "r")
    assert record.value == pytest.approx(200 / 3)
    assert record.details["restricted_to"] == 2
    assert record.details["set"].startswith("ImageNet-R has 200 classes, and 2")
    # without the restriction all are seen as n2 or n3
    assert variant_records(SKETCH, classifier, folders, "r")[0].value == 0
    assert (record.metric, everything.metric) == ("top1", "top1_all")
    assert everything.value == 0
    assert "restricted_to" not in everything.details
    assert everything.details["among"] == 4


@pytest.mark.parametrize("variant", [R, A])
def test_both_class_sets_are_measured_in_one_pass(tmp_path, variant, monkeypatch):
    # of three images of n1 and n4: one is seen as n1, one as n2 (and among the two as n1), one as n4
    for name, seen in (("n1", 0), ("n1", 1), ("n4", 3)):
        draw_class(tmp_path / "r" / name / f"{seen}.png", seen)
    classifier = reader(tmp_path, CLASSES)
    passed, logits = [], type(classifier).logits
    monkeypatch.setattr(type(classifier), "logits", lambda self, x: passed.append(len(x)) or logits(self, x))
    folders = ClassFolders.find(tmp_path / "r", CLASSES)
    records = variant_records(variant, classifier, folders, "r")
    assert {r.metric: r.value for r in records} == {"top1": 100, "top1_all": pytest.approx(200 / 3)}
    assert {(r.evaluation, r.n, r.unit) for r in records} == {(variant.evaluation, 3, "%")}
    assert sum(passed) == 3


def test_empty_classes_are_named(tmp_path, caplog):
    draw_class(tmp_path / "s" / "n1" / "a.png", 0)
    (tmp_path / "s" / "n3").mkdir()
    folders = ClassFolders.find(tmp_path / "s", CLASSES)
    with caplog.at_level(logging.WARNING, "equimid"):
        record, _ = variant_records(R, reader(tmp_path, CLASSES), folders, "s")
    assert "n3" in caplog.text
    assert record.details["restricted_to"] == 1


@pytest.mark.parametrize(
    ("measure", "name"),
    [(measure_v2, "v2"), (measure_r, "r"), (measure_sketch, "sketch"), (measure_a, "a")],
)
def test_from_folders_to_records(tmp_path, measure, name):
    train = draw_training(tmp_path / "train", CLASSES)
    data = draw_training(tmp_path / "data", CLASSES, each=2)
    asked = study(tmp_path, linear_epochs=30)
    record, *more = measure(asked, data, train)
    assert [r.metric for r in (record, *more)] == (["top1", "top1_all"] if name in ("r", "a") else ["top1"])
    for found in (record, *more):
        assert found.evaluation == f"imagenet_{name}"
        assert found.n == 8
        assert found.value == 100
    assert ("restricted_to" in record.details) == (name in ("r", "a"))

    def refused(data, train=train):
        with pytest.raises(UserError) as caught:
            measure(asked, str(data), train)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "--train" in refused(data, None)
    assert "not there" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no class folder" in refused(tmp_path / "empty")
    (tmp_path / "hollow" / "n1").mkdir(parents=True)
    assert "no image" in refused(tmp_path / "hollow")
    (tmp_path / "data" / "n1" / "bad.png").write_bytes(b"no image")
    assert "bad.png" in refused(data)
    draw_class(tmp_path / "data" / "teapot" / "a.png", 0)
    assert "teapot" in refused(data)
