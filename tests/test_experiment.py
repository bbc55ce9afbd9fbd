"""Declared studies: cells that are run once, kept as files, and the page of evidence that is written from them."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image
from scipy import stats

from equimid.config import flatten
from equimid.errors import UserError
from equimid.evaluation.registry import MEASUREMENTS, measurement_of
from equimid.runs import experiment
from equimid.runs.experiment import Arm, read_experiment, run_experiment
from equimid.statistics import seeds_needed

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "backbone.embed_dim=24", "backbone.depth=3", "backbone.num_heads=2", "backbone.image_size=16",
    "backbone.patch_size=4", "method.hidden=16", "method.dim=8", "train.batch_size=8", "train.steps=2",
    "train.epochs=1", "optim.warmup_epochs=0", "runtime.workers=0", "runtime.tensorboard=false",
    "runtime.precision=fp32", "evaluation.linear_epochs=2", "evaluation.equivariance_images=4",
]  # fmt: skip


@pytest.fixture
def evidence():
    """The script experiments/evidence.py as a module."""
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "experiments" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared(folder, **changes):
    """A study's file, small and complete."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            place = folder / "images" / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(6):
                pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8) + 127 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    content = {
        "name": "little",
        "question": "Is it quick?",
        "data": str(folder / "images"),
        "settings": SMALL,
        "arms": {
            "control": {"recipe": "control-tiny", "settings": ["ser.hidden=8"]},
            "ser": {"recipe": "ser-tiny", "settings": ["ser.hidden=8", "ser.weight=1"]},
        },
        "seeds": [0],
        "measure": ["linear", "equivariance", "correspondence"],
        "transfer": [{"data": "digits", "measure": ["knn"]}],
        "contrast": ["ser", "control"],
        "endpoints": [
            {
                "name": "place",
                "effect": 0.5,
                "of": [
                    {
                        "evaluation": "equivariance",
                        "metric": "place",
                        "details": {"layer": 2, "kind": "quarter turns"},
                    }
                ],
            },
            {"name": "top-1 (%)", "of": [{"evaluation": "linear", "metric": "top1"}]},
        ],
        **changes,
    }
    file = folder / "little.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return file


def test_cells_are_run_once_and_kept_with_where_they_ran(tmp_path, evidence):
    file = declared(tmp_path)
    written = run_experiment(file, tmp_path / "runs")
    assert [path.name for path in written] == ["control-seed0.json", "ser-seed0.json"]
    assert {path.parent for path in written} == {tmp_path / "little"}
    cell = json.loads(written[1].read_text())
    assert (cell["arm"], cell["seed"], cell["study"]) == ("ser", 0, "little")
    assert cell["settings"]["ser.weight"] == 1
    assert set(cell["trained"]) == {"processor", "python", "torch", "equimid", "commit", "threads"}
    assert cell["trained"]["processor"]
    kept = {(r["evaluation"], r["metric"], r["subject"]) for r in cell["records"]}
    assert {("linear", "top1", "backbone"), ("equivariance", "place", "not_carried")} <= kept
    assert {("correspondence", "top1", "backbone"), ("equivariance", "between_images", "backbone")} <= kept
    assert "random" not in {subject for *_, subject in kept}
    assert {r.get("data") for r in cell["records"] if r["evaluation"] == "knn"} == {"digits"}
    assert not any("data" in r for r in cell["records"] if r["evaluation"] != "knn")
    place = evidence.part_value(
        {"evaluation": "equivariance", "metric": "place", "details": {"layer": 2, "kind": "quarter turns"}}, cell
    )
    assert -1 <= place <= 1
    # nothing is run again; a cell that is missing is
    before = {path: path.read_bytes() for path in written}
    assert run_experiment(file, tmp_path / "runs") == []
    written[1].unlink()
    assert run_experiment(file, tmp_path / "elsewhere") == [written[1]], "on another machine too"
    again = json.loads(written[1].read_text())
    assert again["records"] == json.loads(before[written[1]])["records"], "the same numbers"
    assert written[0].read_bytes() == before[written[0]]
    # what another process runs is left to it
    written[1].unlink()
    with FileLock(tmp_path / "elsewhere" / "ser" / ".seed=0.lock"):
        assert run_experiment(file, tmp_path / "elsewhere") == []


