"""Pictures that evaluations drew."""

import base64
from collections.abc import Sequence

from equimid.records import Record
from equimid.report.blocks import Block, Heading, Picture, Section, Text
from equimid.report.formatting import words
from equimid.report.series import Series

__all__ = ["NAMES", "pictures_of", "pictures_section"]

# evaluations that are pictures and no more, with what each shows
NAMES = {
    "feature_maps": ("Feature maps", "Token maps"),
    "attention": ("Attention", "What the class token attends to"),
    "neighbours": ("Nearest neighbours", "Images and those nearest to them"),
}
SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def pictures_section(series: Sequence[Series], evaluation: str) -> Section:
    """The pictures of one evaluation; feature maps are drawn for every run, so that they are missed where none are."""
    heading, _ = NAMES[evaluation]
    blocks = pictures_of(series, evaluation)
    if not blocks and evaluation == "feature_maps" and any(s.run.trained_here for s in series):
        blocks = [Text("No picture was recorded.")]
    return Section(evaluation.replace("_", "-"), heading, blocks)


def pictures_of(series: Sequence[Series], evaluation: str) -> list[Block]:
    """The pictures that the records name, read from the run's folder and from nowhere else."""
    blocks: list[Block] = []
    for s in series:
        found = [r for r in s.of(evaluation) if r.picture is not None]
        if found:
            blocks += [Heading(s.label), *(_picture(s, r) for r in found)]
    return blocks


def _picture(s: Series, r: Record) -> Picture:
    path = (s.run.path / str(r.picture)).resolve()
    inside = path.is_relative_to(s.run.path.resolve()) and path.is_file()
    data = path.read_bytes() if inside else b""
    # by its signature: what is no picture is not shown as one
    kind = next((kind for signature, kind in SIGNATURES.items() if data.startswith(signature)), None)
    what = NAMES[r.evaluation][1] if r.evaluation in NAMES else words(r.evaluation).capitalize()
    if "layer" in r.details:
        what += f" of layer {r.details['layer']}"
    caption = str(r.details.get("caption") or what)
    return Picture(
        caption=caption,
        alt=caption if caption == what else f"{what}: {caption}",
        source=f"data:image/{kind};base64,{base64.b64encode(data).decode()}" if kind else "",
        name=str(r.picture),
    )
