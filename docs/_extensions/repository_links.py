"""Links between the pages of this folder and the other files of the repository. They are written for its host.

On the site, the README and other files of the root are included in pages of this folder, so their links start one
folder below. A link to a file that is no page offers the file itself. A folder has no page on the site: its name stays
as text.
"""

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

LINK = re.compile(r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
# files of the root that are shown as pages
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def for_site(text: str, folder: Path, docs: Path) -> str:
    """The text of a Markdown file that lies in `folder`, with links as a page in `docs` needs them."""

    def linked(found: re.Match[str]) -> str:
        label, target, heading = found.group(1), found.group(2), found.group(3) or ""
        path = Path(os.path.normpath(folder / target))
        if path.is_dir():
            return label[1:-1]
        if path.parent == docs.parent and path.name in PAGES:
            return f"{label}({PAGES[path.name]}{heading})"
        relative = os.path.relpath(path, docs)
        outside = relative.startswith("..") and not label.startswith("!")
        return f"{label}({'path:' if outside else ''}{relative}{heading})"

    return LINK.sub(linked, text)


def setup(app: Sphinx) -> dict[str, Any]:
    docs = Path(app.srcdir)

    def page(_app: Sphinx, name: str, content: list[str]) -> None:
        if not name.startswith("generated/"):
            content[0] = for_site(content[0], docs, docs)

    def included(_app: Sphinx, path: Path, _parent: str, content: list[str]) -> None:
        if path.suffix == ".md":
            content[0] = for_site(content[0], Path(os.path.normpath(docs / path)).parent, docs)

    app.connect("source-read", page)
    app.connect("include-read", included)
    return {"parallel_read_safe": True}
