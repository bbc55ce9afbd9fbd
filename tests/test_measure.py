"""`equimid evaluate`: any network, any measurement, and every mistake in one line."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from equimid.cli.entry import _parsers, _split
from equimid.config import override
from equimid.errors import UserError
from equimid.evaluation import MEASUREMENTS, Measurement, labelled_splits
from equimid.recipes import configured
from equimid.records import read_records
from equimid.runs.evaluate import evaluate
from equimid.runs.pretrain import pretrain
from helpers.command_line import QUICK, draw_images, equimid

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
        "evaluate", "knn", "equivariance", "--model", f"hf:{vit}", "--data", photos, "--out", out, *SMALL,
        "evaluation.knn_k=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((out / "model.yaml").read_text())["weights"] == "pretrained"
    records = read_records(out / "records.jsonl")
    assert {r.subject for r in records if r.evaluation == "knn"} == {"backbone", "random", "pixels"}
    assert all(r.details["k"] == 3 for r in records if r.evaluation == "knn")
    layers = {r.details["layer"] for r in records if r.evaluation == "equivariance"}
    assert layers == {1, 2, 3}
    subjects = {r.subject for r in records if r.evaluation == "equivariance"}
    assert subjects == {"backbone", "random", "not_carried", "mismatched"}
    page = (out / "report.html").read_text()
    assert f"hf:{vit}" in page
    again = equimid("report", out)
    assert again.returncode == 0, again.stderr


def test_two_processes_measure_what_one_does(vit, tmp_path, monkeypatch):
    """On images of noise, where the chosen rate and epoch hang on every step."""
    hard = tmp_path / "noise"
    for split in ("train", "test"):
        for i, name in enumerate("abc"):
            draw_images(hard / split / name, 12, size=(24, 20 + i))
    found = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        monkeypatch.setenv("EQUIMID_DATA", str(tmp_path / f"cache{devices}"))  # so that the second one computes too
        words = ["evaluate", "linear", "--model", f"hf:{vit}", "--data", hard, "--out", out, *SMALL]
        done = equimid(*words, f"runtime.devices={devices}", "runtime.accelerator=cpu")
        assert done.returncode == 0, done.stderr
        records = read_records(out / "records.jsonl")
        found.append({(r.evaluation, r.metric, r.subject): (r.value, r.details) for r in records})
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_a_runs_network_is_measured_into_its_folder(photos, tmp_path):
    run = tmp_path / "run"
    assert equimid("pretrain", photos, "--out", run, *QUICK, "train.batch_size=16").returncode == 0
    before = read_records(run / "records.jsonl")
    settings = (run / "config.yaml").read_text()
    page = evaluate(str(run), str(photos), ["knn"], random=True, settings=["evaluation.knn_k=1"])
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
    evaluate(str(alone), str(photos), ["knn"], out=tmp_path / "other", settings=["evaluation.knn_k=1"])
    value = {r.value for r in after if (r.evaluation, r.subject) == ("knn", "backbone")}
    measured = read_records(tmp_path / "other" / "records.jsonl")
    assert {r.value for r in measured if r.subject == "backbone"} == value


def test_folder_to_train_on_is_used_wholly_and_never_tested(vit, photos, tmp_path):
    """A folder of classes without a split is not split when it is given as --train; given as both, it is."""
    plain = str(photos / "train")
    fit, test = labelled_splits(str(photos), plain)
    assert (len(fit), len(test)) == (22, 22)
    assert {test.describe(i) for i in range(22)}.isdisjoint(fit.describe(i) for i in range(22))
    for other in (plain, plain + "/", str(photos / "test" / ".." / "train")):
        fit, test = labelled_splits(plain, other)
        assert len(fit) + len(test) == 22
        shown = [{os.path.realpath(s.describe(i)) for i in range(len(s))} for s in (fit, test)]
        assert not shown[0] & shown[1]


def test_references_are_shown_what_the_network_is(vit, photos, tmp_path, monkeypatch):
    seen = {}

    class Seeing(Measurement):
        def run(self, study, data, train):
            seen[study.scope.subject] = study.preprocessing
            return []

    monkeypatch.setattr(
        "equimid.evaluation.registry.MEASUREMENTS", {"knn": Seeing("knn", "", "", "", references=("random", "pixels"))}
    )
    evaluate(f"hf:{vit}", str(photos), ["knn"], out=tmp_path / "m", settings=["evaluation.crop=0.6"])
    assert {one.crop for one in seen.values()} == {0.6}
    assert seen["random"] == seen["backbone"]
    assert set(seen) == {"backbone", "random", "pixels"}


def test_settings_other_than_the_runs_stand_in_the_records(vit, photos, tmp_path):
    evaluate(f"hf:{vit}", str(photos), ["knn"], out=tmp_path / "m", settings=["evaluation.knn_k=3"])
    records = read_records(tmp_path / "m" / "records.jsonl")
    assert {r.details["settings"] for r in records} == {"evaluation.knn_k=3"}
    assert "measured with evaluation.knn_k=3" in (tmp_path / "m" / "report.html").read_text()


def test_random_weights_of_another_seed_are_another_network(photos, tmp_path):
    given = {"out": tmp_path / "m", "weights": "random"}
    evaluate("timm:test_vit", str(photos), ["feature-maps"], settings=SMALL, **given)
    told = refused(["feature-maps"], "timm:test_vit", str(photos), settings=[*SMALL, "seed=1"], **given)
    assert "seed 0" in told
    assert "seed 1" in told


def test_a_run_that_is_killed_while_it_is_measured_anew_is_measured_at_the_next_start(photos, tmp_path, monkeypatch):
    settings = [s for s in QUICK[2:] if not s.startswith("train.batch")]
    config = configured("ser-tiny", [*settings, "train.batch_size=16", f"data.source={photos}"])
    pretrain(config, tmp_path / "run")
    changed = override(config, ["evaluation.knn_k=3"])
    with monkeypatch.context() as patched:
        patched.setattr("equimid.runs.pretrain.measure_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(changed, tmp_path / "run")
    pretrain(changed, tmp_path / "run")
    records = read_records(tmp_path / "run" / "records.jsonl")
    assert {r.details["k"] for r in records if r.evaluation == "knn"} == {3}
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["steps"] == facts["total_steps"] == 3


def test_random_weights_are_recorded_as_random(photos, tmp_path):
    evaluate(
        "timm:test_vit", str(photos), ["equivariance"], out=tmp_path / "m", weights="random", settings=SMALL
    )  # fmt: skip
    subjects = {r.subject for r in read_records(tmp_path / "m" / "records.jsonl")}
    assert "random" in subjects
    assert "backbone" not in subjects


def refused(*arguments, **options):
    names, model, data = arguments
    with pytest.raises(UserError) as caught:
        evaluate(model, data, names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_told_in_a_line(vit, photos, tmp_path):
    model = f"hf:{vit}"
    assert "no measurement 'knm'" in refused(["knm"], model, str(photos))
    assert "there are knn" in refused(["colour"], model, str(photos))
    assert "did you mean 'map-norms'" in refused(["map_norms"], model, str(photos))
    assert "no model 'nowhere'" in refused(["knn"], "nowhere", str(photos))
    assert "no backbone" in refused(["knn"], str(photos), str(photos))
    assert "does not say how" in refused(["knn"], model, str(photos), settings=["train.epochs=3"])
    assert "does not say how" in refused(["knn"], model, str(photos), settings=["evaluation.network=momentum"])
    out = tmp_path / "kept"
    evaluate(model, str(photos), ["knn"], out=out, settings=SMALL)
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
    assert "dog only in the training images, cow only in the test images" in told
    assert not (tmp_path / "b").exists(), "nothing came of it, so nothing is left"


def test_records_do_not_go_among_a_users_files(vit, photos, tmp_path):
    assert "holds other files" in refused(["knn"], f"hf:{vit}", str(photos), out=photos)
    assert sorted(entry.name for entry in photos.iterdir()) == ["test", "train"]


def test_images_that_cannot_be_read_are_told_and_left_out(vit, photos, tmp_path, caplog):
    data = tmp_path / "torn"
    shutil.copytree(photos, data)
    (data / "test" / "dark" / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    evaluate(f"hf:{vit}", str(data), ["knn"], out=tmp_path / "m", settings=SMALL)
    assert any("1 of 23 images cannot be read" in m and "broken.jpg" in m for m in caplog.messages)
    assert {r.n for r in read_records(tmp_path / "m" / "records.jsonl")} == {22}


def test_evaluate_lists_what_can_be_measured():
    for words in (["evaluate"], ["evaluate", "--help"]):
        done = equimid(*words)
        assert done.returncode == 0
        assert all(name in done.stdout for name in MEASUREMENTS)
    for words, named in (
        (["knn", "--data", "digits"], "--model"),
        (["knn", "knm", "--model", "timm:vit_small_patch16_224", "--data", "digits"], "'knm'"),
        (["nowhere", "--data", "digits"], "'nowhere'"),
        (["--model", "timm:vit_small_patch16_224"], "--data"),
    ):
        half = equimid("evaluate", *words)
        assert half.returncode == 2
        assert named in half.stderr
        assert len(half.stderr.splitlines()) == 1
    assert "equimid evaluate" in equimid("measure", "knn").stderr


def test_values_to_vary_are_no_settings():
    words = ["sweep", "ser-tiny", "--seeds", "0", "1", "--vary", "ser.weight=0,1", "seed=3"]
    words += ["--vary", "train.epochs=1,2", "--out", "x", "optim.lr=1"]
    arguments, settings = _split(words)
    assert settings == ["seed=3", "optim.lr=1"]
    _, parsers = _parsers()
    found = parsers["sweep"].parse_whole(arguments[1:])
    assert found.vary == ["ser.weight=0,1", "train.epochs=1,2"]
    assert found.seeds == [0, 1]
    assert parsers["sweep"].parse_whole(["ser-tiny"]).vary == []


def test_every_subject_sees_the_same_images(vit, photos, tmp_path):
    """Probes of network, random network and pixels have the same n."""
    evaluate(f"hf:{vit}", str(photos), ["knn"], out=tmp_path / "m", settings=SMALL)
    assert {r.n for r in read_records(tmp_path / "m" / "records.jsonl")} == {22}
    assert np.isfinite([r.value for r in read_records(tmp_path / "m" / "records.jsonl")]).all()


def test_a_copied_backbone_is_measured_beside_the_start_of_its_run(photos, tmp_path, caplog):
    """Its folder says how its weights were drawn: MoCo-v3's patches and positions, with the seed of the run."""
    pretrain(
        configured("ser-tiny", [f"data.source={photos}", *QUICK[2:], "seed=3", "train.batch_size=16"]), tmp_path / "run"
    )
    shutil.copytree(tmp_path / "run" / "backbone", tmp_path / "copy")
    found = []
    for model in (tmp_path / "run", tmp_path / "copy"):
        evaluate(str(model), str(photos), ["equivariance"], out=None if model.name == "run" else tmp_path / "out",
                settings=["evaluation.equivariance_images=6", "evaluation.crop=1"])  # fmt: skip
        folder = model if model.name == "run" else tmp_path / "out"
        records = [r for r in read_records(folder / "records.jsonl") if r.evaluation == "equivariance"]
        found.append({(r.subject, r.metric, str(r.details)): r.value for r in records})
    assert any(subject == "random" for subject, *_ in found[0])
    assert found[0] == found[1]
    assert "does not say how its weights began" not in caplog.text
    file = tmp_path / "copy" / "config.json"
    content = json.loads(file.read_text())
    del content["initialisation"]
    file.write_text(json.dumps(content))
    evaluate(str(tmp_path / "copy"), str(photos), ["equivariance"], out=tmp_path / "old",
            settings=["evaluation.equivariance_images=6"])  # fmt: skip
    assert "does not say how its weights began" in caplog.text
