"""Posed views in pairs of one size: one for every standard view, each pair with poses of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons import ESSLConfig, SERConfig, STLConfig
from equimid.poses import sample_pose_pair
from equimid.randomness import counted_generator
from equimid.views import Key, Photometric, ViewDataset, ViewsConfig, normalise, sample_poses, to_device_views
from helpers.pairs import CROPS, LOCAL, Images, in_pairs, make_batch, plan_of
from helpers.photographs import near

CPU = torch.device("cpu")


@pytest.mark.parametrize("views", [CROPS, ViewsConfig(full=3), ViewsConfig(local=replace(LOCAL, count=3))])
def test_posed_views_come_in_pairs_of_one_size(views):
    plan = plan_of(views, ser=SERConfig(fraction=0.5))
    sizes = tuple(view.size for view in plan.crops)
    assert plan.posed.sizes == sizes
    batch = make_batch(plan, in_pairs(8, posed=4))
    assert [tuple(x.pixels.shape) for x in batch.posed[::2]] == [(4, 3, size, size) for size in sizes[::2]]
    assert len(batch.posed) == len(sizes)
    views = to_device_views(batch, plan, sample_poses(plan, 0, 0, 0, 1), CPU)
    assert [tuple(x.shape[-2:]) for x in views.posed] == [(8 * p.grid[0], 8 * p.grid[1]) for p in views.poses]
    # the whole image: no crop
    assert near(batch.posed[0].pixels[1], _resized(1, 32))
    if 16 in sizes:
        assert near(batch.posed[2].pixels[1], _resized(1, 16))
    # every view with its own draw
    rows = torch.stack([x.photometric for x in batch.posed])
    assert len(rows.flatten(0, 1).unique(dim=0)) == len(sizes) * 4


def test_a_posed_view_is_the_square_of_its_pair_with_its_own_draw():
    still = Photometric(jitter=0, grey=0, blur=0)
    negative = Photometric(jitter=0, grey=0, blur=0, solarise=1, solarise_threshold=0)
    views = ViewsConfig(first=still, second=negative, local=replace(LOCAL, photometric=still))
    plan = plan_of(views, ser=SERConfig(fraction=0.5))
    batch = make_batch(plan, in_pairs(8, posed=4))
    poses = sample_poses(plan, 0, 0, 0, 1)
    for v, view in enumerate(to_device_views(batch, plan, poses, CPU).posed):
        square = batch.posed[v].pixels.float() / 255
        square = normalise(1 - square if v == 1 else square, plan.mean, plan.std)
        assert torch.allclose(view, poses[v].act(square, 8), atol=1e-5)


def _resized(index, size):
    image = Images().load(index).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("complement", [False, True])
def test_the_first_pair_of_poses_is_drawn_as_of_two_views(complement):
    ser = SERConfig(fraction=0.5, complement=complement)
    two, many, three = (plan_of(views, ser=ser) for views in (ViewsConfig(), CROPS, ViewsConfig(full=3)))
    for step in range(20):
        poses = sample_poses(many, 3, step, 0, 1)
        assert len(poses) == 6
        rng = counted_generator(3, "pose", step)
        settings = {"area": ser.area, "aspect": ser.aspect, "complement": complement, "grids": ser.grids}
        expected = [pose for side in (4, 2, 2) for pose in sample_pose_pair(4, (side, side), rng, **settings)]
        assert poses == expected
        assert poses[:2] == sample_poses(two, 3, step, 0, 1)
        assert sample_poses(three, 3, step, 0, 1)[:2] == poses[:2]
        assert len(sample_poses(three, 3, step, 0, 1)) == 3
        assert all(max(pose.grid) <= 3 for pose in poses[2:])
    assert any(pose.grid[0] > 3 for step in range(20) for pose in sample_poses(many, 3, step, 0, 1)[:2])


def test_a_rank_without_posed_images_in_multi_crop():
    plan = plan_of(CROPS, 12, ser=SERConfig(fraction=0.01), stl=STLConfig(), essl=ESSLConfig(size=16))
    keys = in_pairs(12, posed=2)
    assert plan.positions(2, 1, 3) == []
    mine = [keys[p] for p in plan.positions(12, 1, 3)]
    views = to_device_views(make_batch(plan, mine), plan, sample_poses(plan, 0, 0, 1, 3), CPU)
    grids = [pose.grid for pose in sample_poses(plan, 0, 0, 0, 1)]
    assert [tuple(x.shape) for x in views.posed] == [(0, 3, 8 * h, 8 * w) for h, w in grids]
    assert [len(pose) for pose in views.poses] == [0] * 6
    assert [tuple(x.shape) for x in views.crops] == [(4, 3, 32, 32)] * 2 + [(4, 3, 16, 16)] * 4
    # and one of posed images only
    views = to_device_views(make_batch(plan, keys[:2]), plan, sample_poses(plan, 0, 0, 0, 1), CPU)
    assert [tuple(x.shape) for x in (*views.crops[::2], *views.extra["essl"])] == [(0, 3, 32, 32)] + [
        (0, 3, 16, 16)
    ] * 6


def test_a_shared_crop_of_multi_crop_is_one_box_per_pair():
    plan = plan_of(ser=SERConfig(fraction=1.0, source="shared_crop"), batch=40)
    dataset = ViewDataset(Images(), plan, 0)
    areas, flips = [[], [], []], set()
    for index in range(40):
        item, image = dataset[Key(0, index, True)], Images().load(index)
        assert len(item.pixels) == len(item.boxes) == 3
        assert len(item.boxes[:, :4].unique(dim=0)) == 3
        for j, (top, left, height, width, flipped) in enumerate(item.boxes.tolist()):
            w, h = image.size
            box = [round(edge) for edge in (left * w, top * h, (left + width) * w, (top + height) * h)]
            cut = image.crop(box).resize((item.pixels[j].shape[-1],) * 2, Image.Resampling.BILINEAR)
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cut
            assert near(item.pixels[j], torch.from_numpy(np.array(cut)).permute(2, 0, 1))
            areas[j].append(height * width)
            flips.add((j, flipped))
    assert max(areas[0]) > 0.5
    assert 0.04 < min(areas[1] + areas[2]) < max(areas[1] + areas[2]) < 0.28
    assert len(flips) == 6
