"""Vision transformers of transformers, built from small configurations and opened from folders."""

import json

import pytest
import torch
from torch import nn

from equimid.backbones import HuggingFaceEncoder, open_pretrained
from equimid.backbones import pretrained as module
from equimid.errors import UserError

transformers = pytest.importorskip("transformers")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TALL = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(1))
KINDS = {
    "ViT": ("ViTConfig", {}),
    "Dinov2": ("Dinov2Config", {}),
    "registers": ("Dinov2WithRegistersConfig", {}),
    "DINOv3": ("DINOv3ViTConfig", {"num_register_tokens": 2}),
    "DeiT": ("DeiTConfig", {}),
    "CLIP": ("CLIPVisionConfig", {}),
    "MAE": ("ViTMAEConfig", {"mask_ratio": 0.0}),
    "BEiT": ("BeitConfig", {}),
    "SigLIP": ("SiglipVisionConfig", {}),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(module, "_answers", lambda endpoint: False)


def small(kind, seed=0):
    name, options = KINDS[kind]
    config = getattr(transformers, name)(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48, image_size=32, patch_size=8,
        **options,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def saved(tmp_path, kind="ViT", **statistics):
    small(kind).save_pretrained(tmp_path)
    if statistics:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    return f"hf:{tmp_path}"


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_what_is_shown_is_what_the_network_computes(kind):
    model = small(kind)
    encoder = HuggingFaceEncoder(model, kind)
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    for images in (IMAGES, TALL):
        grid, seen = (images.shape[2] // 8, 4), []
        options = {"interpolate_pos_encoding": True} if encoder._options else {}
        if kind == "MAE":  # its patches are in the order of their noise
            options["noise"] = torch.arange(grid[0] * 4.0).expand(2, -1)
        hook = blocks[1].register_forward_hook(lambda _, __, y, seen=seen: seen.append(y))
        output = model(images, **options)
        hook.remove()
        own = {"CLIP": "pooler_output", "BEiT": "pooler_output", "SigLIP": "pooler_output"}.get(kind)
        expected = output[own] if own else output.last_hidden_state[:, 0]
        found = encoder.forward_features(images, [2, 3])
        torch.testing.assert_close(found.cls, expected)
        torch.testing.assert_close(encoder.forward_features(images).cls, expected)
        tokens = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
        prefix = tokens.shape[1] - grid[0] * 4
        patches = tokens[:, prefix:].reshape(2, *grid, 24).permute(0, 3, 1, 2)
        torch.testing.assert_close(found.maps[2], patches)
        assert set(found.cls_at) == ({2, 3} if prefix else set())
        assert encoder.reads_cls == (kind not in ("BEiT", "SigLIP"))
        if prefix:
            torch.testing.assert_close(found.cls_at[2], tokens[:, 0])
        if encoder.reads_cls:
            torch.testing.assert_close(encoder.final_norm(found.cls_at[3]), expected)


@pytest.mark.parametrize("kind", ["ViT", "registers", "DeiT"])
@torch.inference_mode()
def test_attention_of_cls(kind):
    model = small(kind)
    encoder = HuggingFaceEncoder(model, kind)
    weights = encoder.cls_attention(TALL)
    assert weights.shape == (2, 3, 6, 4)
    assert 0 < weights.sum((2, 3)).min() <= weights.sum((2, 3)).max() < 1
    model.set_attn_implementation("eager")
    options = {"interpolate_pos_encoding": True} if encoder._options else {}
    full = model(TALL, output_attentions=True, **options).attentions[-1]
    torch.testing.assert_close(weights.flatten(2), full[:, :, 0, -24:])


def test_the_kernel_of_attention_is_put_back():
    model = small("ViT")
    before = model.config._attn_implementation
    HuggingFaceEncoder(model, "ViT").cls_attention(IMAGES)
    assert model.config._attn_implementation == before != "eager"


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
@torch.inference_mode()
def test_a_saved_folder_is_opened(kind, tmp_path, capfd):
    encoder, pretrained = open_pretrained(saved(tmp_path, kind), "pretrained")
    assert pretrained
    torch.testing.assert_close(
        encoder.forward_features(IMAGES).cls, HuggingFaceEncoder(small(kind), kind).forward_features(IMAGES).cls
    )
    assert encoder.identity == open_pretrained(f"hf:{tmp_path}")[0].identity
    random, pretrained = open_pretrained(f"hf:{tmp_path}", "random", 1)
    assert not pretrained
    assert random.identity == encoder.random(1).identity != encoder.random(2).identity
    assert random.identity != encoder.identity
    capfd.readouterr()
    open_pretrained(f"hf:{tmp_path}")
    assert capfd.readouterr() == ("", ""), "neither bars nor reports"


def test_weights_of_half_precision_are_read_as_float(tmp_path):
    small("ViT").half().save_pretrained(tmp_path)
    encoder, _ = open_pretrained(f"hf:{tmp_path}")
    assert encoder.forward_features(IMAGES).cls.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "size", "crop"),
    [
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}, 48, 0.75),
        ({"size": {"height": 32, "width": 32}}, 32, 1.0),
        ({"size": 40}, 40, 1.0),
        ({"size": {"shortest_edge": 64}, "do_center_crop": False, "crop_size": 48}, 64, 1.0),
        ({}, 32, 0.875),
    ],
)
def test_images_look_as_the_processor_makes_them(given, size, crop, tmp_path):
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]} if given else {}
    encoder, _ = open_pretrained(saved(tmp_path, **given, **statistics), "random")
    assert encoder.pretrained_cfg["input_size"] == (3, size, size)
    assert encoder.pretrained_cfg["crop_pct"] == crop
    assert encoder.pretrained_cfg["mean"] == ((0.5, 0.4, 0.3) if given else (0.485, 0.456, 0.406))
    assert encoder.pretrained_cfg["std"] == ((0.1, 0.2, 0.3) if given else (0.229, 0.224, 0.225))


