"""The documentation: links between Markdown files, and the site that is built from them and from the docstrings."""

import functools
import http.server
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sphinx = pytest.importorskip("sphinx", reason="no Sphinx: pip install --group docs")

ROOT = Path(__file__).parent.parent
MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*.md"), *ROOT.glob(".github/**/*.md")]
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def extension(name):
    sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def headings(page):
    """The anchors of a page, as the repository's host makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_files_leads_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if heading:
            assert heading in headings(target), link


def test_the_start_page_leads_to_every_page():
    linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "docs" / "index.md"))}
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"}
    assert linked == pages


def test_the_reference_names_what_the_top_level_gives():
    import equimid

    text = (ROOT / "docs" / "api.md").read_text()
    assert all(f"`equimid.{name}`" in text for name in equimid.__all__)


DOCSTRING = """A value. `Pose` and `p @ ~q`, F* and |x|_, a_b.

n:     images
grid:  (h, w), or
       none

    L = sum over i of x_i

    import equimid

The list:
- one *
- two

Args:
    x: of `n` rows *
"""


def test_docstrings_are_read_as_plain_text():
    converted = extension("plain_docstrings").convert(DOCSTRING.splitlines())
    lines = [line for line in converted if line]
    assert lines == [
        r"A value. `Pose` and `p @ ~q`, F\* and \|x\|\_, a_b.",
        "* ``n``: images",
        "* ``grid``: (h, w), or",
        "  none",
        ".. code-block:: text",
        "    L = sum over i of x_i",
        "    import equimid",
        "The list:",
        r"- one \*",
        "- two",
        "Args:",
        r"    x: of `n` rows \*",
    ]


def test_a_block_of_python_is_highlighted_as_python():
    convert = extension("plain_docstrings").convert
    assert ".. code-block:: python" in convert(["Say", "", "    import equimid"])
    assert ".. code-block:: text" in convert(["Say", "", "    python -m equimid"])


def test_links_move_with_the_file_that_is_shown_on_a_page():
    for_site, docs = extension("repository_links").for_site, ROOT / "docs"
    for folder, text, expected in (
        (ROOT, "[a](docs/methods.md#ser)", "[a](methods.md#ser)"),
        (ROOT, "[a](examples/own_loop.py)", "[a](path:../examples/own_loop.py)"),
        (ROOT, "![a](docs/speed.png)", "![a](speed.png)"),
        (docs, "[a](../README.md)", "[a](index.md)"),
        (docs, "[a](methods.md)", "[a](methods.md)"),
        (docs, "[a](../tests/test_site.py)", "[a](path:../tests/test_site.py)"),
        (docs, "see [the `tests`](../tests).", "see the `tests`."),
        (docs, "[a](https://arxiv.org) [b](#ser)", "[a](https://arxiv.org) [b](#ser)"),
    ):
        assert for_site(text, folder, docs) == expected


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning is an error: a broken link, a name that is not there, a page in no list."""
    folder = tmp_path_factory.mktemp("site")
    docs = folder / "repository" / "docs"
    # a copy, so that what is made on the way does not lie between the pages
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_build", "generated", "__pycache__"))
    for path in ROOT.iterdir():
        if path.name not in ("docs", ".git", ".venv"):
            (folder / "repository" / path.name).symlink_to(path)
    words = ("-m", "sphinx", "-q", "-n", "-W", "--keep-going", str(docs), str(folder / "html"))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "html"


def test_the_site_has_every_page_and_every_module_of_the_reference(site):
    pages = {path.name for path in site.glob("*.html")}
    assert pages >= {f"{path.stem}.html" for path in ROOT.glob("docs/*.md")}
    listed = re.findall(r"^   (equimid[\w.]+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert len(listed) > 5
    for name in listed:
        assert f'id="module-{name}"' in (site / "generated" / f"{name}.html").read_text()
    assert 'href="evidence.html"' in (site / "index.html").read_text(), "of the README, with its links"
    poses = (site / "generated" / "equimid.poses.html").read_text()
    assert 'id="equimid.poses.transport"' in poses
    for page in site.glob("generated/*.html"):
        assert "FieldInfo" not in page.read_text(), "settings have their plain types"
        assert "Alias for field number" not in page.read_text(), "Python's own docstrings"
    assert "L_eq = patch_ntxent(" in (site / "generated" / "equimid.addons.html").read_text(), "formulas of the files"


def test_nothing_of_the_site_lies_elsewhere(site):
    """Scripts, styles, pictures and fonts; links that a person follows may lead anywhere."""
    fetched = re.compile(r"""<(?:script|img|iframe)[^>]*src="([^"]+)"|<link[^>]*href="([^"]+)"|url\(["']?([^)]+)""")
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        for found in fetched.findall(path.read_text()):
            link = "".join(found)
            assert not re.match(r"https?:|//", link), f"{path.name}: {link}"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: install chromium, chromium-browser or google-chrome")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_its_screen_and_is_fetched_from_the_site_alone(site, browser, width):
    """Wide tables and lines of code scroll in their own boxes."""
    page = browser.new_page(viewport={"width": width, "height": 844})
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    pages = [*site.glob("*.html"), *site.glob("generated/*.html")]
    assert len(pages) > 25
    for path in pages:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        assert page.title(), path.name
    page.close()
    assert [url for url in requests if not url.startswith(("data:", site.as_uri()))] == []
    assert complaints == []


def test_the_search_works_from_a_folder_and_from_a_server(site, browser):
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for start in (site.as_uri(), f"http://127.0.0.1:{server.server_port}"):
            page = browser.new_page()
            page.goto(f"{start}/search.html?q=transport")
            page.locator("#search-results li a").first.wait_for()
            assert "equimid.poses.transport" in page.locator("#search-results").inner_text()
            page.close()
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass
