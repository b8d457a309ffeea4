"""Sphinx: the guides here and a reference made of docstrings, built by `make docs`."""

import tricorr

project = "tricorr"
author = "The tricorr authors"
copyright = "The tricorr authors"
release = tricorr.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {"description": "2-D cross-correlation in Triton"}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes, units and dtypes
napoleon_use_rtype = False
smartquotes = False  # docstrings quote values
myst_heading_anchors = 3
