"""The sections of the page: what each evaluation's records become."""

import itertools
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from equimid.evaluation.registry import MEASUREMENTS, Headline, Measurement
from equimid.recipes.describe import every_setting
from equimid.records import Record, write_records
from helpers.fake_runs import CORRUPTIONS, Page, everything, fake_run, record, report

FIXED = ["run", "evaluation", "equivariance", "feature-maps", "training"]


def run_with(path: Path, *records: Record, **more: Any) -> Path:
    """A run's folder with these records alone."""
    fake_run(path, records=False, **more)
    write_records(path / "records.jsonl", list(records))
    return path


def alts(page: Page, start: str) -> list[str]:
    return [alt for a in page.all("svg") if (alt := str(a["aria-label"])).startswith(start)]


def tables(page: Page, label: str) -> list[list[list[str]]]:
    """Rows of cells as text, of the tables whose label begins so."""
    found = re.findall(rf'aria-label="{re.escape(label)}.*?</table>', page.source, re.DOTALL)
    rows = [re.findall(r"<tr.*?</tr>", table, re.DOTALL) for table in found]
    cells = [[re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in table] for table in rows]
    return [[[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in table] for table in cells]


def section(page: Page, name: str) -> str:
    return page.source.split(f'<h2 id="{name}">')[1].split("</section>")[0]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("full")
    runs = [fake_run(folder / "plain", ser=False), fake_run(folder / "ser")]
    for lift, run in enumerate(runs):
        write_records(run / "records.jsonl", everything(run, 6.0 * lift))
    return report(folder, *runs)


def test_the_navigation_lists_what_is_on_the_page(full: Page, tmp_path: Path) -> None:
    listed = [str(a["href"]).removeprefix("#") for a in full.all("a")]
    assert listed == re.findall(r'<h2 id="([^"]*)"', full.source)
    more = ["published", "robustness", "geometry", "correspondence", "pose-probe", "dense", "attention", "neighbours"]
    assert sorted(listed) == sorted(FIXED + more)
    bare = run_with(tmp_path / "bare")
    (bare / "config.yaml").write_text("seed: 1\n")
    assert [str(a["href"])[1:] for a in report(tmp_path, bare).all("a")] == FIXED


def test_headings_leave_out_no_level(full: Page) -> None:
    levels = [int(tag[1]) for tag, _ in full.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_generated_corruptions_are_not_called_imagenet_c(full: Page) -> None:
    robustness = section(full, "robustness")
    generated, published = robustness.split("<h3>ImageNet-C, in-c</h3>")
    generated = generated.split("<h3>Generated corruptions, digits</h3>")[1]
    assert re.findall("ImageNet-C", re.sub(r'<p class="hint">.*?</p>', "", generated)) == []
    assert "mCE" not in generated
    assert "mCE" in published


def test_a_corruption_is_a_small_plot_that_begins_with_the_clean_image(full: Page) -> None:
    for kind in CORRUPTIONS:
        clean, corrupted = alts(full, f"Top-1 in % by severity, {kind.replace('_', ' ')}: ")
        assert ": plain 60.0 at 0, " in clean
        assert "; ser 66.0 at 0, " in clean
        assert re.search(r": plain [\d.]+ at 1, ", corrupted)
    small = re.findall(r'<div class="plots small">.*?</div>', full.source, re.DOTALL)
    assert len(small) == 2
    for group in small:
        ticks = [set(re.findall(r">(\d+0)<", svg)) for svg in group.split("<figure")[1:]]
        assert len(ticks) == len(CORRUPTIONS)
        assert all(found == ticks[0] for found in ticks), "not on one scale"
        assert ticks[0]


def test_values_by_corruption_and_severity(tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": "in-c", "low": None}
    records = [
        record("imagenet_c", "top1", 10.0 * severity, details={"corruption": "fog", "severity": severity}, **common)
        for severity in (2, 3)
    ]
    records.append(record("imagenet_c", "ce", 87.5, details={"corruption": "fog"}, **common))
    missing = ["fog/4", *["snow"] * 6]
    records.append(record("imagenet_c", "mean_top1", 25.0, details={"missing": missing}, **common))
    page = report(tmp_path, run_with(tmp_path / "run", *records))
    assert tables(page, "ImageNet-C, in-c: run, top-1")[0][1] == ["fog", "20.0 % n = 500", "30.0 % n = 500"]
    assert tables(page, "ImageNet-C, in-c: by corruption")[0] == [["Corruption", "run"], ["fog", "87.5 % n = 500"]]
    assert "missing are fog/4, snow, snow, snow, snow, snow, snow." in page.text


def test_perturbations_lead_with_the_flip_rate(tmp_path: Path) -> None:
    details = {"perturbation": "motion_blur"}
    values = (("top1", 50.0, "%"), ("flip_rate", 12.0, "%"), ("top5_distance", 2.5, ""))
    records = [
        record("imagenet_p", metric, value, data="in-p", unit=unit, low=None, details=details)
        for metric, value, unit in values
    ]
    page = report(tmp_path, run_with(tmp_path / "run", *records))
    row = ["motion blur", "12.0 % n = 500 top-1 50.0 % top-5 distance 2.500"]
    assert tables(page, "ImageNet-P, in-p: by perturbation")[0][1] == row


def test_geometry_is_a_curve_and_marks_beside_the_upright_image(full: Page) -> None:
    (curve,) = alts(full, "Top-1, by angle")
    assert "plain 57.0 at 0, 15.0 at 90, 57.0 at 180" in curve
    (turns,) = alts(full, "Top-1 by pose, quarter turns")
    assert "plain 60.0 at upright, " in turns
    assert not alts(full, "Top-1 by pose, none")
    assert [row[0] for row in tables(full, "Geometry on digits")[0]][1:4] == [
        "upright",
        "quarter turns, 90 degrees",
        "quarter turns, 180 degrees",
    ]


def of_map(metric: str, value: float | None, subject: str = "backbone", **details: Any) -> Record:
    unit = "" if metric in ("place", "centred_cosine", "relative_error") else "%"
    return record("equivariance", metric, value, subject, unit=unit, low=None, details=details)


@pytest.mark.parametrize("angle_first", [True, False])
def test_an_angle_does_not_stand_for_its_kind(tmp_path: Path, angle_first: bool) -> None:
    layer = {"layer": 1, "kind": "rotation"}
    mean, angle = of_map("place", 0.5, **layer), of_map("place", 0.9, angle=30.0, **layer)
    error, cosine = of_map("relative_error", 1.25, **layer), of_map("centred_cosine", 0.75, **layer)
    found = of_map("retrieval", 40.0, chance=1.5625, **layer)
    page = report(
        tmp_path,
        run_with(tmp_path / "run", error, cosine, found, *([angle, mean] if angle_first else [mean, angle])),
    )
    assert alts(page, "Place by layer") == ["Place by layer, rotation: run 0.500 at 1"]
    head, row = tables(page, "Equivariance, run")[0]
    assert head == ["Layer", "rotation", "rotation 30°"]
    told = "retrieval 40.0 %, chance 1.6 centred cosine 0.750 relative error 1.250"
    assert row == ["1", f"0.500 n = 500 {told}", "0.900 n = 500"]


def test_place_stands_beside_its_references(tmp_path: Path) -> None:
    page = report(tmp_path, fake_run(tmp_path / "run"))
    plots = alts(page, "Place by layer")
    assert len(plots) == 3
    for alt in plots:
        assert re.findall(r"[:;] ([a-z ]+) −?\d", alt) == [
            "run",
            "not carried",
            "other images",
            "random network",
        ]
    key = section(page, "equivariance").split('class="key')[1].split("</ul>")[0]
    for name in ("run", "not carried", "other images", "random network"):
        assert f"{name}<" in key, name
    assert [r[0] for r in tables(page, "Where the variance of the maps lies, run")[0][1:]] == [
        "1",
        "2",
        "3 (SER)",
        "4",
        "5",
        "6",
    ]
    assert len(alts(page, "Share of the variance in % by layer")) == 3


def test_what_is_not_measurable_is_said_with_its_reason(tmp_path: Path) -> None:
    reason = "maps that are constant within an image"
    layer = {"layer": 1, "kind": "flip"}
    records = [
        replace(of_map("place", None, not_measurable=reason, **layer), n=0),
        replace(of_map("centred_cosine", None, not_measurable=reason, **layer), n=0),
        of_map("retrieval", 6.25, chance=6.25, **layer),
        of_map("place", 0.25, "random", left_out=3, **layer),
        replace(of_map("between_images", None, layer=1, not_measurable="maps that do not vary"), n=0),
    ]
    page = report(tmp_path, run_with(tmp_path / "run", *records))
    assert tables(page, "Equivariance, run")[0][1] == [
        "1", f"not measurable {reason} retrieval 6.2 %, chance 6.2 centred cosine not measurable"
    ]  # fmt: skip
    assert tables(page, "Equivariance, random network")[0][1] == ["1", "0.250 n = 500, 3 left out"]
    assert tables(page, "Where the variance of the maps lies, run")[0][1][1] == "not measurable maps that do not vary"
    assert "Not measurable: run at layer 1." in page.text
    (alt,) = alts(page, "Place by layer")
    assert "run" not in alt.split(": ")[1]


def test_nothing_that_can_be_measured_leaves_tables_alone(tmp_path: Path) -> None:
    missing = replace(of_map("place", None, layer=1, kind="flip", not_measurable="maps of one patch"), n=0)
    page = report(tmp_path, run_with(tmp_path / "run", missing))
    assert not alts(page, "Place by layer")
    assert tables(page, "Equivariance, run")[0][1] == ["1", "not measurable maps of one patch"]


def test_records_of_an_older_version_say_how_place_is_measured(tmp_path: Path) -> None:
    layer = {"layer": 1, "kind": "flip"}
    old = run_with(tmp_path / "old", of_map("centred_cosine", 0.8, **layer), of_map("cosine", 0.9, **layer))
    page = report(tmp_path, old)
    assert (
        f"place was not measured, and only the old measures are in the table. To measure it: equimid evaluate {old}"
        in (page.text)
    )
    assert not alts(page, "Place by layer")
    (row,) = tables(page, "Equivariance, old")[0][1:]
    assert "centred cosine 0.800" in row[1]
    new = run_with(tmp_path / "new", of_map("place", 0.5, **layer))
    both = report(tmp_path, old, new)
    assert both.text.count("place was not measured") == 1
    (alt,) = alts(both, "Place by layer")
    assert alt.endswith(": new 0.500 at 1")


def test_correspondence_is_drawn_beside_chance_and_colours(full: Page) -> None:
    within, among = (alts(full, f"Patches found among the patches of {where}") for where in ("the same", "all images"))
    assert len(within) == len(among) == 3
    for alt in within:
        assert re.findall(r"[:;] ([a-z ]+) \d", alt) == [
            "plain",
            "ser",
            "random network",
            "mean colours of patches",
            "chance",
        ]
        assert alt.endswith("; chance 1.6")
    angles = [alt.split(": ")[0] for alt in alts(full, "Patches found within the image")]
    assert angles == [f"Patches found within the image, rotation by angle, layer {n}" for n in ("3 (SER)", "6")]
    head, *rows = tables(full, "Correspondence among the patches of the same image, ser")[0]
    assert head == ["Layer", "quarter turns", "flip", "rotation", "rotation 5°", "rotation 15°", "rotation 30°"]
    assert [row[0] for row in rows] == ["2", "3 (SER)", "4", "6"]
    assert rows[0][1].startswith("34.0 % [32.0, 36.0] n = 500 · chance 1.6 top-1 within one patch 51.0 %")
    (row,) = tables(full, "Correspondence among the patches of the same image, mean colours")[0][1:]
    assert row[0] == "any"


def test_what_is_read_back_stands_beside_chance(full: Page) -> None:
    for target, chance in (("turn", "25.0"), ("flip", "50.0")):
        for source in ("token map", "mean token", "class token"):
            (alt,) = alts(full, f"Reading the pose, top-1 in % by layer, {target} from the {source}")
            assert alt.endswith(f"; chance {chance}")
    # read at one layer alone: no curve
    assert not [alt for alt in alts(full, "Reading") if "final embedding" in alt]
    head, *rows = tables(full, "Pose probe, ser")[0]
    cell = rows[-1][head.index("turn from the final embedding")]
    assert cell.startswith("35.0 % [33.0, 37.0]")
    assert rows[2][0] == "3 (SER)"


def test_detection_and_segmentation(full: Page) -> None:
    detection = tables(full, "Detection on cells")[0]
    assert detection[0] == [
        "Subject", "mAP", "mAP at IoU 0.50", "mAP at IoU 0.75", "mAR, 100 boxes",
        "drop of mAP, quarter turns", "drop of mAP, flip", "drop of mAP, scale",
    ]  # fmt: skip
    assert [row[0] for row in detection[1:]] == [
        "plain", "ser", "untrained neck, plain", "untrained neck, ser", "random network",
    ]  # fmt: skip
    assert detection[1][1] == "18.0 % [16.0, 20.0] n = 500 · +5.4 points"
    by_class = tables(full, "Detection on cells, by class")[0]
    assert [row[0] for row in by_class] == ["Class", "red cell", "white cell", "platelet"]
    assert tables(full, "Segmentation on scenes, by class")[0][3][2].startswith("36.2 %")
    said = [str(a["alt"]) for a in full.all("img")]
    assert "Detection: Above as labelled, below what was found with a score above 0.5" in said
    assert "What the class token attends to: Image 1: the mean over heads, then each head" in said


def test_scores_in_other_poses_stand_beside_the_upright_one(tmp_path: Path) -> None:
    def of(evaluation: str, metric: str, upright: float, subject: str, turned: float) -> list[Record]:
        turns: dict[str, Any] = {"kind": "quarter turns"}
        return [
            record(evaluation, metric, upright, subject),
            record(evaluation, f"{metric}_posed", turned, subject, details=turns | {"pose": "90 degrees"}),
            record(evaluation, f"{metric}_drop", upright - turned, subject, details=turns | {"poses": 1}),
        ]

    records = [
        *of("segmentation", "miou", 50.0, "backbone", 40.0), *of("segmentation", "miou", 30.0, "random", 25.0),
        *of("detection", "map", 45.0, "backbone", 15.0), record("detection", "map", 0.0, "untrained neck"),
    ]  # fmt: skip
    runs = [run_with(tmp_path / name, *records, seed=seed) for seed, name in enumerate(("a", "b"))]
    page = report(tmp_path, *runs)
    (segmentation,) = tables(page, "Segmentation on digits")[:1]
    assert segmentation[0] == ["Subject", "mean IoU", "drop of mean IoU, quarter turns"]
    assert segmentation[1][1:] == [
        "50.0 % [48.0, 52.0] n = 500 · +20.0 points", "10.0 % [8.0, 12.0] n = 500 · +5.0 points"
    ]  # fmt: skip
    (alt,) = alts(page, "mean IoU by pose, quarter turns")
    assert ": a 50.0 at upright, 40.0 at 90 degrees; " in alt
    assert "random network 30.0 at upright, 25.0 at 90 degrees" in alt
    (alt,) = alts(page, "mAP by pose, quarter turns")
    assert "untrained" not in alt
    by_pose = tables(page, "Segmentation on digits, by pose")[0]
    assert [row[0] for row in by_pose] == ["Pose", "upright", "quarter turns, 90 degrees"]
    assert by_pose[2][1] == "40.0 % [38.0, 42.0] n = 500"
    # the upright value alone stands for the evaluation, seed by seed
    assert not alts(page, "drop of")
    means = tables(page, "Means over seeds")[0]
    assert means[0] == ["Settings", "detection mAP (%)", "segmentation mean IoU (%)"]
    assert means[1][1:] == ["45.0 (n = 2)", "50.0 (n = 2)"]


def test_few_images_a_class_are_columns_and_one_curve(full: Page) -> None:
    scores = tables(full, "Evaluation on digits")[-1]
    assert scores[0][-3:] == [f"few-shot top-1, {count} a class" for count in (1, 5, 10)]
    assert scores[1][-2] == "42.0 % [40.0, 44.0] n = 500 · +12.6 points"
    (curve,) = alts(full, "On digits, few-shot top-1")
    assert "plain 24.0 at 1, 42.0 at 5, 51.0 at 10; " in curve
    assert not alts(full, "few-shot")


def test_a_warning_is_said_once_with_all_whom_it_concerns(tmp_path: Path) -> None:
    warned = {"warning": "the best learning rate lies at the end of the grid"}
    runs = [
        run_with(tmp_path / name, record("linear", "top1", 50.0, details=warned), record("knn", "top1", 40.0))
        for name in ("a", "b")
    ]
    page = report(tmp_path, *runs)
    assert page.source.count("end of the grid") == 1
    assert "<strong>a, b</strong> linear top-1: the best learning rate lies at the end of the grid." in page.source


def test_a_value_that_is_not_finite_is_shown_as_unknown(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", record("linear", "top1", float("nan"), low=None, high=None))
    row = tables(report(tmp_path, run), "Evaluation on digits")[0][1]
    assert row == ["run", "– n = 500"]


def test_pictures_of_cameras_are_shown_and_the_explorers_are_not(tmp_path: Path) -> None:
    shown = [record(name, "picture", None, picture="photo.jpg") for name in ("attention", "explorer")]
    run = run_with(tmp_path / "run", *shown)
    Image.new("RGB", (8, 8)).save(run / "photo.jpg")
    (image,) = report(tmp_path, run).all("img")
    assert str(image["src"]).startswith("data:image/jpeg;base64,/9j/")
    assert image["alt"] == "What the class token attends to"


def test_an_unknown_evaluation_has_its_place_in_the_scores(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", record("my_own", "top1", 12.5))
    assert tables(report(tmp_path, run), "Evaluation on digits")[0][0] == ["Subject", "my own top-1"]


def test_a_new_measurement_is_an_entry_in_the_registry_and_has_its_table(tmp_path: Path, monkeypatch: Any) -> None:
    """The page knows no more of it: its own section, its titles, its headline over seeds."""
    new = Measurement(
        "copy-detection", "copy detection", "copies among photographs", "copies:measure", section="copies",
        headlines=(Headline("map"),), metrics={"map": "mAP"},
    )  # fmt: skip
    monkeypatch.setitem(MEASUREMENTS, new.name, new)
    runs = [
        run_with(tmp_path / f"seed{seed}", record("copy_detection", "map", 30.0 + seed), seed=seed) for seed in (0, 1)
    ]
    page = report(tmp_path, *runs)
    (table,) = tables(page, "Copy detection on digits")
    assert table == [
        ["Subject", "copy detection mAP"], ["seed0", "30.0 % [28.0, 32.0] n = 500"],
        ["seed1", "31.0 % [29.0, 33.0] n = 500"],
    ]  # fmt: skip
    assert "copies" in [str(a["href"])[1:] for a in page.all("a")]
    assert tables(page, "Means over seeds")[0][0] == ["Settings", "copy detection mAP (%)"]


def test_what_a_measurement_reads_are_settings() -> None:
    keys = [s.key.removeprefix("evaluation.") for s in every_setting() if s.key.startswith("evaluation.")]
    read = {start for measurement in MEASUREMENTS.values() for start in measurement.settings}
    assert [start for start in read if not any(key.startswith(start) for key in keys)] == []
    # of every network, whatever is measured
    shared = ("network", "crop")
    assert [key for key in keys if not key.startswith((*read, *shared))] == []


def test_every_explanation_is_used() -> None:
    room = Path(str(files("equimid.report")))
    sources = "".join(path.read_text() for path in room.rglob("*.py"))
    texts = yaml.safe_load((room / "texts.yaml").read_text())
    assert [name for name in texts if f'"{name}"' not in sources] == []
