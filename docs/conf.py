"""Configuration of the documentation site: ``sphinx-build -W docs docs/_build``."""

import contextlib
import io
import os
import re
from pathlib import Path

from sphinx.util.inspect import signature, stringify_signature

import echo_ext
from echo_ext import cli

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
smartquotes = False  # names of options and flags are copied from here
nitpicky = True  # a name that cannot be linked is a warning, and warnings fail the build
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|pandas|scipy|sklearn|lightning_fabric|huggingface_hub|argparse|collections|typing)\..*")
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks; the site shows their saved output

autosummary_generate = True
autodoc_mock_imports = ["causallearn", "tigramite"]  # imported by two adapters only
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say more, in a line; overloads would fill a page
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_param = False  # else the description of "x, y" is printed twice

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
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {page: [] for page in ("install", "tour")}  # they have no other pages next to them
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


def skip_field(app, what, name, obj, skip, options):
    """Leave out the fields of a named tuple among its members: its docstring describes them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def show_arguments(app, what, name, obj, options, shown, returned):
    """Show the arguments of a class that inherits a mock, which accepts any."""
    if what != "class" or shown != "(*args, **kwargs)":
        return None
    return stringify_signature(signature(obj.__init__, bound_method=True), show_annotation=False), None


def append_help(app, docname, source):
    """Append the help of every command to its page."""
    if docname != "api/command_line":
        return
    os.environ["COLUMNS"] = "100"
    for name in cli.COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
        source[0] += f"\n## echo-ext {name}\n\n```text\n{text.getvalue()}```\n"


def setup(app):
    """Connect what is computed for pages."""
    app.connect("source-read", link_to_repository)
    app.connect("source-read", append_help)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("autodoc-process-signature", show_arguments)
