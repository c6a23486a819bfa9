"""A Sphinx extension: figures that notebooks store as JSON, drawn by the plotly.js that plotly brings."""

import json
from pathlib import Path
from typing import Any

import nbformat
import plotly
from sphinx.application import Sphinx
from sphinx.config import Config

STORED = "application/vnd.plotly.v1+json"
DRAWN = """<div id="{name}"></div>
<script>window.addEventListener("load", () => Plotly.newPlot("{name}", {spec}, {{responsive: true}}))</script>
"""


def read_notebook(text: str) -> nbformat.NotebookNode:
    """Read a notebook, with every stored figure turned into HTML that plotly.js draws."""
    notebook = nbformat.reads(text, as_version=4)
    figures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).pop(STORED, None)
            if figure is not None:
                figures += 1
                # A closing tag inside a string would end the script.
                spec = json.dumps(figure).replace("</", "<\\/")
                output.data["text/html"] = DRAWN.format(name=f"figure-{figures}", spec=spec)
    return notebook


def add_plotly(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Load plotly.js on the pages of notebooks, and there only."""
    if page.startswith("notebooks/"):
        app.add_js_file("plotly.min.js")


def ship_plotly(app: Sphinx, config: Config) -> None:
    """Copy plotly.js from the installed package, so that the pages need no network."""
    config.html_static_path.append(str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what this file adds to Sphinx."""
    app.connect("config-inited", ship_plotly)
    app.connect("html-page-context", add_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
