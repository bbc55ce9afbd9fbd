"""The settings of the comparison: small views, a third view, extra views of add-ons, aligned pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons import EquiModConfig, ESSLConfig, SERConfig, STLConfig
from equimid.engine.sampler import MicroBatches
from equimid.errors import UserError
from equimid.views import (
    FIELDS,
    CentreView,
    ExtraView,
    Key,
    LocalViews,
    Photometric,
    ViewDataset,
    ViewsConfig,
    collate,
    normalise,
    sample_poses,
    to_device_views,
)
from equimid.views.plan import standard_views
from helpers.pairs import CROPS, LOCAL, Images, in_pairs, make_batch, plan_of
from helpers.photographs import near

CPU = torch.device("cpu")
OWN = [FIELDS.index(name) for name in ("sigma", "solarised")]
SHARED = [column for column in range(len(FIELDS)) if column not in OWN]


# --- sizes


@pytest.mark.parametrize(
    ("views", "addons", "label"),
    [
        (ViewsConfig(), {}, "2 x 32"),
        (ViewsConfig(full=3), {}, "3 x 32"),
        (CROPS, {}, "2 x 32 + 4 x 16"),
        (ViewsConfig(), {"equimod": EquiModConfig()}, "3 x 32"),
        (ViewsConfig(), {"essl": ESSLConfig(size=16)}, "2 x 32 + 4 x 16"),
        (CROPS, {"equimod": EquiModConfig(), "essl": ESSLConfig(size=8)}, "3 x 32 + 4 x 16 + 4 x 8"),
        (ViewsConfig(), {"ser": SERConfig(), "stl": STLConfig()}, "2 x 32"),
    ],
)
def test_the_label_names_the_views_of_an_image(views, addons, label):
    assert plan_of(views, **addons).label == label


def test_small_views_have_their_own_size_scale_and_photometric():
    mirror = Photometric(jitter=0, grey=1, blur=0)
    local = LocalViews(count=3, size=16, scale=(0.1, 0.2), photometric=mirror)
    plan = plan_of(ViewsConfig(full=3, local=local, crop_scale=(0.5, 0.6)))
    assert [view.photometric for view in plan.crops[:3]] == [
        ViewsConfig().first, ViewsConfig().second, ViewsConfig().first
    ]  # fmt: skip
    batch = make_batch(plan, in_pairs(40))
    views = to_device_views(batch, plan, [], CPU)
    assert [x.shape[-1] for x in views.crops] == [32] * 3 + [16] * 3
    for v, crop in enumerate(batch.crops):
        area = crop.boxes[:, 2] * crop.boxes[:, 3]
        low, high = (0.5, 0.6) if v < 3 else (0.1, 0.2)
        assert low - 0.03 < area.min() < area.max() < high + 0.03
        assert bool((crop.photometric[:, FIELDS.index("grey")] == 1).all()) == (v >= 3)
    assert not any(torch.equal(a, b) for i, a in enumerate(views.crops) for b in views.crops[:i])


def test_default_small_views_are_the_releases():
    local = ViewsConfig().local
    assert (local.count, local.size, local.scale) == (0, 96, (0.05, 0.25))
    drawn = local.photometric
    assert (drawn.jitter, drawn.grey, drawn.blur, drawn.solarise) == (0.8, 0.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan_of(ViewsConfig(local=LocalViews(2, 18))), r"views\.local\.size is 18, .* 8 px patch; try 16$"),
        (lambda: plan_of(ViewsConfig(local=LocalViews(2, 3))), r"views\.local\.size is 3, .*; try 8$"),
        (lambda: standard_views(ViewsConfig(), 33, 8), r"backbone\.image_size is 33, .*; try 32$"),
        (lambda: plan_of(essl=ESSLConfig(size=23)), r"essl\.size is 23, .*; try 24$"),
        (lambda: LocalViews(count=-1), r"views\.local\.count is -1; it must be 0 or more"),
        (lambda: LocalViews(scale=(0.3, 0.2)), r"views\.local\.scale is \[0\.3, 0\.2\]"),
        (lambda: ViewsConfig(full=4), r"views\.full is 4; it must be in \[2, 3\]"),
    ],
)
def test_views_that_cannot_be_are_refused_with_what_can(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- matched views


@pytest.mark.parametrize("aligned", [False, True])
def test_standard_views_do_not_notice_add_ons_or_posed_neighbours(aligned):
    pairs = {"stl": STLConfig()} if aligned else {}
    others = {"essl": ESSLConfig(size=16), "equimod": EquiModConfig(), "ser": SERConfig()}
    bare, full = plan_of(CROPS, **pairs), plan_of(CROPS, **pairs, **others)
    assert full.posed.count == 2
    assert bare.aligned is full.aligned is aligned
    alone, beside = make_batch(bare, in_pairs(8)), make_batch(full, in_pairs(8, posed=2))
    assert (len(beside.crops), len(beside.crops[0].pixels), len(beside.posed)) == (8, 6, 6)
    for a, b in zip(alone.crops, beside.crops[:6], strict=True):
        for name in ("pixels", "boxes", "photometric"):
            assert torch.equal(getattr(a, name)[2:], getattr(b, name)), name
    views = [to_device_views(x, p, sample_poses(p, 0, 0, 0, 1), CPU) for x, p in ((alone, bare), (beside, full))]
    assert all(torch.equal(a[2:], b) for a, b in zip(views[0].crops, views[1].crops, strict=True))


# --- extra views


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (2, 3), (1, 1)])
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_the_centre_view_is_the_exact_centre_and_draws_nothing(size, fraction):
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    source = Images(1)
    source.load = lambda index: Image.fromarray(pixels)
    plan = replace(standard_views(ViewsConfig(), 32, 8), extra={"clean": ExtraView(CentreView(32, fraction))})
    first, later = (ViewDataset(source, plan, seed)[Key(epoch, 0, False)] for seed, epoch in ((0, 0), (5, 3)))
    assert torch.equal(first.pixels[2], later.pixels[2])
    assert not torch.equal(first.photometric[0], later.photometric[0])
    side = max(1, round(min(size) * fraction))
    top, left = (height - side) // 2, (width - side) // 2
    expected = Image.fromarray(pixels[top : top + side, left : left + side]).resize((32, 32), Image.Resampling.BILINEAR)
    assert near(first.pixels[2], torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    box = torch.tensor([top / height, left / width, side / height, side / width, 0.0])
    assert torch.allclose(first.boxes[2], box)
    # nothing is changed on the device either
    (clean,) = to_device_views(collate([first]), plan, [], CPU).extra["clean"]
    assert torch.allclose(clean[0], normalise(first.pixels[2].float() / 255, plan.mean, plan.std), atol=1e-5)


def test_the_turns_of_an_extra_view_are_one_crop_turned():
    plan = plan_of(ViewsConfig(), essl=ESSLConfig(size=16), equimod=EquiModConfig())
    batch = make_batch(plan, in_pairs(5))
    assert [x.pixels.shape[-1] for x in batch.crops] == [32, 32, 16, 32]
    views = to_device_views(batch, plan, [], CPU)
    assert list(views.extra) == ["essl", "equimod"]
    assert [len(turns) for turns in views.extra.values()] == [4, 1]
    upright = views.extra["essl"][0]
    for turn, shown in enumerate(views.extra["essl"]):
        assert torch.equal(shown, torch.stack([torch.rot90(image, turn, (1, 2)) for image in upright]))
    assert not torch.equal(upright, views.extra["essl"][2])


# --- aligned pairs


def test_aligned_views_are_a_function_of_seed_epoch_and_pair():
    plan = plan_of(ViewsConfig(second=Photometric(blur=0.5, solarise=0.5), local=LOCAL), stl=STLConfig())
    batch = make_batch(plan, in_pairs(64))
    for crop in batch.crops:
        boxes, rows = crop.boxes, crop.photometric
        assert torch.allclose(boxes[0::2, :4], boxes[1::2, :4], atol=1.5 / 31)  # whole pixels
        assert torch.equal(rows[0::2][:, SHARED], rows[1::2][:, SHARED])
        assert bool((boxes[0::2, 4] != boxes[1::2, 4]).any())
        assert len(boxes[0::2, :4].unique(dim=0)) == 32
    apart = [(x.photometric[0::2][:, OWN] != x.photometric[1::2][:, OWN]).any(0).tolist() for x in batch.crops]
    assert apart == [[True, False], [True, True], *[[True, False]] * 4]
    again, other_seed = make_batch(plan, in_pairs(64)), make_batch(plan, in_pairs(64), seed=1)
    other_epoch = make_batch(plan, in_pairs(64, epoch=1))
    other_pair = make_batch(plan, [replace(key, pair=key.pair + 2) for key in in_pairs(64)])
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(batch.crops, again.crops, strict=True))
    for other in (other_seed, other_epoch, other_pair):
        for v in range(6):
            assert not (batch.crops[v].boxes[:, :4] == other.crops[v].boxes[:, :4]).all(1).any()
    # the other image's own draws are not the pair's
    assert torch.equal(batch.crops[0].boxes[:, 4], other_pair.crops[0].boxes[:, 4])


def test_a_lone_image_of_an_aligned_plan_is_an_error():
    with pytest.raises(ValueError, match="image 3 names no pair"):
        ViewDataset(Images(), plan_of(stl=STLConfig()), 0)[Key(0, 3, False)]


@pytest.mark.parametrize("fraction", [0.01, 0.25, 5 / 12])
def test_pairs_stay_on_one_rank_and_are_the_same_for_any_number_of_ranks(fraction):
    plan = plan_of(ViewsConfig(), 12, stl=STLConfig(), ser=SERConfig(fraction=fraction))
    assert plan.posed.count == {0.01: 2, 0.25: 4, 5 / 12: 6}[fraction]

    def batches(rank, ranks):
        settings = {"micro_batch": 12, "accumulate": 2, "first_step": 1, "last_step": 5, "plan": plan}
        return list(MicroBatches(64, 0, **settings, rank=rank, ranks=ranks))

    whole = batches(0, 1)
    for keys in whole:
        assert [key.pair for key in keys] == [keys[p // 2 * 2].index for p in range(12)]
        assert [key.posed for key in keys] == [p < plan.posed.count for p in range(12)]
    for ranks in (2, 3):
        fractions = [batches(rank, ranks) for rank in range(ranks)]
        for number, keys in enumerate(whole):
            mine = [fraction[number] for fraction in fractions]
            assert [len(part) for part in mine] == [12 // ranks] * ranks
            assert sorted((k.index, k.posed, k.pair) for part in mine for k in part) == sorted(
                (k.index, k.posed, k.pair) for k in keys
            )
            for rank, part in enumerate(mine):
                assert all(
                    a.pair == b.pair == a.index and a.posed == b.posed
                    for a, b in zip(part[::2], part[1::2], strict=True)
                )
                # the poses of a rank are those of its posed images
                posed = [keys.index(key) for key in part if key.posed]
                assert posed == plan.positions(plan.posed.count, rank, ranks)
                for all_poses, poses in zip(
                    sample_poses(plan, 0, 1, 0, 1), sample_poses(plan, 0, 1, rank, ranks), strict=True
                ):
                    assert poses == all_poses[posed]


def test_a_rank_makes_the_views_that_one_process_makes():
    """Pixels too: images are dealt out, and what is drawn for them does not change."""
    plan = plan_of(CROPS, 12, stl=STLConfig(), ser=SERConfig(fraction=0.3), essl=ESSLConfig(size=16))
    keys = in_pairs(12, posed=plan.posed.count)
    whole = to_device_views(make_batch(plan, keys), plan, sample_poses(plan, 0, 7, 0, 1), CPU)
    rest = [p for p in range(12) if not keys[p].posed]
    for rank in range(3):
        mine = plan.positions(12, rank, 3)
        views = to_device_views(make_batch(plan, [keys[p] for p in mine]), plan, sample_poses(plan, 0, 7, rank, 3), CPU)
        cropped = [rest.index(p) for p in mine if p in rest]
        posed = [p for p in mine if p not in rest]
        assert views.image_ids.tolist() == posed
        everything = list(zip(views.crops + views.extra["essl"], whole.crops + whole.extra["essl"], strict=True))
        assert all(torch.allclose(a, b[cropped], atol=1e-5) for a, b in everything)
        assert all(torch.allclose(a, b[posed], atol=1e-4) for a, b in zip(views.posed, whole.posed, strict=True))
