"""What stands for an evaluation where runs are compared over seeds: which records, which layers, which means."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from equimid.records import Record, write_records
from equimid.report.read_run import Run, read_run
from equimid.report.seeds import RunsOverSeeds, Value, compare, values_of
from helpers.fake_runs import everything, fake_run, record


def run_of(path: Path, *records: Record, seed: int = 0, **more: Any) -> Run:
    fake_run(path, records=False, seed=seed, **more)
    write_records(path / "records.jsonl", list(records))
    return read_run(path, path.name, seed)


def headlines(*runs: Run) -> list[Value]:
    return values_of([RunsOverSeeds(run.name, {0: run}) for run in runs])


def values(run: Run, *beside: Run) -> dict[str, float]:
    return {v.metric.label: v.value for v in headlines(run, *beside) if v.combination.runs[0] is run}


def posed(kind: str, **by_pose: float) -> list[Record]:
    return [
        record("geometry", "top1", value, details={"kind": kind, "pose": pose.replace("_", " ")})
        for pose, value in by_pose.items()
    ]


def of_layers(evaluation: str, metric: str, by_layer: Mapping[int, float], **details: Any) -> list[Record]:
    unit = "" if metric == "place" else "%"
    return [
        record(evaluation, metric, value, unit=unit, low=None, details={"layer": layer, **details})
        for layer, value in by_layer.items()
    ]


def test_everything_that_is_measured_has_its_headlines(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    write_records(run.path / "records.jsonl", everything(run.path))
    found = values(read_run(run.path, "run", 0))
    of = {re.sub(r", (in-[cp]|sets/.*|cells|scenes)$", "", label) for label in found}
    assert of == {
        "logistic top-1", "MLP top-1", "attentive top-1",
        "few-shot top-1, 1 a class", "few-shot top-1, 5 a class", "few-shot top-1, 10 a class",
        "generated corruptions mean top-1", "ImageNet-C mean top-1", "ImageNet-C mCE", "ImageNet-P mean top-1",
        "ImageNet-P mFR", "ImageNet-V2 top-1", "ImageNet-R top-1", "ImageNet-Sketch top-1", "ImageNet-A top-1",
        "geometry, mean top-1 over quarter turns", "geometry, mean top-1 over angles", "detection mAP",
        "segmentation mean IoU", "correspondence, top-1 within the image, layer 3 (SER)",
        "correspondence, top-1 within the image, layer 6 (last)", "turn read from the map, layer 3 (SER)",
        "turn read from the map, layer 6 (last)",
    }  # fmt: skip


def test_geometry_is_a_mean_over_turns_and_one_over_angles(tmp_path: Path) -> None:
    turns = posed("quarter turns", **dict(zip(("90_degrees", "180_degrees", "270_degrees"), (30, 45, 60), strict=True)))
    angles = posed("angle", **{f"{angle}_degrees": 20.0 + angle for angle in (0, 15, 30)})
    others = [*posed("none", upright=90.0), *posed("flip", mirrored=80.0), *posed("scale", six=70.0)]
    assert values(run_of(tmp_path / "run", *others, *turns, *angles)) == {
        "geometry, mean top-1 over quarter turns": 45.0,
        "geometry, mean top-1 over angles": 35.0,
    }


def test_a_mean_over_other_poses_is_not_the_same_headline(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", *posed("angle", a=20.0, b=40.0))
    part = run_of(tmp_path / "part", *posed("angle", a=20.0))
    twice = run_of(tmp_path / "twice", *posed("angle", a=20.0, b=40.0), *posed("angle", b=50.0))
    label = "geometry, mean top-1 over angles"
    assert values(whole, part, twice)[label] == 30
    assert values(part, whole, twice).get(label) is None
    assert values(twice, part, whole).get(label) is None
    assert values(part)[label] == 20, "beside nothing else it is what there is"
    three = run_of(tmp_path / "three", *posed("angle", a=20.0, b=40.0, c=60.0))
    assert values(twice, three).get(label) is None, "three values, and not of the three poses"


@pytest.mark.parametrize(("metric", "unit"), [("place", ""), ("retrieval", "%")])
def test_equivariance_is_place_and_retrieval_of_quarter_turns(tmp_path: Path, metric: str, unit: str) -> None:
    by_layer = {1: 0.9, 3: 0.5, 5: 0.4, 6: 0.3}
    found = of_layers("equivariance", metric, by_layer, kind="quarter turns")
    other = of_layers("equivariance", metric, dict.fromkeys(by_layer, 0.99), kind="flip")
    run = run_of(tmp_path / "run", *found, *other)
    assert values(run) == {f"{metric}, layer 3 (SER)": 0.5, f"{metric}, layer 6 (last)": 0.3}
    assert {v.metric.unit for v in headlines(run)} == {unit}
    plain = run_of(tmp_path / "plain", *found, ser=False)
    assert values(plain) == {f"{metric}, layer 6 (last)": 0.3}
    # the layer that SER acts on in any of the runs is compared in all
    assert values(plain, run)[f"{metric}, layer 3 (SER)"] == 0.5


def test_correspondence_is_within_the_image_and_of_quarter_turns(tmp_path: Path) -> None:
    layers = {2: 40.0, 3: 50.0, 6: 30.0}
    found = [
        *of_layers("correspondence", "top1", layers, kind="quarter turns", among="image"),
        *of_layers("correspondence", "near_top1", dict.fromkeys(layers, 90.0), kind="quarter turns", among="image"),
        *of_layers("correspondence", "top1", dict.fromkeys(layers, 5.0), kind="quarter turns", among="images"),
        *of_layers("correspondence", "top1", dict.fromkeys(layers, 20.0), kind="rotation", among="image"),
        *of_layers("correspondence", "top1", dict.fromkeys(layers, 25.0), kind="rotation", among="image", angle=5.0),
    ]
    assert values(run_of(tmp_path / "run", *found)) == {
        "correspondence, top-1 within the image, layer 3 (SER)": 50.0,
        "correspondence, top-1 within the image, layer 6 (last)": 30.0,
    }


def test_the_centred_cosine_is_no_headline(tmp_path: Path) -> None:
    cosines = of_layers("equivariance", "centred_cosine", {3: 0.5, 6: 0.3}, kind="quarter turns")
    assert values(run_of(tmp_path / "run", *cosines)) == {}


def test_a_place_that_is_not_measurable_is_left_out(tmp_path: Path) -> None:
    known = of_layers("equivariance", "place", {6: 0.3}, kind="quarter turns")
    unknown = record("equivariance", "place", None, unit="", details={"layer": 3, "kind": "quarter turns"})
    assert values(run_of(tmp_path / "run", unknown, *known)) == {"place, layer 6 (last)": 0.3}


def test_the_pose_is_read_from_the_map_and_the_turn_alone_counts(tmp_path: Path) -> None:
    details: dict[str, Any] = {"target": "turn", "from": "map", "chance": 25.0}
    found = of_layers("pose_probe", "top1", {2: 99.0, 3: 90.0, 6: 70.0}, **details)
    for more in ({"target": "flip"}, {"from": "mean"}, {"from": "cls"}, {"from": "embedding"}):
        found += of_layers("pose_probe", "top1", {3: 55.0, 6: 55.0}, **(details | more))
    assert values(run_of(tmp_path / "run", *found)) == {
        "turn read from the map, layer 3 (SER)": 90.0,
        "turn read from the map, layer 6 (last)": 70.0,
    }


def test_parts_and_references_are_no_headline(tmp_path: Path) -> None:
    found = [
        record("fewshot", "top1", 40.0, details={"per_class": 5}),
        record("fewshot", "top1", 10.0, "random", details={"per_class": 5}),
        record("imagenet_c", "top1", 30.0, details={"corruption": "fog", "severity": 3}),
        record("imagenet_c", "mean_top1", 35.0),
        record("imagenet_p", "top1", 36.0, details={"perturbation": "snow"}),
        record("imagenet_p", "mean_top1", 37.0),
        record("imagenet_r", "top1", 38.0, details={"restricted_to": 200}),
        record("imagenet_r", "top1_all", 28.0, details={"among": 1000}),
    ]
    assert values(run_of(tmp_path / "run", *found)) == {
        "few-shot top-1, 5 a class": 40.0,
        "ImageNet-C mean top-1": 35.0,
        "ImageNet-P mean top-1": 37.0,
        "ImageNet-R top-1": 38.0,
    }


def test_the_page_says_what_place_is_where_it_is_there(tmp_path: Path) -> None:
    def words(*records: Record, name: str) -> str:
        runs = {seed: run_of(tmp_path / f"{name}{seed}", *records, seed=seed) for seed in (0, 1)}
        return str(compare([RunsOverSeeds(name, runs)]))

    place = of_layers("equivariance", "place", {3: 0.5}, kind="quarter turns")
    assert "after the mean token of each image is taken away" in words(*place, name="with")
    assert "mean token" not in words(record("knn", "top1", 40.0), name="without")
