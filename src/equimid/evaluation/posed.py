"""The poses that test images are shown in: upright, the quarter turns, the flip, and other scales."""

import logging
from dataclasses import dataclass

import torch

from equimid.backbones import Encoder
from equimid.evaluation.equivariance.transforms import pose_kinds
from equimid.poses import Pose

__all__ = ["UPRIGHT", "NamedPose", "named_poses", "poses_for"]

logger = logging.getLogger("equimid")

UPRIGHT = "none"  # the kind of the pose that changes nothing


@dataclass(frozen=True)
class NamedPose:
    """One pose of all images.

    kind: "none", "quarter turns", "flip" or "scale"
    name: what it is called within its kind: "90 degrees"
    turns, flip, grid: as in `Pose`
    """

    kind: str
    name: str
    turns: int
    flip: bool
    grid: tuple[int, int]

    def of(self, images: int) -> Pose:
        """As a pose of so many images."""
        return Pose(torch.full((images,), self.turns), torch.full((images,), self.flip), self.grid)


def named_poses(grid: int) -> list[NamedPose]:
    """Of an upright map of `grid` x `grid` patches; the first is upright, the others those of `pose_kinds`."""
    poses = [NamedPose(UPRIGHT, "upright", 0, False, (grid, grid))]
    for kind, members in pose_kinds((grid, grid)).items():
        for turns, flip, size in members:
            name = {
                "quarter turns": f"{90 * turns} degrees",
                "flip": "mirrored left-right",
                "scale": f"{size[0]} x {size[1]} patches",
            }[kind]
            poses.append(NamedPose(kind, name, turns, flip, size))
    return poses


def poses_for(encoder: Encoder, grid: int, what: str) -> list[NamedPose]:
    """`named_poses` that this network can be shown: one that takes images of one size alone gets no other scales, and
    a warning says so of `what` is measured."""
    poses = named_poses(grid)
    if encoder.any_size:
        return poses
    logger.warning("this network takes images of one size: its %s under other scales is not measured", what)
    return [pose for pose in poses if pose.kind != "scale"]
