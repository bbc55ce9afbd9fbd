"""The benchmark of the loader: which rows there are, of which images."""

import pytest
import torch
from bench_loader import bench_loader
from lib.options import LoaderOptions

from equimid.data import pack
from equimid.errors import UserError
from helpers.photographs import smooth

SMALL = {"images": 3, "photometric_images": 2, "image_size": 32, "repeats": 1}


def photographs(folder, count=5):
    folder.mkdir()
    for number in range(count):
        smooth((60, 48), number).save(folder / f"{number}.jpg")
    return str(folder)


def test_every_side_is_timed_on_the_images_asked_for(tmp_path):
    threads = torch.get_num_threads()
    result = bench_loader(LoaderOptions(data=photographs(tmp_path / "photographs"), **SMALL))
    assert [row["images"] for row in result.rows] == [3, 3, 3, 2, 2, 2]
    assert len({row["side"] for row in result.rows}) == 6
    for row in result.rows:
        assert row["images/s per core"] * row["ms per image"] == pytest.approx(1000)
    assert len(result.ratios) == 3
    assert all(value > 0 for value in result.ratios.values())
    assert "mean 60 x 48 px" in result.notes[0]
    assert torch.get_num_threads() == threads


def test_photographs_are_drawn_where_no_data_are_given():
    result = bench_loader(LoaderOptions(**SMALL))
    assert result.notes[0].startswith("3 images of drawn photographs: mean 467 x 389 px")
    kilobytes = float(result.notes[0].split(", ")[-1].split()[0])
    assert 85 < kilobytes < 130  # ImageNet's are 107


def test_packed_data_are_read_by_every_side(tmp_path):
    pack(photographs(tmp_path / "photographs"), tmp_path / "packed")
    result = bench_loader(LoaderOptions(data=str(tmp_path / "packed"), **SMALL))
    assert len(result.rows) == 5
    assert any("packed already" in note for note in result.notes)


def test_what_cannot_be_read_is_left_out(tmp_path):
    folder = photographs(tmp_path / "photographs", 3)
    (tmp_path / "photographs/0.jpg").write_bytes(b"")
    result = bench_loader(LoaderOptions(data=folder, **SMALL))
    assert [row["images"] for row in result.rows] == [2] * 6
    assert "1 more cannot be read and are left out" in result.notes


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"data": "digits"}, "holds pixels"), ({"workers": -1}, "workers is -1"), ({"images": 0}, "1 or")],
)
def test_what_cannot_be_timed_is_refused(changes, found):
    with pytest.raises(UserError, match=found):
        bench_loader(LoaderOptions(**{**SMALL, **changes}))
