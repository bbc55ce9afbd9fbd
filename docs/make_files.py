"""Write docs/files.md from the docstrings of the source: python docs/make_files.py"""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "equimid"
PAGE = ROOT / "docs" / "files.md"

_HEAD = """# Every file

The source in `src/equimid`, floor by floor: a file imports only from its own floor's package or from lower floors, and
`make check` holds it to that. This page is made by `python docs/make_files.py` from the first sentences of the files.
"""


def page() -> str:
    """The whole page."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    parts = [_HEAD, "| file | what it is |", "|---|---|"]
    rows = ["__init__", "__main__"]
    for layer in layers:
        rows += [name.strip().removeprefix("equimid.") for name in layer.split("|")]
    for name in rows:
        file = SOURCE / f"{name}.py"
        if file.exists():
            parts.append(f"| `{file.name}` | {_sentence(file)} |")
            continue
        package = SOURCE / name
        parts.append(f"| **`{name}/`** | **{_sentence(package / '__init__.py')}** |")
        for inner in sorted(package.rglob("*.py"), key=lambda f: (f.parent != package, f)):
            if inner != package / "__init__.py":
                shown = inner.parent if inner.name == "__init__.py" else inner
                slash = "/" if inner.name == "__init__.py" else ""
                parts.append(f"| `{shown.relative_to(SOURCE)}{slash}` | {_sentence(inner)} |")
    return "\n".join(parts) + "\n"


def _sentence(file: Path) -> str:
    """The first sentence of a file's docstring, without its sources in brackets and its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = re.split(r"(?<=[^0-9A-Z.])(?<!\bal)\.(?:\s|$)", " ".join(text.split("\n\n")[0].split()))[0]
    first = re.sub(r" \([^()]*(?:\d{4}|arXiv)[^()]*\)", "", first)
    return first.removesuffix(".").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
