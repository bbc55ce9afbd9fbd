"""The command line as a user meets it: every mistake is one line on stderr and exit status 2."""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equimid.cli import main
from equimid.cli.entry import _split
from equimid.config import Config, differences, flatten, load_config, override, save_config
from equimid.console import is_main_process
from equimid.engine import latest_checkpoint
from equimid.errors import UserError
from equimid.recipes import ROWS, recipe
from equimid.records import read_records
from helpers.command_line import QUICK, ROUTINE, draw_images, equimid


def test_a_folder_with_three_odd_files_among_two_hundred(tmp_path):
    """A truncated JPEG and a text file named .png are listed and left out; a 16-bit grey PNG is used."""
    photos = tmp_path / "photos"
    draw_images(photos / "deep" / "er", 200)
    whole = (photos / "deep" / "er" / "000.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "notes.png").write_text("not an image")
    Image.fromarray((np.arange(400).reshape(20, 20) * 150).astype(np.uint16)).save(photos / "grey16.png")
    out = tmp_path / "run"
    done = equimid("pretrain", photos, "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "201 images, 2 left out" in done.stderr.replace("\n", " ")
    listed = (out / "unreadable.csv").read_text()
    assert "truncated.jpg" in listed
    assert "notes.png" in listed
    assert "grey16" not in listed
    for name in (
        "config.yaml",
        "metrics.csv",
        "records.jsonl",
        "run.json",
        "report.html",
        "backbone/model.safetensors",
    ):
        assert (out / name).stat().st_size > 0, name
    kinds = {r.evaluation for r in read_records(out / "records.jsonl")}
    assert kinds == ROUTINE, "without labels there are no probes"
    again = equimid("report", out)
    assert again.returncode == 0, again.stderr


def test_a_labelled_folder_is_probed_and_compared(tmp_path):
    data = tmp_path / "data"
    for split in ("train", "test"):
        for i, name in enumerate(("dark", "light")):
            draw_images(data / split / name, 40)
            for file in (data / split / name).iterdir():
                Image.open(file).point(lambda v, i=i: v // 4 + 150 * i).save(file)
    out = tmp_path / "run"
    done = equimid("pretrain", data, "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "80 images" in done.stderr
    top1 = {(r.evaluation, r.subject): r.value for r in read_records(out / "records.jsonl") if r.metric == "top1"}
    assert set(top1) == {(e, s) for e in ("knn", "linear") for s in ("backbone", "random", "pixels")}
    assert top1["knn", "pixels"] == 100
    other = equimid("evaluate", out, "--data", "digits")
    assert other.returncode == 0, other.stderr
    assert {r.data for r in read_records(out / "records.jsonl")} == {str(data), "digits"}
    page = tmp_path / "two.html"
    both = equimid("report", out, out, "--out", page)
    assert both.returncode == 0, both.stderr
    assert page.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "nowhere/photos"], ["nowhere/photos", "does not exist"]),
        (["pretrain", "empty"], ["no image", "empty"]),
        (["pretrain", "broken"], ["no readable image", "0.png"]),
        (["pretrain", "small"], ["2 x 2 px", "patch of 4 px"]),
        (["pretrain", "few"], ["only 3 images", "train.batch_size=3"]),
        (["pretrain", "digit"], ["did you mean 'digits'"]),
        (["pretrain", "digits", "--recipe", "ser-tny"], ["unknown recipe", "ser-tiny"]),
        (["pretrain", "digits", "ser.wieght=1"], ["unknown setting 'ser.wieght'", "'ser.weight'"]),
        (["pretrain", "digits", "ser.weight=heavy"], ["ser.weight", "'heavy'", "number"]),
        (["pretrain", "digits", "ser.weight=-1"], ["ser.weight is -1"]),
        (["pretrain", "digits", "ser.layers=7"], ["layer 7 is outside the network", "1 to 3"]),
        (["pretrain", "digits", "ser.layers=0,2"], ["layer 0 is outside the network"]),
        (["pretrain", "digits", "backbone.image_size=18"], ["not a multiple of the 4 px patch", "try 16"]),
        (["pretrain", "digits", "train.batch_size=1"], ["at least two are needed"]),
        (["pretrain", "digits", "ser=null", "train.accumulate=32"], ["one image in each"]),
        (["pretrain", "digits", "recipe=mocov3-tiny"], ["--recipe mocov3-tiny"]),
        (["pretrain", "digits", "data.source=few"], ["named twice"]),
        (["pretrain", "digits", "--out", "/dev/null/x"], ["cannot write into /dev/null/x"]),
        (
            ["pretrain", "digits", "train.batch_size=5", "runtime.devices=2"],
            ["does not divide over 2", "multiple of 2"],
        ),
        (["pretrain", "digits", "runtime.accelerator=cuda"], ["no CUDA device"]),
        (["pretrain", "digits", "--out", "file.txt"], ["file.txt is a file"]),
        (["pretrain", "few", "train.batch_size=2", "data.shuffle=shards"], ["few is not packed", "shuffle=whole"]),
        (["evaluate", "empty"], ["not a run's folder"]),
        (["pack", "few", "out", "--shard-mib", "0"], ["--shard-mib is 0"]),
        (["report", "empty"], ["empty"]),
        (["report", "empty", "ser.weight=3"], ["takes no settings"]),
        (["recipes", "show", "ser-big"], ["unknown recipe", "Sizes are"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_text("x")
    (tmp_path / "file.txt").write_text("x")
    draw_images(tmp_path / "small", 3, size=(2, 2))
    draw_images(tmp_path / "few", 3)
    extra = []
    if arguments[0] == "pretrain":
        given = {a.split("=")[0] for a in arguments}
        extra = [a for a in QUICK if a.split("=")[0] not in given and a not in ("--recipe", "ser-tiny")]
        extra += [] if "--recipe" in arguments else ["--recipe", "ser-tiny"]
        extra += [] if "--out" in arguments else ["--out", "run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["equimid", *arguments, *extra])
    with pytest.raises(SystemExit) as exit_:
        main()
    # what was logged before has a time in front
    (told,) = [line for line in capsys.readouterr().err.splitlines() if not line[:2].isdigit()]
    assert exit_.value.code == 2
    assert told.startswith("equimid: ")
    for word in words:
        assert str(word) in told


def test_a_run_that_was_refused_leaves_nothing_behind_and_binds_to_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "few", 4)

    def run(data, *settings):
        arguments = ["pretrain", data, *QUICK, "train.steps=1", *settings, "--out", "runs/one"]
        monkeypatch.setattr(sys, "argv", ["equimid", *arguments])
        main()

    with pytest.raises(SystemExit):
        run("nowhere", "train.batch_size=4")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit):
        run("few", "train.batch_size=4", "data.shuffle=shards")
    # as after running out of memory before the first checkpoint: the rows are of other settings, so their columns too
    (tmp_path / "runs/one/metrics.csv").write_text("step,loss/other\n1,2\n")
    save_config(recipe("ser-tiny"), tmp_path / "runs/one/config.yaml")
    run("few", "train.batch_size=4")
    assert "loss/total" in (tmp_path / "runs/one/metrics.csv").read_text()
    with pytest.raises(SystemExit):
        run("few", "train.batch_size=2")


def test_usage_errors_of_the_parser_exit_with_2(tmp_path):
    for arguments in (["pretrain"], ["pretrian", "digits"], ["pretrain", "digits", "--receipe", "x"]):
        done = equimid(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert not (tmp_path / "runs").exists()


def test_help_and_recipes_are_readable():
    top = equimid("--help")
    assert top.returncode == 0
    for word in ("pretrain", "evaluate", "sweep", "report", "demo", "recipes"):
        assert word in top.stdout
    pretrain = equimid("pretrain", "--help").stdout
    assert "KEY=VALUE" in pretrain
    assert len(re.findall(r"^  [a-z]+\.[a-z_.]+=", pretrain, flags=re.MULTILINE)) == 10
    assert "equimid recipes show NAME" in pretrain
    assert equimid("--version").stdout.split() == ["equimid", version("equimid")]
    listed = equimid("recipes").stdout
    assert all(f"  {row} " in listed for row in ROWS)
    assert "ser.weight=1.0" in equimid("recipes", "show", "ser-small").stdout.split()


def test_a_folder_per_image_has_no_probes_but_everything_else(tmp_path):
    """Photographs sorted by date: many folders of one image are no classes to learn."""
    for i in range(34):
        draw_images(tmp_path / "dates" / f"day{i:02}", 1)
    out = tmp_path / "run"
    done = equimid("pretrain", tmp_path / "dates", "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "cannot be split" in done.stderr
    assert {r.evaluation for r in read_records(out / "records.jsonl")} == ROUTINE


def test_a_finished_run_again(tmp_path):
    """Another spelling of the folder goes on; other evaluation settings are measured; changed data are refused."""
    photos, out = tmp_path / "photos", tmp_path / "run"
    draw_images(photos, 34)
    run = ["--out", out, *QUICK]
    assert equimid("pretrain", photos, *run).returncode == 0
    first = (out / "records.jsonl").read_text()
    again = equimid("pretrain", f"{photos}/", *run, "evaluation.equivariance_images=6")
    assert again.returncode == 0, again.stderr
    assert first != (out / "records.jsonl").read_text()
    assert {r.n for r in read_records(out / "records.jsonl") if r.evaluation == "equivariance"} == {6}
    (photos / "000.jpg").unlink()
    listed = (out / "data.json").read_text()
    refused = equimid("pretrain", photos, *run)
    assert refused.returncode == 2
    assert "34 images then, 33 now" in refused.stderr
    assert (out / "data.json").read_text() == listed, "the list of the run's images was overwritten"


def test_records_name_the_checkpoint_that_was_measured(tmp_path):
    """Not the newest checkpoint of the folder, where the backbone is of an older one."""
    out = tmp_path / "run"
    assert equimid("pretrain", "digits", "--out", out, *QUICK).returncode == 0
    stored = json.loads((out / "backbone" / "config.json").read_text())["checkpoint"]
    assert stored == latest_checkpoint(out / "checkpoints").identity
    text = (out / "backbone" / "config.json").read_text().replace(stored, "of an older one")
    (out / "backbone" / "config.json").write_text(text)
    done = equimid("evaluate", out)
    assert done.returncode == 0, done.stderr
    measured = {r.checkpoint for r in read_records(out / "records.jsonl") if r.subject == "backbone"}
    assert measured == {"of an older one"}


def test_settings_are_known_by_their_form_whatever_lies_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ser.weight=3").mkdir()  # as a sweep leaves it
    long = "evaluation.linear_rates=" + "0.001," * 100 + "1"
    words = ["photos", "ser.weight=3", long, "--out", "runs/a=b", "seed=3", "./ser.weight=3"]
    assert _split(words) == (["photos", "--out", "runs/a=b", "./ser.weight=3"], ["ser.weight=3", long, "seed=3"])


@pytest.mark.parametrize(
    ("environment", "main_process"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
    ],
)
def test_which_process_speaks(monkeypatch, environment, main_process):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is main_process


# ---- configuration -------------------------------------------------------------------------------------------------


def test_overrides_are_typed():
    config = override(
        recipe("ser-tiny"),
        ["ser.layers=1,3", "optim.lr=1e-3", "views.crop_scale=[0.2, 1]", "runtime.devices=auto", "backbone.depth=null",
         "data.source=3", "ser.complement=true"],
    )  # fmt: skip
    assert config.addons["ser"].layers == (1, 3)
    assert config.optim.lr == 1e-3
    assert config.views.crop_scale == (0.2, 1.0)
    assert config.backbone.depth is None
    assert config.data.source == "3"
    assert config.addons["ser"].complement is True
    assert override(config, ["ser.layers=2"]).addons["ser"].layers == (2,)
    assert "ser" not in override(config, ["ser=null"]).addons
    assert override(recipe("mocov3-tiny"), ["ser.weight=0.5"]).addons["ser"].weight == 0.5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ser.weight", "write key=value"),
        ("ser.weight=[1]", "ser.weight"),
        ("ser.layers=a", "layers"),
        ("ser.source=photo", "resize"),
        ("train.epochs=2.5", "train.epochs"),
        ("weight=1", "ser.weight"),
        ("ser=3", "ser"),
        ("views.first.hue=0.7", "hue"),
        ("ser={wieght: 0.5}", "ser is a group of settings"),
        ("views.first={blurr: 0.1}", "views.first is a group of settings"),
        ("ser=", "has no value"),
        ("train.epochs=", "has no value"),
        ("backbone.drop_path=2", r"in \[0, 1\)"),
        ("backbone.drop_path=-0.5", r"in \[0, 1\)"),
    ],
)
def test_wrong_assignments(assignment, message):
    with pytest.raises(UserError, match=message) as caught:
        override(recipe("ser-tiny"), [assignment])
    assert "\n" not in str(caught.value)


def test_a_configuration_file_with_an_unknown_key_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    save_config(Config(), file)
    file.write_text(file.read_text() + "colour: red\n")
    with pytest.raises(UserError, match="unknown setting 'colour'"):
        load_config(file)
    file.write_text("- 1")
    with pytest.raises(UserError, match="does not hold settings"):
        load_config(file)


def test_differences_ignore_what_does_not_change_the_training():
    one = recipe("ser-tiny")
    other = override(one, ["runtime.workers=7", "evaluation.knn_k=5", "ser.weight=2", "data.tolerated_unreadable=0.3"])
    assert differences(one, other) == {"ser.weight": (3.0, 2.0)}
    assert any(key.startswith("ser") for key in differences(one, override(one, ["ser=null"])))
    assert len(flatten(one)) > 50


def test_the_demo_recipes_differ_only_in_the_method():
    """T6: the comparison is not confounded."""
    ser, control, base = (recipe(f"{name}-tiny") for name in ("ser", "control", "mocov3"))
    assert set(differences(ser, control)) == {"recipe", "ser.weight"}
    assert {key.split(".")[0] for key in differences(ser, base)} == {"recipe", "ser", "backbone"}
    assert [key for key in differences(ser, base) if key.startswith("backbone")] == ["backbone.cls_layer"]


def test_the_run_folder_holds_its_settings_resolved(tmp_path):
    out = tmp_path / "run"
    done = equimid("pretrain", "digits", "--out", out, *QUICK, "ser.weight=0.25")
    assert done.returncode == 0, done.stderr
    config = load_config(out / "config.yaml")
    assert config.addons["ser"].weight == 0.25
    assert config.data.source == "digits"
    described = json.loads((out / "backbone" / "config.json").read_text())
    assert described["architecture"] == "equimid_vit"
    assert described["model_args"]["cls_layer"] == 2
    assert Path(out / "report.html").read_text().count("<html") == 1


def test_settings_of_an_older_version_have_the_name_of_today(tmp_path):
    config = override(recipe("ser-tiny"), ["ser.fraction=0.5", "evaluation.equivariance.probe_layers=2"])
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "fraction: 0.5" in text
    assert "probe_layers: 2" in text
    (tmp_path / "config.yaml").write_text(text.replace("fraction: 0.5", "share: 0.5").replace("probe_", "readback_"))
    assert load_config(tmp_path / "config.yaml") == config
    with pytest.raises(UserError, match=r"ser\.share is called ser\.fraction now"):
        override(config, ["ser.share=0.2"])
