"""What the README shows runs, and does what it says."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_own_loop_learns_equivariance():
    losses = load(ROOT / "examples" / "own_loop.py").main(steps=40)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.5


def test_the_page_of_files_is_that_of_the_docstrings():
    """python docs/make_files.py"""
    module = load(ROOT / "docs" / "make_files.py")
    text = module.page()
    assert module.PAGE.read_text() == text
    root = ROOT / "src" / "equimid"
    for file in root.rglob("*.py"):
        shown = file.parent if file.name == "__init__.py" and file.parent != root else file
        slash = "/" if shown != file else ""
        row = f"`{shown.relative_to(root)}{slash}`"
        assert text.count(f"| {row} |") + text.count(f"| **{row}** |") == 1, row


def test_the_readme_shows_pictures_that_exist():
    text = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures
    assert all((ROOT / picture).exists() for picture in pictures)
