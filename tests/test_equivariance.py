"""Equivariance of every layer against maps whose equivariance is known; pictures."""

import os
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from drawing import CPU, SCOPE, drawn
from equimid.backbones import create_backbone
from equimid.evaluation import (
    EvaluationConfig,
    draw_feature_maps,
    measure_equivariance,
)
from equimid.evaluation.equivariance import pose_kinds
from equimid.records import read_records, write_records


def unspoilt(maps):
    return maps


def shifted(maps):
    return maps.roll(1, -1)


def placed(maps):
    """Channels that say where they are."""
    rows = torch.linspace(-2, 2, maps.shape[2])[:, None].expand(maps.shape[2:])
    columns = torch.linspace(-2, 2, maps.shape[3])[None, :].expand(maps.shape[2:])
    return torch.cat([maps[:, :2] + rows, maps[:, 2:4] + columns, maps[:, 4:]], dim=1)


class Stub(nn.Module):
    """Token maps that are, in every layer, one linear function of each patch's mean colour, then `spoil`."""

    def __init__(self, spoil=unspoilt, depth=2, grid=4, patch=4, width=8):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(depth))
        self.patch_embed = SimpleNamespace(patch_size=(patch, patch))
        side = grid * patch
        self.pretrained_cfg = {"input_size": (3, side, side), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(depth, width, 3, generator=rng))
        self.register_buffer("bias", torch.randn(depth, width, 1, 1, generator=rng))
        self.patch, self.spoil = patch, spoil

    def token_maps(self, images, layers):
        assert not self.training
        patches = F.avg_pool2d(images, self.patch)
        return {
            layer: self.spoil(
                torch.einsum("dc,nchw->ndhw", self.weight[layer - 1], patches) + self.bias[layer - 1]
            )
            for layer in layers
        }  # fmt: skip


KINDS = ("quarter turns", "flip", "scale")


def measured(backbone, source, scope=SCOPE, images=256):
    """{(metric, subject, kind, layer): record}"""
    records = measure_equivariance(backbone, source, EvaluationConfig(equivariance_images=images), scope, device=CPU)
    found = {(r.metric, r.subject, r.details["kind"], r.details["layer"]): r for r in records}
    assert len(found) == len(records)
    return found


def test_exact_equivariance_is_measured_as_one():
    found = measured(Stub(), drawn(8))
    for (metric, subject, kind, layer), record in found.items():
        if subject == "backbone" and kind != "scale":
            assert record.value == pytest.approx(1, abs=1e-5), (metric, kind, layer)
        if subject == "mismatched" and metric == "centred_cosine":
            assert abs(record.value) < 0.5, (kind, layer)
        if subject == "mismatched":
            assert record.value < found[metric, "backbone", kind, layer].value - 0.1


@pytest.mark.parametrize("spoil", [shifted, placed])
@pytest.mark.parametrize("kind", ["quarter turns", "flip"])
def test_what_is_not_equivariant_scores_lower(spoil, kind):
    found = measured(Stub(spoil), drawn(8))
    for layer in (1, 2):
        assert found["centred_cosine", "backbone", kind, layer].value < 0.9
        assert found["cosine", "backbone", kind, layer].value < 0.97


def test_every_layer_and_kind_is_recorded():
    found = measured(Stub(depth=3), drawn(5))
    expected = {
        (metric, subject, kind, layer)
        for metric in ("cosine", "centred_cosine")
        for subject in ("backbone", "mismatched")
        for kind in KINDS
        for layer in (1, 2, 3)
    }
    assert set(found) == expected
    for record in found.values():
        assert record.evaluation == "equivariance"
        assert record.n == 5
        assert record.low <= record.value <= record.high
    random = measured(Stub(depth=3), drawn(5), replace(SCOPE, subject="random"))
    assert set(random) == {(m, "random", k, layer) for m, s, k, layer in expected if s == "backbone"}


def test_layers_are_told_apart():
    """Only layer 2 is spoilt."""

    class Half(Stub):
        def token_maps(self, images, layers):
            maps = super().token_maps(images, layers)
            return {layer: shifted(m) if layer == 2 else m for layer, m in maps.items()}

    found = measured(Half(), drawn(8))
    assert found["cosine", "backbone", "flip", 1].value == pytest.approx(1, abs=1e-5)
    assert found["cosine", "backbone", "flip", 2].value < 0.97


@pytest.mark.parametrize(
    ("available", "wanted", "used"), [(2, 256, 2), (32, 32, 32), (33, 256, 32), (40, 33, 32), (35, 34, 34)]
)
def test_every_image_has_another_one_to_be_compared_with(available, wanted, used):
    """A last batch of one image is left out."""
    found = measured(Stub(depth=1), drawn(available), images=wanted)
    assert {record.n for record in found.values()} == {used}
    assert found["cosine", "mismatched", "flip", 1].value < 0.95


