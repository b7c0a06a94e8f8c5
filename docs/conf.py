"""The site: `make docs`, or `python docs/conf.py [FOLDER]` (default: build/site).

Its pages are those of docs/, README.md, CHANGELOG.md, CONTRIBUTING.md and csrc/README.md, as they lie in the
project, and one of each public module from its docstrings; tests/public_api.txt lists what is public. Sphinx
reads its pages from a folder that is filled here: links of the project become links of the site.
"""

import importlib
import os
import posixpath
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
NAMES = [
    line.partition("(")[0]
    for line in (ROOT / "tests" / "public_api.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith(" ")  # a method
]
MODULES = [*dict.fromkeys(name.rpartition(".")[0] for name in NAMES)]

project = "attsnn"
copyright = "the attsnn authors, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "attsnn"
html_show_sphinx = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses where there is no server
myst_heading_anchors = 3
myst_enable_extensions = ["fieldlist"]
default_role = "py:obj"  # `name` in a docstring: code, and a link where the name is public
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "extra_repr"}
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
suppress_warnings = ["ref.python"]  # a word of the text that several classes have as a field
nitpick_ignore_regex = [
    ("py:.*", r"(?s)(?!attsnn\.).*"),
    ("py:class", r"attsnn\..*"),
]  # what is not ours; types

GUIDES = (
    *("neurons", "attention", "layers", "network", "data", "training"),
    *("streaming", "energy", "accelerate", "export", "nir"),
)
# What the site has, in its order; None: a page that is made here.
SECTIONS = {
    "Start": {"start": "docs/start.md", "demo": "docs/demo.md"},
    "Guides": {name: f"docs/{name}.md" for name in GUIDES},
    "Tasks": {name: f"docs/{name}.md" for name in ("tasks", "attention_snn", "pfa", "generation")},
    "Kernels": {"kernels": "csrc/README.md", "performance": "docs/performance.md"},
    "Reference": {f"reference/{module}": None for module in MODULES},
    "Tools": {
        "environment": "docs/environment.md",
        "tools": "docs/tools.md",
        "contributing": "CONTRIBUTING.md",
        "changelog": "CHANGELOG.md",
    },
}
PAGES = {path: f"{name}.md" for pages in SECTIONS.values() for name, path in pages.items() if path}
PAGES["README.md"] = "index.md"
LINK = re.compile(r'(\]\(|src=")([^)#"\s:]+)(?=[)#"])')


def page_of(source: str, path: Path) -> str:
    """A page of the project as one of the site, to stand at `path`: its links lead to pages, or to files."""
    text = (ROOT / source).read_text(encoding="utf-8")

    def link(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        return match[1] + (PAGES.get(target) or os.path.relpath(ROOT / target, path.parent))

    return LINK.sub(link, text)


def reference_of(place: str, told: dict[int, str]) -> str:
    """A page of a public module: its docstring, and each of its names; of what another page has, where."""
    module = importlib.import_module(place)
    lines = [place, "=" * len(place), "", f".. automodule:: {place}", ""]
    for full in NAMES:
        home, _, name = full.rpartition(".")
        if home != place or full in MODULES:
            continue
        value = getattr(module, name)
        if callable(value) and id(value) not in told:
            kind = "class" if isinstance(value, type) else "function"
            lines += [f".. auto{kind}:: {full}", *(["   :members:"] if kind == "class" else []), ""]
            told[id(value)] = full
        else:
            lines += [f".. py:data:: {name}", "", f"   {_of_value(value, told)}", ""]
    if place == "attsnn.models":
        lines += [
            "Networks",
            "--------",
            "",
            "What `attsnn.models.create` makes, by name, with its keywords.",
            "",
        ]
        for builder in module.registry.builders():
            lines += [f".. autofunction:: {builder.__module__}.{builder.__name__}", ""]
    return "\n".join(lines)


def _of_value(value: object, told: dict[int, str]) -> str:
    if isinstance(value, ModuleType):
        return (value.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    if id(value) in told:
        return f"The same as `{told[id(value)]}`."
    listed = (
        ", ".join(f"``{getattr(key, '__name__', key)}``" for key in value)
        if isinstance(value, dict | tuple | list)
        else ""
    )
    return f"A {type(value).__name__}" + (f" of {listed}." if listed else ".")


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `names`: a bar or an asterisk in one is itself."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    text = "\n".join(lines).split("`")
    text[::2] = [
        re.sub(r"(?<!\w)\*\*?(?=\w)|\|", lambda found: re.sub(r"(.)", r"\\\1", found[0]), part)
        for part in text[::2]
    ]
    text[2::2] = [re.sub(r"^(?=\w)", r"\\ ", part) for part in text[2::2]]  # `Sample`s
    lines[:] = "`".join(text).split("\n")


def assemble(app, config) -> None:
    """Fills the folder that Sphinx reads. What has not changed keeps its time, and is not read again."""
    pages, told = Path(app.srcdir), {}
    made = {at: page_of(source, pages / at) for source, at in PAGES.items()}
    made["index.md"] += "\n" + "\n".join(
        f"```{{toctree}}\n:caption: {caption}\n:hidden:\n\n" + "\n".join(entries) + "\n```\n"
        for caption, entries in SECTIONS.items()
    )
    for place in MODULES:
        made[f"reference/{place}.rst"] = reference_of(place, told)
    for at, text in made.items():
        path = pages / at
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in pages.rglob("*"):
        if path.is_file() and path.relative_to(pages).as_posix() not in made:
            path.unlink()


def setup(app) -> None:
    app.connect("config-inited", assemble)
    app.connect("autodoc-process-docstring", plain, priority=900)  # behind napoleon


def main(folder: Path) -> int:
    """Builds the site below `folder`; a warning, a link that leads nowhere say, is an error."""
    from sphinx.cmd.build import main as build

    (folder / "pages").mkdir(parents=True, exist_ok=True)
    strict = ["--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    code = build(["-c", str(ROOT / "docs"), *strict, str(folder / "pages"), str(folder / "html")])
    print(f"site: {folder / 'html' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:2] or ["build/site"])))
