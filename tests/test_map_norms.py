"""How long the tokens of each layer are: of known maps exact, and a row for each layer on the page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation import find_measurement
from equimid.evaluation.map_norms import measure_map_norms
from equimid.records import write_records
from helpers.encoders import PatchMeans, folder_of, study_of
from helpers.fake_runs import fake_run, report


def measured(encoder: PatchMeans, data: str, tmp_path: Path, images: int = 256) -> dict[int, Any]:
    records = measure_map_norms(study_of(encoder, tmp_path, equivariance_images=images), data)
    assert {(r.evaluation, r.metric, r.unit) for r in records} == {("map_norms", "norm", "")}
    return {r.details["layer"]: r for r in records}


def test_the_length_of_known_tokens(tmp_path: Path) -> None:
    """Of every patch's token, W c + b of its colour, in float64 by hand; the mean is over patches, then over images."""
    encoder, data = PatchMeans(), folder_of(tmp_path / "images", 40)  # more than a batch
    colours = np.stack([np.asarray(Image.open(file), float)[::4, ::4] for file in sorted(Path(data).glob("*.png"))])
    colours = (colours / 255 - 0.5) / 0.25
    found = measured(encoder, data, tmp_path)
    assert sorted(found) == [1, 2]
    for layer, record in found.items():
        weight, bias = (p[layer - 1].double().numpy() for p in (encoder.weight, encoder.bias))
        lengths = np.linalg.norm(colours @ weight.T + bias[:, 0, 0], axis=-1).mean((1, 2))
        assert record.value == pytest.approx(lengths.mean(), rel=1e-5)
        assert record.high - record.low == pytest.approx(2 * 1.96 * lengths.std(ddof=1) / 40**0.5, rel=1e-4)
        assert record.n == 40


def test_twice_the_maps_are_twice_as_long(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "images", 6)
    once = measured(PatchMeans(), data, tmp_path)
    twice = measured(PatchMeans(lambda maps: 2 * maps), data, tmp_path)
    for layer, record in twice.items():
        assert record.value == pytest.approx(2 * once[layer].value)
        assert record.low == pytest.approx(2 * once[layer].low)


def test_the_number_of_images_is_a_setting(tmp_path: Path) -> None:
    found = measured(PatchMeans(), folder_of(tmp_path / "images", 9), tmp_path, images=5)
    assert {record.n for record in found.values()} == {5}


def test_one_image_has_no_interval_and_no_image_is_an_error(tmp_path: Path) -> None:
    found = measured(PatchMeans(), folder_of(tmp_path / "one", 1), tmp_path)
    assert {(record.low, record.high) for record in found.values()} == {(None, None)}
    with pytest.raises(UserError) as error:
        measured(PatchMeans(), folder_of(tmp_path / "none", 0), tmp_path)
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_are_not_measurable(tmp_path: Path) -> None:
    found = measured(PatchMeans(lambda maps: maps / torch.zeros(())), folder_of(tmp_path / "images", 3), tmp_path)
    assert {record.value for record in found.values()} == {None}
    assert all(record.details["not_measurable"] for record in found.values())


def test_the_page_has_a_row_for_each_layer_and_the_random_network_beside_it(tmp_path: Path) -> None:
    assert find_measurement("map-norms").references == ("random",)
    study = study_of(PatchMeans(), tmp_path)
    data = folder_of(tmp_path / "images", 6)
    records = [r for about in (study, study.about(PatchMeans(lambda maps: 2 * maps), "random"))
               for r in find_measurement("map-norms").run(about, data, None)]  # fmt: skip
    run = fake_run(tmp_path / "run", records=False)
    write_records(run / "records.jsonl", records)
    page = report(tmp_path, run)
    (text,) = [part for part in page.source.split("</section>") if '<h2 id="map-norms">' in part]
    for record in records:
        assert f"{record.value:.3f}" in text
    rows = text.split("<tbody>")[1].split("<tr")[1:]
    assert len(rows) == 2
    assert f"{records[1].value:.3f}" in rows[1]
    assert f"{2 * records[1].value:.3f}" in rows[1]
