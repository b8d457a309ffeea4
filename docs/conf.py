"""Sphinx configuration: the guides in this folder and a reference from docstrings (`make docs`)."""

import re

import tricorr

project = "tricorr"
author = "The tricorr authors"
copyright = "The tricorr authors"
release = tricorr.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {
    "description": "2-D cross-correlation in Triton",
    "page_width": "1240px",  # holds 110 characters of code
    "body_max_width": "none",
}
exclude_patterns = ["figures.py", "notebook.py"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes, units and dtypes
napoleon_use_rtype = False
smartquotes = False  # docstrings quote values
myst_heading_anchors = 3

# An indented block after a sentence is a formula; after "Args:" and the like, a section.
_FORMULA = re.compile(r"^(?!\w+:$)(\S.*)\n\n(?=    \S)", re.MULTILINE)


def formulas_are_literal(app, what, name, obj, options, lines):
    """Mark the formulas of docstrings as literal blocks, so that their lines stay apart."""
    text = _FORMULA.sub(r"\1\n\n::\n\n", "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app):
    """Before napoleon, which has priority 500."""
    app.connect("autodoc-process-docstring", formulas_are_literal, priority=400)
