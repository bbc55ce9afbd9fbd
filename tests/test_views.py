"""Views: torchvision's crops, items that are functions of their key, and what the device makes of a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from equimid.poses import Pose
from equimid.randomness import counted_generator
from equimid.views import (
    Key,
    ViewDataset,
    ViewPlan,
    ViewsConfig,
    collate,
    normalise,
    sample_poses,
    to_device_views,
)
from equimid.views.dataset import sample_crop
from equimid.views.plan import standard_views
from helpers.drawn_views import PLAIN, POSED, STILL, Drawn, items, make_plan, resized, same, unshared
from helpers.photographs import near

CPU = torch.device("cpu")
# --- crops


@pytest.mark.parametrize("size", [(256, 256), (300, 120)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 0.6)])
def test_crops_are_distributed_as_torchvisions(size, scale):
    width, height = size
    rng = counted_generator(0, "test")
    ours = np.array([sample_crop(size, scale, rng) for _ in range(4000)], dtype=float)
    assert ours.min() >= 0
    assert (ours[:, 2] <= width).all()
    assert (ours[:, 3] <= height).all()
    assert (ours[:, 0] < ours[:, 2]).all()
    assert (ours[:, 1] < ours[:, 3]).all()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)], dtype=float
        )
    theirs = np.stack([theirs[:, 1], theirs[:, 0], theirs[:, 1] + theirs[:, 3], theirs[:, 0] + theirs[:, 2]], axis=1)

    def measures(boxes):
        w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        return {"area": w * h / (width * height), "aspect": w / h, "left": boxes[:, 0], "top": boxes[:, 1]}

    for name, mine in measures(ours).items():
        other = measures(theirs)[name]
        assert ks_2samp(mine, other).pvalue > 1e-3, name
        assert abs(mine.mean() - other.mean()) < 5 * np.hypot(mine.std(), other.std()) / 4000**0.5, name


@pytest.mark.parametrize("size", [(400, 20), (20, 400), (1, 50), (50, 1)])
def test_images_without_any_such_crop_are_cut_in_the_centre(size):
    """No crop of this area and aspect exists, so torchvision's centre crop is the only one."""
    top, left, height, width = RandomResizedCrop.get_params(
        torch.empty(3, size[1], size[0]), [0.5, 1.0], [3 / 4, 4 / 3]
    )
    box = sample_crop(size, (0.5, 1.0), counted_generator(0, "test"))
    assert box == (left, top, left + width, top + height)


def test_crops_reach_every_place():
    """Of 4 x 4 px in 8 x 7: five places across, four down, equally often."""
    rng = counted_generator(0, "test")
    boxes = [sample_crop((8, 7), (16 / 56, 16 / 56), rng) for _ in range(6000)]
    places = [(left, top) for left, top, right, bottom in boxes if (right - left, bottom - top) == (4, 4)]
    counts = np.unique(places, axis=0, return_counts=True)[1]
    assert len(counts) == 5 * 4
    assert counts.max() < 1.5 * counts.min()


# --- items


def test_item_is_a_function_of_seed_epoch_and_index():
    dataset = ViewDataset(Drawn(), make_plan(plain=False), seed=1)
    keys = [Key(epoch, index, posed) for epoch in (0, 1) for index in range(4) for posed in (False, True)]
    forwards = dict(zip(keys, items(dataset, keys), strict=True))
    backwards = dict(zip(keys[::-1], items(ViewDataset(Drawn(), make_plan(plain=False), 1), keys[::-1]), strict=True))
    for key in keys:
        assert same(forwards[key], backwards[key])
        other_seed = ViewDataset(Drawn(), make_plan(plain=False), seed=2)[key]
        other_epoch = dataset[replace(key, epoch=7)]
        for other in (other_seed, other_epoch):
            assert other.index == forwards[key].index
            assert not torch.equal(other.photometric, forwards[key].photometric)
            assert key.posed or not torch.equal(other.boxes, forwards[key].boxes)
    rows = [tuple(row.tolist()) for item in forwards.values() for row in item.photometric]
    assert len(set(rows)) > 0.9 * len(rows)  # neither views nor images nor epochs share their draw