def test_the_command_line_runs_a_study(tmp_path):
    file = declared(tmp_path, seeds=[0], arms={"control": {"recipe": "control-tiny", "settings": ["ser.hidden=8"]}},
                    contrast=None, endpoints=None, measure=["linear"])  # fmt: skip
    command = [sys.executable, "-m", "equimid", "sweep", str(file)]
    done = subprocess.run([*command, "--out", str(tmp_path / "runs")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 cell(s) finished" in done.stderr + done.stdout
    refused = subprocess.run([*command, "--seeds", "4"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "declares" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": {"a": {"recipe": "ser-tinny"}}, "contrast": None}, "ser-tinny"),
        ({"arms": {"a": "ser-tiny"}, "contrast": None}, "arms"),
        ({"arms": {"a": {"recipe": "ser-tiny", "settings": ["ser.wight=1"]}}, "contrast": None}, "ser.wight"),
        ({"arms": {"a": {"recipe": "ser-tiny", "settings": ["ser.weight=PILOT"]}}, "contrast": None}, "PILOT"),
        ({"arms": {"a": {"recipe": "ser-tiny", "extra": 1}}, "contrast": None}, "arms"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"seeds": ["a"]}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"measure": ["linaer"]}, "linaer"),
        ({"measure": "linear"}, "measure"),
        ({"contrast": ["ser", "base"]}, "contrast"),
        ({"transfer": [{"data": "digits"}]}, "transfer"),
        ({"transfer": [{"data": "digits", "measure": ["linaer"]}]}, "linaer"),
        ({"transfer": [{"data": "no/such/images", "measure": ["linear"]}]}, "no/such/images"),
        ({"colour": "red"}, "colour"),
        ({"question": None}, "question"),
        ({"data": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(changes, named, tmp_path):
    file = declared(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(named)):
        run_experiment(file, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "little").exists()


@pytest.mark.parametrize("content", ["- a", "a: [", "\udce9"])
def test_a_file_that_is_no_study(content, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"study\.yaml"):
        read_experiment(file)


# --- the page of evidence


def cell(arm, seed, place, top1, **details):
    records = [
        {"evaluation": "equivariance", "metric": "place", "subject": subject, "n": 8, "value": value, "details": {
            "layer": 2, "kind": "quarter turns", **details}}
        for subject, value in (("backbone", place), ("not_carried", 9.0))
    ]  # fmt: skip
    records.append(
        {"evaluation": "linear", "metric": "top1", "subject": "backbone", "n": 8, "value": top1, "details": {}}
    )
    where = {"processor": "p", "torch": "t", "commit": "c"}
    return {"arm": arm, "seed": seed, "records": records, "trained": where, "measured": where}


def test_means_differences_and_verdicts_are_those_of_scipy(tmp_path, evidence, monkeypatch):
    declared(tmp_path)
    place = {"control": [0.3, 0.34, 0.31, 0.36], "ser": [0.5, 0.56, 0.52, 0.55]}
    top1 = {"control": [40.0, 41.5, 39.0, 42.0], "ser": [41.0, 41.0, 40.5, 41.8]}
    (tmp_path / "little").mkdir()
    for arm in place:
        for seed in range(4):
            found = cell(arm, seed, place[arm][seed], top1[arm][seed])
            (tmp_path / "little" / f"{arm}-seed{seed}.json").write_text(json.dumps(found))
    monkeypatch.setattr(evidence, "HERE", tmp_path)
    text = evidence.page()
    assert "8 of 2 cells" in text, "seeds beyond the declared ones are counted as they are"
    rows = [line for line in text.splitlines() if line.startswith("| ser − control")]
    tests = [stats.ttest_rel(of["ser"], of["control"]) for of in (place, top1)]
    smaller, larger = sorted(test.pvalue for test in tests)
    assert f"{2 * smaller:.3f}" in rows[0]
    assert "| higher |" in rows[0]
    assert f"{larger:.3f}" in rows[1]
    assert "not distinguishable" in rows[1]
    difference = np.subtract(place["ser"], place["control"])
    assert f"+{difference.mean():.3f} ± " in rows[0]
    assert f"| {difference.std(ddof=1):.3f} |" in rows[0]
    assert "8 cells: p, torch t, trained at c, measured at c" in text


def test_a_small_difference_within_what_matters_is_equivalent(evidence):
    endpoint = {"name": "x", "effect": 0.5}
    from equimid.statistics import paired_difference

    near = paired_difference({0: 1.0, 1: 2.01, 2: 3.0, 3: 4.02}, {0: 1.01, 1: 2.0, 2: 3.02, 3: 4.0})
    assert evidence.judged(near, near.p, endpoint) == "equivalent within 0.5"
    far = paired_difference({0: 1.0, 1: 2.9, 2: 3.0, 3: 4.9}, {0: 1.9, 1: 2.0, 2: 3.9, 3: 4.0})
    assert evidence.judged(far, far.p, endpoint) == "not distinguishable"


def test_a_part_takes_the_records_that_are_named_and_no_others(evidence):
    found = cell("a", 0, 0.25, 40.0, angle=5.0)
    part = {"evaluation": "equivariance", "metric": "place", "details": {"layer": 2}}
    assert evidence.part_value(part, found) == 0.25
    assert evidence.part_value({**part, "without": ["angle"]}, found) is None
    assert evidence.part_value({**part, "subject": "not_carried"}, found) == 9.0
    assert evidence.part_value({**part, "details": {"layer": 3}}, found) is None
    # of other images only where they are named
    found["records"].append({**found["records"][0], "value": 0.75, "data": "eurosat"})
    assert evidence.part_value(part, found) == 0.25
    assert evidence.part_value({**part, "data": "eurosat"}, found) == 0.75


@pytest.mark.parametrize(("spread", "effect", "level"), [(1.0, 1.0, 0.05), (1.0, 0.5, 0.05), (2.0, 1.0, 0.0125)])
def test_the_seeds_that_would_decide_have_the_power_by_simulation(spread, effect, level):
    n = seeds_needed(spread, effect, level)
    rng = np.random.default_rng(0)
    found = [
        np.mean(stats.ttest_1samp(rng.normal(effect, spread, (4000, count)), 0, axis=1).pvalue < level)
        for count in (n, n - 1)
    ]
    assert found[0] > 0.78
    assert found[1] < 0.82
    assert seeds_needed(spread, 0.0) is None
    assert seeds_needed(1.0, 1e-4, most=100) is None


def test_the_studies_of_the_repository_are_read_and_their_page_is_fresh():
    for file in sorted((ROOT / "experiments").glob("*.yaml")):
        study = read_experiment(file)
        assert all(isinstance(arm, Arm) for arm in study.arms.values())
        for found in (file.with_suffix("")).glob("*.json"):
            content = json.loads(found.read_text())
            assert (content["study"], found.name) == (study.name, f"{content['arm']}-seed{content['seed']}.json")
            assert content["arm"] in study.arms
            # a cell runs on one device whatever the study says; settings that came later are not in it
            now = flatten(study.config(content["arm"], content["seed"])) | {"runtime.devices": 1}
            known = content["settings"].keys() & now.keys()
            assert {key: content["settings"][key] for key in known} == {key: now[key] for key in known}
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "evidence.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_records_of_every_measurement_are_known_as_its_own():
    """A name with "-", such as imagenet-c, has records with "_"."""
    assert [name for name in MEASUREMENTS if measurement_of(experiment._evaluation_of(name)).name != name] == []
    assert [name for name in MEASUREMENTS if "-" in experiment._evaluation_of(name)] == []
