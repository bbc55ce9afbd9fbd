"""Sweeps: every combination with every seed, gone on with, added to; and the page that compares them."""

import re
from html import unescape
from types import SimpleNamespace

import pytest
import yaml
from scipy import stats

from equimid.config import flatten, save_config
from equimid.engine import Outcome
from equimid.errors import UserError
from equimid.records import Record, read_records, write_records
from equimid.report import write_report, write_sweep_report
from equimid.runs import sweep
from equimid.runs.sweep import parse_vary, run_sweep

QUICK = [
    "backbone.embed_dim=24", "backbone.depth=3", "backbone.num_heads=2", "backbone.image_size=16",
    "backbone.patch_size=4", "method.hidden=16", "method.dim=8", "ser.hidden=8", "train.batch_size=32",
    "train.steps=2", "runtime.workers=0", "runtime.tensorboard=false", "evaluation.linear_epochs=2",
    "evaluation.equivariance_images=8",
]  # fmt: skip


def value_of(config):
    """What the fake training comes to: the weight helps, and seeds differ in what all combinations share."""
    return 50 + 10 * flatten(config)["ser.weight"] + 3 * config.seed + 0.1 * (config.seed % 2)


@pytest.fixture
def runs(monkeypatch):
    """A fake `pretrain`; `calls` are the runs it was asked for, `ends` says what becomes of a call."""
    seen = SimpleNamespace(calls=[], ends=lambda config: None)

    def pretrain(config, folder):
        seen.calls.append((flatten(config)["ser.weight"], config.seed))
        signal = seen.ends(config)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder / "config.yaml")
        if signal is not None:
            return Outcome(1, 2, signal)
        common = {"subject": "backbone", "data": config.data.source, "seed": config.seed, "checkpoint": "x"}
        places = [
            Record("equivariance", metric, 0.1 * layer + 0.01 * config.seed, 8,
                   details={"layer": layer, "kind": kind}, **common)
            for metric in ("place", "centred_cosine")
            for layer in (1, 2, 3)
            for kind in ("quarter turns", "flip")
        ]  # fmt: skip
        knn = Record("knn", "top1", value_of(config), 500, unit="%", low=0.0, high=100.0, **common)
        random = Record("knn", "top1", 9.0, 500, **{**common, "subject": "random"}, unit="%")
        write_records(folder / "records.jsonl", [knn, random, *places])
        (folder / "report.html").write_text("")
        return Outcome(2, 2, None)

    monkeypatch.setattr(sweep, "pretrain", pretrain)
    # drawn anew after every run: here only where a test reads it
    monkeypatch.setattr(sweep, "write_sweep_report", lambda out: out / "report.html")
    return seen


def run(out, seeds=(0, 1), vary=("ser.weight=0,0.5",), settings=(), recipe="ser-tiny", data="digits"):
    return run_sweep(recipe, data, seeds, vary, out, [*QUICK, *settings])


def told_of(out):
    """The words of a sweep's page, written now."""
    return text_of(write_sweep_report(out))