def test_crop_shows_the_box_that_is_recorded():
    """Cut first, then resized, as torchvision does: nothing outside the box is seen."""
    source = Drawn(40)
    dataset = ViewDataset(source, make_plan(size=8), seed=0)
    flips = []
    for index in range(40):
        item, image = dataset[Key(0, index, False)], source.load(index)
        assert len(item.pixels) == len(item.boxes) == len(item.photometric) == 2
        for pixels, fractions in zip(item.pixels, item.boxes, strict=True):
            box, flipped = unshared(fractions, image)
            flips.append(flipped)
            assert pixels.dtype == torch.uint8
            assert near(pixels, resized(image, 8, flipped, box))
            assert not near(pixels, resized(image, 8, not flipped, box), 20)
    assert 20 < sum(flips) < 60


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flips_follow_their_probability(flip):
    dataset = ViewDataset(Drawn(), make_plan(flip=flip), seed=0)
    boxes = torch.cat([dataset[Key(0, index, False)].boxes for index in range(12)])
    assert (boxes[:, 4] == flip).all()


def test_both_views_are_drawn_from_their_own_settings():
    only_second = replace(
        standard_views(ViewsConfig(first=PLAIN, second=replace(PLAIN, solarise=1)), 16, 4), posed=POSED
    )
    dataset = ViewDataset(Drawn(), only_second, seed=0)
    for posed in (False, True):
        first, second = dataset[Key(0, 3, posed)].photometric
        assert not torch.equal(first, second)
        assert first[-1] == 0
        assert second[-1] == 1


def test_posed_item_is_the_whole_image():
    source = Drawn()
    dataset = ViewDataset(source, make_plan(flip=1.0), seed=0)
    for index in range(12):
        item, image = dataset[Key(0, index, True)], source.load(index)
        assert len(item.pixels) == 1
        assert near(item.pixels[0], resized(image, 16))
        assert item.boxes.tolist() == [[0, 0, 1, 1, 0]]
        assert len(item.photometric) == 2


def test_shared_crop_cuts_once_as_the_release_does():
    source = Drawn()
    dataset = ViewDataset(source, make_plan(replace(POSED, shared_crop=True)), seed=0)
    whole, flips = 0, set()
    for index in range(12):
        item, image = dataset[Key(0, index, True)], source.load(index)
        box, flipped = unshared(item.boxes[0], image)
        assert len(item.pixels) == 1
        assert near(item.pixels[0], resized(image, 16, flipped, box))
        whole += box == (0, 0, image.width, image.height)
        flips.add(flipped)
    assert whole < 3
    assert flips == {False, True}


def test_interpolation_is_as_asked():
    image, key = Drawn().load(0), Key(0, 0, True)
    item = ViewDataset(Drawn(), make_plan(interpolation="bicubic"), seed=0)[key]
    expected = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert near(item.pixels[0], expected)
    assert not near(item.pixels[0], ViewDataset(Drawn(), make_plan(), seed=0)[key].pixels[0], 5)


# --- batches and what the device makes of them


def make_batch(plan, cropped, posed, seed=0):
    """Image p is posed if p < posed, as in training."""
    dataset = ViewDataset(Drawn(), plan, seed)
    return collate(items(dataset, [Key(0, p, p < posed) for p in range(posed + cropped)]))


