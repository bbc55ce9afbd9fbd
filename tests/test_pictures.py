"""Pictures against networks whose attention, neighbours and maps are known."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from equimid.errors import UserError
from equimid.evaluation.figures import attention as attention_pictures
from equimid.evaluation.figures import draw_attention, draw_feature_maps, draw_neighbours
from equimid.evaluation.figures.drawing import principal_colours
from equimid.records import read_records, write_records
from helpers.looking import Colours, photograph_folder, study_in

SMALL = 150_000  # bytes of a picture


def check_pictures(folder, records, evaluation):
    """What holds of every record of pictures."""
    write_records(folder / "records.jsonl", records)
    assert read_records(folder / "records.jsonl") == records
    assert len({r.picture for r in records}) == len(records)
    for r in records:
        assert (r.evaluation, r.metric, r.value, r.subject) == (evaluation, "picture", None, "backbone")
        assert r.details["caption"]
        file = folder / r.picture
        assert file.stat().st_size < SMALL
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10
    assert not list(folder.rglob("*.tmp"))


# --- colours


def test_colours_are_the_first_principal_components():
    maps = torch.randn(2, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    maps[:, :4] *= torch.tensor([9.0, 6.0, 4.0, 2.0])[:, None, None]
    small, large = principal_colours([maps[:1], maps[1:]])
    rows = maps.movedim(1, -1).flatten(0, 2).numpy()
    scores = PCA(3).fit_transform(rows)
    drawn = np.concatenate([small.reshape(-1, 3), large.reshape(-1, 3)])
    for channel in range(3):
        inside = (drawn[:, channel] > 0) & (drawn[:, channel] < 1)
        assert inside.sum() > 40
        assert abs(np.corrcoef(drawn[inside, channel], scores[inside, channel])[0, 1]) > 0.9999


def test_colours_have_one_sign_wherever_they_are_computed():
    maps = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    turned = principal_colours([maps.rot90(1, (2, 3))])[0]
    assert np.allclose(np.rot90(principal_colours([maps])[0], 1, axes=(1, 2)), turned, atol=1e-4)


def test_maps_of_one_token_have_a_colour():
    assert np.isfinite(principal_colours([torch.ones(1, 4, 3, 3)])[0]).all()


# --- feature maps


@pytest.mark.parametrize("layers", [(), (3, 8)])
def test_feature_maps_are_drawn(tmp_path, layers):
    data = photograph_folder(tmp_path / "data")
    records = draw_feature_maps(study_in(tmp_path / "run", Colours(), data), data, layers=layers, images=2)
    assert [r.details["layer"] for r in records] == sorted({1, 2, 4, 8, *layers})
    check_pictures(tmp_path / "run", records, "feature_maps")
    for r in records:
        assert f"Layer {r.details['layer']}:" in r.details["caption"]
    assert len({(tmp_path / "run" / r.picture).read_bytes() for r in records}) == len(records)


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_feature_maps_are_of_a_larger_grid_whatever_the_image(tmp_path, patch):
    seen = []

    class Watched(Colours):
        def forward_features(self, images, layers=()):
            seen.append(images.shape[-1] // self.patch_size)
            return super().forward_features(images, layers)

    Watched.patch_size = patch
    data = photograph_folder(tmp_path / "data")
    draw_feature_maps(study_in(tmp_path / "run", Watched(), data), data, images=1)
    assert seen[0] == 32 // patch
    assert seen[1] > 32 // patch


def test_pictures_of_other_data_stand_beside(tmp_path):
    """Records of other data stay in the file, so their pictures must stay too."""
    names = [photograph_folder(tmp_path / name, seed=seed) for seed, name in enumerate(("here", "there"))]
    here = study_in(tmp_path / "run", Colours(), names[0])
    first = draw_feature_maps(here, names[0], images=1)
    kept = (tmp_path / "run" / first[0].picture).read_bytes()
    there = replace(here, scope=replace(here.scope, data=names[1]))
    second = draw_feature_maps(there, names[1], images=1)
    assert not {r.picture for r in first} & {r.picture for r in second}
    assert (tmp_path / "run" / first[0].picture).read_bytes() == kept
    assert draw_feature_maps(here, names[0], images=1) == first
    assert (tmp_path / "run" / first[0].picture).read_bytes() == kept


# --- attention


class Attentive(Colours):
    """Head 1 looks at the upper left patch alone, head 2 at all patches alike; CLS keeps half for itself."""

    def cls_attention(self, images):
        maps = torch.zeros(len(images), 2, 4, 4)
        maps[:, 0, 0, 0] = 0.5
        maps[:, 1] = 0.5 / 16
        return maps


def test_attention_is_drawn_head_by_head(tmp_path, monkeypatch):
    drawn = []
    figure = attention_pictures._figure
    monkeypatch.setattr(attention_pictures, "_figure", lambda *args: drawn.append(args) or figure(*args))
    data = photograph_folder(tmp_path / "data")
    records = draw_attention(study_in(tmp_path / "run", Attentive(), data), data)
    check_pictures(tmp_path / "run", records, "attention")
    assert [r.details["image"] for r in records] == [1, 2, 3]
    assert "2 heads" in records[0].details["caption"]
    for photo, fractions in drawn:
        assert photo.shape == (32, 32, 3)
        # shares of what goes to patches: a single one, all alike, and their mean
        assert fractions[1][0, 0] == pytest.approx(1)
        assert fractions[2] == pytest.approx(np.full((4, 4), 1 / 16))
        assert fractions[0] == pytest.approx((fractions[1] + fractions[2]) / 2)
        titles = [axes.get_title() for axes in figure(photo, fractions).axes]
        assert titles == ["photograph", "mean, ×8.5", "head 1, ×16.0", "head 2, ×1.0"]


def test_without_attention_there_is_no_record_and_a_word(tmp_path, caplog):
    data = photograph_folder(tmp_path / "data")
    with caplog.at_level(logging.INFO, logger="equimid"):
        assert draw_attention(study_in(tmp_path / "run", Colours(), data), data) == []
    assert "no pictures of attention" in caplog.text
    assert len(caplog.records) == 1
    assert not list((tmp_path / "run").rglob("*.png"))


# --- neighbours


def shades(folder, classes=True):
    """Four images of red, four of green and four of blue, the last green one in the folder of blue."""
    for number in range(12):
        colour = [0, 0, 0]
        colour[number // 4] = 255
        colour[(number // 4 + 1) % 3] = 10 * (number % 4)  # the shades of a colour differ a little
        name = ("red", "green", "blue")[number // 4 if number != 7 else 2]
        into = folder / name if classes else folder
        into.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), tuple(colour)).save(into / f"{number:02}.png")
    return str(folder)


def test_neighbours_are_the_nearest_others(tmp_path):
    data = shades(tmp_path / "data")
    records = draw_neighbours(study_in(tmp_path / "run", Colours(), data), data, queries=12, nearest=3)
    check_pictures(tmp_path / "run", records, "neighbours")
    assert sorted(r.details["class"] for r in records) == ["blue"] * 5 + ["green"] * 3 + ["red"] * 4
    for r in records:
        found, cosines = r.details["classes"], r.details["cosines"]
        assert len(found) == 3
        assert cosines == sorted(cosines, reverse=True)
        assert 0.98 < cosines[-1] <= cosines[0] < 1, "the query is not its own neighbour"
        assert f"{found.count(r.details['class'])} of them of its class: {', '.join(found)}" in r.details["caption"]
        assert "among" not in r.details["caption"]
        assert "11 other images" in r.details["caption"]
    # the green image that lies with the blue ones has green neighbours
    assert sum(r.details["class"] == "blue" and r.details["classes"] == ["green"] * 3 for r in records) == 1
    assert all(r.details["classes"] == ["red"] * 3 for r in records if r.details["class"] == "red")


def test_neighbours_need_no_labels(tmp_path):
    data = shades(tmp_path / "data", classes=False)
    records = draw_neighbours(study_in(tmp_path / "run", Colours(), data), data)
    check_pictures(tmp_path / "run", records, "neighbours")
    assert len(records) == 4
    assert all("class" not in r.details and len(r.details["cosines"]) == 6 for r in records)


def test_neighbours_of_another_seed_are_of_other_queries(tmp_path):
    data = photograph_folder(tmp_path / "data", count=12)
    study = study_in(tmp_path / "run", Colours(), data)
    first = [r.details["cosines"] for r in draw_neighbours(study, data, queries=2, nearest=3)]
    assert [r.details["cosines"] for r in draw_neighbours(study, data, queries=2, nearest=3)] == first
    other = replace(study, scope=replace(study.scope, seed=1))
    assert [r.details["cosines"] for r in draw_neighbours(other, data, queries=2, nearest=3)] != first


def test_odd_names_and_few_images(tmp_path):
    data = photograph_folder(tmp_path / "data", count=3, classes=("a $x_1^", "a class with a name of great length"))
    records = draw_neighbours(study_in(tmp_path / "run", Colours(), data), data)
    check_pictures(tmp_path / "run", records, "neighbours")
    assert len(records) == 3
    assert all(len(r.details["classes"]) == 2 for r in records)


def test_one_image_has_no_neighbour(tmp_path):
    data = photograph_folder(tmp_path / "data", count=1)
    with pytest.raises(UserError, match=r"has 1 image\(s\) that can be read; neighbours need two"):
        draw_neighbours(study_in(tmp_path / "run", Colours(), data), data)
    assert not list((tmp_path / "run").rglob("*.png"))