def text_of(page):
    """The words of a page, one space between them."""
    body = page.read_text().split("</style>")[1]
    return " ".join(unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", body, flags=re.DOTALL)).split())


def test_every_combination_with_every_seed_and_again(tmp_path, runs):
    failures = run(tmp_path, vary=["ser.weight=0,0.5", "train.epochs=10,20"])[1]
    # seed by seed: a sweep that is stopped has whole comparisons
    assert runs.calls == [(0, 0), (0, 0), (0.5, 0), (0.5, 0), (0, 1), (0, 1), (0.5, 1), (0.5, 1)]
    assert failures == []
    found = {(config["ser"]["weight"], config["train"]["epochs"], config["seed"]): path.parent.relative_to(tmp_path)
             for path in tmp_path.rglob("config.yaml") for config in [yaml.safe_load(path.read_text())]}  # fmt: skip
    assert len(found) == 8
    assert str(found[0.5, 20, 1]) == "ser.weight=0.5_train.epochs=20/seed=1"
    assert str(found[0, 10, 0]) == "ser.weight=0_train.epochs=10/seed=0"
    assert "8 of 8 finished" in told_of(tmp_path)


def test_a_stopped_sweep_goes_on(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(sweep, "write_sweep_report", write_sweep_report)
    runs.ends = lambda config: 2 if (len(runs.calls) == 3) else None
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(runs.calls) == 3
    # the page is there, with what is done and what is not
    told = text_of(tmp_path / "report.html")
    assert "2 of 4 finished" in told
    assert "ser.weight=0 seed 1 is not finished" in told
    assert "ser.weight=0.5 seed 0 is not finished" not in told
    assert "(n = 1)" in told
    run(tmp_path)
    assert "4 of 4 finished" in text_of(tmp_path / "report.html")
    assert "not finished" not in text_of(tmp_path / "report.html")


def test_more_seeds_and_values_add_to_the_grid(tmp_path, runs):
    run(tmp_path)
    run(tmp_path, seeds=(1, 4), vary=["ser.weight=0.50,1.0"])
    held = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert held["seeds"] == [0, 1, 4]
    assert held["vary"] == {"ser.weight": ["0", "0.5", "1"]}
    assert len(held["finished"]) == 9
    assert runs.calls[4:] == [(w, s) for s in (0, 1, 4) for w in (0, 0.5, 1)]
    assert sorted(path.name for path in tmp_path.glob("ser.weight*")) == [
        "ser.weight=0",
        "ser.weight=0.5",
        "ser.weight=1",
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipe": "control-tiny"}, ["recipe was ser-tiny and is now control-tiny"]),
        ({"data": "other"}, ["data was digits and is now other"]),
        ({"settings": ["optim.lr=0.5"]}, ["optim.lr was", "now 0.5"]),
        ({"vary": ["ser.temperature=0.2"]}, ["what is varied was ser.weight and is now ser.temperature"]),
    ],
)
def test_another_sweep_in_the_folder_is_refused(tmp_path, runs, changed, words):
    run(tmp_path)
    held = (tmp_path / "sweep.yaml").read_text()
    with pytest.raises(UserError) as caught:
        run(tmp_path, **changed)
    for word in words:
        assert word in str(caught.value)
    assert len(runs.calls) == 4
    assert (tmp_path / "sweep.yaml").read_text() == held


def test_measured_anew_is_not_set_beside_what_is_not_yet(tmp_path, runs):
    run(tmp_path)
    runs.ends = lambda config: 15 if len(runs.calls) == 6 else None
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings=["evaluation.knn_k=3"])
    assert "1 of 4 finished" in told_of(tmp_path)


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, runs, caplog):
    def ends(config):
        if (flatten(config)["ser.weight"], config.seed) == (0.5, 0):
            raise UserError("the loss is not\nfinite")

    runs.ends = ends
    with caplog.at_level("INFO", "equimid"):
        failures = run(tmp_path)[1]
    assert failures == ["ser.weight=0.5 seed 0: the loss is not finite"]
    assert len(runs.calls) == 4
    assert "2 of 4: ser.weight=0.5 seed 0" in caplog.messages
    assert "ser.weight=0.5 seed 0 failed: the loss is not finite" in told_of(tmp_path)
    runs.ends = lambda config: None
    assert run(tmp_path)[1] == []
    assert "failed" not in told_of(tmp_path)


