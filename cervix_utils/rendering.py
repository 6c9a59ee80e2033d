"""Executed notebooks to HTML pages that load nothing, run no script but their own, and name no absolute path."""

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import bleach
import jinja2
import nbformat
from bleach.css_sanitizer import ALLOWED_CSS_PROPERTIES, CSSSanitizer
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from cervix_utils import paths

DISCLAIMER = (
    "Research use only. This is not a medical device, and nothing on this page may guide anyone's care. "
    "Single cells are not slides, and cervix type is anatomy, not disease."
)
TEMPLATES = Path(__file__).parent / "templates"
TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1
h2 h3 h4 h5 h6 hr i img kbd li ol p pre s small span strong
sub summary sup table tbody td tfoot th thead tr ul"""
ATTRIBUTES = "alt class colspan height rowspan scope start style title width"


def _attribute(tag: str, name: str, value: str) -> bool:
    """Whether an attribute may stay: pictures only from within the page, links only to pages, no handler."""
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    if name == "href":
        return tag == "a" and re.match(r"https?://|mailto:|#|[\w./-]+(#|$)", value) is not None
    return name in ATTRIBUTES.split()


_CLEANER = bleach.Cleaner(
    TAGS.split(),
    _attribute,
    protocols={"http", "https", "mailto", "data"},
    css_sanitizer=CSSSanitizer(ALLOWED_CSS_PROPERTIES | {"margin", "max-width", "min-width", "padding"}),
)


def safe_html(html: str) -> str:
    """``html`` without style sheets, handlers and remote pictures, and with unknown tags shown as text."""
    return _CLEANER.clean(re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL | re.IGNORECASE))


def _markdown_output(source: str) -> str:
    """Markdown that code printed, so that it can hold file names: HTML in it is text, no file is read."""
    return safe_html(MarkdownWithMath(IPythonRenderer(escape=True, exclude_anchor_links=True)).render(source))


CONFIG = Config(
    NbConvertBase={
        "display_data_priority": [
            *("image/svg+xml", "image/png", "image/jpeg", "text/html", "text/markdown", "text/plain")
        ]
    },
    TagRemovePreprocessor={
        "remove_cell_tags": {"remove-cell"},
        "remove_input_tags": {"remove-input"},
        "remove_all_outputs_tags": {"remove-output"},
    },
    CoalesceStreamsPreprocessor={"enabled": True},
    HTMLExporter={
        "template_name": "report",
        "extra_template_basedirs": [str(TEMPLATES)],
        "embed_images": True,
        "exclude_anchor_links": True,
        "filters": {"safe_html": safe_html, "markdown_output": _markdown_output},
    },
)


def write(path: Path, text: str) -> Path:
    """Write ``text`` whole or not at all: a temporary name in the same folder, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def page(title: str, **more: Any) -> dict[str, Any]:
    """What the head and foot of a page need; its policy lets no script run but the one with this hash."""
    style, script = ((TEMPLATES / "report" / name).read_text("utf-8") for name in ("style.css", "script.js"))
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {"style": style, "script": script, "script_hash": script_hash, "disclaimer": DISCLAIMER}
    return {**parts, "title": title, **more}


def fill(template: str, **values: Any) -> str:
    """Text of a template in ``templates/report``; every value in it is escaped."""
    folder = jinja2.FileSystemLoader(TEMPLATES / "report")
    return jinja2.Environment(loader=folder, autoescape=True).get_template(template).render(**values)


def title(notebook: nbformat.NotebookNode, default: str) -> str:
    """Text of the first Markdown heading."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#{1,6} +(.+?)[ #]*$", text, re.MULTILINE)
    return re.sub(r"[*`]", "", heading[1]) if heading else default


def took(seconds: float) -> str:
    """71.3 -> 1 min 11 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _prepare(notebook: nbformat.NotebookNode) -> bool:
    """Label the parameters cells, cut absolute paths in them, leave stderr out; whether a cell raised an error.

    Of a notebook with an error stderr stays.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failed = any(output.output_type == "error" for cell in cells for output in cell.outputs)
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in cells)
    names = {
        "parameters": "Parameters and their defaults" if injected else "Parameters of this run",
        "injected-parameters": "Parameters of this run",
    }
    for cell in cells:
        cell.outputs = [output for output in cell.outputs if failed or output.get("name") != "stderr"]
        if label := next((names[tag] for tag in cell.metadata.get("tags", []) if tag in names), ""):
            cell.metadata["report_label"] = label
            cell.source = re.sub(r"([\"'])(.*?)\1", lambda m: m[1] + paths.public(m[2]) + m[1], cell.source)
    return failed


def _finish(html: str) -> str:
    """Heading ids, table of contents, texts of figures, tables in a scrolling frame with dashes for NaN."""
    soup = BeautifulSoup(html, "html.parser")
    contents, heading = soup.select_one(".toc ul"), soup.title.get_text()
    for number, element in enumerate(soup.main.select("h1, h2, h3, h4, img, table")):
        if element.name.startswith("h"):
            heading, element["id"] = " ".join(element.get_text().split()), f"part-{number}"
            if element.name in ("h2", "h3"):
                item = soup.new_tag("li", attrs={"class": f"l{element.name[1]}"})
                item.append(soup.new_tag("a", href=f"#{element['id']}", string=heading))
                contents.append(item)
        elif element.name == "table":
            for cell in element.find_all("td", string="NaN"):
                cell.string, cell["class"] = "–", "none"
            frame = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": f"Table: {heading}"}
            element.wrap(soup.new_tag("div", attrs=frame))
        elif not element.get("src"):
            element.replace_with("[picture not shown]")
        else:
            element["alt"] = element.get("alt") or f"Figure: {heading}"
    return str(soup)


def to_html(notebook: Path, html: Path) -> Path:
    """Render an executed notebook as one self-contained page and return ``html``.

    Nothing in the page is loaded from anywhere; it is written whole or not at all. Cells tagged remove-cell,
    remove-input or remove-output are left out; stderr shows only where the notebook stopped with an error.
    """
    source = nbformat.read(notebook, as_version=4)
    failed, run = _prepare(source), source.metadata.get("papermill", {})
    executed = f"Executed {run['end_time'][:10]} in {took(run['duration'])}." if run.get("end_time") else ""
    exporter = HTMLExporter(config=CONFIG)
    exporter.environment.globals["page"] = page(title(source, notebook.stem), failed=failed, executed=executed)
    body, _ = exporter.from_notebook_node(source, {"metadata": {"path": str(notebook.parent)}})
    return write(html, _finish(body))
