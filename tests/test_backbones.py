"""The late-CLS network against timm's and against its own definition; the packed pass; what it refuses."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import equimid.backbones
from equimid.backbones import (
    BackboneConfig,
    build_backbone,
    create_backbone,
    equimid_vit,  # registers it with timm
)
from equimid.backbones import packed_forward as packed
from equimid.backbones.build import sincos_positions
from equimid.errors import UserError
from equimid.export import load_backbone, save_backbone

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


def tiny(cls_layer=2, taps=(1, 3), **kwargs):
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", cls_layer, taps, **TINY, **kwargs).eval()
    with torch.no_grad():  # timm draws CLS at 1e-6; make it count
        nn.init.normal_(backbone.cls_token)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_without_late_cls_it_is_timm_bit_for_bit(size):
    backbone = tiny(cls_layer=0, taps=())
    plain = timm.create_model(
        "vit_tiny_patch16_224", no_embed_class=True, dynamic_img_size=True, num_classes=0, **TINY
    ).eval()
    plain.load_state_dict(backbone.state_dict(), strict=True)
    x = torch.randn(2, 3, *size)
    assert torch.equal(backbone(x).cls, plain(x))


@torch.no_grad()
def test_cls_enters_after_block_k():
    """Against true insertion, block by block, with timm's own blocks."""
    backbone = tiny(cls_layer=2)
    plain = timm.create_model("vit_tiny_patch16_224", no_embed_class=True, num_classes=0, **TINY).eval()
    plain.load_state_dict(backbone.state_dict(), strict=False)
    x = torch.randn(2, 3, 32, 32)
    tokens = plain.patch_embed(x) + plain.pos_embed
    for i, block in enumerate(plain.blocks):
        if i == 2:
            tokens = torch.cat([plain.cls_token.expand(2, -1, -1), tokens], dim=1)
        tokens = block(tokens)
        if i == 0:
            first = backbone.tap_norms["1"](tokens)
    features = backbone(x)
    assert torch.equal(features.cls, plain.norm(tokens)[:, 0])
    assert torch.allclose(features.maps[1].flatten(2).transpose(1, 2), first, atol=1e-6)
    assert features.maps[3].shape == (2, 24, 4, 4)


@torch.no_grad()
def test_timm_features_work_and_agree():
    backbone = tiny()
    x = torch.randn(2, 3, 40, 16)
    as_timm = timm.models.vision_transformer.VisionTransformer.forward(backbone, x)
    assert torch.allclose(as_timm, backbone(x).cls, atol=1e-6)
    maps = backbone.token_maps(x, [1, 3])
    for layer in (1, 3):
        normed = backbone.tap_norms[str(layer)](maps[layer].movedim(1, -1)).movedim(-1, 1)
        assert torch.allclose(normed, backbone(x).maps[layer], atol=1e-6)
    assert torch.equal(maps[1], backbone.token_maps(x, [1])[1])
    assert torch.equal(maps[1], backbone.token_maps(x, [3, 1])[1])


@pytest.mark.parametrize("fused", [True, False])
def test_the_packed_pass_equals_separate_passes(fused):
    backbone = tiny(drop_path_rate=0.0)
    for block in backbone.blocks:
        block.attn.fused_attn = fused
    sizes = [(2, 32, 32), (3, 48, 24), (0, 40, 40), (1, 32, 32), (2, 24, 48)]
    batches = [torch.randn(n, 3, h, w) for n, h, w in sizes]
    packed = backbone.forward_packed(batches)
    loss = sum(f.cls.pow(2).sum() + sum(m.pow(3).sum() for m in f.maps.values()) for f in packed)
    gradients = torch.autograd.grad(loss, list(backbone.parameters()))
    alone = [backbone(x) for x in batches if len(x)]
    for found, expected in zip([f for f in packed if len(f.cls)], alone, strict=True):
        assert torch.allclose(found.cls, expected.cls, atol=1e-5)
        for layer in (1, 3):
            assert torch.allclose(found.maps[layer], expected.maps[layer], atol=1e-5)
    assert packed[2].cls.shape == (0, 24)
    assert packed[2].maps[3].shape == (0, 24, 5, 5)
    loss = sum(f.cls.pow(2).sum() + sum(m.pow(3).sum() for m in f.maps.values()) for f in alone)
    for found, expected in zip(gradients, torch.autograd.grad(loss, list(backbone.parameters())), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_attention_is_written_out_where_the_fused_one_is_slow(monkeypatch):
    """On a CPU in bf16 with a gradient, on grids of up to 256 tokens: the same values and gradients, by rounding."""
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].shape) or fused(*a, **k))
    backbone = tiny(drop_path_rate=0.0)
    small, large = torch.randn(2, 3, 32, 32), torch.randn(1, 3, 160, 112)  # 16 and 280 patches of 8 px

    def gradients(limit):
        monkeypatch.setattr(packed, "_WRITTEN_OUT", limit)
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            cls = [f.cls.float() for f in backbone.forward_packed([small, large])]
        gradient = torch.autograd.grad(sum(x.pow(3).sum() for x in cls), backbone.patch_embed.proj.weight)[0]
        return [x.detach() for x in cls], gradient

    limit, depth = packed._WRITTEN_OUT, len(backbone.blocks)
    found = gradients(limit)
    assert [shape[2] for shape in calls] == [280] * backbone.cls_after + [281] * (depth - backbone.cls_after)
    expected = gradients(0)
    assert len(calls) == 2 * depth
    for one, other in zip(found[0], expected[0], strict=True):
        assert torch.allclose(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))
    assert torch.allclose(found[1], expected[1], rtol=0.05, atol=0.05 * float(expected[1].abs().max()))
    backbone.train()
    plain = gradients(limit)
    backbone.set_grad_checkpointing()
    again = gradients(limit)
    assert all(torch.equal(one, other) for one, other in zip(plain[0], again[0], strict=True))
    assert torch.equal(plain[1], again[1])
    backbone.eval()
    calls.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        backbone(small)
    backbone(small)  # float32
    assert len(calls) == 2 * depth


