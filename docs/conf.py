"""Sphinx: the documentation site from the Markdown files of this folder. `make docs` builds it strictly."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import magneto

project = "magneto"
version = release = magneto.__version__
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "configuration_reference",
]  # fmt: skip
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "experiments/**",
]  # built from the root of the repository, so that pages may link to both
exclude_patterns = ["docs/_build"]
html_theme = "furo"
html_title = "magneto"
html_show_copyright = False
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
default_role = "code"  # docstrings write `name` for code
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = [("Shape", "params_style")]
