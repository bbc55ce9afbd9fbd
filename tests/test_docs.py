"""What the README and the pages under docs name exists: tests, faults, methods, recipes and settings of commands."""

import ast
import itertools
import re
import shlex
from pathlib import Path

import pytest

from equimid.addons import ADDONS
from equimid.config import override
from equimid.errors import UserError
from equimid.evaluation import MEASUREMENTS
from equimid.methods import METHODS
from equimid.recipes import recipe
from equimid.runs.experiment import read_experiment

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("docs/*.md"))
SETTING = re.compile(r"^[a-z_]+(\.[a-z_0-9]+)*=")
DEFAULTS = {"pretrain": "ser-small", "demo": "ser-tiny"}
# the names under which docs/methods.md has them
NAMES = {
    "mocov3": "MoCo-v3", "dino": "DINO", "barlow_twins": "Barlow Twins", "simclr": "SimCLR", "vicreg": "VICReg",
    "simsiam": "SimSiam", "byol": "BYOL", "ser": "SER", "augself": "AugSelf", "equimod": "EquiMod", "essl": "E-SSL",
    "stl": "STL",
}  # fmt: skip


def commands(text):
    """Words after `equimid` of every command line in the fenced blocks of a page, with the shell's variables."""
    found, variables = [], {}
    for kind, block in re.findall(r"^```([a-z]*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        if kind != "bash":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if len(words) == 1 and re.match(r"^[a-z_]+=", words[0]) and " " in words[0]:
                name, _, value = words[0].partition("=")
                variables[f"${name}"] = value.split()
                continue
            words = [part for word in words for part in variables.get(word, [word])]
            at = [i for i, word in enumerate(words) if word == "equimid" or word.endswith("/equimid")]
            if at:
                found.append(words[at[0] + 1 :])
    return found


def check(words):
    """
    Raises:
        UserError: the recipe or a setting is not known.
    """
    command = words[0]
    known = ("pretrain", "evaluate", "sweep", "report", "demo", "recipes", "pack")
    assert command in known, words
    if command == "pack":
        return
    if command == "evaluate":
        measured = words[1 : next((i for i, word in enumerate(words) if word.startswith("--")), len(words))]
        assert set(measured[bool(measured) and "/" in measured[0] :]) <= {"WHAT", *MEASUREMENTS}, measured
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--recipe"]
    if command == "recipes":
        named = [word for word in words[1:] if word != "show" and not SETTING.match(word)]
    if command == "sweep" and words[1].endswith(".yaml"):
        assert read_experiment(ROOT / words[1]).arms
        return
    if command == "sweep":
        named = [words[1]]
        recipe_of(named[0], [f"{key}={value}" for key, value in varied(words)])
    if any(name.isupper() or "..." in name for name in named):
        return  # a placeholder
    settings = [word for word in words if SETTING.match(word) and "..." not in word]
    # values to vary are no settings, and files that the command reads are not there
    settings = [word for word in settings if word.partition("=")[0] not in dict(varied(words))]
    config = recipe((named or [DEFAULTS.get(command, "ser-small")])[0])
    override(config, settings)


def varied(words):
    """Key and first value of what follows --vary."""
    for word in (after for before, after in itertools.pairwise(words) if before == "--vary"):
        key, _, values = word.partition("=")
        yield key, values.split(",")[0]


def recipe_of(name, settings):
    if not name.isupper():
        override(recipe(name), settings)


def names_in(file):
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page):
    for file, name in re.findall(r"(tests/[a-z_0-9]+\.py)(?:::([a-zA-Z_0-9]+))?", page.read_text()):
        assert (ROOT / file).exists(), file
        assert not name or name in names_in(ROOT / file), f"{file}::{name}"


def test_every_fault_has_one_row_with_a_test_and_what_was_done():
    rows = re.findall(r"^\| T(\d+) \|(.*)\|$", (ROOT / "docs" / "faults.md").read_text(), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 28))
    for number, row in rows:
        fault, tests, how = row.split("|")
        assert fault.strip(), number
        assert "::test_" in tests, number
        assert how.strip(), number


def test_every_method_and_add_on_has_its_section_and_its_tests():
    text = (ROOT / "docs" / "methods.md").read_text()
    assert set(NAMES) == {*METHODS, *ADDONS}, "NAMES in this file has the titles of docs/methods.md"
    for title in NAMES.values():
        assert len(re.findall(rf"^### {title}$", text, flags=re.MULTILINE)) == 1, title
        (row,) = re.findall(rf"^\| {title} \|(.*)\|$", text.split("## Method by test")[1], flags=re.MULTILINE)
        assert [cell.count("::test_") for cell in row.split("|")] == [1, 1, 1, 1], title


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_that_is_shown_has_known_recipes_and_settings(page):
    """T24."""
    for words in commands(page.read_text()):
        try:
            check(words)
        except UserError as error:
            raise AssertionError(f"equimid {' '.join(words)}: {error}") from None


def test_the_pages_show_commands_and_wrong_ones_are_found():
    assert sum(len(commands(page.read_text())) for page in (ROOT / "README.md", *PAGES)) > 20
    for line in ("pretrain photos --recipe ser-smal", "pretrain photos ser.wieght=1", "recipes show erl-small"):
        (words,) = commands(f"```bash\n.venv/bin/equimid {line}\n```")
        with pytest.raises(UserError, match="unknown"):
            check(words)


def test_every_measurement_is_described():
    text = (ROOT / "docs" / "measuring.md").read_text()
    assert [name for name in MEASUREMENTS if f"`{name}`" not in text] == []
