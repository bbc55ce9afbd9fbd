"""Images that go bad after they were checked."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from equimid.data import open_source
from equimid.errors import UserError
from equimid.views import Key, ViewDataset, collate
from helpers.drawn_views import Drawn, items, make_plan, resized, same, unshared
from helpers.photographs import near


@pytest.mark.parametrize("posed", [False, True])
def test_another_readable_image_takes_the_place_of_an_unreadable_one(posed):
    bad = {3, 4, 7}
    dataset = ViewDataset(Drawn(8, bad=bad), make_plan(), seed=0)
    batch = collate(items(dataset, [Key(0, index, posed) for index in (1, 3, 7, 5)]))
    first, *replaced, last = batch.indices.tolist()
    assert (first, last) == (1, 5)
    assert not bad & set(replaced)
    assert {3, 7} <= set(batch.unreadable) <= bad
    for place, index in enumerate(replaced, start=1):
        source = Drawn(8).load(index)
        if posed:
            assert near(batch.posed[0].pixels[place], resized(source, 16))
        else:  # the draw is that of the place, not of the image that fills it
            box, flipped = unshared(batch.crops[0].boxes[place], source)
            assert near(batch.crops[0].pixels[place], resized(source, 16, flipped, box))
            own = ViewDataset(Drawn(8), make_plan(), seed=0)[Key(0, index, False)]
            assert not torch.equal(batch.crops[0].boxes[place], own.boxes[0])


def test_replacements_are_drawn_over_all_images_and_by_the_key():
    """Half of the images are gone, all of them neighbours: their places are filled from the other half, evenly."""
    dataset = ViewDataset(Drawn(400, bad=range(200)), make_plan(size=4), seed=0)
    chosen = [dataset[Key(0, index, True)] for index in range(200)]
    found = np.array([item.index for item in chosen])
    assert found.min() >= 200
    assert len(set(found.tolist())) > 100
    assert abs(np.mean(found) - 299.5) < 5 * 57.7 / 200**0.5
    tries = [len(item.unreadable) for item in chosen]
    assert 1.6 < np.mean(tries) < 2.4  # half of all draws fail
    again = ViewDataset(Drawn(400, bad=range(200)), make_plan(size=4), seed=0)
    assert [again[Key(0, index, True)].index for index in (9, 5)] == found[[9, 5]].tolist()
    assert [again[Key(1, index, True)].index for index in range(20)] != found[:20].tolist()


def test_readable_images_do_not_notice_an_unreadable_one():
    key = Key(0, 5, False)
    assert same(ViewDataset(Drawn(8, bad={3}), make_plan(), 0)[key], ViewDataset(Drawn(8), make_plan(), 0)[key])


@pytest.mark.parametrize("decode", ["workers", "device"])
def test_a_batch_has_the_items_that_its_keys_have_one_by_one(decode, tmp_path):
    """Over several groups that are drawn together, two of them with images that cannot be read."""
    files = [tmp_path / f"{number:02}.jpg" for number in range(40)]
    for number, file in enumerate(files):
        Drawn(40).load(number).save(file, quality=95)
    source = open_source(str(tmp_path))
    files[3].write_bytes(files[3].read_bytes()[:-400])  # its header can be read
    files[20].unlink()
    dataset = ViewDataset(source, make_plan(), 0, decode)
    keys = [Key(0, index, index % 5 == 0) for index in range(40)]
    together = dataset.__getitems__(keys)
    assert all(same(item, dataset[key]) for key, item in zip(keys, together, strict=True))
    replaced = [item.unreadable[0] for item in together if item.unreadable]
    assert replaced == ([3, 20] if decode == "workers" else [20])  # what is decoded later is replaced later
    one = next(iter(DataLoader(dataset, batch_sampler=[keys], collate_fn=lambda items: items)))
    assert all(same(*pair) for pair in zip(together, one, strict=True))


def test_a_batch_of_other_files_holds_no_more_than_one_of_them_decoded():
    """They are decoded when they are opened; aligned pairs and replacements as one by one."""
    alive, most = set(), 0

    class Counted(Drawn):
        def load(self, index):
            nonlocal most
            image = super().load(index)
            alive.add(index)
            weakref.finalize(image, alive.discard, index)
            most = max(most, len(alive))
            return image

    dataset = ViewDataset(Counted(20, bad={7}), replace(make_plan(), aligned=True), 0)
    keys = [Key(0, index, index % 5 == 0, pair=index // 2) for index in range(20)]
    together = dataset.__getitems__(keys)
    assert most <= 2
    assert [item.index for item in together].count(7) == 0
    assert all(same(item, dataset[key]) for key, item in zip(keys, together, strict=True))


@pytest.mark.parametrize("n", [3, 300])
def test_unreadable_from_end_to_end_is_an_error(n):
    source = Drawn(n, bad=range(n))
    with pytest.raises(UserError, match="number 1 could not be read, nor could 99 images drawn"):
        ViewDataset(source, make_plan(), seed=0)[Key(0, 1, False)]


def test_an_image_is_not_tried_twice():
    item = ViewDataset(Drawn(3, bad={0, 1}), make_plan(), seed=0)[Key(0, 0, False)]
    assert item.index == 2
    assert item.unreadable in ((0,), (0, 1))
