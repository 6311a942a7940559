"Sphinx settings of the documentation; `make docs` writes the pages that it reads (docs/pages.py) and builds the site into docs/_site."
import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import farmer  # noqa: E402


def mathjax() -> str:
    "The one file of MathJax that turns formulas into pictures without a network."
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    return str(next(file.locate() for file in files if file.name == "tex-svg-full.js"))


project = "FARMER"
version = release = farmer.__version__
author = "The FARMER notebooks authors"
copyright = f"{author}, Apache-2.0"
html_title = "FARMER"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # the notebooks keep their outputs
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "image/gif", 25)]  # moving pictures
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # nothing from the network
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "fieldlist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
add_module_names = False
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
mathjax_path = "tex-svg-full.js"
html_theme = "furo"
html_static_path = [str(HERE / "_static"), mathjax()]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