def test_several_processes_are_refused_before_anything_runs(tmp_path, runs):
    """They are launched once for each program: the second training would meet what the first one left."""
    with pytest.raises(UserError, match="one device each"):
        run(tmp_path, settings=["runtime.devices=2", "runtime.accelerator=cpu"])
    assert runs.calls == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vary": ["ser.wieght=0,1"]}, "unknown setting 'ser.wieght'.*ser.weight"),
        ({"vary": ["ser.weight=0,heavy"]}, "ser.weight.*heavy"),
        ({"vary": ["ser.weight=0,-1"]}, "ser.weight is -1"),
        ({"vary": ["ser.layers=[2],[7]"]}, "layer 7 is outside the network"),
        ({"vary": ["ser.weight"]}, "expected a setting and its values"),
        ({"vary": ["ser.weight=0,,1"]}, "expected a setting and its values"),
        ({"vary": ["ser.weight=1,1.0"]}, "names a value twice"),
        ({"vary": ["ser.weight=1", "ser.weight=2"]}, "names ser.weight twice"),
        ({"vary": ["seed=0,1"]}, "use --seeds"),
        ({"settings": ["seed=3"]}, "--seeds gives seed already"),
        ({"settings": ["ser.weight=3"]}, "--vary gives ser.weight already"),
        ({"settings": ["data.source=x"]}, "--data gives data.source already"),
        ({"seeds": [0, 1, 0]}, "names 0 twice"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [0, -1]}, "seed is -1"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"recipe": "ser-tny"}, "unknown recipe"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, runs, given, words):
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path / "out", **given)
    assert "\n" not in str(caught.value)
    assert runs.calls == []
    assert not (tmp_path / "out" / "sweep.yaml").exists()


def test_folders_that_hold_no_sweep(tmp_path, runs):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(tmp_path / "file")
    with pytest.raises(UserError, match="not a sweep"):
        write_sweep_report(tmp_path)
    (tmp_path / "sweep.yaml").write_text("- 1")
    with pytest.raises(UserError, match="does not hold a sweep"):
        run(tmp_path)
    (tmp_path / "sweep.yaml").write_text("schema: 99")
    with pytest.raises(UserError, match="newer version"):
        run(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="folder of a run"):
        run(tmp_path)


def test_one_sweep_at_a_time(tmp_path, runs):
    def ends(config):
        with pytest.raises(UserError, match="in use by another"):
            run(tmp_path)

    runs.ends = ends
    run(tmp_path, seeds=[0], vary=["ser.weight=1"])
    assert len(runs.calls) == 1


def test_values_and_folders():
    assert parse_vary(["ser.layers=[3],[3, 9]", "ser.weight= 0 ,1e-3"]) == {
        "ser.layers": ["[3]", "[3, 9]"],
        "ser.weight": ["0", "1e-3"],
    }
    plan = sweep.Sweep("ser-tiny", "digits", [], [0], {"ser.layers": ["2", "[2,3]"], "optim.lr": ["1e-3", "0.0010"]})
    assert [c.folder for c in plan.grid()] == [
        f"ser.layers={layers}_optim.lr=0.001" for layers in ("2", "2,3") for _ in range(2)
    ]
    assert sweep.Sweep("ser-tiny", "digits", [], [0], {}).grid()[0].folder == "ser-tiny"
    odd = [sweep.Combination(name, {}, None).folder for name in ("a=x/y", "a=x:y", f"a={'x' * 300}", f"a={'x' * 301}")]
    assert len(set(odd)) == 4
    assert all(re.fullmatch(r"[\w.=+,-]{1,150}", folder) for folder in odd)


def test_the_page_compares_as_scipy_does(tmp_path, runs):
    run(tmp_path, seeds=(0, 1, 2), vary=["ser.weight=0.5,0,0.51"])
    told = told_of(tmp_path)
    assert f"equimid sweep ser-tiny --data digits --vary ser.weight=0.5,0,0.51 --seeds 0 1 2 --out {tmp_path} b" in told
    # 55, 58.1, 61 by hand
    mean, low = 174.1 / 3, stats.ttest_1samp([55, 58.1, 61], 0).confidence_interval(0.95).low
    assert f"ser.weight=0.5 {mean:.1f} ± {mean - low:.1f} (n = 3)" in told
    assert "Differences to ser.weight=0.5" in told
    # the fake has no noise but what the seeds share: no spread, no test
    assert "ser.weight=0 −5.0 (n = 3) not distinguishable · no test" in told
    assert "place, layer 2 (SER)" in told
    assert "place, layer 3 (last)" in told
    assert "layer 1" not in told
    assert "centred cosine" not in told
    assert "0.210 ± 0.025 (n = 3)" in told, "0.20, 0.21, 0.22"
    assert "ser.weight=0.5, seed 1 58.1 0.210 0.310" in told, "every seed in numbers"


