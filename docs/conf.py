"""How Sphinx makes the site: `nox -s docs` builds it into site/."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the extensions beside this file

project = "diffopt"
author = "The diffopt developers"
copyright = "The diffopt developers, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "reference",
    "feature_matrix",
    "benchmark_report",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"  # docstrings write `name`: a link where there is such a thing
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Source", "notes_style")]
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are told in one list
python_use_unqualified_type_names = True

html_theme = "furo"
pygments_dark_style = "github-dark"  # the usual one underlines names as if they were links
html_title = "diffopt"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"navigation_with_keys": True}
