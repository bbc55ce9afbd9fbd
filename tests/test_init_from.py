"""A backbone that starts from weights that exist: every tensor is accounted for, and step 0 is the loaded network."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from equimid.backbones import create_backbone, embedding_moved, load_initial_weights
from equimid.errors import UserError
from equimid.export import save_backbone
from equimid.recipes import configured
from equimid.runs.pretrain import pretrain
from helpers.command_line import draw_images

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
NAME = "vit_tiny_patch16_224"


def timm_network(name=NAME, **changes):
    torch.manual_seed(3)
    model = timm.create_model(name, **(SHAPE | {"num_classes": 5, "dynamic_img_size": True} | changes)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)  # zero biases would hide a mistake
    return model


def saved(model, tmp_path, name="weights.safetensors", rename=lambda key: key):
    file = tmp_path / name
    save_file({rename(key): value.contiguous() for key, value in model.state_dict().items()}, file)
    return str(file)


def backbone(cls_layer=0, taps=(), **changes):
    return create_backbone(NAME, cls_layer=cls_layer, taps=taps, **(SHAPE | changes)).eval()


def final(model, images):
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_without_late_cls_step_0_is_what_timm_computes(no_embed_class, tmp_path):
    model, own = timm_network(no_embed_class=no_embed_class), backbone(taps=(2,))
    told = load_initial_weights(own, saved(model, tmp_path))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = own(images)
    assert torch.equal(own.forward_head(own.forward_features(images), pre_logits=True), final(model, images))
    assert torch.allclose(features.cls, final(model, images), atol=1e-5)
    assert set(told.left) == {"head.weight", "head.bias"}
    assert told.drawn == ("tap_norms.2.weight", "tap_norms.2.bias")
    assert bool(told.folded) != no_embed_class
    # nothing is left out silently: each tensor of the source is loaded or named
    assert {*told.loaded, *told.left} == set(model.state_dict())


FAMILIES = {
    "vit_small_patch16_224": 16, "deit3_small_patch16_224": 16, "vit_small_patch14_dinov2": 14,
    "vit_small_patch14_reg4_dinov2": 14, "vit_small_patch8_224": 8, "vit_small_patch32_224": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_loaded_whole_and_computes_what_timm_computes(name, tmp_path):
    side = FAMILIES[name]
    shape = {"img_size": 4 * side, "embed_dim": 24, "depth": 3, "num_heads": 3}
    model = timm_network(name, patch_size=side, num_classes=0, **shape)
    own = create_backbone(name, cls_layer=0, taps=(), **shape).eval()
    told = load_initial_weights(own, saved(model, tmp_path))
    assert {*told.loaded, *told.left} == set(model.state_dict())
    assert not told.left
    assert not told.drawn
    images = torch.randn(2, 3, 4 * side, 4 * side)
    assert torch.equal(own.forward_head(own.forward_features(images), pre_logits=True), final(model, images))
    with torch.no_grad():
        assert torch.allclose(own(images).cls, final(model, images), atol=1e-5)


@pytest.mark.parametrize("cls_layer", [0, 1, 2])
def test_registers_enter_with_cls_and_are_no_part_of_the_map(cls_layer):
    shape = {"img_size": 56, "embed_dim": 24, "depth": 3, "num_heads": 3}
    own = create_backbone("vit_small_patch14_reg4_dinov2", cls_layer=cls_layer, taps=(1, 3), **shape)
    for p in own.parameters():
        torch.nn.init.normal_(p, std=0.1)
    images = torch.randn(2, 3, 56, 56)
    x = own.patch_embed(images).flatten(1, 2) + own.pos_embed
    maps = {}
    for number, block in enumerate(own.blocks, start=1):
        if number == cls_layer + 1:
            x = torch.cat([own.cls_token.expand(2, -1, -1), own.reg_token.expand(2, -1, -1), x], dim=1)
        y = x + block.ls1(block.attn(block.norm1(x)))
        x = y + block.ls2(block.mlp(block.norm2(y)))
        maps[number] = x[:, -16:].mT.unflatten(2, (4, 4))
    for training in (False, True):
        features = own.train(training)(images)
        assert torch.allclose(features.cls, own.norm(x[:, 0]), atol=1e-5)
        assert torch.allclose(features.maps[1], own.tap_norms["1"](maps[1].movedim(1, -1)).movedim(-1, 1), atol=1e-5)
    assert torch.allclose(own.eval().token_maps(images, [3])[3], maps[3], atol=1e-5)


def test_positions_and_patches_of_another_size_are_resampled(tmp_path):
    model = timm_network(img_size=64, patch_size=16)
    own = backbone(img_size=48, patch_size=8)
    told = load_initial_weights(own, saved(model, tmp_path))
    assert told.resampled == {
        "pos_embed": "resampled from 4 x 4 to 6 x 6 patches",
        "patch_embed.proj.weight": "resampled from 16 x 16 to 8 x 8 px",
    }
    # as timm does it
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed[:, 1:], [6, 6], [4, 4], num_prefix_tokens=0)
    assert torch.equal(own.pos_embed, expected)
    assert all(name in str(told) for name in ("4 x 4 to 6 x 6", "16 x 16 to 8 x 8"))


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "encoder."])
def test_a_prefix_of_all_names_is_taken_off(prefix, tmp_path):
    model, own = timm_network(), backbone()
    load_initial_weights(own, saved(model, tmp_path, rename=lambda key: prefix + key))
    assert torch.equal(own.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


def test_late_cls_says_by_how_much_the_embedding_moves(tmp_path):
    file, images = saved(timm_network(), tmp_path), torch.randn(4, 3, 32, 32)
    early, late = backbone(0), backbone(2)
    for own in (early, late):
        load_initial_weights(own, file)
    assert embedding_moved(early, images) == pytest.approx(1)
    with torch.no_grad():
        expected = torch.nn.functional.cosine_similarity(late(images).cls, early(images).cls).mean()
    assert embedding_moved(late, images) == pytest.approx(float(expected))
    assert float(expected) < 0.999


def test_a_run_starts_from_another_runs_backbone_and_says_so(tmp_path, caplog):
    draw_images(tmp_path / "photos", 16)
    first = backbone(2, taps=(2,))
    folder = tmp_path / "first" / "backbone"
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    save_backbone(first, folder, NAME, SHAPE, preprocessing)
    settings = [
        "train.steps=1", "train.batch_size=16", "optim.warmup_epochs=0", "optim.lr=0", "backbone.embed_dim=24",
        "backbone.depth=4", "backbone.num_heads=3", "backbone.cls_layer=2", "backbone.positions=learned",
        "backbone.freeze_patch_embed=false", "runtime.workers=0", "runtime.precision=fp32", "runtime.devices=1",
        f"backbone.init_from={tmp_path / 'first'}", f"data.source={tmp_path / 'photos'}", "optim.weight_decay=0",
    ]  # fmt: skip
    caplog.set_level("INFO", "equimid")
    run = tmp_path / "run"
    pretrain(configured("ser-tiny", settings), run, finish=False)
    trained = {k: v for k, v in _weights(run / "backbone").items() if not k.startswith("tap_norms")}
    expected = first.state_dict()
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in trained.items())
    assert "tensors loaded" in caplog.text
    assert "set views.mean and views.std" in caplog.text
    facts = json.loads((run / "run.json").read_text())["initial_weights"]
    assert facts["source"] == str(tmp_path / "first")
    assert "embedding_cosine" not in facts, "CLS enters where it did"
    # a resumed run needs them no more
    (folder / "model.safetensors").unlink()
    caplog.clear()
    pretrain(configured("ser-tiny", settings), run, finish=False)
    assert "tensors loaded" not in caplog.text


def test_a_run_with_late_cls_from_an_ordinary_network_says_how_far_it_moved(tmp_path, caplog):
    draw_images(tmp_path / "photos", 16)
    file = saved(timm_network(), tmp_path)
    settings = [
        "train.steps=1", "train.batch_size=16", "optim.warmup_epochs=0", "backbone.embed_dim=24", "backbone.depth=4",
        "backbone.num_heads=3", "backbone.cls_layer=2", "runtime.workers=0", "runtime.devices=1",
        f"backbone.init_from={file}", f"data.source={tmp_path / 'photos'}",
    ]  # fmt: skip
    caplog.set_level("INFO", "equimid")
    pretrain(configured("ser-tiny", settings), tmp_path / "run", finish=False)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["initial_weights"]
    assert -1 <= facts["embedding_cosine"] < 1
    assert facts["left"] == ["head.bias", "head.weight"] or facts["left"] == ["head.weight", "head.bias"]
    assert "CLS enters after block 2" in caplog.text
    assert "backbone.positions=learned trains them" in caplog.text
    # weights that do not fit are refused before the folder holds anything
    with pytest.raises(UserError, match="lacks"):
        pretrain(configured("ser-tiny", [*settings, "backbone.depth=6"]), tmp_path / "other", finish=False)
    assert not (tmp_path / "other").exists()


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "own", "named"),
    [
        ({"num_heads": 4}, {}, None),  # a bare file does not say its heads
        ({"depth": 3}, {}, ["lacks blocks.3"]),
        ({"depth": 5}, {}, ["blocks.4", "backbone.name"]),
        ({"embed_dim": 48}, {}, ["(1, 1, 48)", "(1, 1, 24)"]),
        ({"init_values": 1e-5}, {}, ["ls1.gamma", "backbone.name"]),
        ({"reg_tokens": 4}, {}, ["neither a square"]),
        ({"reg_tokens": 4, "no_embed_class": True}, {}, ["reg_token", "backbone.name"]),
        ({"in_chans": 1}, {}, ["patch_embed.proj.weight", "(24, 1, 8, 8)"]),
    ],
)
def test_another_architecture_is_refused_and_the_network_kept(changes, own, named, tmp_path):
    network, file = backbone(**own), saved(timm_network(**changes), tmp_path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if named is None:
        load_initial_weights(network, file)
        return
    with pytest.raises(UserError) as caught:
        load_initial_weights(network, file)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_heads_and_the_layer_of_cls_are_read_from_a_folder(tmp_path):
    save_backbone(backbone(2), tmp_path / "b", NAME, SHAPE, {"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(UserError, match=r"3 attention heads and the network has 4.*backbone\.num_heads=3"):
        load_initial_weights(backbone(2, num_heads=4), str(tmp_path / "b"))
    with pytest.raises(UserError, match="cls_layer=2"):
        load_initial_weights(backbone(1), str(tmp_path / "b"))
    assert load_initial_weights(backbone(2), str(tmp_path / "b")).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda root: str(root / "nothing"), ["does not exist", "timm:NAME"]),
        (lambda root: _written(root / "w.pth", b"\x80\x02"), ["may run code", "save_file"]),
        (lambda root: _written(root / "w.safetensors", b"{}"), ["cannot be read as safetensors"]),
        (lambda root: _written(root / "f" / "model.safetensors", b"half"), ["cannot be read as safetensors"]),
        (lambda root: str(root), ["cannot be read as safetensors", "model.safetensors"]),
        (lambda root: "timm:no_such_net.dino", ["no model 'no_such_net'"]),
        (lambda root: "timm:vit_tiny_patch16_224.no_such_tag", ["cannot be had"]),
    ],
)
def test_weights_that_cannot_be_had(make, named, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        load_initial_weights(backbone(), make(tmp_path))
    assert all(part in str(caught.value) for part in named), str(caught.value)


def _written(file, content):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return str(file.parent if file.name == "model.safetensors" else file)


def test_a_run_is_not_begun_under_a_name_with_a_tag(tmp_path):
    draw_images(tmp_path / "photos", 16)
    settings = [f"data.source={tmp_path / 'photos'}", "backbone.name=vit_tiny_patch16_224.mae", "runtime.devices=1"]
    with pytest.raises(UserError, match=r"\(mae\).*backbone\.init_from=timm:vit_tiny_patch16_224\.mae"):
        pretrain(configured("ser-tiny", settings), tmp_path / "run", finish=False)
    assert not (tmp_path / "run").exists()