def test_packed_pass_with_recomputation_and_drop_path():
    backbone = tiny(drop_path_rate=0.2).train()
    batches = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 24, 40)]

    def total():
        torch.manual_seed(1)
        return sum(f.cls.pow(2).sum() for f in backbone.forward_packed(batches))

    plain = torch.autograd.grad(total(), backbone.patch_embed.proj.weight)[0]
    backbone.set_grad_checkpointing()
    again = torch.autograd.grad(total(), backbone.patch_embed.proj.weight)[0]
    assert torch.allclose(plain, again, atol=1e-6)
    dropped = [backbone.forward_packed(batches)[0].cls for _ in range(2)]
    assert not torch.equal(*dropped)


@torch.no_grad()
def test_positions_resample_symmetrically():
    """T16: a flipped position map, resampled, is the resampled map, flipped."""
    backbone = tiny()
    zero = torch.zeros(1, 3, 56, 40)
    for p in backbone.patch_embed.parameters():
        p.zero_()
    captured = []
    backbone.blocks[0].register_forward_pre_hook(lambda _, args: captured.append(args[0][:, 1:].view(7, 5, 24)))
    timm.models.vision_transformer.VisionTransformer.forward(backbone, zero)
    backbone.pos_embed.copy_(backbone.pos_embed.view(1, 4, 4, 24).flip(1, 2).reshape(1, 16, 24))
    timm.models.vision_transformer.VisionTransformer.forward(backbone, zero)
    assert torch.allclose(captured[1], captured[0].flip(0, 1), atol=1e-6)


def test_mocov3_initialisation():
    config = BackboneConfig(image_size=64)
    backbone = build_backbone(config, (3,), seed=0)
    d = 384
    qkv = backbone.blocks[0].attn.qkv
    assert math.isclose(float(qkv.weight.detach().abs().max()), math.sqrt(6 / (2 * d)), rel_tol=1e-3)
    assert float(qkv.bias.detach().abs().max()) == 0
    fc1 = backbone.blocks[5].mlp.fc1.weight.detach()
    assert math.isclose(float(fc1.abs().max()), math.sqrt(6 / (d + 4 * d)), rel_tol=1e-3)
    patch = backbone.patch_embed.proj
    assert math.isclose(float(patch.weight.detach().abs().max()), math.sqrt(6 / (768 + 384)), rel_tol=1e-3)
    assert not patch.weight.requires_grad
    assert not patch.bias.requires_grad
    assert float(patch.bias.abs().max()) == 0
    assert float(backbone.cls_token.detach().abs().max()) < 1e-5
    assert not backbone.pos_embed.requires_grad
    again = build_backbone(config, (3,), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), again.parameters(), strict=True))


