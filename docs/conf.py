"""Sphinx settings; ``make docs`` and rosdoc2 read them."""

import re

project = "worldforge_ros"
copyright = "2026 worldforge_ros contributors"
author = "worldforge_ros contributors"
release = "0.1.0"

extensions = ["myst_parser"]
root_doc = "index"
# Anchors as GitHub makes them, so that a link is right in both places.
myst_heading_anchors = 4
# Console output and outlines are not in a language.
highlight_language = "none"

# The theme that rosdoc2 installs.
html_theme = "sphinx_rtd_theme"
html_title = "worldforge_ros"
html_show_sphinx = False


def _outside(app, docname, source) -> None:
    """Pages outside of docs/, such as model cards, are files to download: Sphinx does not know them
    as pages, while GitHub follows the same link.
    """
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)(?:#[^)]*)?\)", r"](path:\1)", source[0])


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _outside)
