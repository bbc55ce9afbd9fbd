"""Equivariance of every layer: does the map of the changed image equal the carried map?

For layer l, image x and change g, over the T tokens that both maps show, with f_l(x) as (T, D):

    cosine          mean over tokens of cos( f_l(g x), rho(g) f_l(x) )
    centred_cosine  the same after the layer's mean token m_l is subtracted from both
    relative_error  || f_l(g x) - rho(g) f_l(x) || / || f_l(g x) - m_l ||, norms over all T tokens

averaged over the changes of a kind, then over images. Tokens are normalised first (layer norm without parameters), so
that a network without taps is measured alike. m_l is the mean over patches and images, upright.

Token maps share a large common vector, which alone gives high cosines; the other two metrics are free of it. An
equivariant layer has cosines of 1 and an error of 0; a map that knows nothing but m_l has an error of 1, and one that
is independent of it but alike in spread has sqrt(2). Two references say what a number means: other images
("mismatched": rho(g) f_l(x'), x' != x), and a network of the same shape with random weights ("random").

Source: SER (ICLR 2026, arXiv 2603.06693) for turns and scales; a per-layer measurement is ours.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.equivariance.changes import Change, changes, pose_kinds
from equimid.evaluation.equivariance.tokens import mean_tokens, normalised_maps
from equimid.evaluation.study import Study, images_of, sample_images
from equimid.records import Record

__all__ = ["measure_equivariance", "pose_kinds"]

logger = logging.getLogger("equimid")

_Key = tuple[str, str, str, float | None, int]  # metric, pairing, kind, angle (None = the kind's mean), layer


@torch.inference_mode()
def measure_equivariance(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Records for every layer and kind, of a trained network also for mismatched images.

    Of rotations there is a record for every angle, {"layer", "kind", "angle"}, then the kind's mean.

    Raises:
        UserError: fewer than two images.
    """
    source, scope = images_of(data), study.scope
    if len(source) < 2:
        raise UserError(f"{data} has {len(source)} image(s); equivariance needs other images to compare with")
    encoder = study.encoder
    layers = list(range(1, encoder.depth + 1))
    grid = int(encoder.pretrained_cfg["input_size"][-1]) // encoder.patch
    todo = changes(grid, encoder.patch, study.config.equivariance, encoder.any_size)
    if not encoder.any_size:
        logger.warning("this network takes images of one size: its equivariance to scales and crops is not measured")
    batch = max(2, min(32, 8192 // grid**2))
    indices = sample_images(source, study.config.equivariance_images, scope.seed)
    # a last batch of one image has no other image to be compared with
    indices = indices[: len(indices) - (len(indices) % batch == 1)]
    means = mean_tokens(encoder, study.batches(source, batch, indices), layers)
    values: dict[_Key, list[Tensor]] = defaultdict(list)
    done = 0
    with study.bar(f"equivariance, {scope.subject}") as progress:
        for images in study.batches(source, batch, indices):
            for key, found in _compare(encoder, images, layers, means, todo).items():
                values[key].append(found)
            done += len(images)
            if progress:
                progress(done, len(indices))
    subjects = {"same": scope.subject, "other": "mismatched"}
    return [
        scope.mean(
            "equivariance",
            metric,
            torch.cat(parts).double().numpy(),
            {"layer": layer, "kind": kind} | ({} if angle is None else {"angle": angle}),
            subject=subjects[pairing],
        )
        for (metric, pairing, kind, angle, layer), parts in values.items()
        if pairing == "same" or scope.subject == "backbone"
    ]


def _compare(
    encoder: Encoder, images: Tensor, layers: list[int], means: dict[int, Tensor], todo: Sequence[Change]
) -> dict[_Key, Tensor]:
    """Per image (n,), the mean over the changes of a kind, and of rotations over those of an angle."""
    bases: dict[tuple[int, int] | None, dict[int, Tensor]] = {}
    parts: dict[_Key, list[Tensor]] = defaultdict(list)
    for change in todo:
        if change.place not in bases:
            bases[change.place] = normalised_maps(encoder, change.before(images), layers)
        changed = normalised_maps(encoder, change.after(images), layers)
        for layer in layers:
            there, carried = change.select(changed[layer]), change.carry(bases[change.place][layer])
            for pairing, other in (("same", carried), ("other", carried.roll(1, 0))):
                for metric, value in _agreement(there, other, means[layer]).items():
                    if change.member is not None:
                        parts[metric, pairing, change.kind, change.member, layer].append(value)
                    parts[metric, pairing, change.kind, None, layer].append(value)
    found = {key: torch.stack(values).mean(0).cpu() for key, values in parts.items()}
    # kind by kind, an angle's records before the kind's mean
    kinds = list(dict.fromkeys(change.kind for change in todo))
    return dict(sorted(found.items(), key=lambda entry: (kinds.index(entry[0][2]), entry[0][3] is None)))


def _agreement(there: Tensor, carried: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Per image (n,), of tokens (n, D, T) and the mean token (D, 1)."""
    spread = (there - mean).flatten(1).norm(dim=1).clamp(min=1e-12)
    return {
        "cosine": F.cosine_similarity(there, carried, dim=1).mean(1),
        "centred_cosine": F.cosine_similarity(there - mean, carried - mean, dim=1).mean(1),
        "relative_error": (there - carried).flatten(1).norm(dim=1) / spread,
    }
