"""The explorer's data against maps that are known, and its section of the page."""

import base64
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation.figures import record_explorer
from equimid.poses import Pose
from equimid.records import read_records, write_records
from equimid.report import write_report
from helpers.looking import Colours, Places, photograph_folder, place, study_in
from helpers.symmetries import ELEMENTS, posed


def tile(pixels, record, row, column):
    side, size = record.details["side"], record.details["grids"][row]
    return pixels[row * side : row * side + size, column * side : column * side + size]


def sprite(folder, record):
    with Image.open(folder / record.picture) as picture:
        assert picture.mode == "P"
        return np.asarray(picture.convert("RGB"))


def recorded(folder, encoder=None, layers=(), **photographs):
    data = photograph_folder(folder / "data", **photographs)
    study = study_in(folder / "run", encoder or Colours(), data)
    return record_explorer(study, data, layers=layers), folder / "run"


def test_a_record_for_each_image_and_layer(tmp_path):
    records, folder = recorded(tmp_path, layers=[5, 8], classes=("cat", "dog"))
    assert [(r.details["image"], r.details["layer"]) for r in records] == [
        (image, layer) for image in (1, 2, 3) for layer in (1, 2, 4, 5, 8)
    ]
    for r in records:
        assert (r.evaluation, r.metric, r.value, r.n, r.subject) == ("explorer", "picture", None, 1, "backbone")
        assert r.details["grids"] == [3, 4, 5]
        assert r.details["upright"] == 4
        assert r.details["elements"] == [list(element) for element in ELEMENTS]
        assert r.details["class"] in ("cat", "dog")
        assert len(json.dumps(r.details)) < 1600
    write_records(folder / "records.jsonl", records)
    assert read_records(folder / "records.jsonl") == records


def test_the_lattice_acts_exactly_on_maps_of_colours(tmp_path):
    records, folder = recorded(tmp_path)
    for r in records:
        row = r.details["grids"].index(4)
        assert r.details["place"][row] == pytest.approx([1.0] * 8, abs=1e-4)
        assert r.details["centred_cosine"][row] == pytest.approx([1.0] * 8, abs=1e-4)
        assert r.details["relative_error"][row] == pytest.approx([0.0] * 8, abs=1e-3)
        pixels = sprite(folder, r)
        upright = tile(pixels, r, row, 0)
        for e, (turns, flip) in enumerate(ELEMENTS):
            expected = np.moveaxis(posed(np.moveaxis(upright, -1, 0), turns, flip), 0, -1)
            assert np.array_equal(tile(pixels, r, row, 1 + e), expected)
            assert (tile(pixels, r, row, 9 + e) == pixels[-1, 0]).all(), "no error is drawn as none"
        assert len(np.unique(upright.reshape(-1, 3), axis=0)) > 8
    # a resize is no permutation: colours change
    assert max(records[0].details["relative_error"][0]) > 0.05


def normed(tokens):
    return (tokens - tokens.mean(0)) / np.sqrt(tokens.var(0) + 1e-5)


def test_numbers_and_errors_of_maps_that_stay_where_they_are(tmp_path):
    """f(g x) = P whatever g: place, error and cosine follow from P and its posed self alone."""
    records, folder = recorded(tmp_path, Places())
    P = normed(place(4, 4).astype(np.float64))
    mean = P.mean((1, 2), keepdims=True)
    pixels, row = sprite(folder, records[0]), 1
    errors_seen = set()
    for e, element in enumerate(ELEMENTS):
        carried = posed(P, *element)
        relative = np.linalg.norm(P - carried) / np.linalg.norm(P - mean)
        a, b = P - mean, carried - mean
        cosine = ((a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)).mean()
        # all images have the same mean token, so it is the layer's
        weighted = (a * b).sum() / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)).sum()
        assert records[0].details["place"][row][e] == pytest.approx(weighted, abs=2e-4)
        assert records[0].details["relative_error"][row][e] == pytest.approx(relative, abs=2e-4)
        assert records[0].details["centred_cosine"][row][e] == pytest.approx(cosine, abs=2e-4)
        errors_seen.add(round(relative, 3))
        fraction = np.linalg.norm(P - carried, axis=0) / np.sqrt(((P - mean) ** 2).sum(0).mean())
        level = np.clip(np.round(fraction / 1.5 * 31), 0, 31).astype(int)
        assert np.array_equal(tile(pixels, records[0], row, 9 + e), pixels[-1, :32][level])
    assert len(errors_seen) > 3, "elements are told apart"


