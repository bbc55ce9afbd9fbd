"""Images read from shards: the same as from the folder that was packed, whatever is missing."""

import os
import pickle
import shutil
import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from equimid.addons import plan_views
from equimid.data import (
    DataConfig,
    ShardSource,
    check_images,
    open_image,
    open_source,
)
from equimid.data.shards import source as shards
from equimid.engine.sampler import MicroBatches, epoch_order
from equimid.errors import UnreadableImage, UserError
from equimid.views import ViewDataset, ViewsConfig, collate
from helpers.packing_files import class_folders, packed, photograph
from helpers.tasks import TINY

FIRST = [885, 662, 146, 924, 414, 449]


@pytest.fixture
def pair(tmp_path):
    """A folder of 24 images in three classes, and the same packed, byte for byte."""
    data = class_folders(tmp_path / "data")
    packed(data, tmp_path / "out", short_side=0)
    return data, tmp_path / "out"


def reason(source, i):
    with pytest.raises(UnreadableImage) as caught:
        source.load(i)
    return caught.value.reason


def of_shard(source, name):
    return [i for i in range(len(source)) if f"/{name}.tar" in source.describe(i)]


# --- the same as the folder


def assert_same(ours, folder, root):
    assert isinstance(ours, ShardSource)
    assert len(ours) == len(folder) > 0
    assert [ours.read(i) for i in range(len(ours))] == [folder.read(i) for i in range(len(folder))]
    assert [ours.size(i) for i in range(len(ours))] == [folder.size(i) for i in range(len(folder))]
    names = [ours.describe(i).partition(".tar: ")[2] for i in range(len(ours))]
    assert names == [os.path.relpath(folder.describe(i), root) for i in range(len(folder))]
    np.testing.assert_array_equal(ours.labels, folder.labels)
    assert (ours.classes, ours.split) == (folder.classes, folder.split)


@pytest.mark.parametrize("split", [None, "whole", "fit", "train", "test"])
def test_every_split_is_the_folders(pair, split):
    data, out = pair
    ours = open_source(str(out), split)
    assert_same(ours, open_source(str(data), split), data)
    assert ours.name == str(out)
    np.testing.assert_array_equal(np.asarray(ours.load(3)), np.asarray(open_source(str(data), split).load(3)))


def test_splits_count_what_was_left_out_too(tmp_path):
    """The folder is split before its unreadable images are found."""
    data = class_folders(tmp_path / "data", n=60)
    for k in (3, 17, 40):
        (data / f"class{k % 3}" / f"image{k:02}.jpg").write_text("x")
    packed(data, tmp_path / "out", short_side=0)
    for split in ("train", "test", None):
        folder = open_source(str(data), split)
        folder = check_images(folder, smallest_side=1, tolerated=1).apply(folder)
        assert_same(open_source(str(tmp_path / "out"), split), folder, data)


@pytest.mark.parametrize("split", [None, "whole", "fit", "train", "test"])
def test_train_and_test_folders_stay_apart(tmp_path, split):
    data = tmp_path / "data"
    for k in range(12):
        photograph(data / f"train/c{k % 4}/{k}.jpg", k)
    for k in range(6):
        photograph(data / f"val/c{k % 3}/{k}.jpg", 20 + k)
    packed(data, tmp_path / "out", short_side=0)
    assert sorted(f.name for f in (tmp_path / "out").glob("*0.tar")) == ["test-000000.tar", "train-000000.tar"]
    part = "val" if split in ("test", "whole") else "train"
    assert_same(open_source(str(tmp_path / "out"), split), open_source(str(data), split), data / part)


