"""Sphinx builds the documentation site from the Markdown pages in this folder and from the docstrings: `make docs`.

Nothing is fetched, neither while it is built nor while it is read: fonts, styles and the search are part of the site.
"""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "equimid"
author = "the equimid authors"
copyright = "2026, the equimid authors. MIT licence"
version = release = version_of("equimid")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "plain_docstrings",
    "repository_links",
]
exclude_patterns = ["_build", "_extensions", "_templates"]
templates_path = ["_templates"]

# Pages. Headings can be linked to as on the repository's host: page.md#heading-in-small-letters
myst_heading_anchors = 4
# "--out" stays what it is
smartquotes = False

# Docstrings. Google's sections; types stand in the signatures, as they do in the code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_ignore_module_all = True  # the files of a package are listed too
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"equimid {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
pygments_style = "friendly"
pygments_dark_style = "native"
