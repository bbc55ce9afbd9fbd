"""DINO's loss (Caron et al. 2021, arXiv 2104.14294, equations 1 to 4).

Letters: b images of this rank, B of all W ranks, V student views, K logits, s and t logits of student and teacher,
c the center.

    p_v = softmax((t_v - c) / tau_t),    q_u = softmax(s_u / tau_s)
    L   = mean over v in {1, 2}, u != v and B of -sum over k of p_v log q_u
    c   <- m c + (1 - m) mean of t over both views and B,    after the loss
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimid.distributed import mean_over_ranks, sum_detached
from equimid.precision import no_autocast, upcast

__all__ = ["DINOLoss"]


class DINOLoss(nn.Module):
    """Cross-entropy of student views with the centered, sharpened teacher; keeps the center, a buffer (1, K).

    Args:
        out_dim: K.
        student_temperature: tau_s, above 0.
        center_momentum: m, in [0, 1].

    Example:
        >>> loss = DINOLoss(out_dim=64)
        >>> student, teacher = torch.randn(16, 64), torch.randn(16, 64)  # of 8 images, two views each
        >>> value = loss(student, teacher, teacher_temperature=0.04)
    """

    center: Tensor

    def __init__(self, out_dim: int, student_temperature: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature, self.center_momentum = student_temperature, center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student: Tensor, teacher: Tensor, teacher_temperature: float) -> Tensor:
        """
        Computed in float32 or wider inside any autocast. Over W ranks the mean of the values is the loss of the global
        batch, and the mean of the gradients its gradient; row counts may differ between ranks, also be 0. In training
        mode the center moves afterwards, alike on all ranks.

        Args:
            student: (V b, K), all images of view 1, then of view 2, and so on; V is 2 or more.
            teacher: (2 b, K) of views 1 and 2; gets no gradient.
            teacher_temperature: tau_t.

        Returns:
            Scalar.

        Raises:
            ValueError: the shapes do not fit, or the temperature is not positive.
        """
        K, b = self.center.shape[1], len(teacher) // 2
        V = len(student) // b if b else 2
        if student.shape != (V * b, K) or teacher.shape != (2 * b, K) or V < 2:
            shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            raise ValueError(f"expected student (V b, {K}), V >= 2, and teacher (2 b, {K}), found {shapes}")
        if not teacher_temperature > 0:
            raise ValueError(f"teacher_temperature must be positive, found {teacher_temperature}")
        with no_autocast(student):
            t = upcast(teacher.detach())
            p = F.softmax((t - self.center) / teacher_temperature, dim=1).view(2, b, K)
            log_q = F.log_softmax(upcast(student) / self.student_temperature, dim=1).view(V, b, K)
            terms = -torch.einsum("vbk,ubk->bvu", p, log_q)
            same = torch.eye(2, V, dtype=torch.bool, device=terms.device)
            loss = mean_over_ranks(terms.masked_fill(same, 0).sum((1, 2)) / (2 * V - 2))
            if self.training:
                self._move_center(t)
        return loss

    @torch.no_grad()
    def _move_center(self, t: Tensor) -> None:
        rows = sum_detached(torch.full((), float(len(t)), device=t.device, dtype=t.dtype))
        mean = sum_detached(t.sum(0, keepdim=True)) / rows.clamp(min=1)
        self.center.copy_(self.center_momentum * self.center + (1 - self.center_momentum) * mean)
