"""Any vision transformer as an encoder: what it shows is what the network itself computes."""

import copy
import os
import re

import pytest
import timm
import torch
from torch import nn

from equimid.backbones import TimmEncoder, create_backbone, open_pretrained
from equimid.backbones import pretrained as module
from equimid.errors import UserError

SMALL = {"img_size": 32, "patch_size": 8, "num_classes": 0}
NAMES = {
    "vit": ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 3}),
    "deit3": ("deit3_small_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 3}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"depth": 3, "embed_dim": 24, "num_heads": 3}),
    "eva02": ("eva02_tiny_patch14_224", {"depth": 3, "embed_dim": 24, "num_heads": 3, "ref_feat_shape": (4, 4)}),
    "siglip": ("vit_base_patch16_siglip_224", {"depth": 3, "embed_dim": 24, "num_heads": 3}),
    "averaged": ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 3, "global_pool": "avg"}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 3}),
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TALL = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(1))


def small(kind, seed=0):
    """Such a network of 3 blocks with weights that are all random, its positions, scales and tokens too."""
    name, options = NAMES[kind]
    torch.manual_seed(seed)
    model = timm.create_model(name, dynamic_img_size=True, **SMALL, **options).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    return model


@pytest.mark.parametrize("images", [IMAGES, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("kind", NAMES)
@torch.inference_mode()
def test_what_is_shown_is_what_the_network_computes(kind, images):
    model = small(kind)
    encoder = TimmEncoder(model, kind)
    blocks = []
    hooks = [block.register_forward_hook(lambda _, __, y: blocks.append(y)) for block in model.blocks]
    output = model(images)
    for hook in hooks:
        hook.remove()
    found = encoder.forward_features(images, [3, 1])
    torch.testing.assert_close(found.cls, output)
    torch.testing.assert_close(encoder.forward_features(images).cls, output)
    grid = (images.shape[2] // 8, images.shape[3] // 8)
    assert encoder.grid(images) == grid
    for layer in (1, 3):
        tokens = blocks[layer - 1][:, encoder.prefix :].reshape(2, *grid, 24).permute(0, 3, 1, 2)
        torch.testing.assert_close(found.maps[layer], tokens)
        if encoder.has_cls:
            torch.testing.assert_close(found.cls_at[layer], blocks[layer - 1][:, 0])
    assert set(found.cls_at) == ({1, 3} if encoder.has_cls else set())
    assert encoder.reads_cls == (kind not in ("eva02", "siglip", "averaged", "distilled"))
    if encoder.reads_cls:
        torch.testing.assert_close(encoder.final_norm(found.cls_at[3]), output)


def test_the_final_norm_may_stand_after_the_pooling():
    model = small("averaged")
    assert isinstance(model.norm, nn.Identity)
    x = torch.randn(2, 24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(TimmEncoder(model, "averaged").final_norm(x), model.fc_norm(x))
    assert not torch.equal(model.fc_norm(x), x)


@torch.inference_mode()
def test_our_own_network_has_cls_where_it_enters():
    backbone = create_backbone("vit_tiny_patch16_224", 2, (1,), **SMALL, depth=3, embed_dim=24, num_heads=3).eval()
    backbone.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    encoder = TimmEncoder(backbone, "ours")
    found = encoder.forward_features(IMAGES, [1, 2, 3])
    torch.testing.assert_close(found.cls, backbone(IMAGES).cls)
    assert set(found.cls_at) == {3}
    torch.testing.assert_close(encoder.final_norm(found.cls_at[3]), found.cls)
    assert set(encoder.token_maps(IMAGES, [2, 1])) == {1, 2}


@pytest.mark.parametrize("kind", ["vit", "deit3", "registers", "eva02"])
@torch.inference_mode()
def test_attention_of_cls_adds_up_to_what_the_other_tokens_leave(kind):
    encoder = TimmEncoder(small(kind), kind)
    before = encoder.forward_features(IMAGES).cls
    weights = encoder.cls_attention(TALL)
    assert weights.shape == (2, 3, 6, 4)
    assert weights.min() >= 0
    assert 0 < weights.sum((2, 3)).min() <= weights.sum((2, 3)).max() < 1
    torch.testing.assert_close(encoder.forward_features(IMAGES).cls, before)


@torch.inference_mode()
def test_attention_of_cls_is_that_of_the_equation():
    model = small("vit")
    weights = TimmEncoder(model, "vit").cls_attention(IMAGES)
    x = model.pos_drop(model._pos_embed(model.patch_embed(IMAGES)))
    for block in model.blocks[:-1]:
        x = block(x)
    last = model.blocks[-1]
    x = last.norm1(x)
    q, k, _ = (x @ last.attn.qkv.weight.T + last.attn.qkv.bias).chunk(3, dim=-1)
    for head in range(3):
        columns = slice(8 * head, 8 * head + 8)
        scores = torch.einsum("bd,btd->bt", q[:, 0, columns], k[..., columns]) / 8**0.5
        expected = (scores.exp() / scores.exp().sum(1, keepdim=True))[:, 1:].reshape(2, 4, 4)
        torch.testing.assert_close(weights[:, head], expected)


def test_without_cls_there_is_no_attention_of_it():
    assert TimmEncoder(small("siglip"), "siglip").cls_attention(IMAGES) is None


def test_sides_that_patches_do_not_divide_are_an_error_of_one_line():
    for kind in ("vit", "siglip"):
        with pytest.raises(UserError, match=r"33 x 32 px do not divide into patches of 8 px"):
            TimmEncoder(small(kind), kind).forward_features(torch.zeros(1, 3, 33, 32), [1])


def test_a_network_of_one_size_says_so():
    model = timm.create_model("beit_base_patch16_224", num_classes=0, depth=1, embed_dim=24, num_heads=3)
    encoder = TimmEncoder(model, "beit")
    assert not encoder.any_size
    assert encoder.forward_features(torch.zeros(1, 3, 224, 224), [1]).maps[1].shape == (1, 24, 14, 14)
    with pytest.raises(UserError, match="224 x 224 px alone, found 240 x 224"):
        encoder.forward_features(torch.zeros(1, 3, 240, 224), [1])


def test_pixels_that_patches_leave_out_are_not_asked_for():
    model = small("vit")
    model.pretrained_cfg["input_size"] = (3, 38, 38)
    assert TimmEncoder(model, "vit").pretrained_cfg["input_size"] == (3, 32, 32)


def test_an_encoder_stays_in_eval_mode_and_trains_nothing():
    encoder = TimmEncoder(small("vit").train(), "vit")
    encoder.train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


# --- identity


def test_identity_changes_with_a_weight_and_with_what_weights_do_not_tell():
    model = small("vit")
    plain = TimmEncoder(copy.deepcopy(model), "vit").identity
    assert TimmEncoder(copy.deepcopy(model), "another name").identity == plain
    changed = copy.deepcopy(model)
    changed.blocks[1].mlp.fc1.bias.data[3] += 1e-6
    heads = copy.deepcopy(model)
    heads.blocks[1].attn.num_heads, heads.blocks[1].attn.head_dim = 2, 12
    eps = copy.deepcopy(model)
    eps.norm.eps = 1e-3
    found = {plain, *(TimmEncoder(m, "vit").identity for m in (changed, heads, eps))}
    assert len(found) == 4


def test_identity_changes_with_the_block_after_which_cls_enters():
    networks = []
    for cls_layer in (1, 2):
        torch.manual_seed(0)
        vit = create_backbone("vit_tiny_patch16_224", cls_layer, (), **SMALL, depth=3, embed_dim=24, num_heads=3)
        vit.pretrained_cfg = {"input_size": (3, 32, 32)}
        networks.append(vit)
    assert len({TimmEncoder(vit, "ours").identity for vit in networks}) == 2


@pytest.mark.parametrize("kind", NAMES)
def test_identity_is_not_the_process(kind):
    """Nothing that it is made of is a place in memory, and what is built again has it again."""
    encoder = TimmEncoder(small(kind), kind)
    assert "num_heads" in encoder._architecture()
    assert not re.search(r"0x[0-9a-f]{4}", encoder._architecture())
    assert TimmEncoder(small(kind), kind).identity == encoder.identity
    with torch.inference_mode():
        encoder.forward_features(TALL, [1])
        encoder.cls_attention(IMAGES)
    assert encoder.identity == TimmEncoder(small(kind), kind).identity, "nor what it looked at"


def test_identity_of_random_weights_is_that_of_the_seed():
    encoder, pretrained = open_pretrained("timm:test_vit", "random", 3)
    other, _ = open_pretrained("timm:test_vit", "random", 4)
    assert not pretrained
    assert encoder.identity == open_pretrained("timm:test_vit", "random", 3)[0].identity != other.identity
    assert encoder.random(4).identity == other.identity


# --- opening


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("resnet18", "ResNet"),
        ("cait_xxs24_224", "Cait"),
        ("xcit_nano_12_p16_224", "Xcit"),
        ("hiera_tiny_224", "Hiera"),
        ("mvitv2_tiny", "MultiScaleVit"),
    ],
)
def test_another_kind_of_network_is_refused_before_weights_are_fetched(name, says, monkeypatch):
    monkeypatch.setattr(module, "_answers", lambda endpoint: False)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: pytest.fail("weights were fetched"))
    with pytest.raises(UserError, match=says) as error:
        open_pretrained(f"timm:{name}", "pretrained")
    assert "\n" not in str(error.value)
    assert "vit_small_patch16_224" in str(error.value)


def test_blocks_that_do_not_keep_one_grid_are_refused():
    class Pooled(nn.Module):
        """After its second block it has a quarter of the patches."""

        def __init__(self, model):
            super().__init__()
            self.model = model
            self.blocks, self.patch_embed, self.num_prefix_tokens = model.blocks, model.patch_embed, 1
            self.embed_dim, self.cls_token, self.pretrained_cfg = 24, model.cls_token, model.pretrained_cfg
            self.forward_head = model.forward_head

        def forward_intermediates(self, images, indices, return_prefix_tokens):
            final, found = self.model.forward_intermediates(images, indices=indices, return_prefix_tokens=True)
            return final, [(m[..., ::2, ::2] if i > 0 else m, p) for i, (m, p) in zip(indices, found, strict=True)]

    from equimid.backbones.encoder import require_one_grid

    with torch.device("meta"):
        model = small("vit")
        require_one_grid(TimmEncoder(model, "plain"), "plain")
        with pytest.raises(UserError, match="pooled is a Pooled"):
            require_one_grid(TimmEncoder(Pooled(model), "pooled"), "pooled")


def test_patches_under_convolutions_are_counted_in_pixels():
    """A hybrid's patch of 1 lies on a map that has a 32nd of the sides."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0, dynamic_img_size=True)
    assert TimmEncoder(model, "hybrid").patch_size == 32


@pytest.mark.parametrize("name", ["vit_tinny", "hf-hub:someone/vit", ""])
@pytest.mark.parametrize("kind", ["timm:", "tim:", ""])
def test_a_name_that_is_none_is_refused(name, kind):
    with pytest.raises(UserError) as error:
        open_pretrained(kind + name, "random")
    assert "\n" not in str(error.value)


def test_an_unknown_tag_is_refused():
    with pytest.raises(UserError, match="no_such_tag"):
        open_pretrained("timm:test_vit.no_such_tag", "random")


@pytest.mark.parametrize("model", ["timm:test_vit.r160_in1k", "timm:vit_tiny_patch16_384"])
def test_weights_that_cannot_be_had_are_said_and_labelled(model, monkeypatch, caplog, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(module, "_answers", lambda endpoint: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm.models._builder, "load_pretrained", unreachable)
    encoder, pretrained = open_pretrained(model, "auto", 1)
    assert not pretrained
    assert encoder.identity == open_pretrained(model, "random", 1)[0].identity
    assert "measured with random weights (seed 1)" in caplog.text
    with pytest.raises(UserError, match="no pretrained weights for") as error:
        open_pretrained(model, "pretrained")
    assert "\n" not in str(error.value)
    assert constants.HF_HUB_OFFLINE is False or os.environ.get("HF_HUB_OFFLINE")


def unreachable(*_, **__):
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert constants.HF_HUB_OFFLINE, "where the hub does not answer, it is not asked"
    raise LocalEntryNotFoundError("not in the cache\nand no network")


def test_a_hub_behind_a_proxy_is_asked_through_it(monkeypatch):
    import socket

    asked = []

    def connect(place, timeout):
        asked.append(place)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    assert not module._answers("https://hub.invalid")
    monkeypatch.delenv("https_proxy")
    assert not module._answers("https://hub.invalid")
    assert asked == [("proxy.invalid", 3128), ("hub.invalid", 443)]
