"""Executed notebooks to self-contained HTML pages, an overview page, and where the numbers come from."""

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from io import BytesIO
from itertools import count
from pathlib import Path, PureWindowsPath
from platform import python_version
from typing import Any
from urllib.parse import quote

import bleach
import jinja2
import nbformat
import pandas as pd
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
PACKAGES = ("torch", "torchvision", "fastai", "captum", "papermill", "cervix-notebooks")
TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1
h2 h3 h4 h5 h6 hr i img kbd li ol p pre s small span strong
sub summary sup table tbody td tfoot th thead tr ul"""
ATTRIBUTES = "alt class colspan height id rowspan scope start style title width"
PRIORITY = ["image/svg+xml", "image/png", "image/jpeg", "text/html", "text/markdown", "text/plain"]
REMOVED = {
    "remove_cell_tags": {"remove-cell"},
    "remove_input_tags": {"remove-input"},
    "remove_all_outputs_tags": {"remove-output"},
}
NO_ALT = "No description has been provided for this image"  # what nbconvert writes
COLUMNS = ["task", "pipeline", "protocol", "fold", "n_test", "metric", "value", "low", "high", "paper"]
_QUIET: dict[str, Any] = {"text": True, "stderr": subprocess.DEVNULL, "timeout": 20}


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
    """``html`` with unknown tags shown as text, and no handler, remote picture or CSS but a Styler's."""
    style = re.match(r"\s*<style[^>]*>((?:\s*#T_[^{}<@\\]*\{[^{}<@\\]*\})+)\s*</style>", html)
    keep = f"<style>{style[1]}</style>" if style and "url" not in style[1].lower() else ""
    return keep + _CLEANER.clean(re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL | re.IGNORECASE))


class _Renderer(IPythonRenderer):
    """Markdown whose formulas are drawn as SVG by matplotlib: MathJax would have to be fetched."""

    def inline_math(self, body: str) -> str:
        from matplotlib.font_manager import FontProperties
        from matplotlib.mathtext import math_to_image

        image, alt = BytesIO(), escape(body.strip())
        try:
            depth = math_to_image(f"${body.strip()}$", image, FontProperties(size=12), format="svg")
        except (ValueError, RuntimeError):  # outside matplotlib's subset of TeX
            return f"<code>{alt}</code>"
        src = f"data:image/svg+xml;base64,{base64.b64encode(image.getvalue()).decode()}"
        return f'<img class="math" src="{src}" alt="{alt}" style="vertical-align: -{depth:.1f}pt">'

    def block_math(self, body: str) -> str:
        return f'<span class="math-block">{self.inline_math(body)}</span>'


class _Exporter(HTMLExporter):
    """nbconvert's exporter; HTML in Markdown *outputs*, which can hold file names, is shown as text."""

    def _render(self, context: Any, source: str, escape: bool) -> str:
        where = {"path": context["resources"]["metadata"]["path"], "embed_images": not escape}
        files = context["cell"].get("attachments", {})
        renderer = _Renderer(escape, exclude_anchor_links=True, attachments=files, **where)
        return safe_html(MarkdownWithMath(renderer).render(source))

    @jinja2.pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return self._render(context, source, escape=False)

    @jinja2.pass_context
    def markdown_output(self, context: Any, source: str) -> str:
        return self._render(context, source, escape=True)


def _write(path: Path, text: str) -> Path:
    """Write ``text`` whole or not at all: a temporary name in the same folder, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _page(title: str, **more: Any) -> dict[str, Any]:
    """What the head and foot of a page need; its policy lets no script run but the one with this hash."""
    style, script = ((TEMPLATES / "report" / name).read_text("utf-8") for name in ("style.css", "script.js"))
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = {"style": style, "script": script, "script_hash": script_hash, "disclaimer": DISCLAIMER}
    return {**page, "title": title, **more}


def _title(notebook: nbformat.NotebookNode, default: str) -> str:
    """Text of the first Markdown heading."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#{1,6} +(.+?)[ #]*$", text, re.MULTILINE)
    return re.sub(r"[*`]", "", heading[1]) if heading else default


def _failed(notebook: nbformat.NotebookNode) -> bool:
    return any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))


