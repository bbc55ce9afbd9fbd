"""The page: complete in itself, legible to a screen reader, and true to the records."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from equimid.errors import UserError
from equimid.records import Record, write_records
from equimid.report import write_report
from helpers.fake_runs import KINDS, Page, fake_run, report


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("three")
    runs = [
        fake_run(folder / "baseline", ser=False, gain=15.0, steps=300),
        fake_run(folder / "ser", gain=22.0, steps=300),
        fake_run(folder / "early", gain=18.0, steps=200),
    ]
    return report(folder, *runs)


def test_page_asks_for_nothing(three: Page) -> None:
    for _, attributes in three.elements:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), target
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", three.source))
    assert "@import" not in three.source
    assert not three.all("script", "iframe", "object")
    assert len(three.all("link")) == 1


def test_links_inside_the_page_arrive(three: Page) -> None:
    ids = [a["id"] for _, a in three.elements if "id" in a]
    assert len(ids) == len(set(ids)), "two elements of one id"
    targets = {h[1:] for _, a in three.elements if (h := a.get("href")) and h.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", three.source))
    assert targets
    assert targets <= set(ids)


def test_every_picture_has_words(three: Page) -> None:
    assert three.all("img")
    assert all(a.get("alt") for a in three.all("img"))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in three.all("svg"))
    assert three.all("html")[0]["lang"] == "en"
    assert len(three.all("h1")) == len(three.all("main")) == 1


def test_values_and_intervals(three: Page) -> None:
    for words in ("76.2 %", "[74.0, 78.5]", "n = 597", "+15.0 points", "+22.0 points", "−7.5 points"):
        assert words in three.text, words
    assert "Layer 3: images, their quarter turns, and both token maps" in three.text
    for kind in KINDS:
        assert any(f"Place by layer, {kind}" in (a["aria-label"] or "") for a in three.all("svg"))


def test_several_runs_side_by_side(three: Page) -> None:
    head = three.source.split("<thead>")[1].split("</thead>")[0]
    assert re.findall(r'"col">(.*?)<', head) == ["Setting", "baseline", "ser", "early"]
    table = three.source.split('class="numbers"')[1].split("</table>")[0]
    assert re.findall(r'"row">(.*?)<', table) == ["baseline", "ser", "early", "random network", "raw pixels"]
    differ, same = three.source.split("The same in every run")[:2]
    assert "SER weight" in differ
    assert ">batch size<" in same
    assert ">batch size<" not in differ


def test_a_reference_of_another_shape_is_shown_apart(tmp_path: Path) -> None:
    page = report(tmp_path, fake_run(tmp_path / "a"), fake_run(tmp_path / "b"), fake_run(tmp_path / "c", depth=4))
    table = page.source.split('class="numbers"')[1].split("</table>")[0]
    assert "random network (a, b)" in table
    assert "random network (c)" in table
    assert '"row">raw pixels<' in table


def test_runs_of_one_name_are_told_apart_and_a_run_counts_once(tmp_path: Path) -> None:
    a, b = (fake_run(tmp_path / name / "run", records=False) for name in "xy")
    page = report(tmp_path, a, b, a)
    head = page.source.split("<thead>")[1].split("</thead>")[0]
    assert re.findall(r'"col">(.*?)<', head) == ["Setting", "x/run", "y/run"]


def test_a_run_may_be_called_what_a_reference_is_called(tmp_path: Path) -> None:
    table = report(tmp_path, fake_run(tmp_path / "random network")).source.split('class="numbers"')[1]
    assert table.split("</table>")[0].count("81.2 %") == 1
    assert table.split("</table>")[0].count("61.2 %") == 1


def test_nasty_strings_are_escaped(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a $x_1$ <b>&", source="<script>alert('x')</script>")
    page = report(tmp_path, run)
    assert not page.all("script", "b")
    assert "<script>alert('x')</script>" in page.text
    assert "a $x_1$ <b>&" in page.text


def test_missing_pieces_are_said(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "young", records=False)
    (run / "data.json").unlink()
    page = report(tmp_path, run)
    assert f"is not evaluated yet: equimid evaluate {run}" in page.text
    assert "has no metrics yet" in page.text
    assert not page.all("img")


def test_only_a_bare_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text("seed: 1\n")
    assert "not evaluated yet" in report(tmp_path, tmp_path / "bare").text


def test_missing_picture_is_said(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "pictures" / "layer3.png").write_text("not a picture")
    page = report(tmp_path, run)
    assert "pictures/layer3.png is missing" in page.text
    assert not page.all("img")


@pytest.mark.parametrize("tail", ["301,30,39", "301,30,391.3,190.1,0.0001,0.99,2.1,2.1,2.1,3.", "\x00\n"])
def test_half_written_metrics(tmp_path: Path, tail: str) -> None:
    run = fake_run(tmp_path / "run", records=False, steps=300)
    with (run / "metrics.csv").open("a") as stream:
        stream.write(tail)
    assert ">300<" in report(tmp_path, run).source


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", records=False)
    (run / "metrics.csv").write_text("step,loss/total,other/x\n1,2.0,nan\n2,nan,nan\n3,inf,nan\n")
    assert "2 values not finite" in report(tmp_path, run).text


def test_a_spike_survives_thinning(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", records=False)
    rows = [f"{step},{9.0 if step == 4321 else 1.0}" for step in range(20_000)]
    (run / "metrics.csv").write_text("\n".join(["step,loss/total", *rows]) + "\n")
    page = report(tmp_path, run)
    assert ">8<" in page.source  # the axis reaches the spike
    assert len(page.source) < 200_000


def test_pages_are_reproducible(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", steps=300)
    assert report(tmp_path, run).source == report(tmp_path, run).source
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is not a run: found no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "is not YAML"),
        (lambda run: (run / "config.yaml").write_text("text"), "holds str"),
        (lambda run: (run / "data.json").write_text("{"), "is not JSON"),
        (lambda run: (run / "data.json").write_text("[]"), "holds list"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, spoil: Any, words: str) -> None:
    run = fake_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(UserError, match=words) as caught:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_picture_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "pictures" / "layer3.png").rename(tmp_path / "other.png")
    records = (run / "records.jsonl").read_text().replace("pictures/layer3.png", "../other.png")
    (run / "records.jsonl").write_text(records)
    assert not report(tmp_path, run).all("img")


def test_several_values_in_one_place_are_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", records=False)
    common: dict[str, Any] = {"n": 10, "data": "test", "seed": 0, "checkpoint": "abc", "unit": "%"}
    for_k = {k: Record("knn", "top1", 50.0 + k, subject="backbone", details={"k": k}, **common) for k in (1, 20)}
    untaught = Record("knn", "top1", 30.0, subject="random", details={"k": 20}, **common)
    write_records(run / "records.jsonl", [*for_k.values(), untaught])
    page = report(tmp_path, run)
    assert "k 1" in page.text
    assert "k 20" in page.text
    assert "+40.0 points" in page.text


def test_no_run_and_no_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run was given"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([fake_run(tmp_path / "run", records=False)], tmp_path)


def test_images_used_and_left_out_are_told(tmp_path: Path) -> None:
    assert "1,794, 3 left out" in report(tmp_path, fake_run(tmp_path / "run", records=False)).source


def test_runs_of_different_view_settings_are_said_to_be_no_fair_comparison(tmp_path: Path) -> None:
    settings = {"two": "2 x 224", "also_two": "2 x 224", "more": "2 x 224 + 4 x 96", "untold": None}
    for name, setting in settings.items():
        fake_run(tmp_path / name)
        if setting:
            (tmp_path / name / "run.json").write_text(json.dumps({"views": setting}))

    def page(*names: str) -> str:
        return write_report([tmp_path / name for name in names], tmp_path / "page.html").read_text()

    warning = "trained with different views"
    unfair = page("two", "more")
    assert warning in unfair
    assert "two 2 x 224; more 2 x 224 + 4 x 96" in unfair
    assert warning not in page("two", "also_two")
    assert warning not in page("two", "untold")
    # an older version kept it as a record
    old = {"evaluation": "training", "schema": 1, "details": {"setting": "3 x 224"}}
    (tmp_path / "untold" / "records.jsonl").write_text(json.dumps(old) + "\n")
    assert "untold 3 x 224" in page("two", "untold")
    # a damaged file costs only what it says
    (tmp_path / "two" / "run.json").write_text("{")
    assert warning not in page("two", "untold")
    assert warning not in page("two")


def test_add_ons_are_named_with_their_weights(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run")
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"ser": None, "essl": {"weight": 0.4, "size": 96}}))
    text = write_report([path], tmp_path / "page.html").read_text()
    assert "by mocov3 with essl (weight 0.4)" in text
