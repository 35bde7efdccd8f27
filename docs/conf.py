"""Configuration of the documentation site: ``sphinx-build -W docs docs/_build``."""

import os
import re
from pathlib import Path

import echo_ext

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/echo-ext/echo-ext"

project = "echo-ext"
author = "The echo-ext developers"
copyright = "2026, the echo-ext developers"
version = release = echo_ext.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "results/*/table.md"]  # tables are included by the pages next to them
templates_path = ["_templates"]
nitpicky = True  # a name that cannot be linked is a warning, and warnings fail the build
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|np|pandas|scipy|sklearn|lightning|argparse|collections|typing)\..*")]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks; the site shows their saved output

autosummary_generate = True
autodoc_mock_imports = ["causallearn", "tigramite"]  # imported by two adapters only
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Links to other projects need a network, which the tests do without.
if os.environ.get("READTHEDOCS") or os.environ.get("ECHO_EXT_DOCS_ONLINE"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

html_theme = "pydata_sphinx_theme"
html_title = f"echo-ext {release}"
html_show_sourcelink = False
html_theme_options = {
    "github_url": REPOSITORY,
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "use_edit_page_button": False,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = False
linkcheck_anchors = False

# Pages whose text is a file of the repository.
FILES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "security": "SECURITY.md"}


def link_to_repository(app, docname, source):
    """Turn relative links to files outside this folder, which work in a clone, into links to the repository."""
    page = Path(app.env.doc2path(docname))
    if docname in FILES:
        page = ROOT / FILES[docname]
        source[0] = page.read_text(encoding="utf-8")

    def absolute(link):
        path = (page.parent / link[1]).resolve()
        is_page = path.is_relative_to(ROOT / "docs") and path.suffix in (".md", ".ipynb") and path.name != "table.md"
        if is_page or path.suffix in (".png", ".svg"):
            return f"]({os.path.relpath(path, app.srcdir / Path(docname).parent)}{link[2] or ''})"
        if not path.exists():
            raise FileNotFoundError(f"{docname} links to {link[1]}, which does not exist")
        kind = "tree" if path.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}{link[2] or ''})"

    source[0] = re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", absolute, source[0])


def setup(app):
    """Connect the rewriting of links."""
    app.connect("source-read", link_to_repository)
