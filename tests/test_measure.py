"""`equimid measure`: any network, any measurement, and every mistake in one line."""

import numpy as np
import pytest
import yaml
from PIL import Image

from equimid.cli import _parse, _sorted
from equimid.errors import UserError
from equimid.evaluation import MEASUREMENTS
from equimid.measure import measure
from equimid.records import read_records
from test_cli import QUICK, draw_images, equimid

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small Hugging Face vision transformer with weights of its own, as its folder."""
    folder = tmp_path_factory.mktemp("hf") / "vit"
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=4
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Dark and light images, in folders."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        for i, name in enumerate(("dark", "light")):
            draw_images(root / split / name, 11)
            for file in (root / split / name).iterdir():
                Image.open(file).point(lambda v, i=i: v // 4 + 150 * i).save(file)
    return root


SMALL = ["evaluation.equivariance_images=6", "evaluation.linear_epochs=3", "runtime.workers=0"]


def test_a_network_of_others_is_measured_into_a_folder_of_its_own(vit, photos, tmp_path):
    out = tmp_path / "vit"
    done = equimid(
        "measure", "knn", "equivariance", "--model", f"hf:{vit}", "--data", photos, "--out", out, *SMALL,
        "evaluation.knn_k=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((out / "model.yaml").read_text())["weights"] == "pretrained"
    records = read_records(out / "records.jsonl")
    assert {r.subject for r in records if r.evaluation == "knn"} == {"backbone", "random", "pixels"}
    assert all(r.details["k"] == 3 for r in records if r.evaluation == "knn")
    layers = {r.details["layer"] for r in records if r.evaluation == "equivariance"}
    assert layers == {1, 2, 3}
    assert {r.subject for r in records if r.evaluation == "equivariance"} == {"backbone", "random", "mismatched"}
    page = (out / "report.html").read_text()
    assert f"hf:{vit}" in page
    again = equimid("report", out)
    assert again.returncode == 0, again.stderr


def test_two_processes_measure_what_one_does(vit, photos, tmp_path, monkeypatch):
    found = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        monkeypatch.setenv("EQUIMID_DATA", str(tmp_path / f"cache{devices}"))  # so that the second one computes too
        words = ["measure", "linear", "--model", f"hf:{vit}", "--data", photos, "--out", out, *SMALL]
        done = equimid(*words, f"runtime.devices={devices}", "runtime.accelerator=cpu")
        assert done.returncode == 0, done.stderr
        found.append({(r.evaluation, r.metric, r.subject): r.value for r in read_records(out / "records.jsonl")})
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_a_runs_network_is_measured_into_its_folder(photos, tmp_path):
    run = tmp_path / "run"
    assert equimid("pretrain", photos, "--out", run, *QUICK, "train.batch_size=16").returncode == 0
    before = read_records(run / "records.jsonl")
    settings = (run / "config.yaml").read_text()
    page = measure(["knn"], str(run), str(photos), random=True, settings=["evaluation.knn_k=1"])
    assert page == run / "report.html"
    after = read_records(run / "records.jsonl")
    assert {r.evaluation for r in after} == {r.evaluation for r in before}
    assert {r.details["k"] for r in after if r.evaluation == "knn"} == {1}
    assert {r.checkpoint for r in after if r.subject == "backbone"} == {r.checkpoint for r in before} - {""}
    assert (run / "config.yaml").read_text() == settings, "measuring changes no run"
    # its backbone's folder, handed on without the run, is the same network
    alone = tmp_path / "handed" / "on"
    alone.parent.mkdir()
    (run / "backbone").rename(alone)
    measure(["knn"], str(alone), str(photos), out=tmp_path / "other", settings=["evaluation.knn_k=1"])
    value = {r.value for r in after if (r.evaluation, r.subject) == ("knn", "backbone")}
    measured = read_records(tmp_path / "other" / "records.jsonl")
    assert {r.value for r in measured if r.subject == "backbone"} == value


def test_random_weights_are_recorded_as_random(photos, tmp_path):
    measure(
        ["equivariance"], "timm:test_vit", str(photos), out=tmp_path / "m", weights="random", settings=SMALL
    )  # fmt: skip
    subjects = {r.subject for r in read_records(tmp_path / "m" / "records.jsonl")}
    assert "random" in subjects
    assert "backbone" not in subjects


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        measure(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_told_in_a_line(vit, photos, tmp_path):
    model = f"hf:{vit}"
    assert "no measurement 'knm'" in refused(["knm"], model, str(photos))
    assert "there are knn" in refused(["knm"], model, str(photos))
    assert "no model 'nowhere'" in refused(["knn"], "nowhere", str(photos))
    assert "no backbone" in refused(["knn"], str(photos), str(photos))
    assert "does not say how" in refused(["knn"], model, str(photos), settings=["train.epochs=3"])
    assert "does not say how" in refused(["knn"], model, str(photos), settings=["evaluation.network=momentum"])
    out = tmp_path / "kept"
    measure(["knn"], model, str(photos), out=out, settings=SMALL)
    held = (out / "records.jsonl").read_bytes()
    assert "holds measurements of" in refused(
        ["knn"], "timm:test_vit", str(photos), out=out, weights="random", settings=SMALL
    )
    assert (out / "records.jsonl").read_bytes() == held


def test_data_without_labels_or_with_other_classes_is_told(vit, tmp_path):
    draw_images(tmp_path / "flat", 5)
    assert "has no labels" in refused(["knn"], f"hf:{vit}", str(tmp_path / "flat"), out=tmp_path / "a")
    for split, names in (("train", ("cat", "dog")), ("test", ("cat", "cow"))):
        for name in names:
            draw_images(tmp_path / "pets" / split / name, 3)
    told = refused(["knn"], f"hf:{vit}", str(tmp_path / "pets"), out=tmp_path / "b")
    assert "do not match: cow in one" in told
    assert not (tmp_path / "b" / "records.jsonl").exists()


def test_measure_lists_what_there_is():
    done = equimid("measure")
    assert done.returncode == 0
    assert all(name in done.stdout for name in MEASUREMENTS)
    half = equimid("measure", "knn", "--data", "digits")
    assert half.returncode == 2
    assert "--model" in half.stderr


def test_values_to_vary_are_no_settings():
    words = ["sweep", "ser-tiny", "--seeds", "0", "1", "--vary", "ser.weight=0,1", "seed=3"]
    words += ["--vary", "train.epochs=1,2", "--out", "x", "optim.lr=1"]
    arguments, settings = _sorted(words)
    assert settings == ["seed=3", "optim.lr=1"]
    command = _parse(arguments)
    assert command.vary == ("ser.weight=0,1", "train.epochs=1,2")
    assert command.seeds == (0, 1)
    assert _parse(["sweep", "ser-tiny"]).vary == ()


def test_every_subject_sees_the_same_images(vit, photos, tmp_path):
    """Probes of network, random network and pixels have the same n."""
    measure(["knn"], f"hf:{vit}", str(photos), out=tmp_path / "m", settings=SMALL)
    assert {r.n for r in read_records(tmp_path / "m" / "records.jsonl")} == {22}
    assert np.isfinite([r.value for r in read_records(tmp_path / "m" / "records.jsonl")]).all()