def without(tmp_path, *keys):
    """The folder's weights but those whose names hold one of the keys."""
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not any(key in name for key in keys)}
    save_file(kept, file, {"format": "pt"})


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path, capfd):
    model = saved(tmp_path)
    without(tmp_path, "embeddings.cls_token", "pooler")
    capfd.readouterr()
    for weights in ("auto", "pretrained"):
        with pytest.raises(UserError, match=r"lacks 1 of .*, among them embeddings\.cls_token") as error:
            open_pretrained(model, weights)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_without_the_pooler_is_enough(tmp_path):
    model = saved(tmp_path)
    whole = open_pretrained(model)[0].forward_features(IMAGES).cls
    without(tmp_path, "pooler")
    encoder, pretrained = open_pretrained(model)
    assert pretrained
    torch.testing.assert_close(encoder.forward_features(IMAGES).cls, whole)


def test_a_checkpoint_without_the_head_that_pools_is_refused(tmp_path):
    model = saved(tmp_path, "SigLIP")
    open_pretrained(model, "pretrained")
    without(tmp_path, "head.layernorm")
    with pytest.raises(UserError, match="lacks 2"):
        open_pretrained(model)


def test_a_folder_without_weights_is_random_and_said_so(tmp_path, caplog):
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    encoder, pretrained = open_pretrained(model, "auto", 2)
    assert not pretrained
    assert encoder.identity == encoder.random(2).identity
    assert "measured with random weights (seed 2)" in caplog.text
    with pytest.raises(UserError, match="no pretrained weights"):
        open_pretrained(model, "pretrained")


@pytest.mark.parametrize("config", ["SwinConfig", "ResNetConfig"])
def test_another_kind_of_network_is_refused_before_weights_are_read(config, tmp_path):
    getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected a plain vision transformer") as error:
        open_pretrained(f"hf:{tmp_path}", "pretrained")
    assert "\n" not in str(error.value)


def test_a_name_that_cannot_be_opened_is_an_error_of_one_line(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("someone/no-such-network", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match="cannot be opened") as error:
            open_pretrained(f"hf:{name}")
        assert "\n" not in str(error.value)


def test_without_transformers_the_extra_is_named(monkeypatch):
    import importlib.util

    given = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else given(name))
    with pytest.raises(UserError, match=r"pip install 'equimid\[hf\]'"):
        open_pretrained("hf:facebook/dinov2-small")


def test_identity_changes_with_a_weight_and_a_setting():
    plain, changed, heads = small("ViT"), small("ViT"), small("ViT")
    changed.embeddings.cls_token.data[0, 0, 0] += 1e-6
    heads.config.num_attention_heads = 2
    for module_ in heads.modules():
        if hasattr(module_, "num_attention_heads"):
            module_.num_attention_heads, module_.attention_head_size = 2, 12
    assert len({HuggingFaceEncoder(m, "ViT").identity for m in (plain, changed, heads)}) == 3
    assert HuggingFaceEncoder(small("ViT"), "elsewhere").identity == HuggingFaceEncoder(plain, "ViT").identity