def _took(seconds: float | None) -> str:
    minutes, rest = divmod(round(seconds or 0), 60)
    return "" if seconds is None else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def public(value: Any) -> Any:
    """``value`` fit to be mailed: in strings, at any depth, an absolute path is cut down to its last part."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str | Path):
        return value
    if re.match(r"[/~]|\.\.[\\/]|[A-Za-z]:[\\/]|\\\\", text := str(value)):
        name = PureWindowsPath(text).name  # knows both kinds of slash
        return "folder" if name in {os.environ.get(key) for key in ("USER", "LOGNAME", "USERNAME")} else name
    return re.sub(r"(?<![\w.:/\\<])(?:~?/|[A-Za-z]:[\\/])[^\s\"'<>]*[/\\]([^\s\"'<>/\\]+)", r"\1", text)


def _prepare(notebook: nbformat.NotebookNode) -> None:
    """Label the parameters cells, and cut absolute paths in them."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    names = {"parameters": "Parameters of this run", "injected-parameters": "Parameters of this run"}
    if any("injected-parameters" in each for each in tags):
        names["parameters"] = "Parameters and their defaults"
    for cell, each in zip(notebook.cells, tags, strict=True):
        if label := next((names[tag] for tag in each if tag in names), ""):
            cell.metadata["report_label"] = label
            cell.source = re.sub(r"([\"'])(.*?)\1", lambda m: m[1] + public(m[2]) + m[1], cell.source)


def _finish(html: str) -> str:
    """Heading ids, table of contents, alternative texts, and a scrolling frame for tables."""
    soup = BeautifulSoup(html, "html.parser")
    contents, heading, seen = soup.select_one(".toc ul"), soup.title.get_text(), {"main"}
    for element in soup.main.select("h1, h2, h3, h4, img, table"):
        if element.name.startswith("h"):
            heading = " ".join(element.get_text().split())
            slug = re.sub(r"\W+", "-", heading.lower()).strip("-") or "section"
            element["id"] = next(name for n in count(1) if (name := slug if n == 1 else f"{slug}-{n}") not in seen)
            seen.add(element["id"])
            if element.name in ("h2", "h3"):
                item = soup.new_tag("li", attrs={"class": f"l{element.name[1]}"})
                item.append(soup.new_tag("a", href=f"#{element['id']}", string=heading))
                contents.append(item)
        elif element.name == "img" and not element.get("src"):
            element.replace_with("[picture not shown]")
        elif element.name == "img":
            if element.get("alt", "") in ("", NO_ALT):
                element["alt"] = f"Figure: {heading}"
        else:
            del element["border"]
            element.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region"}))
            element.parent["aria-label"] = f"Table: {heading}"
    return str(soup)


def to_html(notebook: Path, html: Path) -> Path:
    """Render an executed notebook as one self-contained page and return ``html``.

    Nothing in the page is loaded from anywhere; it is written whole or not at all. Cells tagged remove-cell,
    remove-input or remove-output are left out; stderr shows only where the notebook stopped with an error.
    """
    source = nbformat.read(notebook, as_version=4)
    _prepare(source)
    run = source.metadata.get("papermill", {})
    executed = f"Executed {run['end_time'][:10]} in {_took(run['duration'])}." if run.get("end_time") else ""
    config = Config(NbConvertBase={"display_data_priority": PRIORITY}, TagRemovePreprocessor=REMOVED)
    no_urls = {name: "" for name in HTMLExporter.class_trait_names() if name.endswith("_url")}
    place = {"template_name": "report", "extra_template_basedirs": [str(TEMPLATES)]}
    exporter = _Exporter(config=config, **no_urls, **place)
    exporter.environment.filters |= {"safe_html": safe_html, "markdown_output": exporter.markdown_output}
    page = _page(_title(source, notebook.stem), failed=_failed(source), executed=executed)
    exporter.environment.globals["page"] = page
    body, _ = exporter.from_notebook_node(source, {"metadata": {"path": str(notebook.parent)}})
    return _write(html, _finish(body))