def test_batch_holds_cropped_images_first():
    plan = make_plan()
    dataset = ViewDataset(Drawn(), plan, 0)
    posed, cropped = Key(0, 2, True), Key(0, 5, False)
    batch = collate(items(dataset, [posed, cropped, replace(posed, index=1), replace(cropped, index=4)]))
    assert batch.indices.tolist() == [5, 4, 2, 1]
    assert [x.pixels.shape for x in batch.crops] == [(2, 3, 16, 16)] * 2
    assert [x.boxes.shape for x in batch.crops] == [(2, 5)] * 2
    assert batch.posed[0].pixels.shape == (2, 3, 16, 16)
    assert near(batch.posed[0].pixels[1], resized(Drawn().load(1), 16))
    for view in range(2):
        assert torch.equal(batch.crops[view].pixels[1], dataset[Key(0, 4, False)].pixels[view])
        assert torch.equal(batch.crops[view].photometric[0], dataset[Key(0, 5, False)].photometric[view])
        assert torch.equal(batch.crops[view].boxes[0], dataset[Key(0, 5, False)].boxes[view])
        assert torch.equal(batch.posed[view].photometric[0], dataset[Key(0, 2, True)].photometric[view])


def test_batch_of_one_sort():
    plan = make_plan()
    posed, cropped = make_batch(plan, 0, 3), make_batch(plan, 3, 0)
    assert posed.crops == cropped.posed == []
    assert posed.posed[0].pixels.shape == (3, 3, 16, 16)
    assert len(posed.posed) == 2
    assert posed.posed[0].pixels is posed.posed[1].pixels
    assert posed.indices.tolist() == cropped.indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("cropped", "posed"), [(3, 4), (0, 4), (3, 0)])
def test_views_have_the_shapes_of_the_plan(cropped, posed):
    plan = make_plan(replace(POSED, count=posed), plain=False)
    poses = sample_poses(plan, 0, 0, 0, 1)
    views = to_device_views(make_batch(plan, cropped, posed), plan, poses, CPU)
    assert [x.shape for x in views.crops] == [(cropped, 3, 16, 16)] * 2
    assert [x.shape for x in views.posed] == [(posed, 3, 4 * pose.grid[0], 4 * pose.grid[1]) for pose in poses]
    assert [len(pose) for pose in views.poses] == [posed, posed]
    assert views.image_ids.tolist() == list(range(posed))
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in (*views.crops, *views.posed))


def test_views_without_posing():
    plan = make_plan(posed=None)
    views = to_device_views(make_batch(plan, 3, 2), plan, [], CPU)  # without posed views, posed keys are cropped ones
    assert [x.shape for x in views.crops] == [(5, 3, 16, 16)] * 2
    assert (views.posed, views.poses, views.image_ids.tolist()) == ([], [], [])


def test_crops_are_normalised():
    plan = make_plan()
    batch = make_batch(plan, 3, 4)
    views = to_device_views(batch, plan, sample_poses(plan, 0, 0, 0, 1), CPU)
    for crops, view in zip(views.crops, batch.crops, strict=True):
        for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
            expected = (view.pixels[:, channel].double() / 255 - mean) / std
            assert torch.allclose(crops[:, channel].double(), expected, atol=1e-5)


def test_posed_views_are_the_posed_squares():
    plan = make_plan()
    batch = make_batch(plan, 3, 4)
    poses = sample_poses(plan, 0, 5, 0, 1)
    views = to_device_views(batch, plan, poses, CPU)
    upright = normalise(batch.posed[0].pixels.float() / 255, plan.mean, plan.std)
    for view, pose in zip(views.posed, poses, strict=True):
        assert torch.allclose(view, pose.act(upright, 4), atol=1e-5)
    assert views.poses == poses


@pytest.mark.parametrize("cropped", [0, 3])
def test_both_posed_views_show_the_whole_upright_image(cropped):
    """T8 of the release: its posed views were both cut from one random crop. Undo the pose: the whole image is back."""
    plan = make_plan(STILL, flip=1.0)
    batch = make_batch(plan, cropped, 4)
    views = to_device_views(batch, plan, sample_poses(plan, 0, 0, 0, 1), CPU)
    whole = torch.stack([resized(Drawn().load(index), 16) for index in views.image_ids.tolist()])
    expected = normalise(whole.float() / 255, plan.mean, plan.std)
    for view, pose in zip(views.posed, views.poses, strict=True):
        assert torch.allclose((~pose).act(view, 4), expected, atol=1.01 / 255 / 0.224)  # one of 255, normalised
    assert views.poses[0] != views.poses[1]


