"""Faults of the released SER code that no other test is about; docs/faults.md lists all of them with their tests."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import Block

from equimid.addons import SER, SERConfig, StudentOutputs, plan_views
from equimid.backbones import BackboneConfig, build_backbone, create_backbone
from equimid.config import differences, override
from equimid.engine import OptimConfig, RuntimeConfig, TrainConfig, Trainer, latest_checkpoint, make_fabric
from equimid.engine.sampler import MicroBatches
from equimid.errors import UserError
from equimid.export import load_backbone, save_backbone
from equimid.features import Features
from equimid.methods import DINOConfig, MoCoV3Config
from equimid.poses import sample_pose_pair
from equimid.randomness import counted_generator
from equimid.recipes import ADDITIONS, BASES, SIZES, recipe
from equimid.runs.pretrain import pretrain
from equimid.schedules import StepInfo
from equimid.task import Task
from equimid.testing import assert_same_on_ranks, assert_trains
from equimid.views import ViewDataset, Views, ViewsConfig, collate, sample_poses, to_device_views
from helpers.tasks import TINY, make_task, ser_on_other_bases

CPU = torch.device("cpu")
QUICK = [
    "backbone.embed_dim=24", "backbone.num_heads=3", "backbone.image_size=16", "backbone.patch_size=4",
    "data.source=digits", "runtime.workers=0", "runtime.tensorboard=false", "runtime.accelerator=cpu",
]  # fmt: skip


class Drawn:
    """Images of random pixels; which were asked for is noted."""

    def __init__(self, count):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def load(self, index):
        self.asked.append(index)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (24, 20, 3), dtype=np.uint8))


def trainer(folder, images, **train):
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, cls_layer=2
    )
    ser, train = SERConfig(layers=(2,), hidden=8), TrainConfig(**train)
    runtime = RuntimeConfig(accelerator="cpu", workers=0, tensorboard=False)
    task = make_task(ser, backbone, MoCoV3Config(hidden=12, dim=6), batch=train.micro_batch)
    dataset = ViewDataset(images, plan_views(ViewsConfig(), backbone, {"ser": ser}, train.micro_batch), seed=0)
    return Trainer(
        make_fabric(runtime), task, dataset, train=train, optim=OptimConfig(), runtime=runtime, seed=0, folder=folder,
        run={},
    )  # fmt: skip


def realised(config, batch=8):
    """A batch of drawn images as the task of this configuration sees it on one process."""
    plan, size = config.plan(), config.train.micro_batch
    assert size == batch
    (keys,) = MicroBatches(
        batch, 0, micro_batch=batch, accumulate=1, first_step=0, last_step=1, plan=plan, rank=0, ranks=1
    )
    dataset = ViewDataset(Drawn(batch), plan, seed=0)
    return to_device_views(collate([dataset[key] for key in keys]), plan, sample_poses(plan, 0, 0, 0, 1), CPU)


# ---- T2: a run without steps ---------------------------------------------------------------------------------------


def test_a_run_has_the_steps_that_its_images_give_and_sees_them_all(tmp_path):
    images = Drawn(13)
    outcome = trainer(tmp_path, images, batch_size=4, epochs=2).fit()
    assert (outcome.steps, outcome.total) == (2 * (13 // 4), 2 * (13 // 4))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + outcome.steps
    assert [len(set(images.asked[e : e + 12])) for e in (0, 12)] == [12, 12]


def test_a_run_without_steps_is_refused_and_leaves_no_weights(tmp_path):
    """The release took a pair for its images: two items, no full batch, and random weights were saved."""
    with pytest.raises(UserError, match="only 2 images"):
        trainer(tmp_path, Drawn(2), batch_size=4, epochs=2).fit()
    with pytest.raises(UserError, match="only 20 images"):
        pretrain(override(recipe("barlow-tiny"), [*QUICK, f"data.source={few(tmp_path)}"]), tmp_path / "run")
    assert not list(tmp_path.rglob("*.safetensors"))


def few(folder):
    (folder / "photos").mkdir()
    for index in range(20):
        Drawn(20).load(index).save(folder / "photos" / f"{index}.png")
    return folder / "photos"


# ---- T3: SER on other bases ----------------------------------------------------------------------------------------


def test_ser_on_dino_and_barlow_twins_runs_over_ranks():
    assert_same_on_ranks(ser_on_other_bases, ranks=(1, 2), rtol=1e-6)


# ---- T4: SER on 2 + 4 views ----------------------------------------------------------------------------------------


def test_ser_of_six_views_counts_patches_and_not_images():
    """All patches of an image are alike: every negative image counts 2 P times, with the grid of its view."""
    n, rng = 3, counted_generator(0, "pose")
    poses = [pose for grid in ((6, 6), (3, 3), (3, 3)) for pose in sample_pose_pair(n, grid, rng)]
    assert len({pose.grid for pose in poses}) > 3
    rows = torch.nn.functional.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    posed = [Features(rows, {3: rows[:, :, None, None].expand(-1, -1, *pose.grid)}) for pose in poses]
    ser = SER(SERConfig(temperature=0.3), embed_dim=8)
    ser.projectors["3"] = torch.nn.Identity()
    found = ser(StudentOutputs([], posed=posed, momentum_posed=posed, views=Views([], [], poses, torch.arange(n))))
    terms = []
    for pose in poses:
        for i in range(n):
            others = [math.exp((float(rows[i] @ rows[j]) - 1) / 0.3) for j in range(n) if j != i]
            terms.append(math.log(1 + 2 * pose.grid[0] * pose.grid[1] * sum(others)))
    assert float(found.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


# ---- T5: who follows whom ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [MoCoV3Config(hidden=12, dim=6), DINOConfig(out_dim=12, hidden=10, bottleneck=7)])
def test_the_ema_moves_copies_and_never_what_is_trained(method, monkeypatch):
    """The release's momentum network held the student's own phi, and every EMA shrank it."""
    task, pairs = make_task(SERConfig(hidden=16), method=method), []
    monkeypatch.setattr("equimid.task.ema_update_", lambda teacher, student, _: pairs.append((teacher, student)))
    task.update_teacher(StepInfo(1, 10))
    trained = {p.data_ptr() for p in task.parameters() if p.requires_grad}
    moved = [p for teacher, _ in pairs for p in teacher.parameters()]
    assert moved
    assert not trained & {p.data_ptr() for p in moved}
    followers = {id(p) for n, p in task.named_parameters() if "momentum" in n}
    assert {id(p) for p in moved} == followers, "all that follows is moved, and nothing else"


# ---- T6, T7: controls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_every_control_differs_in_what_its_name_says(size):
    def changed(row, other):
        return set(differences(recipe(f"{row}-{size}"), recipe(f"{other}-{size}"))) - {"recipe"}

    assert changed("mocov3", "late-cls") == {"backbone.cls_layer"}
    assert {key.split(".")[0] for key in changed("late-cls", "ser")} == {"ser"}
    assert changed("control", "ser") == {"ser.weight"}
    assert recipe(f"control-{size}").addons["ser"].weight == 0 < recipe(f"ser-{size}").addons["ser"].weight
    assert changed("ser", "ser-detached") == {"ser.detached"}
    assert changed("ser", "ser-complement") == {"ser.complement"}
    for layer in (9, 12):
        assert changed("ser", f"ser-layer{layer}") == {"ser.layers"}
    # as the paper has them CLS moves too: each has a control with its network
    for row, network in (("ser-layer9-cls9", "late-cls9"), ("ser-layer12-cls0", "mocov3")):
        assert {key.split(".")[0] for key in changed(network, row)} == {"ser"}


@pytest.mark.parametrize("name", ["ser-layer12-tiny", "ser-layer12-cls0-tiny"])
def test_ser_at_the_last_layer_trains_all_blocks(name):
    config = override(recipe(name), [*QUICK, "train.batch_size=8"])
    (layer,) = config.addons["ser"].layers
    task = Task(config.backbone, config.method, config.addons, config.plan(), 0)
    assert layer == len(task.student.blocks)
    views = realised(config)
    posed, before = (network.forward_packed(views.posed) for network in (task.student, task.momentum))
    loss = task.addons["ser"](StudentOutputs([], posed=posed, momentum_posed=before, views=views))
    assert_trains(loss, [(n, p) for n, p in task.student.blocks.named_parameters() if not n.endswith("qkv.bias")])


# ---- T12, T13: draws -----------------------------------------------------------------------------------------------


def test_every_image_has_its_own_turn_and_ranks_have_others():
    plan = plan_views(ViewsConfig(), TINY, {"ser": SERConfig(fraction=0.5)}, 512)

    def elements(rank=0, ranks=1, seed=0, step=3):
        return [
            list(zip(p.turns.tolist(), p.flip.tolist(), strict=True))
            for p in sample_poses(plan, seed, step, rank, ranks)
        ]

    whole = elements()
    assert all(len(set(view)) == 8 for view in whole), "of 256 images some have each of the eight elements"
    first, second = elements(0, 2), elements(1, 2)
    assert first != second
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(view) for view in whole]
    assert elements(seed=1) != whole
    assert elements(step=4) != whole
    assert elements() == whole, "a resumed step draws what it would have drawn"


def test_photometric_draws_differ_between_ranks_images_and_views():
    always = [f"views.{view}.{kind}=1" for view in ("first", "second") for kind in ("jitter", "blur")]
    config = override(recipe("ser-small"), ["train.batch_size=16", *always])
    plan, rows = config.plan(), []
    for rank in range(2):
        (keys,) = MicroBatches(
            16, 0, micro_batch=16, accumulate=1, first_step=0, last_step=1, plan=plan, rank=rank, ranks=2
        )
        dataset = ViewDataset(Drawn(16), plan, seed=0)  # each rank has its own
        rows += [tuple(row.tolist()) for key in keys for row in dataset[key].photometric]
    assert len(rows) == 2 * 16
    assert len(set(rows)) == len(rows)


# ---- T15: MoCo-v3's network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "heads"), [("mocov3", 6), ("mocov3-published", 12), ("ser", 6)])
def test_recipes_on_moco_v3_have_its_positions_and_patches(row, heads):
    config = recipe(f"{row}-imagenet")
    network = build_backbone(replace(config.backbone, depth=4), (), seed=0)
    assert network.blocks[0].attn.num_heads == heads
    assert not any(p.requires_grad for p in (network.pos_embed, *network.patch_embed.parameters()))
    assert network.pos_embed.shape == (1, 196, 384)
    bound = math.sqrt(6 / (768 + 384))
    assert float(network.patch_embed.proj.weight.abs().max()) == pytest.approx(bound, rel=1e-3)
    assert not network.patch_embed.proj.bias.any()


# ---- T16: positions on other grids ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_positions_keep_their_symmetry_on_every_grid_of_the_packed_pass(axes):
    """Positions turned over and resampled are positions resampled and turned over."""
    network = create_backbone(
        "vit_tiny_patch16_224", 2, (), img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3
    ).eval()
    for p in network.patch_embed.parameters():
        p.zero_()  # what enters the first block is the positions alone
    noted = []
    network.blocks[0].norm1.register_forward_pre_hook(lambda _, args: noted.append(args[0]))
    grids = [(7, 5), (3, 6), (4, 4), (2, 9)]
    before = network.pos_embed.clone()
    turned = before.view(4, 4, 24).flip(axes).reshape(1, 16, 24)
    for positions in (before, turned):
        network.pos_embed.copy_(positions)
        for h, w in grids:
            network.forward_packed([torch.zeros(1, 3, 8 * h, 8 * w)])
    for (h, w), plain, other in zip(grids, noted[:4], noted[4:], strict=True):
        assert torch.allclose(other.view(h, w, 24), plain.view(h, w, 24).flip(axes), atol=1e-6)


# ---- T22, T23: evaluation ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = ["method.hidden=16", "method.dim=8", "ser.hidden=8", "train.batch_size=16", "train.steps=3"]
    pretrain(override(recipe("ser-tiny"), [*QUICK, *small, "optim.warmup_epochs=0"]), folder, finish=False)
    return folder


def test_a_runs_folder_holds_the_student_and_nothing_else(run_folder):
    weights = load_file(latest_checkpoint(run_folder / "checkpoints").folder / "model.safetensors")
    found = load_backbone(run_folder).state_dict()
    of = {
        who: {name.removeprefix(f"{who}."): x for name, x in weights.items() if name.startswith(f"{who}.")}
        for who in ("student", "momentum")
    }
    assert set(found) == set(of["student"])
    assert all(torch.equal(x, of["student"][name]) for name, x in found.items())
    assert any(not torch.equal(x, of["momentum"][name]) for name, x in found.items()), "else this says nothing"


@pytest.mark.parametrize("change", ["one more norm", "one norm less", "another shape"])
def test_a_backbone_is_loaded_key_by_key(tmp_path, change):
    """The release let any unexpected key with "norm" in it pass, and never looked at missing ones."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
    backbone = create_backbone("vit_tiny_patch16_224", 2, (2,), **arguments)
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    save_backbone(backbone, tmp_path, "vit_tiny_patch16_224", arguments, preprocessing)
    load_backbone(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "one more norm":
        weights["tap_norms.3.weight"] = torch.ones(24)
    elif change == "one norm less":
        del weights["norm.bias"]
    else:
        weights["norm.bias"] = torch.zeros(25)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("cls_layer", [0, 2])
def test_cls_of_a_layer_is_cls_and_its_map_is_the_patches(cls_layer):
    """Against timm's own blocks, with CLS put in by hand; also the CLS that an evaluation reads."""
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
    network = create_backbone("vit_tiny_patch16_224", cls_layer, (1, 2, 3, 4), **arguments).eval()
    torch.nn.init.normal_(network.cls_token)
    x = torch.randn(2, 3, 32, 32)
    found = network(x)
    tokens = network.patch_embed(x).flatten(1, 2) + network.pos_embed
    for number, block in enumerate(network.blocks, start=1):
        if number == cls_layer + 1:
            tokens = torch.cat([network.cls_token.expand(2, -1, -1), tokens], dim=1)
        tokens = Block.forward(block, tokens)
        normed = network.tap_norms[str(number)](tokens)
        has_cls = number > cls_layer
        assert (number in found.cls_at) == has_cls
        patches = normed[:, int(has_cls) :]
        assert torch.allclose(found.maps[number].flatten(2).transpose(1, 2), patches, atol=1e-5)
        if has_cls:
            assert torch.allclose(found.cls_at[number], normed[:, 0], atol=1e-5)
            assert not torch.allclose(found.cls_at[number], normed[:, 1], atol=1e-2)
    assert torch.allclose(found.cls, network.norm(tokens)[:, 0], atol=1e-5)


# ---- T25: every add-on on every base -------------------------------------------------------------------------------


@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("base", BASES)
def test_every_add_on_has_a_loss_on_every_base(base, addition):
    config = override(recipe(f"{base}+{addition}-tiny"), ["train.batch_size=8"])
    task = Task(config.backbone, config.method, config.addons, config.plan(), 0)
    losses = task(realised(config))
    assert set(losses.named) == {config.method.name, addition}
    assert all(math.isfinite(value) for value in losses.named.values())
    watched = [(name, p) for name, p in task.addons.named_parameters() if p.requires_grad]
    assert_trains(losses.total, [*watched, ("block 1", task.student.blocks[0].mlp.fc2.weight)])


# ---- T27: checkpoints ----------------------------------------------------------------------------------------------


def test_every_epoch_leaves_a_checkpoint_and_the_next_run_goes_on_there(tmp_path):
    """By default, without any setting."""
    for name in ("run", "whole"):
        (tmp_path / name).mkdir()
    one = trainer(tmp_path / "run", Drawn(8), batch_size=4, epochs=3)
    taken, step = [], one._step

    def stopped(number, *rest):
        if number == 4:
            raise KeyboardInterrupt
        taken.append(number)
        return step(number, *rest)

    one._step = stopped
    with pytest.raises(KeyboardInterrupt):
        one.fit()
    assert sorted(f.name for f in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    again = trainer(tmp_path / "run", Drawn(8), batch_size=4, epochs=3)
    assert (again.start, taken) == (4, [0, 1, 2, 3])
    again.fit()
    whole = trainer(tmp_path / "whole", Drawn(8), batch_size=4, epochs=3)
    whole.fit()
    one, other = (t.task.state_dict() for t in (again, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