def test_differences_are_corrected_for_their_number(tmp_path, runs, monkeypatch):
    noise = {0: [0.0, 0.2, 0.1, 0.3], 1: [1.2, 1.0, 1.5, 1.0], 2: [0.4, 0.1, 0.3, 0.2]}
    monkeypatch.setitem(globals(), "value_of", lambda config: 50 + noise[flatten(config)["ser.weight"]][config.seed])
    run(tmp_path, seeds=range(4), vary=["ser.weight=0,1,2"])
    told = told_of(tmp_path)
    # kNN alone can be tested: place does not depend on the weight here
    p = [stats.ttest_rel(noise[weight], noise[0]).pvalue for weight in (1, 2)]
    assert p[0] < 0.025 < 0.05 < p[1]
    assert f"ser.weight=1 +1.0 ± {_half(noise[1], noise[0]):.1f} (n = 4) higher · p = {2 * p[0]:.3f}" in told
    assert f"ser.weight=2 +0.1 ± {_half(noise[2], noise[0]):.1f} (n = 4) not distinguishable · p = {p[1]:.3f}" in told


def _half(ours, theirs):
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    return (interval.high - interval.low) / 2


def test_runs_that_share_all_but_the_seed_are_grouped_in_a_report(tmp_path, runs):
    run(tmp_path, seeds=(0, 1, 2))
    folders = sorted(tmp_path.glob("*/seed=*"))
    grouped = text_of(write_report(folders, tmp_path / "all.html"))
    assert "Means over seeds" in grouped
    assert "ser.weight=0.5 58.0 ± " in grouped
    # two folders of one training count once
    again = tmp_path / "again"
    again.mkdir()
    for name in ("config.yaml", "records.jsonl"):
        (again / name).write_text((folders[0] / name).read_text())
    doubled = text_of(write_report([*folders[:3], again], tmp_path / "doubled.html"))
    assert "again has the settings and the seed of" in doubled
    assert "(n = 3)" in doubled
    assert "(n = 4)" not in doubled
    # a run that was stopped and measured is no training of that many steps
    (folders[2] / "run.json").write_text('{"views": "2 x 32", "steps": 9, "total_steps": 60}')
    fewer = text_of(write_report(folders[:3], tmp_path / "fewer.html"))
    assert "was stopped at step 9 of 60 and is not counted" in fewer
    assert "(n = 2)" in fewer
    assert "(n = 3)" not in fewer
    (folders[2] / "run.json").unlink()
    # values of single classes stand beside the whole's, and are not it
    for folder in folders[:3]:
        found = [Record("detection", "map", 40.0 + i, 9, "backbone", "cells", 0, "", "%", details=details)
                 for i, details in enumerate(({}, {"class": "WBC"}))]  # fmt: skip
        write_records(folder / "records.jsonl", found)
    assert "40.0 (n = 3)" in text_of(write_report(folders[:3], tmp_path / "boxes.html"))
    alone = text_of(write_report([folders[0], folders[3]], tmp_path / "two.html"))
    assert "Means over seeds" not in alone


def test_a_real_run_is_measured_and_not_trained_again(tmp_path):
    page, failures = run(tmp_path, vary=["ser.weight=1"], seeds=[3])
    assert failures == []
    folder = tmp_path / "ser.weight=1" / "seed=3"
    (knn,) = [r for r in read_records(folder / "records.jsonl")
              if (r.evaluation, r.metric, r.subject) == ("knn", "top1", "backbone")]  # fmt: skip
    assert knn.seed == 3
    assert f"ser.weight=1 {knn.value:.1f} (n = 1)" in text_of(page)
    trained = (folder / "metrics.csv").read_text()
    measured = [(folder / name).stat().st_mtime_ns for name in ("records.jsonl", "report.html")]
    run(tmp_path, vary=["ser.weight=1"], seeds=[3])
    assert (folder / "metrics.csv").read_text() == trained
    assert [(folder / name).stat().st_mtime_ns for name in ("records.jsonl", "report.html")] == measured
