"""ImageNet-P: flip rate and top-5 distance by hand and against the definition in loops; videos, folders of frames."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation.config import RobustnessConfig
from equimid.evaluation.robustness import measure_imagenet_p
from equimid.evaluation.robustness.imagenet_p import (
    TEST_PERTURBATIONS,
    Normaliser,
    PerturbedVideos,
    flip_rate,
    imagenet_p_records,
    read_frames,
    top5_distance,
)
from helpers.robust import STEP, draw_class, draw_training, reader, study, value

CLASSES = tuple(f"n{k}" for k in range(8))


def draw_video(folder, seen, name="video"):
    for number, kind in enumerate(seen):
        draw_class(folder / name / f"frame_{number}.png", kind)


def records_of(tmp_path, data, normaliser=None):
    return imagenet_p_records(reader(tmp_path, CLASSES), PerturbedVideos.find(str(data), CLASSES), normaliser)


# --- the definitions


def test_flip_rate_by_hand():
    predictions = torch.tensor([[0, 0, 1, 1, 0], [2, 2, 2, 2, 2]])
    # frame before: changes at 3 and 5, of 4 pairs; frame 1: frames 3 and 4 differ
    assert flip_rate(predictions, to_first=False).tolist() == [0.5, 0]
    assert flip_rate(predictions, to_first=True).tolist() == [0.5, 0]
    assert flip_rate(torch.tensor([0, 1, 1, 1]), to_first=False).item() == pytest.approx(1 / 3)
    assert flip_rate(torch.tensor([0, 1, 1, 1]), to_first=True).item() == 1


def test_top5_distance_by_hand():
    same = [0, 1, 2, 3, 4, 5, 6, 7]
    swapped = [1, 0, 2, 3, 4, 5, 6, 7]  # |1 - 2| + |2 - 1| = 2
    gone = [1, 2, 3, 4, 5, 6, 7, 0]  # the first falls to 8, counted as 6: 5; the others rise by one: 4
    six_to_five = [0, 1, 2, 3, 5, 4, 6, 7]  # |5 - 6| = 1; what rises from 6 is not among the five
    beyond = [0, 1, 2, 3, 4, 7, 6, 5]  # below the five nothing counts
    for ranking, distance in ((same, 0), (swapped, 2), (gone, 9), (six_to_five, 1), (beyond, 0)):
        assert top5_distance(torch.tensor([same, ranking]), to_first=False).item() == distance
    # back again: 9, then 9 from the frame before; 0 from the first
    there_and_back = torch.tensor([same, gone, same])
    assert top5_distance(there_and_back, to_first=True).item() == 4.5
    back = 5 + 4  # of (1, 2, 3, 4, 5): each falls by one place, the last to 6: 5; none rises among the five
    assert top5_distance(there_and_back, to_first=False).item() == (9 + back - 4) / 2


@pytest.mark.parametrize("to_first", [False, True])
def test_against_the_definition_in_loops(to_first):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 7, 12)).cumsum(1)
    flips, distances = [], []
    for video in logits:
        flip, distance = [], []
        for j in range(1, len(video)):
            reference = video[0 if to_first else j - 1]
            flip.append(reference.argmax() != video[j].argmax())
            ranks = {c: 1 + sum(video[j] > video[j][c]) for c in range(12)}
            best = sorted(range(12), key=lambda c, r=reference: -r[c])[:5]
            distance.append(sum(abs(min(i, 6) - min(ranks[c], 6)) for i, c in enumerate(best, start=1)))
        flips.append(np.mean(flip))
        distances.append(np.mean(distance))
    rankings = torch.from_numpy(logits).argsort(dim=-1, descending=True)
    assert flip_rate(rankings[..., 0], to_first).numpy() == pytest.approx(flips)
    assert top5_distance(rankings, to_first).numpy() == pytest.approx(distances)


# --- folders of frames


def test_values_by_hand(tmp_path):
    for perturbation in ("snow", "gaussian_noise"):
        # right at first; then seen as n1 until the end
        draw_video(tmp_path / "p" / perturbation / "n0", [0, 1, 1, 1, 1])
        draw_video(tmp_path / "p" / perturbation / "n2", [2, 2, 2, 2, 2])
    records = records_of(tmp_path, tmp_path / "p")
    # snow: one of four pairs flips in one of two videos; noise is compared with frame 1: all four differ
    assert value(records, "flip_rate", perturbation="snow") == 12.5
    assert value(records, "flip_rate", perturbation="gaussian_noise") == 50
    # 4 of 5 frames of the one video are wrong
    assert value(records, "top1", perturbation="snow") == pytest.approx(60)
    units = {r.metric: r.unit for r in records}
    assert units == {"flip_rate": "%", "top5_distance": "", "top1": "%"}
    # rankings 0 1 2 3 4 and 1 0 2 3 4 (0 is as far from 1 as 2, and comes first): 2, once of four, in one of two
    assert value(records, "top5_distance", perturbation="snow") == 0.25
    assert value(records, "top5_distance", perturbation="gaussian_noise") == 1


def test_frames_are_ordered_by_number(tmp_path):
    draw_video(tmp_path, [0] * 10 + [1])  # frame_10 after frame_9, not after frame_1
    greys = [image.getpixel((0, 0))[0] for image in read_frames(tmp_path / "video")]
    assert greys == [0] * 10 + [STEP]


def test_noise_of_greater_steps_is_compared_with_frame_1(tmp_path):
    draw_video(tmp_path / "p" / "noise" / "shot_noise_2" / "n0", [0, 1, 1])
    assert value(records_of(tmp_path, tmp_path / "p"), "flip_rate", perturbation="shot_noise_2") == 100


# --- normalisers


def normaliser_file(path, change=lambda content: None):
    content = {
        "flip_rate": dict.fromkeys(TEST_PERTURBATIONS, 0.5),
        "top5_distance": dict.fromkeys(TEST_PERTURBATIONS, 2.0),
    }
    change(content)
    path.write_text(json.dumps(content))
    return path


def draw_ten(root):
    for perturbation in TEST_PERTURBATIONS:
        draw_video(root / perturbation / "n0", [0, 1] if perturbation in ("snow", "tilt") else [0, 0])
    return str(root)


def test_mfr_and_mt5d_by_hand(tmp_path):
    draw_ten(tmp_path / "p")
    normaliser = Normaliser.read(normaliser_file(tmp_path / "alexnet.json"))
    records = records_of(tmp_path, tmp_path / "p", normaliser)
    # two of ten flip always: 2 x 1 / 0.5 / 10, and move by 2: 2 x 2 / 2 / 10
    assert value(records, "mfr") == pytest.approx(40)
    assert value(records, "mt5d") == pytest.approx(20)


def test_mean_top1_by_hand(tmp_path):
    """The mean over the ten test perturbations, of the mean over their videos: no perturbation counts for more."""
    draw_ten(tmp_path / "p")  # half of the frames are right in snow and tilt, all in the other eight
    draw_video(tmp_path / "p" / "snow" / "n1", [0, 0, 0, 0])  # snow: none right, in another video
    draw_video(tmp_path / "p" / "shear" / "n0", [5, 5])  # for validation: not in the mean
    (found,) = [r for r in records_of(tmp_path, tmp_path / "p") if r.metric == "mean_top1"]
    assert found.value == pytest.approx((25 + 50 + 8 * 100) / 10)
    assert (found.evaluation, found.unit, found.n) == ("imagenet_p", "%", 11)
    assert found.details == {"rate": 0.1}  # as the head was found


def test_no_mean_without_alexnet_or_with_a_part(tmp_path, caplog):
    draw_ten(tmp_path / "p")
    with caplog.at_level(logging.WARNING, "equimid"):
        records = records_of(tmp_path, tmp_path / "p")
    assert "alexnet_p" in caplog.text
    assert {r.metric for r in records} == {"flip_rate", "top5_distance", "top1", "mean_top1"}
    (tmp_path / "p" / "snow").rename(tmp_path / "p" / "other")
    normaliser = Normaliser.read(normaliser_file(tmp_path / "alexnet.json"))
    with caplog.at_level(logging.WARNING, "equimid"):
        records = records_of(tmp_path, tmp_path / "p", normaliser)
    assert "lacks snow" in caplog.text
    assert not [r for r in records if r.metric in ("mfr", "mt5d", "mean_top1")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("top5_distance"), "no table 'top5_distance'"),
        (lambda c: c["flip_rate"].pop("tilt"), "lacks tilt"),
        (lambda c: c["flip_rate"].update(tilt=22.5), "(0, 1]"),
        (lambda c: c["top5_distance"].update(snow=0), "(0, 15]"),
        (lambda c: c["top5_distance"].update(snow="much"), "(0, 15]"),
    ],
)
def test_a_normaliser_that_is_none(tmp_path, change, said):
    with pytest.raises(UserError) as caught:
        Normaliser.read(normaliser_file(tmp_path / "alexnet.json", change))
    assert said in str(caught.value)


def test_no_normaliser_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Normaliser.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("words")
    with pytest.raises(UserError, match="not JSON"):
        Normaliser.read(tmp_path / "text.json")


# --- mp4


def write_mp4(path, greys, size=32):
    av = pytest.importorskip("av", reason="the package av (extra video) is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_image(Image.new("RGB", (size, size), (grey,) * 3))
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def test_an_mp4_gives_its_frames(tmp_path):
    write_mp4(tmp_path / "v.mp4", [40, 80, 120, 160])
    frames = list(read_frames(tmp_path / "v.mp4"))
    assert [frame.size for frame in frames] == [(32, 32)] * 4
    assert [frame.getpixel((16, 16))[0] for frame in frames] == pytest.approx([40, 80, 120, 160], abs=4)


def test_videos_are_measured_as_frames_are(tmp_path):
    write_mp4(tmp_path / "p" / "snow" / "n2" / "v.mp4", [2 * STEP, 2 * STEP, 4 * STEP, 4 * STEP, 4 * STEP])
    records = records_of(tmp_path, tmp_path / "p")
    assert value(records, "flip_rate", perturbation="snow") == 25
    assert value(records, "top1", perturbation="snow") == pytest.approx(40)


# --- bad input


def refused(tmp_path, data, train=True, **config):
    fit = draw_training(tmp_path / "train", CLASSES) if train else None
    with pytest.raises(UserError) as caught:
        measure_imagenet_p(study(tmp_path, linear_epochs=1, **config), str(data), fit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_named(tmp_path):
    draw_video(tmp_path / "p" / "snow" / "n0", [0, 0])
    assert "--train" in refused(tmp_path, tmp_path / "p", train=False)
    assert "not there" in refused(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "PERTURBATION/CLASS" in refused(tmp_path, tmp_path / "empty")
    draw_video(tmp_path / "p" / "snow" / "m77", [0, 0])
    assert "m77" in refused(tmp_path, tmp_path / "p")


def test_damaged_videos_are_named(tmp_path):
    pytest.importorskip("av", reason="the package av (extra video) is not installed")
    path = tmp_path / "p" / "snow" / "n0" / "v.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no video")
    assert "v.mp4 cannot be read" in refused(tmp_path, tmp_path / "p")
    path.unlink()
    draw_video(path.parent, [0], "short")
    assert "short has 1 frame" in refused(tmp_path, tmp_path / "p")
    (path.parent / "short" / "frame_1.png").write_bytes(b"no image")
    assert "frame_1.png cannot be read" in refused(tmp_path, tmp_path / "p")


def test_from_folders_to_records(tmp_path):
    data, train = draw_ten(tmp_path / "p"), draw_training(tmp_path / "train", CLASSES)
    file = normaliser_file(tmp_path / "alexnet.json")
    config = {"linear_epochs": 2, "linear_rates": (0.01,)}
    asked = study(tmp_path, robustness=RobustnessConfig(alexnet_p=str(file)), **config)
    records = measure_imagenet_p(asked, data, train)
    assert {r.metric for r in records} == {"flip_rate", "top5_distance", "top1", "mean_top1", "mfr", "mt5d"}
    assert all(r.evaluation == "imagenet_p" for r in records)
