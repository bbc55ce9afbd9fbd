"""Turns the docstrings of equimid into the reStructuredText that Sphinx reads.

The docstrings are plain text with Google's sections (Args, Returns, Raises), so that they read well in an editor. In
the reference,

    `name`              becomes code, and a link where the name has an entry
    an indented block   becomes a block of code, or of a formula where it is not Python
    name:  text         becomes a list of names, where two or more such lines follow each other
    * | _ and \\         stay what they are
    a group of settings gets a list of its fields with their descriptions
"""

import ast
import re
import textwrap
from typing import Any, get_type_hints

from docutils import nodes
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Example|Examples|Note|Attributes):$")
NAMED = re.compile(r"^([A-Za-z_][\w.*]*(?:, [A-Za-z_][\w.*]*)*):\s+(\S.*)$")
LISTED = re.compile(r"^([-*]|\d+\.) ")
NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText; napoleon reads the sections afterwards."""
    made: list[str] = []
    in_section = False
    i = 0
    while i < len(lines):
        line = lines[i]
        follows_blank = i == 0 or not lines[i - 1].strip()
        if line and _indent(line) == 0:
            in_section = bool(SECTION.match(line))
        if in_section or not line.strip():
            made.append(line if SECTION.match(line) else _escape(line))
            i += 1
        elif _indent(line) >= 4 and (follows_blank or (_indent(lines[i - 1]) == 0 and not LISTED.match(lines[i - 1]))):
            end = _end_of_block(lines, i)
            made += ["", f".. code-block:: {_language(lines[i:end])}", "", *lines[i:end], ""]
            i = end
        elif len(entries := (found := _names(lines, i))[0]) > 1:
            made += ["", *entries, ""]
            i = found[1]
        else:
            mark = LISTED.match(line)
            if mark and not follows_blank and not LISTED.match(lines[i - 1]):
                made.append("")
            made.append(mark.group() + _escape(line[mark.end() :]) if mark else _escape(line))
            i += 1
    return made


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escape(text: str) -> str:
    """Text whose marks mean nothing, but for backticks and what stands between them."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _end_of_block(lines: list[str], start: int) -> int:
    for i in range(start, len(lines)):
        if lines[i].strip() and _indent(lines[i]) < 4:
            return i
    return len(lines)


def _language(lines: list[str]) -> str:
    try:
        ast.parse(textwrap.dedent("\n".join(lines)))
    except SyntaxError:
        return "text"
    return "python"


def _names(lines: list[str], start: int) -> tuple[list[str], int]:
    """A list of the lines `name: text` from `start` on, with the indented lines that continue them; where it ends."""
    entries: list[str] = []
    i = start
    while i < len(lines) and lines[i].strip():
        named = NAMED.match(lines[i])
        if named:
            names = ", ".join(f"``{name}``" for name in named.group(1).split(", "))
            entries.append(f"* {names}: {_escape(named.group(2))}")
        elif entries and _indent(lines[i]) >= 2:
            entries.append(f"  {_escape(lines[i].strip())}")
        else:
            break
        i += 1
    return entries, i


def code_or_link(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """What single backticks mean: code, and a link if it is a name of the reference."""
    code = nodes.literal(rawtext, text, classes=["xref", "py"])
    if not NAME.fullmatch(text):
        return [code], []
    env = inliner.document.settings.env
    link = pending_xref(rawtext, code, refdomain="py", reftype="obj", reftarget=text.removesuffix("()"))
    link.attributes |= {"refdoc": env.docname, "refspecific": True, "refexplicit": False, "refwarn": False}
    link.attributes |= {key: env.ref_context.get(key) for key in ("py:module", "py:class")}
    return [link], []


def find_elsewhere(app: Sphinx, env: Any, node: pending_xref, contnode: nodes.Node) -> nodes.Node | None:
    """A name of the reference pages that is not found in its own module: a link if one module has it, text if none.

    Annotations and `Raises:` name much that has no entry: names of torch, of Python, and of modules that are not
    meant for other programs. Links in pages written by hand are not looked at here, so that wrong ones are found.
    """
    page = node.get("refdoc", "")
    if node.get("refdomain") != "py" or not (page == "api" or page.startswith("generated/")):
        return None
    domain = env.get_domain("py")
    found = domain.find_obj(env, None, None, node["reftarget"].rpartition(".")[2], None, searchmode=1)
    if len(found) != 1:
        return contnode
    target = found[0][0]
    return domain.resolve_xref(env, page, app.builder, "obj", target, node, contnode) or contnode


def plain_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Settings with their plain types; what else is declared of them stands in the list below the signature.

    `<factory>`, the default of a dataclass's field that is made anew, is no Python: Sphinx would not parse it.
    """
    if is_pydantic_dataclass(obj):
        types = get_type_hints(obj)  # without what is declared beside the types
        fields = obj.__pydantic_fields__.items()
        words = [f"{key}: {stringify_annotation(types[key], 'smart')}{_default(field)}" for key, field in fields]
        return f"({', '.join(words)})", returns
    return signature and signature.replace("<factory>", "..."), returns


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    simple = isinstance(field.default, str | int | float | tuple | None)
    return f" = {field.default!r}" if simple else " = ..."


def _settings(obj: Any) -> list[str]:
    """The described fields of a group of settings, as a list."""
    fields = obj.__pydantic_fields__.items() if is_pydantic_dataclass(obj) else ()
    entries = []
    for name, field in fields:
        if field.description:
            unit = (field.json_schema_extra or {}).get("unit")
            entries.append(f"* ``{name}``: {_escape(field.description)}{f' ({unit})' if unit else ''}")
    return ["", *entries, ""] if entries else []


def skip_tuple_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple stand in its signature; Python's docstrings of them say "Alias for field number"."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    made = convert(lines)
    if what == "class":
        made += _settings(obj)
        bases = [f"`{base.__name__}`" for base in obj.__bases__ if base.__module__.split(".")[0] == "equimid"]
        made += ["", f"Derived from {', '.join(bases)}.", ""] if bases else []
    elif what in ("attribute", "property"):
        # napoleon takes what stands before a colon in the first line for a type: an empty comment is that line
        made[:0] = ["..", ""]
    lines[:] = made


def dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Sphinx writes " -- " between a parameter and its description, for its smart quotes, which are off here."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("code_or_link", code_or_link)
    app.config.default_role = "code_or_link"  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", process, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("doctree-read", dashes)
    app.connect("missing-reference", find_elsewhere)
    return {"parallel_read_safe": True}