def test_a_list_of_files_and_images_without_labels(tmp_path):
    for k in range(11):
        photograph(tmp_path / f"elsewhere/{k}.jpg", k)
    lines = [f"elsewhere/{k}.jpg\t{k + 5}" for k in range(11)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    packed(tmp_path / "list.txt", tmp_path / "listed", short_side=0)
    ours = open_source(str(tmp_path / "listed"))
    assert_same(ours, open_source(str(tmp_path / "list.txt")), tmp_path)
    assert ours.classes == tuple(str(k) for k in range(5, 16)), "10 after 9"
    packed(tmp_path / "elsewhere", tmp_path / "flat", short_side=0)
    flat = open_source(str(tmp_path / "flat"))
    assert (flat.labels, flat.classes, len(flat)) == (None, (), 11)
    assert len(open_source(str(tmp_path / "flat"), "test")) == len(open_source(str(tmp_path / "elsewhere"), "test"))


def test_taken_images_and_fingerprints(pair, tmp_path):
    source = open_source(str(pair[1]))
    part = source.take(np.array([20, 3]))
    assert [part.describe(i) for i in range(2)] == [source.describe(20), source.describe(3)]
    assert part.labels.tolist() == source.labels[[20, 3]].tolist()
    assert part.read(1) == source.read(3)
    shutil.copytree(pair[1], tmp_path / "moved")
    assert open_source(str(tmp_path / "moved")).fingerprint() == source.fingerprint()
    packed(pair[0], tmp_path / "smaller", short_side=16)
    others = [part, source.without([0]), replace(source, labels=None), open_source(str(tmp_path / "smaller"))]
    prints = [s.fingerprint() for s in (source, *others)]
    assert len(set(prints)) == len(prints)


def test_smaller_images_are_the_folders_made_small(tmp_path):
    data = class_folders(tmp_path / "data", n=6, size=(90, 60))
    packed(data, tmp_path / "out", short_side=20)
    ours, folder = open_source(str(tmp_path / "out")), open_source(str(data))
    for i in range(6):
        assert ours.size(i) == ours.load(i).size == (30, 20)
        there = np.asarray(folder.load(i).resize((30, 20)), dtype=int)
        assert abs(np.asarray(ours.load(i), dtype=int) - there).mean() < 8


# --- processes and ranks


def loaded(source, *, workers=0, rank=0, ranks=1, shuffle="whole", context=None):
    plan = plan_views(ViewsConfig(), TINY, {}, 8)
    order = epoch_order(source, DataConfig(shuffle=shuffle, shards_at_once=2), seed=0)
    keys = MicroBatches(
        len(source), 0, micro_batch=8, accumulate=1, first_step=0, last_step=3, plan=plan, rank=rank, ranks=ranks,
        order=order,
    )  # fmt: skip
    dataset = ViewDataset(source, plan, seed=0)
    loader = DataLoader(
        dataset, batch_sampler=keys, num_workers=workers, collate_fn=collate, multiprocessing_context=context
    )
    return list(loader)


@pytest.mark.parametrize("shuffle", ["whole", "shards"])
def test_batches_are_the_same_for_any_number_of_workers_and_ranks(pair, shuffle):
    source = open_source(str(pair[1]))
    whole = loaded(source, shuffle=shuffle)
    assert sorted(int(i) for batch in whole for i in batch.indices) == list(range(24))
    for workers in (1, 2):
        for a, b in zip(whole, loaded(source, workers=workers, shuffle=shuffle), strict=True):
            assert torch.equal(a.indices, b.indices)
            assert all(torch.equal(x.pixels, y.pixels) for x, y in zip(a.crops, b.crops, strict=True))
    parts = [loaded(source, rank=rank, ranks=2, shuffle=shuffle) for rank in range(2)]
    for a, even, odd in zip(whole, *parts, strict=True):
        assert torch.equal(a.crops[0].pixels[0::2], even.crops[0].pixels)
        assert torch.equal(a.crops[0].pixels[1::2], odd.crops[0].pixels)


def test_batches_are_the_folders(pair):
    ours, theirs = (loaded(open_source(str(data))) for data in reversed(pair))
    assert all(torch.equal(a.crops[1].pixels, b.crops[1].pixels) for a, b in zip(ours, theirs, strict=True))


def test_sent_to_a_process_that_was_spawned(pair):
    source = open_source(str(pair[1]))
    assert len(pickle.dumps(source)) < 2000 + 50 * len(source), "numbers, and no names"
    (first, *_), (same, *_) = loaded(source), loaded(source, workers=1, context="spawn")
    assert torch.equal(first.crops[0].pixels, same.crops[0].pixels)


def test_few_shards_are_open_at_a_time_and_threads_share_them(pair, monkeypatch):
    source = open_source(str(pair[1]))
    expected = [source.read(i) for i in range(24)]
    files = lru_cache(maxsize=2)(shards._OpenShard)
    monkeypatch.setattr(shards, "_open_shard", files)
    found = {}

    def read(start):
        for i in [*range(start, 24), *range(start)]:
            found[start, i] = source.read(i) == expected[i]

    threads = [threading.Thread(target=read, args=(k,)) for k in (0, 7, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 72
    assert all(found.values())
    assert files.cache_info().currsize == 2
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    read(0)
    assert len(set(os.listdir("/proc/self/fd")) if before else set()) == len(before), "closed, not left open"


# --- the order by shards


def orders(shard, at_once=2, seed=0, epochs=3):
    source = open_like(shard)
    order = epoch_order(source, DataConfig(shuffle="shards", shards_at_once=at_once), seed)
    return [order(epoch) for epoch in range(epochs)]


def open_like(shard):
    places = np.zeros(len(shard), dtype=shards._PLACE)
    places["shard"] = shard
    return ShardSource(
        name="drawn", split="all", root=Path("nowhere"), shards=("a",) * (max(shard) + 1),
        lengths=np.zeros(max(shard) + 1, dtype=np.int64), identity="", places=places,
    )  # fmt: skip


SHARD = np.random.default_rng(0).permutation(np.repeat(np.arange(9), [4, 7, 5, 5, 0, 9, 6, 3, 8]))


@pytest.mark.parametrize("at_once", [1, 2, 4, 20])
def test_each_image_once_and_few_shards_at_a_time(at_once):
    for order in orders(SHARD, at_once):
        assert sorted(order.tolist()) == list(range(len(SHARD)))
        read, last = SHARD[order], {s: k for k, s in enumerate(SHARD[order])}
        for k in range(len(read)):
            begun = {s for s in read[: k + 1] if last[s] >= k}
            assert len(begun) <= at_once


def test_shards_are_mixed_among_themselves_and_in_every_epoch_anew():
    one, two, _ = orders(SHARD, 4)
    first = SHARD[one[:12]].tolist()
    assert len(set(first)) > 2, "not one shard after the other"
    assert one.tolist() != two.tolist()
    assert set(SHARD[one[:8]]) != set(SHARD[two[:8]])
    assert orders(SHARD, 4)[1].tolist() == two.tolist()
    assert orders(SHARD, 4, seed=1)[1].tolist() != two.tolist()


def test_a_resumed_order_by_shards_is_the_rest_and_ranks_share_it(pair):
    source = open_source(str(pair[1]))
    order = epoch_order(source, DataConfig(shuffle="shards", shards_at_once=2), seed=3)

    def keys(first_step=0, rank=0, ranks=1):
        plan = plan_views(ViewsConfig(), TINY, {}, 4)
        return list(
            MicroBatches(len(source), 3, micro_batch=4, accumulate=1, first_step=first_step, last_step=15, plan=plan,
                         rank=rank, ranks=ranks, order=order)
        )  # fmt: skip

    whole = keys()
    assert [k.index for batch in whole[6:12] for k in batch] == order(1).tolist()
    for step in (1, 6, 8):
        assert keys(first_step=step) == whole[step:]
    for rank in range(2):
        assert keys(rank=rank, ranks=2) == [batch[rank::2] for batch in whole]


def test_the_order_of_the_whole_is_as_it_was():
    """The first images of seed 0, epoch 0 of 1000: a run that was begun before must go on with them."""
    order = epoch_order(open_source("digits").take(np.arange(1000)), DataConfig(), seed=0)
    assert order(0)[:6].tolist() == FIRST
    plan = plan_views(ViewsConfig(), TINY, {}, 4)
    (keys,) = MicroBatches(1000, 0, micro_batch=4, accumulate=1, first_step=0, last_step=1, plan=plan, rank=0, ranks=1)
    assert [k.index for k in keys] == FIRST[:4]


def test_the_order_by_shards_needs_shards(pair):
    with pytest.raises(UserError, match="is not packed; pack it"):
        epoch_order(open_source(str(pair[0])), DataConfig(shuffle="shards"), seed=0)
    with pytest.raises(UserError, match="shards_at_once is 0"):
        DataConfig(shards_at_once=0)


# --- what goes wrong


def test_missing_cut_and_altered_shards_are_named(pair):
    source = open_source(str(pair[1]))
    names = source.shards
    lost, cut, altered = (of_shard(source, name) for name in names[:3])
    (pair[1] / f"{names[0]}.tar").unlink()
    tar = pair[1] / f"{names[1]}.tar"
    middle = sorted(int(source.places["offset"][i]) for i in cut)[1] + 10
    tar.write_bytes(tar.read_bytes()[:middle])
    content = bytearray((pair[1] / f"{names[2]}.tar").read_bytes())
    content[source.places["offset"][altered[0]] + 700] ^= 1
    (pair[1] / f"{names[2]}.tar").write_bytes(content)
    assert {reason(source, i) for i in lost} == {f"{names[0]}.tar is missing"}
    gone = [i for i in cut if source.places["offset"][i] + source.places["size"][i] > middle]
    assert len(gone) == len(cut) - 1
    assert {reason(source, i) for i in gone} == {f"{names[1]}.tar is truncated"}
    assert reason(source, altered[0]).startswith(f"{names[2]}.tar is damaged")
    for i in set(range(24)) - {*lost, *gone, altered[0]}:
        assert source.load(i).size == (48, 32)
    # before anything is read: what a look at the lengths tells
    faults = source.faults()
    assert sorted(faults) == sorted([*lost, *gone])
    assert faults[gone[0]] == f"{names[1]}.tar is truncated: {middle} of {source.lengths[1]} bytes"


def test_the_ledger_tells_of_missing_shards_before_training(pair, tmp_path):
    out = pair[1]
    source, run = open_source(str(out)), tmp_path / "run"
    image_check = check_images(source, run, smallest_side=32)
    assert (image_check.checked, image_check.unreadable, image_check.listed) == ("packed", (), 24)
    lost = of_shard(source, source.shards[1])
    tar = out / f"{source.shards[1]}.tar"
    content = tar.read_bytes()
    tar.unlink()
    # a run that has begun goes on with its images: the loader meets what is missing
    assert check_images(source, run, smallest_side=32) == image_check
    with pytest.raises(UserError, match=rf"{len(lost)} of 24 .*/shard-000001.tar: .* \(shard-000001.tar is missing\)"):
        check_images(source, tmp_path / "new", smallest_side=32)
    image_check = check_images(source, tmp_path / "new", smallest_side=32, tolerated=0.5)
    assert [i for i, _, _ in image_check.unreadable] == lost
    assert len(image_check.apply(source)) == 24 - len(lost)
    tar.write_bytes(content + b"more")
    with pytest.raises(UserError, match="is not what was packed"):
        check_images(source, smallest_side=32)
    # brought back: the same command goes on
    tar.write_bytes(content)
    assert check_images(source, tmp_path / "new", smallest_side=32).unreadable == ()
    with pytest.raises(UserError, match="48 x 32 px, smaller than a patch of 33 px"):
        check_images(source, smallest_side=33)


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_lost_in_the_middle_of_an_epoch(pair, workers):
    """Named and counted; other images stand in for theirs, and all others are as they were."""
    source = open_source(str(pair[1]))
    before = loaded(source)
    shards._open_shard.cache_clear()
    bad = {*of_shard(source, source.shards[0]), *of_shard(source, source.shards[1])}
    (pair[1] / f"{source.shards[0]}.tar").unlink()
    (pair[1] / f"{source.shards[1]}.tar").write_bytes(b"")
    after = loaded(source, workers=workers)
    assert {i for batch in after for i in batch.unreadable} == bad
    assert 0 < len(bad) < 24
    for a, b in zip(before, after, strict=True):
        assert not bad & set(b.indices.tolist())
        for row, i in enumerate(a.indices.tolist()):
            if i not in bad:
                assert torch.equal(a.crops[0].pixels[row], b.crops[0].pixels[row])
    for i in bad:
        assert source.describe(i).startswith(f"{pair[1]}/shard-00000")
        assert source.describe(i).endswith(".jpg")


def test_a_shard_that_comes_back_is_read_again(pair):
    source = open_source(str(pair[1]))
    tar = pair[1] / f"{source.shards[0]}.tar"
    i, content = of_shard(source, source.shards[0])[0], tar.read_bytes()
    tar.write_bytes(b"")
    assert reason(source, i).endswith("truncated")
    tar.unlink()
    tar.write_bytes(content)
    assert source.load(i).size == (48, 32)


def test_without_its_index_an_image_still_has_a_description(pair):
    source = open_source(str(pair[1]))
    (i, *_), file = of_shard(source, source.shards[0]), pair[1] / f"{source.shards[0]}.npz"
    shards._names.cache_clear()
    file.unlink()
    assert source.describe(i) == f"{file.with_suffix('.tar')}: image {source.places['row'][i]}"


def test_damaged_folders_say_what_to_do(pair):
    out = pair[1]
    index, entry = out / "shard-000001.npz", out / "pack.json"
    for content in (None, b"", index.read_bytes()[:-200], (out / "shard-000000.npz").read_bytes()):
        kept = index.read_bytes()
        index.unlink()
        if content is not None:
            index.write_bytes(content)
        with pytest.raises(UserError, match=r"shard-000001\.npz .*bring .*back") as caught:
            open_source(str(out))
        assert "\n" not in str(caught.value)
        index.write_bytes(kept)
    text = entry.read_text()
    for damaged in (text[:100], text.replace('"version": 1', '"version": 9'), text.replace('"listed"', '"lasted"')):
        entry.write_text(damaged)
        with pytest.raises(UserError, match=r"pack\.json cannot be used .* pack the images again"):
            open_source(str(out))


def test_a_folder_that_only_looks_packed_is_a_folder(tmp_path):
    class_folders(tmp_path, n=4)
    (tmp_path / "pack.json").write_text('{"name": "something else"}')
    assert len(open_source(str(tmp_path))) == 4
    assert open_image(tmp_path / "class0/image00.jpg").size == (48, 32)