def notebook_seconds(report_dir: Path) -> dict[str, float]:
    """Stem of each executed notebook in ``report_dir`` -> seconds that papermill took for it."""
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in sorted(report_dir.glob("*.ipynb"))}
    seconds = {stem: book.metadata.get("papermill", {}).get("duration") for stem, book in notebooks.items()}
    return {stem: value for stem, value in seconds.items() if value is not None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about numbers; nothing is imported."""
    found = {package: metadata.version(package) for package in PACKAGES if any(metadata.distributions(name=package))}
    return {"python": python_version(), **dict.fromkeys(PACKAGES, "not installed"), **found}


def commit() -> str:
    """Commit of this project's checkout, `` + uncommitted changes`` where there are any; else ``unknown``."""
    git = ["git", "--no-optional-locks", "-C", str(paths.ROOT)]
    try:
        known = subprocess.check_output([*git, "rev-parse", "--show-toplevel", "HEAD"], **_QUIET)
        dirty = subprocess.check_output([*git, "status", "--porcelain"], **_QUIET)
        top, head = known.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"
    if Path(top).resolve() != paths.ROOT:  # another project's checkout, with this package installed inside
        return "unknown"
    return head[:12] + " + uncommitted changes" * bool(dirty)


class Provenance(pd.Series):
    """One fact a row; shows itself in full as a table."""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.to_frame().to_html(header=False)


def provenance(
    settings: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    initialisation: str | Mapping[str, str],
    device: str,
) -> Provenance:
    """Where a notebook's numbers come from, without user names or absolute paths.

    ``settings``: data_root, seed, precision and report_name are used. ``fingerprints``: data set -> hash.
    ``initialisation``: initial weights, of all or per network. ``device``: in words.
    """
    root = settings.get("data_root") or os.environ.get("CERVIX_DATA", "")
    start = initialisation if isinstance(initialisation, Mapping) else {"": initialisation}
    facts = {"configuration": settings.get("report_name", "unknown")}
    folder = public(Path(root).absolute()) if root else "not given"
    facts["data"] = "demo (drawn pictures)" if root == "demo" else folder
    facts |= {f"data fingerprint, {name}": value[:16] for name, value in fingerprints.items()}
    facts |= {f"initialisation, {name}".rstrip(", "): public(value) for name, value in start.items()}
    facts["device"] = device
    facts |= {key: settings.get(key, "unknown") for key in ("precision", "seed")}
    facts |= {"commit": commit(), **versions(), "date (UTC)": datetime.now(UTC).strftime("%Y-%m-%d %H:%M")}
    return Provenance({name: str(value) for name, value in facts.items()}, name="value", dtype=object)


def write_run_json(
    path: Path, settings: Mapping[str, Any], fingerprints: Mapping[str, str], seconds: Mapping[str, float]
) -> Path:
    """Write the record of a run: versions, commit, configuration, seconds per notebook, data fingerprints."""
    record = {
        "name": path.parent.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "configuration": public(settings),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "data_fingerprint": dict(fingerprints),
    }
    return _write(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def headline(results: pd.DataFrame) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """results.csv -> (task, pipeline, metric, protocol) -> value, low, high, folds, sizes (of a test part).

    One fold: its value and 95 % interval. Several: their mean, and the lowest and highest value of any fold.
    """
    found = {}
    for key, rows in results.groupby(["task", "pipeline", "metric", "protocol"]):
        one = rows.drop_duplicates("fold")
        spread = one[["low", "high"]].iloc[0] if len(one) == 1 else one["value"].agg(["min", "max"])
        low, high = spread
        sizes = sorted({int(size) for size in one["n_test"].dropna()})
        found[key] = {
            "value": one["value"].mean(),
            "low": low,
            "high": high,
            "folds": len(one),
            "sizes": sizes,
        }
    return found


def _cards(report_dir: Path) -> list[dict[str, Any]]:
    """One entry a notebook; its pages are the protocols and folds it was run for."""
    cards: dict[str, dict[str, Any]] = {}
    for html in sorted(report_dir.glob("[0-9][0-9]_*.html")):
        if not (path := html.with_suffix(".ipynb")).exists():
            continue
        notebook = nbformat.read(path, as_version=4)
        took = _took(notebook.metadata.get("papermill", {}).get("duration"))
        stem, suffix = re.fullmatch(r"(.+?)(?:_((?:train_)?[^_]+-\d+))?", html.stem).groups()
        card = cards.setdefault(stem, {"title": _title(notebook, stem), "pages": [], "thumbnail": ""})
        label = re.sub(r"-(\d+)$", r", fold \1", suffix).replace("_", " ") if suffix else "Open the report"
        link = {"href": quote(html.name), "label": label}
        card["pages"].append({**link, "took": took, "failed": _failed(notebook)})
        cells = [cell for cell in notebook.cells if "thumbnail" in cell.metadata.get("tags", [])]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            svg = output.get("data", {}).get("image/svg+xml", "")
            if svg and not card["thumbnail"]:
                card["thumbnail"] = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return list(cards.values())


def write_index(report_dir: Path, name: str) -> Path:
    """Write ``report_dir/index.html`` from its results.csv, run.json and executed notebooks."""
    results, run = report_dir / "results.csv", report_dir / "run.json"
    table = pd.read_csv(results) if results.exists() else pd.DataFrame(columns=COLUMNS)
    published = table.dropna(subset="paper").groupby(["task", "pipeline", "metric"])["paper"].first()
    folder = jinja2.FileSystemLoader(TEMPLATES / "report")
    template = jinja2.Environment(loader=folder, autoescape=True).get_template("overview.html.j2")
    html = template.render(
        page=_page(f"Cervical screening images: report “{name}”"),
        name=name,
        numbers=headline(table),
        published=published.to_dict(),
        cards=_cards(report_dir),
        run=json.loads(run.read_text("utf-8")) if run.exists() else {},
        took=_took,
    )
    return _write(report_dir / "index.html", html)
