"""Boxes in the layouts of Pascal VOC and COCO, good and bad."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation.detection import detection_splits, open_detection
from helpers.boxes import COLOURS, coco, voc, voc_image, voc_list, voc_object

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def annotation(image, category, bbox, **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def test_voc_counts_pixels_from_one(tmp_path):
    voc_image(
        tmp_path, "a", (20, 10), [voc_object((0, 0, 20, 10), "dog"), voc_object((4, 2, 9, 8), "cat", difficult=1)]
    )
    voc_list(tmp_path, "train", ["a"])
    assert "<xmin>1</xmin><ymin>1</ymin><xmax>20</xmax>" in (tmp_path / "Annotations/a.xml").read_text()
    found = open_detection(str(tmp_path), "train")
    assert found.classes == ("cat", "dog")
    assert found.sizes.tolist() == [[20, 10]]
    assert found.boxes[0].tolist() == [[0, 0, 20, 10], [4, 2, 9, 8]]
    assert found.labels[0].tolist() == [1, 0]
    assert found.ignored[0].tolist() == [False, True]
    assert found.present() == {"dog"}


def test_voc_is_found_in_the_only_folder_that_holds_it(tmp_path):
    voc(tmp_path / "inner")
    (tmp_path / "other").mkdir()
    assert len(open_detection(str(tmp_path), "train")) == 8
    voc(tmp_path / "second")
    with pytest.raises(UserError, match="several sets of boxes"):
        open_detection(str(tmp_path), "train")


def test_voc_trains_on_val_unless_settings_are_chosen_on_it(tmp_path):
    for name in "abcd":
        voc_image(tmp_path, name, (20, 10), [voc_object((0, 0, 5, 5), "dog")])
    for part, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        voc_list(tmp_path, part, names)

    def names(tested_on):
        fit, test = detection_splits(str(tmp_path), None, tested_on)
        return fit.parts, [f.stem for f in fit.images], test.parts, [f.stem for f in test.images]

    assert names("test") == ("train+val", ["a", "b", "c"], "test", ["d"])
    assert names("val") == ("train", ["a", "b"], "val", ["c"])
    (tmp_path / "ImageSets/Main/test.txt").unlink()  # as the released VOC 2012
    assert names("test") == ("train", ["a", "b"], "val", ["c"])


def test_coco_ids_are_mapped(tmp_path):
    images = [{"id": 90, "file_name": "b.png", "width": 20, "height": 10}, {"id": 4, "file_name": "a.png"}]
    boxes = [
        annotation(4, 7, [1, 2, 3, 4]),
        annotation(90, 3, [0, 0, 20, 10], iscrowd=1),
        annotation(90, 7, [5, 5, 5, 5]),
    ]
    data = coco(tmp_path, {"train": (images, boxes, CATEGORIES), "val": (images, boxes, CATEGORIES[::-1])})
    fit, test = detection_splits(data)
    for found in (fit, test):
        assert found.classes == ("dog", "cat")
        assert found.categories == (3, 7)
        assert found.numbers == (90, 4)
        assert found.sizes.tolist() == [[20, 10], [20, 10]]  # of the second, from the image
        assert found.boxes[0].tolist() == [[0, 0, 20, 10], [5, 5, 10, 10]]
        assert found.boxes[1].tolist() == [[1, 2, 4, 6]]
        assert [y.tolist() for y in found.labels] == [[0, 1], [1]]
        assert found.ignored[0].tolist() == [True, False]


def test_coco_folders_may_carry_a_year(tmp_path):
    images = [{"id": 1, "file_name": "b.png"}]
    coco(tmp_path, {"train2017": (images, [annotation(1, 7, [1, 2, 3, 4])], CATEGORIES)})
    assert open_detection(str(tmp_path), "train").images == (tmp_path / "train2017/b.png",)


def test_a_test_set_is_numbered_as_its_training_set(tmp_path):
    image = [{"id": 1, "file_name": "a.png"}]
    more = [{"id": 1, "name": "ant"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "cat"}]
    coco(
        tmp_path / "fit",
        {"train": (image, [annotation(1, 7, [1, 2, 3, 4]), annotation(1, 3, [1, 2, 3, 4])], CATEGORIES)},
    )
    boxes = [annotation(1, 9, [1, 2, 3, 4]), annotation(1, 1, [0, 0, 9, 9], iscrowd=1)]
    coco(tmp_path / "own", {"val": (image, boxes, more)})
    _, test = detection_splits(str(tmp_path / "own"), str(tmp_path / "fit"))
    assert test.classes == ("dog", "cat")
    assert test.labels[0].tolist() == [1]  # the crowd of a class that is not trained on is gone
    assert test.boxes[0].tolist() == [[1, 2, 4, 6]]


def test_bad_boxes_are_counted_and_named(tmp_path, caplog):
    objects = [(-5, 2, 6, 8), (15, 2, 40, 8), (4, 4, 4, 8), (30, 2, 40, 8), (9, 8, 3, 9), (-1, 0, 20, 10), (1, 1, 2, 2)]
    voc_image(tmp_path, "a", (20, 10), [voc_object(box, "dog") for box in objects])
    voc_list(tmp_path, "train", ["a"])
    with caplog.at_level(logging.WARNING, "equimid"):
        found = open_detection(str(tmp_path), "train")
    assert found.boxes[0].tolist() == [[0, 2, 6, 8], [15, 2, 20, 8], [0, 0, 20, 10], [1, 1, 2, 2]]
    assert len(found.labels[0]) == 4
    cut, dropped = caplog.messages  # a box one pixel out is a tool that counts from 0: no word
    assert "2 boxes reach out of their image" in cut
    assert "a.png: (-5, 2, 6, 8) in 20 x 10 px" in cut
    assert "3 boxes without area" in dropped
    assert "a.png: (4, 4, 4, 8)" in dropped


def test_an_image_without_a_box_stays(tmp_path):
    voc_image(tmp_path, "a", (20, 10), [])
    voc_image(tmp_path, "b", (20, 10), [voc_object((0, 0, 5, 5), "dog")])
    voc_list(tmp_path, "train", "ab")
    assert [x.shape for x in open_detection(str(tmp_path), "train").boxes] == [(0, 4), (1, 4)]


def spoil(text):
    return lambda root: (root / "Annotations/train0.xml").write_text(text)


VOC_FAULTS = {
    "XML cut short": (spoil("<annotation><object>"), "train0.xml is not a VOC annotation"),
    "no number": (
        spoil("<a><object><name>x</name><bndbox><xmin>?</xmin></bndbox></object></a>"),
        "not a VOC annotation",
    ),
    "infinite": (spoil(f"<a>{voc_object((0, 0, 'inf', 4), 'red')}</a>"), "not a VOC annotation"),
    "no name": (spoil(f"<a>{voc_object((0, 0, 3, 4), '')}</a>"), "without a name"),
    "no XML": (lambda root: (root / "Annotations/train0.xml").unlink(), "train0.xml does not exist"),
    "no image": (lambda root: (root / "JPEGImages/train0.png").unlink(), "1 of 8 images that are not there"),
    "no list": (lambda root: (root / "ImageSets/Main/train.txt").unlink(), "train.txt"),
    "empty list": (lambda root: (root / "ImageSets/Main/train.txt").write_text("\n"), "lists no image"),
    "class": (
        lambda root: (root / "Annotations/test0.xml").write_text(f"<a>{voc_object((0, 0, 3, 4), 'fox')}</a>"),
        "has boxes of fox, of which",
    ),
}


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_voc_faults_are_named(tmp_path, fault):
    data = voc(tmp_path)
    make, message = VOC_FAULTS[fault]
    make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        detection_splits(data)
    assert "\n" not in str(caught.value)


def change(**changes):
    def make(content):
        for path, value in changes.items():
            key, number, name = path.split("_", 2)
            content[key][int(number)][name] = value

    return make


COCO_FAULTS = {
    "bbox of three": (change(annotations_0_bbox=[1, 2, 3]), "not a COCO annotation"),
    "bbox of NaN": (change(annotations_0_bbox=[1, 2, float("nan"), 4]), "bbox that is no numbers"),
    "image": (change(annotations_0_image_id=5), "not listed"),
    "category": (change(annotations_0_category_id=5), "not listed"),
    "ids": (change(categories_0_id=3), "share an id"),
    "no images": (lambda content: content.pop("images"), "no 'images'"),
    "no boxes": (lambda content: content["annotations"].clear(), "has no boxes"),
    "no area": (change(annotations_0_bbox=[1, 2, 0, 4]), "no box of positive area"),
    "crowds alone": (change(annotations_0_iscrowd=1), "ignored"),
    "a list": (lambda content: [content], "not a COCO annotation"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_coco_faults_are_named(tmp_path, fault):
    part = [{"id": 1, "file_name": "a.png"}], [annotation(1, 7, [1, 2, 3, 4])], CATEGORIES
    data = coco(tmp_path, {"train": part, "val": part})
    file = tmp_path / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    make, message = COCO_FAULTS[fault]
    changed = make(content)
    file.write_text(json.dumps(changed if fault == "a list" else content))
    with pytest.raises(UserError, match=message) as caught:
        detection_splits(data)
    assert "\n" not in str(caught.value)


def test_json_cut_short_is_named(tmp_path):
    part = [{"id": 1, "file_name": "a.png"}], [annotation(1, 7, [1, 2, 3, 4])], CATEGORIES
    data = coco(tmp_path, {"train": part})
    file = tmp_path / "annotations/instances_train.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match=r"instances_train.json is not a COCO annotation"):
        open_detection(data, "train")
    with pytest.raises(UserError, match=r"no instances_val\*\.json"):
        open_detection(data, "test")


def test_other_folders_are_no_detection_sets(tmp_path):
    for data in (str(tmp_path), str(tmp_path / "none"), ""):
        with pytest.raises(UserError, match="Pascal VOC's layout"):
            open_detection(data, "train")


def test_boxes_are_where_the_rectangles_are(tmp_path):
    found = open_detection(voc(tmp_path), "train")
    for file, boxes, labels in zip(found.images, found.boxes, found.labels, strict=True):
        x0, y0, x1, y1 = boxes[-1].astype(int)  # the last one drawn lies on top
        inside = np.array(Image.open(file))[y0:y1, x0:x1]
        assert (inside == COLOURS[found.classes[labels[-1]]]).all()
