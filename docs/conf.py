"""The site of these pages: ``sphinx-build -W docs build/site``.

The pages are written for readers of the repository. Two kinds of links differ here: one to a file above
``docs/`` that is a page of the site leads to that page, and one to a folder is text.
"""

import re
import tomllib
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

HERE = Path(__file__).parent

project = "clipspm"
release = version = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]["version"]
copyright = "the authors of clipspm, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"clipspm {release}"
html_copy_source = False

myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "groupwise"}  # of a package, what its stub names
autodoc_typehints = "signature"
autodoc_preserve_defaults = True


def links(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn the links of ``source[0]`` that lead out of ``docs/`` into links of the site."""

    def replace(link: re.Match[str]) -> str:
        text, target = link.groups()
        if (HERE / target.removeprefix("../")).is_file():
            return f"[{text}]({target.removeprefix('../')})"
        return text if any((folder / target).is_dir() for folder in (HERE, HERE.parent)) else link[0]

    source[0] = re.sub(r"\[([^\]]*)\]\(((?:\.\./|examples/)[^)#]*)\)", replace, source[0])


def setup(app: Sphinx) -> None:
    """Let pages link to files outside docs/ as they do on GitHub, and show CSV blocks."""
    app.add_lexer("csv", TextLexer)
    app.connect("source-read", links)
    app.connect("include-read", lambda app, path, page, source: links(app, page, source))