def test_sincos_positions_follow_the_definition():
    positions = sincos_positions((2, 3), 8)[0]
    row, column = 1, 2
    omega = [1.0, 10000 ** (-1 / 2)]
    expected = [f(angle * w) for angle in (row, column) for f in (math.sin, math.cos) for w in omega]
    assert torch.allclose(positions[row * 3 + column], torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_backbone("vit_smal_patch16_224"), "no model"),
        (lambda: create_backbone("vit_small_patch16_224.dino"), r"weights \(dino\).*'vit_small_patch16_224'"),
        (lambda: create_backbone("vit_small_patch16_224", pretrained=True), "pretrained=True.*random weights"),
        (lambda: create_backbone("resnet18"), "cannot build|not a plain"),
        (lambda: create_backbone("vit_small_patch16_224", cls_layer=12), "0..11"),
        (lambda: create_backbone("vit_small_patch16_224", taps=(13,)), "layers 1 to 12"),
        (lambda: create_backbone("vit_medium_patch16_gap_256"), "not a plain"),
        (lambda: create_backbone("vit_small_patch16_18x2_224"), "plain blocks"),
        (lambda: create_backbone("vit_small_patch16_224", cls_layer=2.5), "2.5"),
        (lambda: timm.create_model("equimid_vit", pretrained=True), "no weights of its own"),
        (lambda: create_backbone("vit_small_patch16_224", colour=3), "cannot build"),
        (lambda: build_backbone(BackboneConfig(image_size=100), (), 0), "try 96"),
        (lambda: tiny()(torch.zeros(1, 3, 30, 32)), "30 x 32"),
    ],
)
def test_what_cannot_be_built_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_backbone_that_an_older_version_wrote_under_a_name_with_a_tag_is_opened(tmp_path):
    backbone = tiny(cls_layer=2, taps=(2,))
    save_backbone(backbone, tmp_path / "old", "vit_tiny_patch16_224.augreg_in21k", TINY, {})
    assert torch.equal(load_backbone(tmp_path / "old").blocks[1].mlp.fc1.weight, backbone.blocks[1].mlp.fc1.weight)


@pytest.fixture
def exported(tmp_path):
    backbone = tiny(cls_layer=2, taps=(2,))
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    save_backbone(backbone, tmp_path / "backbone", "vit_tiny_patch16_224", TINY, preprocessing)
    return backbone, tmp_path / "backbone"


@torch.no_grad()
def test_a_saved_backbone_comes_back_bit_for_bit(exported):
    backbone, folder = exported
    x = torch.randn(2, 3, 32, 32)
    loaded = load_backbone(folder)
    assert torch.equal(loaded(x).cls, backbone(x).cls)
    assert torch.equal(loaded(x).maps[2], backbone(x).maps[2])
    assert loaded.pretrained_cfg["crop_pct"] == 1.0
    through_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.allclose(through_timm(x), backbone(x).cls, atol=1e-6)
    assert through_timm.pretrained_cfg["mean"] == [0.5] * 3
    assert equimid_vit.__name__ in timm.list_models(module=equimid.backbones.registry.__name__.split(".")[-1])
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)
    assert classifier(x).shape == (2, 5)


def test_a_plain_timm_model_refuses_the_weights(exported):
    """Also without taps: the marker alone must stop a network that enters CLS at the start."""
    _, folder = exported
    with pytest.raises(RuntimeError, match="cls_layer"):
        timm.create_model(
            "vit_tiny_patch16_224",
            no_embed_class=True,
            num_classes=0,
            checkpoint_path=folder / "model.safetensors",
            **TINY,
        )
    with pytest.raises(RuntimeError, match="cls_layer"):
        tiny(cls_layer=0, taps=()).load_state_dict(tiny(cls_layer=2, taps=()).state_dict())


def test_loading_is_strict(exported, tmp_path):
    _, folder = exported
    with pytest.raises(UserError, match="cls_layer=2"):
        tiny(cls_layer=1, taps=(2,)).load_state_dict(tiny(cls_layer=2, taps=(2,)).state_dict())
    with pytest.raises(UserError, match=r"no config\.json"):
        load_backbone(tmp_path / "nothing")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"depth": 4', '"depth": 5'))
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(folder)
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe"):
        load_backbone(folder)


def test_the_packed_pass_has_every_part_of_timms_block():
    """qk norm, layer scale and position dropout: identities in most networks, and easily lost."""
    from equimid.backbones import create_backbone

    backbone = create_backbone(
        "vit_tiny_patch16_224",
        2,
        (3,),
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=4,
        num_heads=3,
        qk_norm=True,
        init_values=0.3,
    ).eval()
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                p.add_(torch.randn(p.shape))
    batches = [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 24, 48)]
    for found, x in zip(backbone.forward_packed(batches), batches, strict=True):
        assert torch.allclose(found.cls, backbone(x).cls, atol=1e-5)
    dropping = create_backbone(
        "vit_tiny_patch16_224", 2, (), img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, pos_drop_rate=0.5
    ).train()
    assert not torch.equal(*(dropping(batches[0]).cls for _ in range(2)))
