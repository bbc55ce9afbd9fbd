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


def test_the_list_of_files_has_every_source_file_once_and_only_what_exists():
    text = (ROOT / "docs" / "files.md").read_text()
    listed = re.findall(r"^\| `([^`]+\.(?:py|j2))` \|", text, flags=re.MULTILINE)
    root = ROOT / "src" / "equimid"
    found = {
        str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".py", ".j2") and p.name != "__init__.py"
    }
    assert set(listed) == found
    assert len(listed) == len(found)


def test_the_readme_shows_pictures_that_exist():
    text = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures
    assert all((ROOT / picture).exists() for picture in pictures)
