"""JPEG files: decoded as PIL decodes them, scaled down where the crops allow it, or left to the training process."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.data import open_image
from equimid.data.jpeg import JpegPicture, open_picture
from equimid.errors import UnreadableImage, UserError
from equimid.views import Key, ViewDataset, collate, decode_encoded, sample_poses, to_device_views
from equimid.views import device_decode as decoding
from equimid.views.crops import Cut, choose_scale, cut_out
from helpers.drawn_views import POSED, make_plan, resized, unshared
from helpers.photographs import Files, encoded, near, smooth, tensor_of

CPU = torch.device("cpu")
KINDS = {
    "plain": {},
    "progressive": {"progressive": True},
    "full colour": {"subsampling": 0, "quality": 95},
    "restarts": {"restart_marker_rows": 1, "quality": 60},
}


def shown(content):
    """(3, H, W), as `open_image` shows it."""
    return tensor_of(open_image(io.BytesIO(content)))


def reason_of(content):
    """Why `open_image` refuses it; None where it does not."""
    try:
        shown(content)
    except UnreadableImage as error:
        return error.reason
    return None


# --- whole files


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_has_the_pixels_that_pil_gives_it(kind, mode):
    content = encoded(smooth((71, 53)).convert(mode), **KINDS[kind])
    source = Files([content])
    picture = open_picture(source, 0)
    assert isinstance(picture, JpegPicture)
    assert picture.size == (71, 53)
    pixels, scale = picture.pixels()
    assert scale == 1
    assert torch.equal(pixels, shown(content))
    assert source.loads == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2])
def test_exif_orientation_turns_a_jpeg_as_pil_does(orientation, scale):
    content = encoded(smooth((64, 48)), orientation)
    picture = open_picture(Files([content]), 0)
    upright = open_image(io.BytesIO(content))
    assert picture.size == upright.size
    pixels, used = picture.pixels(scale)
    assert used == scale
    expected = tensor_of(upright.reduce(scale) if scale > 1 else upright)
    assert near(pixels, expected, 0 if scale == 1 else 16)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("I;16", "PNG")]
)
def test_other_files_are_the_sources_to_load(mode, kind):
    image = (
        Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20) if mode == "I;16" else smooth((60, 40))
    )
    content = encoded(image if mode == "I;16" else image.convert(mode), kind=kind)
    source = Files([content])
    picture = open_picture(source, 0)
    assert not isinstance(picture, JpegPicture)
    assert torch.equal(picture.pixels()[0], shown(content))
    assert (source.loads, picture.scales) == ([0], ())


def damaged(content, seed):
    """Cut short, cut short with an end marker, or with one byte changed."""
    rng = np.random.default_rng(seed)
    place = int(rng.integers(2, len(content)))
    return (
        content[:place],
        content[:place] + b"\xff\xd9",
        content[:place] + bytes([rng.integers(256)]) + content[place + 1 :],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_jpeg_is_accepted_or_refused_as_pil_does(kind, capfd):
    """The same reason where it is refused, the same pixels where it is accepted."""
    whole = encoded(smooth((40, 32)), **KINDS[kind])
    contents = [*(x for seed in range(40) for x in damaged(whole, seed)), *(whole[:-cut] for cut in range(1, 6)), b""]
    accepted = 0
    for content in contents:
        reason = reason_of(content)
        picture = open_picture(Files([content]), 0) if reason is None else None
        if picture is not None:
            accepted += 1
            assert torch.equal(picture.pixels()[0], shown(content))
            continue
        for scale in (1, 2):
            with pytest.raises(UnreadableImage) as caught:
                open_picture(Files([content]), 0).pixels(scale)
            assert caught.value.reason == reason
    assert 20 < accepted < len(contents) - 20
    capfd.readouterr()  # libjpeg's own remarks


# --- cuts


@pytest.mark.parametrize("size", [7, 32])
def test_a_cut_is_pils_bilinear_resize_to_one_of_255(size):
    rng = np.random.default_rng(0)
    for number in range(60):
        width, height = (int(x) for x in rng.integers(1, 90, 2))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        box = (left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1)
        found = cut_out(tensor_of(image), Cut(box, size, bool(number % 2)), "bilinear")
        assert near(found, resized(image, size, bool(number % 2), box))


def test_scale_leaves_every_view_its_pixels():
    def cut(width, height, size):
        return Cut((5, 7, 5 + width, 7 + height), size, False)

    assert choose_scale([cut(64, 64, 32)], (8, 4, 2)) == 2
    assert choose_scale([cut(64, 63, 32)], (8, 4, 2)) == 1
    assert choose_scale([cut(256, 300, 32)], (8, 4, 2)) == 8
    assert choose_scale([cut(256, 300, 32), cut(129, 400, 32)], (8, 4, 2)) == 4
    assert choose_scale([cut(256, 300, 32)], ()) == 1


def test_a_large_photograph_is_decoded_smaller_and_looks_the_same():
    content = encoded(smooth((600, 500)), quality=95)
    source = Files([content])
    dataset = ViewDataset(source, make_plan(posed=None, size=32, crop_scale=(0.5, 1.0)), seed=0)
    picture = open_picture(source, 0)
    assert picture.pixels(8)[0].shape == (3, 63, 75)
    image = open_image(io.BytesIO(content))
    used = set()
    for epoch in range(8):
        item = dataset[Key(epoch, 0, False)]
        drawn = [unshared(fractions, image) for fractions in item.boxes]
        room = min(min(box[2] - box[0], box[3] - box[1]) // 32 for box, _ in drawn)
        scale = max(s for s in (1, 2, 4, 8) if s <= room)
        used.add(scale)
        for pixels, (box, flipped) in zip(item.pixels, drawn, strict=True):
            close = resized(image.reduce(scale), 32, flipped, [round(edge / scale) for edge in box])
            assert near(pixels, close, 12)
            # against the whole file, edges are off by half a pixel of the view at most
            assert (pixels.int() - resized(image, 32, flipped, box).int()).abs().float().mean() < 5
            assert (pixels.int() - resized(image, 32, not flipped, box).int()).abs().float().mean() > 20
    assert used == {8}
    assert source.loads == []


def test_scaled_decoding_is_used(monkeypatch):
    asked = []
    real = JpegPicture.pixels
    monkeypatch.setattr(JpegPicture, "pixels", lambda self, scale=1: asked.append(scale) or real(self, scale))
    source = Files([encoded(smooth((200, 160)))])
    for size, scale in ((16, 8), (64, 2), (100, 1)):
        plan = make_plan(posed=replace(POSED, sizes=(size, size)), size=16)
        ViewDataset(source, plan, seed=0)[Key(0, 0, True)]
        assert asked.pop() == scale


# --- on the device


def dataset_of(contents, decode, size=16):
    return ViewDataset(Files(contents), make_plan(replace(POSED, count=2, sizes=(size, size)), size=size), 0, decode)


def both(contents, keys, **changes):
    """The batch of the workers, and that of the training process."""
    here = dataset_of(contents, "device", **changes)
    waiting = collate([here[key] for key in keys])
    workers = dataset_of(contents, "workers", **changes)
    return collate([workers[key] for key in keys]), waiting, decode_encoded(waiting, here, CPU)


def assert_same(a, b, most=0):
    for x, y in zip([*a.crops, *a.posed], [*b.crops, *b.posed], strict=True):
        assert torch.equal(x.boxes, y.boxes)
        assert torch.equal(x.photometric, y.photometric)
        assert near(x.pixels, y.pixels, most)
    assert len(a.crops) == len(b.crops)
    assert torch.equal(a.indices, b.indices)
    assert sorted(a.unreadable) == sorted(b.unreadable)


PHOTOGRAPHS = [
    encoded(smooth((60, 44), 0)), encoded(smooth((44, 60), 1), 6), encoded(smooth((50, 50), 2), kind="PNG"),
    encoded(smooth((47, 53), 3).convert("L")), encoded(smooth((61, 40), 4).convert("CMYK")),
    encoded(smooth((52, 48), 5)),
]  # fmt: skip
KEYS = [Key(0, index, index < 2) for index in range(6)]


@pytest.mark.parametrize("keys", [KEYS, KEYS[:2], KEYS[3:], [replace(KEYS[2], posed=True), KEYS[4]], KEYS[::-1]])
def test_the_training_process_makes_of_a_file_what_a_worker_does(keys):
    """At 48 px no file is scaled while it is decoded: the same bits."""
    workers, waiting, here = both(PHOTOGRAPHS, keys, size=48)
    plain = {0, 1, 3, 5} & {key.index for key in keys}
    assert {image.key.index for image in waiting.encoded.values()} == plain
    assert (waiting.files is None) == (not plain)
    if plain:
        assert waiting.files.numel() == sum(len(PHOTOGRAPHS[index]) for index in plain)
    assert here.files is None
    assert_same(workers, here)


def test_a_batch_survives_the_way_from_a_worker():
    dataset = dataset_of(PHOTOGRAPHS, "device")
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=[KEYS, KEYS[::-1]], collate_fn=collate, num_workers=1)
    found = [decode_encoded(batch, dataset, CPU) for batch in loader]
    for batch, keys in zip(found, (KEYS, KEYS[::-1]), strict=True):
        assert_same(both(PHOTOGRAPHS, keys)[2], batch)


@pytest.mark.parametrize("posed", [False, True])
def test_a_damaged_file_is_replaced_and_counted_as_by_a_worker(posed):
    contents = list(PHOTOGRAPHS)
    contents[3] = contents[3][:-40]
    contents[5] = None
    keys = [replace(key, posed=posed and key.index in (3, 5)) for key in KEYS]
    workers, waiting, here = both(contents, keys, size=48)
    assert set(here.unreadable) == {3, 5}
    assert 3 not in waiting.unreadable  # its header is whole
    assert not {3, 5} & set(here.indices.tolist())
    assert_same(workers, here)


def test_a_device_that_decodes_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(decoding, "decode_jpegs", lambda files, where: [None] * len(files))
    with pytest.raises(UserError, match=r"refused all 4 of a batch.*runtime.decode=workers"):
        both(PHOTOGRAPHS, KEYS)


def test_encoded_files_are_refused_by_realise():
    dataset = dataset_of(PHOTOGRAPHS, "device")
    batch = collate([dataset[key] for key in KEYS])
    with pytest.raises(ValueError, match="4 files of the batch are encoded"):
        to_device_views(batch, dataset.plan, sample_poses(dataset.plan, 0, 0, 0, 1), CPU)
    views = to_device_views(
        decode_encoded(batch, dataset, CPU), dataset.plan, sample_poses(dataset.plan, 0, 0, 0, 1), CPU
    )
    assert [tuple(x.shape) for x in views.crops] == [(4, 3, 16, 16)] * 2