def test_the_photograph_is_that_of_the_maps(tmp_path):
    records, folder = recorded(tmp_path)
    for r in records:
        with Image.open(folder / r.details["photograph"]) as picture:
            assert picture.format == "PNG"
            assert picture.size == (32, 32)
            cells = np.asarray(picture.convert("RGB"))[4::8, 4::8].reshape(-1, 3)
        # the tokens are a function of colour: as many colours, in the same places
        upright = tile(sprite(folder, r), r, 1, 0).reshape(-1, 3)
        assert len(np.unique(cells, axis=0)) == len(np.unique(upright, axis=0)) == 16


def test_large_photographs_are_small_files(tmp_path):
    class Large(Colours):
        patch_size = 16
        pretrained_cfg = Colours.pretrained_cfg | {"input_size": (3, 320, 320)}

    records, folder = recorded(tmp_path, Large(), side=320)
    with Image.open(folder / records[0].details["photograph"]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (256, 256))
    assert sum((folder / r.picture).stat().st_size for r in records) < 700_000
    assert records[0].details["grids"] == [15, 20, 26]


def test_the_same_again_is_the_same_files(tmp_path):
    first, folder = recorded(tmp_path)
    before = {r.picture: (folder / r.picture).read_bytes() for r in first}
    again, _ = recorded(tmp_path)
    assert again == first
    assert {r.picture: (folder / r.picture).read_bytes() for r in again} == before
    other = record_explorer(study_in(folder, Colours(), first[0].data, "random"), first[0].data)
    assert not {r.picture for r in other} & set(before)
    assert not list(folder.rglob("*.tmp"))


def test_a_grid_of_one_patch(tmp_path):
    class One(Colours):
        patch_size = 32

    records, folder = recorded(tmp_path, One())
    assert records[0].details["grids"] == [1, 2]
    assert sprite(folder, records[0]).shape == (2 * 2 + 1, 17 * 2, 3)
    assert records[0].details["place"][0] == [None] * 8, "one patch has no place"


def test_a_map_that_is_constant_has_no_place(tmp_path):
    class Repeated(Colours):
        def forward_features(self, images, layers=()):
            found = super().forward_features(images, layers)
            return type(found)(found.cls, {n: m.mean((2, 3), keepdim=True).expand_as(m) for n, m in found.maps.items()})

    records, folder = recorded(tmp_path, Repeated())
    row = records[0].details["grids"].index(4)
    assert records[0].details["place"][row] == [None] * 8
    assert records[0].details["centred_cosine"][row] == pytest.approx([1.0] * 8, abs=1e-4), "which place corrects"
    (folder / "config.yaml").write_text("seed: 0\n")
    write_records(folder / "records.jsonl", records)
    layer = data_of(page_of(tmp_path, folder))["subjects"][0]["images"][0]["layers"][0]
    assert layer["place"][row] == [None] * 8


def test_layers_that_are_none(tmp_path):
    with pytest.raises(UserError, match="there is no layer 9: the network's layers are 1 to 8"):
        recorded(tmp_path, layers=[3, 9])
    assert not list((tmp_path / "run").rglob("*.png"))


# --- the page


def run_folder(folder, name, data, subjects=("backbone",), encoder=None):
    study = study_in(folder / name, encoder or Colours(), data)
    (folder / name / "config.yaml").write_text("seed: 0\nser: {weight: 1.0, layers: [2]}\n")
    records = [
        r for subject in subjects for r in record_explorer(study_in(study.folder, study.encoder, data, subject), data)
    ]
    write_records(folder / name / "records.jsonl", records)
    return folder / name


def page_of(folder, *runs):
    return write_report(runs, folder / "page.html").read_text(encoding="utf-8")


def data_of(page):
    return json.loads(page.split('id="explorer-data">')[1].split("</script>")[0])


def test_the_policy_allows_this_script_alone(tmp_path):
    data = photograph_folder(tmp_path / "data")
    page = page_of(tmp_path, run_folder(tmp_path, "run", data))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    allowed = dict(part.strip().split(" ", 1) for part in policy[1].split(";"))
    assert allowed["script-src"] == f"'sha256-{digest}'"
    assert allowed["default-src"] == "'none'"
    assert allowed["img-src"] == "data:"


def test_without_records_there_is_no_script(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    page = page_of(tmp_path, tmp_path / "run")
    assert "<script" not in page
    assert "script-src" not in page
    assert 'id="explore"' not in page


def test_subjects_share_their_photographs(tmp_path):
    data = photograph_folder(tmp_path / "data")
    runs = [run_folder(tmp_path, "one", data, ("backbone", "random")), run_folder(tmp_path, "two", data)]
    page = page_of(tmp_path, *runs)
    found = data_of(page)
    assert [s["label"] for s in found["subjects"]] == ["one", "one, random network", "two"]
    assert len(found["photographs"]) == 3
    assert [m["photograph"] for s in found["subjects"] for m in s["images"]] == [0, 1, 2] * 3
    layers = found["subjects"][0]["images"][0]["layers"]
    assert [(shown["layer"], shown["regularised"]) for shown in layers] == [
        (1, False),
        (2, True),
        (4, False),
        (8, False),
    ]
    assert not any(shown["regularised"] for shown in found["subjects"][1]["images"][0]["layers"])
    assert "JavaScript" in page.split("<noscript>")[1].split("</noscript>")[0]


def test_records_of_an_older_version_have_no_place_and_are_shown(tmp_path):
    run = run_folder(tmp_path, "run", photograph_folder(tmp_path / "data"))
    records = read_records(run / "records.jsonl")
    old = [replace(r, details={k: v for k, v in r.details.items() if k != "place"}) for r in records]
    write_records(run / "records.jsonl", old)
    page = page_of(tmp_path, run)
    assert "missing or damaged" not in page
    for image in data_of(page)["subjects"][0]["images"]:
        for layer in image["layers"]:
            assert "place" not in layer
            assert len(layer["cosine"]) == len(layer["error"]) == 3


def test_other_data_of_one_run_stands_apart(tmp_path):
    names = [photograph_folder(tmp_path / name, seed=seed) for seed, name in enumerate(("here", "there"))]
    run = run_folder(tmp_path, "run", names[0])
    write_records(run / "records.jsonl", record_explorer(study_in(run, Colours(), names[1]), names[1]))
    assert [s["label"] for s in data_of(page_of(tmp_path, run))["subjects"]] == [f"run, {name}" for name in names]


def test_a_class_with_a_nasty_name_ends_no_script(tmp_path):
    run = run_folder(tmp_path, "run", photograph_folder(tmp_path / "data"))
    nasty = "</script><script>alert(1)</script><!--"
    records = read_records(run / "records.jsonl")
    write_records(run / "records.jsonl", [replace(r, details=r.details | {"class": nasty}) for r in records])
    page = page_of(tmp_path, run)
    assert nasty not in page
    assert page.count("<script") == 2
    assert data_of(page)["subjects"][0]["images"][0]["class"] == nasty


def drop_picture(run, r):
    (run / r.picture).unlink()
    return r


def no_picture(run, r):
    (run / r.picture).write_text("<svg/>")
    return r


def outside(run, r):
    (run / r.picture).rename(run.parent / "out.png")
    return replace(r, picture="../out.png")


def too_few_numbers(run, r):
    return replace(r, details=r.details | {"centred_cosine": [[1.0] * 8]})


def no_details(run, r):
    return replace(r, details={})


@pytest.mark.parametrize("spoil", [drop_picture, no_picture, outside, too_few_numbers, no_details])
def test_what_is_missing_or_damaged_is_said_and_the_rest_shown(tmp_path, spoil):
    run = run_folder(tmp_path, "run", photograph_folder(tmp_path / "data"))
    first, *others = read_records(run / "records.jsonl")
    spoilt = spoil(run, first)
    write_records(run / "records.jsonl", [spoilt, *others])
    page = page_of(tmp_path, run)
    assert page.count("is missing or damaged") == 1
    assert f"{spoilt.picture} of run is missing or damaged" in page
    assert [len(m["layers"]) for m in data_of(page)["subjects"][0]["images"]] == [3, 4, 4]


def test_where_nothing_is_left_to_explore(tmp_path):
    run = run_folder(tmp_path, "run", photograph_folder(tmp_path / "data"))
    for file in (run / "pictures").iterdir():
        file.unlink()
    page = page_of(tmp_path, run)
    assert page.count("is missing or damaged") == 12
    assert 'id="explorer"' not in page
    assert "<script" not in page


def test_numbers_agree_with_the_library_s_poses():
    """ELEMENTS here, and so the order of tiles, is the library's meaning of turns and flip."""
    import torch

    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    for turns, flip in ELEMENTS:
        pose = Pose(torch.tensor([turns]), torch.tensor([flip]), (3, 3))
        assert np.array_equal(pose.act(x)[0, 0].numpy(), posed(x[0, 0].numpy(), turns, flip))