def test_each_posed_view_has_its_own_photometric_draw():
    plan: ViewPlan = replace(
        standard_views(ViewsConfig(first=PLAIN, second=replace(PLAIN, solarise=1, solarise_threshold=0)), 16, 4),
        posed=STILL,
    )
    batch = make_batch(plan, 2, 4)
    upright = [Pose.identity(4, (4, 4))] * 2
    views = to_device_views(batch, plan, upright, CPU)
    image = batch.posed[0].pixels.float() / 255
    assert torch.allclose(views.posed[0], normalise(image, plan.mean, plan.std), atol=1e-5)
    assert torch.allclose(views.posed[1], normalise(1 - image, plan.mean, plan.std), atol=1e-5)


def test_image_ids_are_those_of_the_posed_images():
    plan = make_plan(replace(POSED, count=2))
    dataset = ViewDataset(Drawn(12, bad={9}), plan, 0)
    keys = [Key(0, 9, True), Key(0, 2, True), Key(0, 11, False), Key(0, 4, False)]
    views = to_device_views(collate(items(dataset, keys)), plan, sample_poses(plan, 0, 0, 0, 1), CPU)
    replacement = dataset[keys[0]].index
    assert replacement != 9
    assert views.image_ids.tolist() == [replacement, 2]


def test_batch_is_left_as_it_was():
    plan = make_plan(plain=False)
    batch, fresh = make_batch(plan, 3, 4), make_batch(plan, 3, 4)
    poses = sample_poses(plan, 0, 0, 0, 1)
    first, again = (to_device_views(batch, plan, poses, CPU) for _ in range(2))
    assert torch.equal(batch.posed[0].pixels, fresh.posed[0].pixels)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(batch.crops, fresh.crops, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.posed, again.posed, strict=True))


# --- poses


@pytest.mark.parametrize("complement", [False, True])
@pytest.mark.parametrize("count", [7, 2])
def test_ranks_share_one_draw_of_poses(count, complement):
    plan = make_plan(replace(POSED, count=count, complement=complement))
    whole = sample_poses(plan, 3, 11, 0, 1)
    assert [len(pose) for pose in whole] == [count, count]
    for ranks in (1, 2, 3):
        fractions = [sample_poses(plan, 3, 11, rank, ranks) for rank in range(ranks)]
        for view, pose in enumerate(whole):
            turns, flip = torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
            for rank in range(ranks):
                turns[rank::ranks], flip[rank::ranks] = fractions[rank][view].turns, fractions[rank][view].flip
                assert fractions[rank][view].grid == pose.grid
            assert torch.equal(turns, pose.turns)
            assert torch.equal(flip, pose.flip)


def test_poses_are_a_function_of_seed_and_step():
    plan = make_plan(replace(POSED, count=20))
    assert sample_poses(plan, 3, 11, 0, 1) == sample_poses(plan, 3, 11, 0, 1)
    assert sample_poses(plan, 3, 11, 0, 1) != sample_poses(plan, 3, 12, 0, 1)
    assert sample_poses(plan, 3, 11, 0, 1) != sample_poses(plan, 4, 11, 0, 1)
    grids = {pose.grid for step in range(50) for pose in sample_poses(plan, 0, step, 0, 1)}
    assert len(grids) > 3


def test_each_crop_has_its_own_photometric_draw():
    plan = replace(
        standard_views(ViewsConfig(first=PLAIN, second=replace(PLAIN, solarise=1, solarise_threshold=0)), 16, 4),
        posed=STILL,
    )
    batch = make_batch(plan, 4, 4)
    views = to_device_views(batch, plan, sample_poses(plan, 0, 0, 0, 1), CPU)
    images = [x.pixels.float() / 255 for x in batch.crops]
    assert torch.allclose(views.crops[0], normalise(images[0], plan.mean, plan.std), atol=1e-5)
    assert torch.allclose(views.crops[1], normalise(1 - images[1], plan.mean, plan.std), atol=1e-5)
