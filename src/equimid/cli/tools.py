"""Commands beside the runs: recipes, pack."""

import argparse
import sys
from pathlib import Path

from equimid.cli.runs import Command
from equimid.cli.shared import eprint, reject_settings, strip_slash
from equimid.errors import UserError

__all__ = ["PackCommand", "RecipesCommand"]


class RecipesCommand(Command):
    """List the recipes; recipes show NAME [KEY=VALUE ...] lists all settings of one, those that it changes first."""

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", metavar="show NAME", nargs="*", help="nothing, or show and a recipe")

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        from equimid.recipes.describe import list_recipes, show_recipe

        words = args.words
        if not words:
            reject_settings(settings)
            lines = list_recipes()
        elif len(words) == 2 and words[0] == "show":
            lines = show_recipe(words[1], settings)
        else:
            raise UserError(f"recipes {' '.join(words)}: write equimid recipes, or equimid recipes show NAME")
        sys.stdout.write("\n".join(lines) + "\n")


class PackCommand(Command):
    """Write images into tar shards (WebDataset): small enough for the crops, fast to read.

    Train on the folder of shards like on any folder. The same command resumes a packing that was stopped.
    """

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("data", metavar="DATA", help="a folder of images, or a text file of paths")
        parser.add_argument("out", metavar="OUT", type=Path, help="the folder of shards")
        for name, default, text in (
            ("--short-side", 256, "larger images are made so small, pixels; 0 leaves all as they are"),
            ("--quality", 90, "of the JPEGs that are written, 1 to 95"),
            ("--shard-mib", 256, "length of a shard, MiB"),
            ("--workers", 2, "threads that decode and encode"),
        ):
            parser.add_argument(name, metavar="N", type=int, default=default, help=f"{text} (default: {default})")
        parser.add_argument(
            "--tolerated-unreadable", metavar="R", type=float, default=0.05,
            help="fraction of the images that may be left out before it is an error (default: 0.05)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        reject_settings(settings)
        if args.shard_mib < 1:
            raise UserError(f"--shard-mib is {args.shard_mib}; it must be 1 or more, 256 say")
        from equimid.console import progress_bar
        from equimid.data import pack

        with progress_bar("packing") as progress:
            packed = pack(
                strip_slash(args.data),
                args.out,
                short_side=args.short_side,
                quality=args.quality,
                shard_bytes=args.shard_mib * 2**20,
                workers=args.workers,
                tolerated=args.tolerated_unreadable,
                progress=progress,
            )
        left_out = f", {packed.unreadable} left out ({args.out / 'unreadable.csv'})" if packed.unreadable else ""
        eprint(
            f"{packed.images} images in {packed.shards} shards, {packed.bytes / 2**20:,.1f} MiB{left_out}: "
            f"{args.out}\n"
            f"train on them: equimid pretrain {args.out}"
        )
