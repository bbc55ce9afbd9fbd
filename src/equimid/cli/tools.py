"""Commands beside the runs: pack, recipes, constants."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from equimid.cli.shared import eprint, reject_settings, strip_slash
from equimid.errors import UserError

__all__ = ["Constants", "Pack", "Recipes"]


@dataclass
class Recipes:
    """List the recipes; or `recipes show NAME [settings]`: all settings of one, and what it changes in its parent."""

    words: Annotated[Positional[tuple[str, ...]], arg(metavar="[show NAME]")] = ()
    """nothing, or show and a recipe"""

    def run(self, settings: list[str]) -> None:
        name = self.words[-1] if self.words else None
        if len(self.words) > 2 or (len(self.words) == 2 and self.words[0] != "show") or name == "show":
            raise UserError(f"recipes {' '.join(self.words)}: write equimid recipes, or equimid recipes show NAME")
        if name is None:
            reject_settings(settings)
            lines = _listed()
        else:
            lines = _shown(name, settings)
        sys.stdout.write("\n".join(lines) + "\n")


def _listed() -> list[str]:
    from equimid.recipes import ADDITIONS, BASES, ROWS, SIZES

    lines = ["A recipe is ROW-SIZE, such as ser-small. Sizes:"]
    lines += [f"  {size:18} {edit.__doc__}" for size, edit in SIZES.items()]
    lines += ["", "Rows, with the linear top-1 (%) on ImageNet-1k that the paper gives; none of them was run here:"]
    lines += [f"  {name:18} {row.published or '-':>6}  {row.text}" for name, row in ROWS.items()]
    return [
        *lines,
        "",
        "Any base with any add-on is BASE+ADDON-SIZE, or at another layer BASE+ADDON@LAYER-SIZE, as dino+essl@3-tiny:",
        f"  bases    {', '.join(BASES)}",
        f"  add-ons  {', '.join(ADDITIONS)}",
    ]


def _shown(name: str, settings: list[str]) -> list[str]:
    from equimid.config import differences, flatten
    from equimid.recipes import configured, parent, recipe

    config = configured(name, settings)
    lines = [f"{key}={_written(value)}" for key, value in flatten(config).items()]
    above = parent(name)
    if above is None:
        return lines
    changed = differences(recipe(above), config)
    changed.pop("recipe", None)
    told = [f"# {key}: {_written(old)} -> {_written(new)}" for key, (old, new) in changed.items()]
    return [*lines, "", f"# against {above}:", *(told or ["# no difference"])]


def _written(value: object) -> object:
    return "null" if value is None else value


@dataclass
class Constants:
    """Measure what the views of a recipe draw (mean and deviation): EquiMod standardises its parameters by that.

    Views that no constants are stored for are refused with this command; settings follow as key=value.
    """

    out: Annotated[Path, arg(metavar="FILE")]
    """where they are stored, beside those of other views; a run reads it by equimod.constants=FILE"""
    recipe: Annotated[str, arg(metavar="NAME")] = "equimod-small"
    """whose views"""
    draws: int = 100_000
    """of each view"""

    def run(self, settings: list[str]) -> None:
        from equimid.addons import check_constants_file, measure_constants, store_constants
        from equimid.config import override
        from equimid.recipes import recipe

        check_constants_file(self.out)
        # the views alone: the add-on itself would ask for the constants that are not there yet
        without = replace(recipe(self.recipe), addons={})
        plan = override(without, [s for s in settings if not s.startswith("equimod.")]).plan()
        command = " ".join(["equimid constants --recipe", self.recipe, *settings, "--out", str(self.out)])
        store_constants(measure_constants(plan, self.draws, command), self.out)
        eprint(f"constants of {self.draws:,} draws a view: {self.out}")


@dataclass
class Pack:
    """Write the images of DATA into tar shards (WebDataset): small enough for the crops, fast to read.

    Train on the folder of shards like on any folder. The same command goes on where it stopped.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """a folder of images, or a text file of paths"""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """the folder of shards"""
    short_side: int = 256
    """larger images are made so small, pixels; 0 leaves all as they are"""
    quality: int = 90
    """of the JPEGs that are written, 1 to 95"""
    shard_mib: int = 256
    """length of a shard"""
    workers: int = 2
    """processes"""
    tolerated_unreadable: float = 0.05
    """fraction of the images that may be left out before it is an error"""

    def run(self, settings: list[str]) -> None:
        from equimid.data import pack
        from equimid.runs.measure import progress_bar

        reject_settings(settings)
        if self.shard_mib < 1:
            raise UserError(f"--shard-mib is {self.shard_mib}; it must be 1 or more, 256 say")
        with progress_bar("packing") as progress:
            packed = pack(
                strip_slash(self.data),
                self.out,
                short_side=self.short_side,
                quality=self.quality,
                shard_bytes=self.shard_mib * 2**20,
                workers=self.workers,
                tolerated=self.tolerated_unreadable,
                progress=progress,
            )
        left_out = f", {packed.unreadable} left out ({self.out / 'unreadable.csv'})" if packed.unreadable else ""
        eprint(
            f"{packed.images} images in {packed.shards} shards, {packed.bytes / 2**20:,.1f} MiB{left_out}: {self.out}\n"
            f"train on them: equimid pretrain {self.out}"
        )
