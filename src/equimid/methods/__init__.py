"""Base objectives on the final embedding. Each is one file; `Method` is what the task asks of it."""

from equimid.methods.base import Method
from equimid.methods.mocov3 import MoCoV3, MoCoV3Config

__all__ = ["Method", "MoCoV3", "MoCoV3Config", "build_method"]


def build_method(config: MoCoV3Config, width: int) -> Method:
    """The method of a configuration, for CLS embeddings of `width` columns."""
    return MoCoV3(config, width)