def test_one_image_is_not_enough():
    with pytest.raises(ValueError, match="equivariance needs other images"):
        measured(Stub(), drawn(1))


def test_centring_takes_a_common_vector_away():
    """A large vector that all tokens share hides that the maps do not correspond."""

    def common(maps):
        direction = torch.linspace(-1, 1, maps.shape[1])[:, None, None]
        return shifted(maps) + 30 * direction

    found = measured(Stub(common), drawn(16))
    assert found["cosine", "backbone", "flip", 1].value > 0.97
    assert found["centred_cosine", "backbone", "flip", 1].value < 0.7


def test_a_transformer_lies_between_its_references():
    backbone = create_backbone(
        "vit_tiny_patch16_224", 1, (1,), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3
    )
    backbone.pretrained_cfg = Stub().pretrained_cfg
    found = measured(backbone.train(), drawn(12))
    values = defaultdict(list)
    for (_, subject, _, _), record in found.items():
        assert -1 <= record.value <= 1
        values[subject].append(record.value)
    assert {layer for *_, layer in found} == {1, 2, 3}
    assert np.mean(values["mismatched"]) <= np.mean(values["backbone"])


@pytest.mark.parametrize("grid", range(2, 21))
def test_scaled_grids_are_others_than_the_upright_one(grid):
    kinds = pose_kinds(grid)
    assert tuple(kinds) == KINDS
    sizes = [size for _, _, size in kinds["scale"]]
    assert (grid, grid) not in sizes
    assert len(set(sizes)) == 4
    assert all(side >= 1 and side != grid for size in sizes for side in size)
    assert any(h != w for h, w in sizes)
    assert kinds["quarter turns"] == [(turns, False, (grid, grid)) for turns in (1, 2, 3)]
    assert kinds["flip"] == [(0, True, (grid, grid))]
    assert all(not turns and not flip for turns, flip, _ in kinds["scale"])


# --- pictures


@pytest.mark.parametrize("grid", [2, 4])
def test_feature_maps_are_drawn(tmp_path, grid):
    records = draw_feature_maps(Stub(depth=3, grid=grid), drawn(5), [1, 3], tmp_path, SCOPE, device=CPU, images=2)
    assert [r.details["layer"] for r in records] == [1, 3]
    for record in records:
        assert (record.evaluation, record.metric, record.value, record.n) == ("feature_maps", "picture", None, 2)
        assert f"Layer {record.details['layer']}:" in record.details["caption"]
        assert not os.path.isabs(record.picture)
        with Image.open(tmp_path / record.picture) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10
    assert len({(tmp_path / r.picture).read_bytes() for r in records}) == 2
    read = tmp_path / "records.jsonl"
    write_records(read, records)
    assert read_records(read) == records


def test_feature_maps_are_of_a_larger_grid_whatever_the_image(tmp_path):
    for grid in range(2, 9):
        seen = []

        class Watched(Stub):
            def token_maps(self, images, layers, seen=seen):
                seen.append(images.shape[-1] // self.patch)
                return super().token_maps(images, layers)

        draw_feature_maps(Watched(grid=grid), drawn(2), [1], tmp_path, SCOPE, device=CPU, images=1)
        assert seen[0] == grid
        assert seen[1] > grid


def test_pictures_of_other_data_stand_beside(tmp_path):
    """Records of other data stay in the file, so their pictures must stay too."""
    first = draw_feature_maps(Stub(), drawn(2), [1], tmp_path, SCOPE, device=CPU, images=1)
    kept = (tmp_path / first[0].picture).read_bytes()
    other = replace(SCOPE, data="some/other data")
    second = draw_feature_maps(Stub(), drawn(2, seed=1), [1], tmp_path, other, device=CPU, images=1)
    assert second[0].picture != first[0].picture
    assert (tmp_path / first[0].picture).read_bytes() == kept
    again = draw_feature_maps(Stub(), drawn(2), [1], tmp_path, SCOPE, device=CPU, images=1)
    assert again == first


def test_a_number_added_to_a_token_changes_nothing():
    """Tokens are normalised before they are compared."""
    plain, raised = measured(Stub(), drawn(8)), measured(Stub(lambda maps: maps + 100), drawn(8))
    for key, record in plain.items():
        assert raised[key].value == pytest.approx(record.value, abs=1e-3), key


def test_the_mean_token_is_that_of_all_batches():
    def common(maps):
        return shifted(maps) + 30 * torch.linspace(-1, 1, maps.shape[1])[:, None, None]

    assert measured(Stub(common), drawn(40))["centred_cosine", "mismatched", "flip", 1].value < 0.5
