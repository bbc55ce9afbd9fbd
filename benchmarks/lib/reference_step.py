"""MoCo-v3 with SER as one writes it down from the papers: the eager reading that a benchmark compares a step with.

    L = sum of ctr(q_v, k_u) over the two orders of the views + lambda L_eq

Everything is what torch and timm offer by default: one pass per view, timm's blocks (with the attention that timm
chooses), CLS put in after block k, the whole matrix of patch similarities, AdamW and the EMA parameter by parameter,
losses read at every step; float32 on a CPU, float16 with a gradient scaler on a GPU. No part of equimid's step is in it
but the views that it is given; a test holds its losses and gradients equal to the task's.
"""

import copy
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from equimid.addons import SERConfig
from equimid.backbones.build import timm_arguments
from equimid.config import Config
from equimid.errors import UserError
from equimid.methods import MoCoV3Config
from equimid.poses import Pose
from equimid.task import Task
from equimid.views import Views

__all__ = ["PlainStep"]


def _head(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    layers += [nn.Linear(widths[-2], widths[-1], bias=False), nn.BatchNorm1d(widths[-1], affine=False)]
    return nn.Sequential(*layers)


class PlainStep(nn.Module):
    """MoCo-v3, with SER at one layer if the configuration has it; weights are those of `task`.

    Args:
        config: of a run with method mocov3 and two full views.

    Raises:
        UserError: it is another method, or SER in another form than the paper's.
    """

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        method, ser = config.method, config.addons.get("ser")
        plain = isinstance(method, MoCoV3Config) and set(config.addons) <= {"ser"} and len(config.plan().crops) == 2
        if not isinstance(method, MoCoV3Config) or not plain:
            raise UserError("the plain reading is of mocov3 with two views, alone or with ser; leave the rest out")
        if ser is not None and (not isinstance(ser, SERConfig) or len(ser.layers) != 1 or ser.form != "canonical"):
            raise UserError("the plain reading is of ser at one layer in its canonical form; set ser.layers=3")
        self.tau, self.cls_layer, self.ser = method.temperature, config.backbone.cls_layer, ser
        self.student = timm.create_model(
            config.backbone.name, num_classes=0, no_embed_class=True, dynamic_img_size=True,
            drop_path_rate=config.backbone.drop_path, **timm_arguments(config.backbone),
        )  # fmt: skip
        width = self.student.embed_dim
        self.projector = _head(width, method.hidden, method.hidden, method.dim)
        self.predictor = _head(method.dim, method.hidden, method.dim)
        if ser is not None:
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.phi = nn.Sequential(
                nn.Conv2d(width, ser.hidden, 1, bias=False), nn.GELU(), nn.Conv2d(ser.hidden, ser.hidden, 1, bias=False)
            )
        self._copy_weights(task)
        self.momentum_student = copy.deepcopy(self.student).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        if ser is not None:
            self.momentum_norm = copy.deepcopy(self.norm).requires_grad_(False)

    def _copy_weights(self, task: Task) -> None:
        self.student.load_state_dict(task.student.state_dict(), strict=False)  # beyond timm's: norms of taps
        for name, p in self.student.named_parameters():
            p.requires_grad_(task.student.get_parameter(name).requires_grad)
        self.projector.load_state_dict(task.method.get_submodule("projector").state_dict())
        self.predictor.load_state_dict(task.method.get_submodule("predictor").state_dict())
        if self.ser is not None:
            layer = str(self.ser.layers[0])
            self.norm.load_state_dict(task.student.get_submodule(f"tap_norms.{layer}").state_dict())
            linears = task.addons["ser"].get_submodule(f"projectors.{layer}.layers").state_dict()
            self.phi.load_state_dict({name: weight[..., None, None] for name, weight in linears.items()})

    def encode(self, vit: Any, norm: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """CLS (B, D), and the normed map (B, D, h, w) after SER's layer."""
        x = vit.patch_embed(images)
        b, h, w, _ = x.shape
        old = vit.patch_embed.grid_size
        positions = resample_abs_pos_embed(vit.pos_embed, new_size=[h, w], old_size=old, num_prefix_tokens=0)
        x, tapped = x.flatten(1, 2) + positions, None
        for number, block in enumerate(vit.blocks):
            if number == self.cls_layer:
                x = torch.cat([vit.cls_token.expand(b, -1, -1), x], dim=1)
            x = block(x)
            if self.ser is not None and number + 1 == self.ser.layers[0]:
                patches = x[:, 1:] if number >= self.cls_layer else x
                tapped = norm(patches).transpose(1, 2).reshape(b, -1, h, w)
        return vit.norm(x)[:, 0], tapped

    def forward(self, views: Views) -> dict[str, Tensor]:
        """The two losses, unweighted."""
        images = [*views.crops, *views.posed]
        norms = (self.norm, self.momentum_norm) if self.ser is not None else (None, None)
        student = [self.encode(self.student, norms[0], x) for x in images]
        with torch.no_grad():
            momentum = [self.encode(self.momentum_student, norms[1], x) for x in images]
        # view v is crops[v] and, where images are posed, posed[v]
        q = [self.predictor(self.projector(torch.cat([cls for cls, _ in student[v::2]]))) for v in (0, 1)]
        with torch.no_grad():
            k = [self.momentum_projector(torch.cat([cls for cls, _ in momentum[v::2]])) for v in (0, 1)]
        losses = {"mocov3": self.contrast(q[0], k[1]) + self.contrast(q[1], k[0])}
        if self.ser is not None:
            here, there = [x for _, x in student[2:]], [x for _, x in momentum[2:]]
            directions = [self.equivariance(here[a], there[b], views, a, b) for a, b in ((0, 1), (1, 0))]
            losses["ser"] = (directions[0] + directions[1]) / 2
        return losses

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """2 tau CE(q K^T / tau)."""
        logits = F.normalize(q.float(), dim=1) @ F.normalize(k.float(), dim=1).T / self.tau
        return 2 * self.tau * F.cross_entropy(logits, torch.arange(len(q), device=q.device))

    def equivariance(self, student: Tensor | None, momentum: Tensor | None, views: Views, a: int, b: int) -> Tensor:
        """L_eq of the student's posed view a and the momentum network's posed view b, carried into a's frame."""
        assert student is not None
        assert momentum is not None
        assert self.ser is not None
        tokens = self.phi(student)
        with torch.no_grad():
            carried = _carry(self.phi(momentum), views.poses[b], views.poses[a])
        rows = [F.normalize(x.float().flatten(2).transpose(1, 2).flatten(0, 1), dim=1) for x in (tokens, carried)]
        z = torch.cat(rows)
        ids = views.image_ids.repeat_interleave(tokens.shape[2] * tokens.shape[3]).repeat(2)
        similarity = z @ z.T / self.ser.temperature
        negatives = similarity.masked_fill(ids[:, None] == ids[None], -torch.inf).logsumexp(1)
        positives = (rows[0] * rows[1]).sum(1).repeat(2) / self.ser.temperature
        return (torch.logaddexp(positives, negatives) - positives).mean()

    def optimizer(self, config: Config) -> torch.optim.Optimizer:
        """AdamW as torch offers it."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optim = config.optim
        return torch.optim.AdamW(trained, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """The EMA, parameter by parameter."""
        pairs = [(self.momentum_student, self.student), (self.momentum_projector, self.projector)]
        if self.ser is not None:
            pairs.append((self.momentum_norm, self.norm))
        for teacher, student in pairs:
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(momentum).add_(fast, alpha=1 - momentum)

    def step(self, views: Views, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> dict[str, float]:
        """One step of training; the scaler is enabled where float16 is computed. Returns the losses."""
        kind = views.crops[0].device.type
        self.update_teacher(0.99)
        with torch.autocast(kind, torch.float16, enabled=scaler.is_enabled()):
            losses = self(views)
            total = losses["mocov3"]
            if self.ser is not None:
                total = total + self.ser.weight * losses["ser"]
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        return {name: loss.item() for name, loss in losses.items()}


def _carry(maps: Tensor, source: Pose, target: Pose) -> Tensor:
    """Maps in the frame of one pose, image by image, into the frame of another."""
    carried = []
    for i in range(len(maps)):
        x = torch.rot90(maps[i], -int(source.turns[i]), (1, 2))
        if bool(source.flip[i]) != bool(target.flip[i]):
            x = x.flip(2)
        x = torch.rot90(x, int(target.turns[i]), (1, 2))
        carried.append(F.interpolate(x[None], size=target.grid, mode="bicubic", align_corners=False)[0])
    return torch.stack(carried)
