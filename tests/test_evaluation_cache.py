"""Features are computed once for a network, its images and their preparation, and anew where one of them changed."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.data import data_home, open_source, pack
from equimid.errors import UserError
from equimid.evaluation import cache
from equimid.evaluation.cache import cached, store
from equimid.evaluation.study import readable
from helpers.drawing import drawn
from helpers.encoders import PatchMeans, study_of


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path / "equimid"))
    monkeypatch.delenv("EQUIMID_CACHE_GIB", raising=False)


def stored():
    return sorted((data_home() / "features").glob("*.safetensors"))


def passes(encoder, tmp_path, source, **settings):
    """How often the network looks while a fresh study asks for features."""
    before = encoder.passes
    table = study_of(encoder, tmp_path, **settings).features(source)
    assert len(table.features) == len(table.labels) == len(source)
    return encoder.passes - before


def labelled(path, count=6):
    for number, image in enumerate(drawn(count).images):
        folder = path / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return str(path)


def test_features_are_computed_once_for_all_probes(tmp_path):
    encoder, source = PatchMeans(depth=5), drawn(6)
    study = study_of(encoder, tmp_path, linear_features="last4")
    final, last4 = study.features(source), study.probe_features(source)
    assert encoder.passes == 1, "final and last4 come from one pass"
    assert passes(encoder, tmp_path, source) == 0
    again = study_of(encoder, tmp_path, linear_features="last4").probe_features(source)
    assert torch.equal(again.features, last4.features)
    assert final.features.shape == (6, 8)
    assert last4.features.shape == (6, 32)
    assert torch.equal(last4.features[:, -8:], final.features)
    x = next(study.batches(source))
    for place, layer in enumerate((2, 3, 4, 5)):
        expected = encoder.token_maps(x, [layer])[layer].mean((2, 3))
        torch.testing.assert_close(last4.features[:, 8 * place : 8 * place + 8], expected)
    torch.testing.assert_close(study.columns(x), last4.features)


def test_other_weights_images_labels_or_preparation_are_computed_anew(tmp_path):
    encoder, source = PatchMeans(), drawn(6)
    assert passes(encoder, tmp_path, source) == 1
    assert passes(encoder, tmp_path, drawn(6, seed=1)) == 1
    assert passes(encoder, tmp_path, source.take(np.arange(5))) == 1
    assert passes(encoder, tmp_path, source) == 0
    encoder.weight.data[0, 0, 0] += 1
    assert passes(encoder, tmp_path, source) == 1
    for change in ({"crop_pct": 0.5}, {"mean": (0.1, 0.5, 0.5)}, {"std": (0.1, 0.5, 0.5)}, {"input_size": (3, 20, 20)}):
        encoder.pretrained_cfg = {**PatchMeans().pretrained_cfg, **change}
        assert passes(encoder, tmp_path, source) == 1
    encoder.pretrained_cfg = PatchMeans().pretrained_cfg
    assert passes(encoder, tmp_path, source) == 0


def test_a_rewritten_file_is_computed_anew(tmp_path):
    """Even one of the same number of bytes."""
    data, encoder = labelled(tmp_path / "data"), PatchMeans()
    file = tmp_path / "data" / "a" / "0.png"
    Image.new("RGB", (16, 16), (10, 20, 30)).save(file, compress_level=0)
    source, old = open_source(data, "whole"), file.stat()
    assert passes(encoder, tmp_path, source) == 1
    assert passes(encoder, tmp_path, open_source(data, "whole")) == 0
    before = study_of(encoder, tmp_path).features(source).features
    Image.new("RGB", (16, 16), (200, 0, 30)).save(file, compress_level=0)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns + 10_000_000))
    assert file.stat().st_size == old.st_size
    assert passes(encoder, tmp_path, open_source(data, "whole")) == 1
    after = study_of(encoder, tmp_path).features(open_source(data, "whole")).features
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_a_damaged_file_is_computed_anew(damage, tmp_path):
    encoder, source = PatchMeans(), drawn(6)
    assert passes(encoder, tmp_path, source) == 1
    (file,) = stored()
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    assert passes(encoder, tmp_path, source) == 1
    assert passes(encoder, tmp_path, source) == 0


def test_features_of_another_number_of_images_are_not_taken(tmp_path):
    encoder, source = PatchMeans(), drawn(6)
    study = study_of(encoder, tmp_path)
    store(torch.zeros(5, 8), study.identity, source.stamp(), repr(study.preprocessing))
    assert passes(encoder, tmp_path, source) == 1


def test_the_least_recently_used_go_first(monkeypatch):
    monkeypatch.setenv("EQUIMID_CACHE_GIB", str(3.5 * 4096 / 2**30))
    table = torch.zeros(1000)  # 4,000 bytes and a header
    for number in range(3):
        store(table, str(number))
        file = cache._file((str(number),))
        os.utime(file, (1000 + number, 1000 + number))
    assert len(stored()) == 3
    assert cached("0") is not None, "and thereby used"
    store(table, "3")
    assert {key for key in "0123" if cache._file((key,)).exists()} == {"0", "2", "3"}
    assert cached("1") is None


def test_what_a_killed_process_was_writing_goes_when_a_day_old(tmp_path):
    store(torch.zeros(3), "a")
    old, new = (data_home() / "features" / f"{name}.tmp" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 90000,) * 2)
    store(torch.zeros(3), "b")
    assert (old.exists(), new.exists()) == (False, True)
    assert len(stored()) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path / "file" / "below"))
    encoder, source = PatchMeans(), drawn(6)
    assert [passes(encoder, tmp_path, source) for _ in range(2)] == [1, 1]


def test_a_cache_that_may_only_be_read_is_read(monkeypatch):
    store(torch.arange(3.0), "a")

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert torch.equal(cached("a"), torch.arange(3.0))


@pytest.mark.parametrize("given", ["much", "-1", "nan"])
def test_a_bound_that_is_no_number_is_told_before_anything_is_computed(given, monkeypatch, tmp_path):
    monkeypatch.setenv("EQUIMID_CACHE_GIB", given)
    encoder = PatchMeans()
    with pytest.raises(UserError, match="EQUIMID_CACHE_GIB"):
        passes(encoder, tmp_path, drawn(6))
    assert encoder.passes == 0


def test_another_version_of_what_is_computed_is_computed_anew(tmp_path, monkeypatch):
    encoder, source = PatchMeans(), drawn(6)
    passes(encoder, tmp_path, source)
    monkeypatch.setattr(cache, "_VERSION", "another")
    assert passes(encoder, tmp_path, source) == 1


def test_images_without_labels_are_refused(tmp_path):
    with pytest.raises(UserError, match="has no labels"):
        study_of(PatchMeans(), tmp_path).features(drawn(6, labels=False))


def test_a_reference_has_features_of_its_own(tmp_path):
    study = study_of(PatchMeans(), tmp_path)
    other = PatchMeans()
    other.weight.data.neg_()
    found = study.features(drawn(6)).features
    about = study.about(other, "random")
    assert about.scope == replace(study.scope, subject="random", checkpoint="")
    assert not torch.equal(about.features(drawn(6)).features, found)


def test_a_shard_that_went_or_came_back_is_noticed(tmp_path):
    """The check of packed images is kept by their stamp, as features are."""
    pack(labelled(tmp_path / "photos", 8), tmp_path / "packed", shard_bytes=20_000)
    source = open_source(str(tmp_path / "packed"))
    first = source.shards[0]
    one, other = (source.take(np.flatnonzero(source.shard == k)) for k in (0, 1))
    assert min(len(one), len(other)) > 0
    stamps = [part.stamp() for part in (source, one, other)]
    assert len(readable(source)) == 8
    tar = tmp_path / "packed" / f"{first}.tar"
    tar.rename(tmp_path / "away")
    assert len(readable(open_source(str(tmp_path / "packed")))) == 8 - len(one)
    assert other.stamp() == stamps[2]
    (tmp_path / "away").rename(tar)
    assert [part.stamp() for part in (source, one, other)] == stamps
    assert len(readable(open_source(str(tmp_path / "packed")))) == 8
    os.utime(tar, ns=(0, 0))
    assert [part.stamp() == before for part, before in zip((source, one, other), stamps, strict=True)] == [
        False,
        False,
        True,
    ]
