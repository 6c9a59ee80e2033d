"""Executed notebooks -> one self-contained HTML page each; the overview; a model card a task.

A page loads nothing, runs no script but its own, and names no absolute path. nbformat, nbconvert
and scikit-learn take seconds to import: that is done where they are needed, so that a notebook
which only states its provenance starts without them.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import unescape
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from textwrap import shorten
from typing import Any

import bleach
import jinja2
import pandas as pd
from bleach.css_sanitizer import ALLOWED_CSS_PROPERTIES, CSSSanitizer
from bs4 import BeautifulSoup, Tag

from cervix_utils import paths
from cervix_utils.data import datasets
from cervix_utils.report import words
from cervix_utils.report.words import known, label

TEMPLATES = Path(__file__).parent / "templates"
TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption
figure h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s small span strong sub summary sup table tbody td
tfoot th thead tr ul"""
ATTRIBUTES = "alt class colspan height rowspan scope start style title width"
SVG = "data:image/svg+xml;base64,"
# what may stand in an attribute that leads somewhere
LINKS = {("img", "src"): "data:image/", ("a", "href"): r"https?://|mailto:|#|(?!//)[\w./-]+(#|$)"}
STYLES = CSSSanitizer(ALLOWED_CSS_PROPERTIES | {"margin", "max-width", "min-width", "padding"})
PACKAGES = ("torch", "torchvision", "fastai", "captum", "papermill")
PAGES = "[0-9][0-9]_*.html"
PLACE = r"_((?:train_)?[a-z]+)-(\d+)$"  # protocol and fold, at the end of a page's name
LONG = 12  # rows of a table that is shown unfolded
INTERVAL = r"(<td[^>]*>-?[\d.]+ )(\(-?[\d.]+ to -?[\d.]+\))"  # a value and what it may be
# metrics of the overview, where classes are grades and where they are not
SHOWN = {False: ("accuracy", "f1_macro", "log_loss")}
SHOWN[True] = "accuracy", "binary_accuracy", "binary_f1", "mse", "auc_mean", "kappa_quadratic"


# HTML that may come from data


def _may_stay(tag: str, name: str, value: str) -> bool:
    """Whether an attribute may stay: pictures within the page, links to pages, no handler."""
    if allowed := LINKS.get((tag, name)):
        return re.match(allowed, value) is not None
    return name in ATTRIBUTES.split()


def clean_html(html: str) -> str:
    """``html`` without style sheets, handlers and remote pictures; unknown tags become text.

    It stands in for nbconvert's filter of this name, whose list of tags lacks p, h1, th and img.
    """
    html = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL | re.IGNORECASE)
    protocols = {"http", "https", "mailto", "data"}
    return bleach.clean(html, TAGS.split(), _may_stay, protocols, css_sanitizer=STYLES)


def printed_markdown(source: str) -> str:
    """Markdown that code printed and may hold file names: HTML in it is text, no file is read."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
    return clean_html(MarkdownWithMath(renderer).render(source))


def titled(svg: str) -> str:
    """A drawing whose texts at points (``plots.tell``) are titles instead of addresses: shown on
    hover, and read out with the figure."""
    address = r"(?s)<a xlink:href=([\"'])(.*?)\1[^>]*>(.*?)</a>"
    return re.sub(address, r"<g><title>\2</title>\3</g>", svg)


# Notebooks -> pages


def read(notebook: Path) -> Any:
    """A notebook as nbformat has it."""
    import nbformat

    return nbformat.read(notebook, as_version=4)


def _title(notebook: Any) -> str:
    """Text of the first Markdown heading."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#{1,6} +(.+?)[ #]*$", text, re.MULTILINE)
    return re.sub(r"[*`]", "", heading[1]) if heading else "Notebook"


def _page(title: str, **more: Any) -> dict[str, Any]:
    """What the head of a page needs; its policy allows no script but the one with this hash."""
    script = (TEMPLATES / "report" / "script.js").read_bytes().strip()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    return {"title": title, "script_hash": digest, **more}


def _write(path: Path, text: str) -> Path:
    with paths.whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def _prepare(notebook: Any) -> bool:
    """Cut absolute paths in parameters and in messages; whether a cell failed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        if {"parameters", "injected-parameters"} & {*cell.metadata.get("tags", [])}:
            quoted = r"([\"'])(.*?)\1"
            cell.source = re.sub(quoted, lambda m: m[1] + paths.public(m[2]) + m[1], cell.source)
        cell.outputs.sort(key=lambda output: output.get("name") == "stderr")  # below all others
        for output in cell.outputs:
            if output.get("name") == "stderr":
                output.text = re.sub(r"\S{3,}", lambda m: paths.public(m[0]), output.text)
    return any(output.output_type == "error" for cell in cells for output in cell.outputs)


def _finish(html: str) -> str:
    """Ids of headings, table of contents, texts of figures, tables that people can read."""
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
            _in_words(element)
            _frame(soup, element, heading)
        elif element.get("src"):
            element["alt"] = element.get("alt") or f"Figure: {heading}{_drawn(element['src'])}"
        else:
            element.replace_with("[picture not shown]")
    return re.sub(INTERVAL, r'\1<span class="ci">\2</span>', str(soup))


def _in_words(table: Tag) -> None:
    """Words for raw names, dashes for NaN, no column of numbers that only count the rows."""
    heads = [cell.get_text() for cell in table.select("thead th")]
    counted = [row.th for row in table.select("tbody tr")]
    numbers = [cell and cell.get_text() for cell in counted]
    if heads[:1] == [""] and numbers == [str(n) for n in range(len(numbers))]:
        for cell in [table.thead.th, *counted]:
            cell.decompose()
    for cell in table.select("th, td"):
        text = cell.get_text().strip()
        published = text == "paper" and cell.find_parent("thead") and "grouped" not in heads
        if spoken := "published" if published else known(text):
            cell.string = spoken
        elif cell.name == "th" and re.fullmatch(r"[a-zA-Z0-9]+(_[a-zA-Z0-9]+)+", text):
            cell.string = label(text)
        elif text == "NaN":
            cell.string, cell["class"] = "–", "none"


def _frame(soup: BeautifulSoup, table: Tag, heading: str) -> None:
    """A wide table scrolls in a frame of its own; a long one is folded, and one by epochs."""
    frame = {"class": "scroll", "tabindex": "0", "role": "region"}
    place = table.wrap(soup.new_tag("div", attrs=frame | {"aria-label": f"Table: {heading}"}))
    if (rows := len(table.select("tbody tr"))) > LONG or table.find("th", string="epoch"):
        folded = place.wrap(soup.new_tag("details", attrs={"class": "long"}))
        folded.insert(0, soup.new_tag("summary", string=f"{heading}: table of {rows} rows"))


def _drawn(source: str) -> str:
    """What the words in a drawing of ours say: its titles, axes and legends."""
    svg = base64.b64decode(source.removeprefix(SVG)).decode() if source.startswith(SVG) else ""
    said = dict.fromkeys(re.findall(r">\s*([^<>]*[A-Za-z][^<>]*?)\s*</(?:title|text)>", svg))
    return " – it shows: " + shorten(unescape("; ".join(said)), 1000) if said else ""


def _answer_first(cells: list) -> list:
    """The section "Answer" right after the question, before the way to it; the last cell stays."""
    heads = [i for i, cell in enumerate(cells) if cell.source.startswith("## ")]
    answer = [i for i in heads if cells[i].source.startswith("## Answer")]
    if not answer:
        return cells
    first, last = answer[0], [*heads, len(cells) - 1][heads.index(answer[0]) + 1]
    return cells[:1] + cells[first:last] + cells[1:first] + cells[last:]


def to_html(notebook: Path, html: Path, stems: Sequence[str] = ()) -> Path:
    """Render an executed notebook as one self-contained page and return ``html``. It leads to its
    neighbours among ``stems``, the names of the pages of its report.

    It is written whole or not at all. What libraries say on stderr stands folded.
    """
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    source = read(notebook)
    source.cells = _answer_first(source.cells)
    filters = {each.__name__: each for each in (clean_html, printed_markdown, titled)}
    look = {"template_name": "report", "extra_template_basedirs": [str(TEMPLATES)]}
    inside = {"embed_images": True, "exclude_anchor_links": True, "filters": filters}
    exporter = HTMLExporter(preprocessors=[CoalesceStreamsPreprocessor], **look, **inside)
    facts = {"failed": _prepare(source), "run": source.metadata.get("papermill", {})}
    facts |= {"stem": html.stem, "stems": sorted(stems)}
    exporter.environment.globals["page"] = _page(_title(source), **facts)
    body, _ = exporter.from_notebook_node(source, {"metadata": {"path": str(notebook.parent)}})
    return _write(html, _finish(body))


# Where numbers come from


def commit() -> str:
    """Commit of this project's checkout, and whether files of it were changed; else ``unknown``."""
    if not ((paths.ROOT / ".git").exists() and shutil.which("git")):
        return "unknown"  # or installed inside another project's checkout
    git = ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--abbrev=12"]
    git.append("--dirty= + uncommitted changes")
    done = subprocess.run(git, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about numbers; nothing is imported."""
    return {"python": python_version(), **{name: version(name) for name in PACKAGES}}


def provenance(settings: Mapping, data: Mapping | None = None, trained: Mapping | None = None):
    """Where a notebook's numbers come from, as a table without user names or absolute paths.

    ``settings``: data_root, seed and report_name are used. ``data``: data set -> its fingerprint.
    ``trained``: name -> run, of whose recipe initial weights, device and arithmetic are shown.
    """
    root = settings.get("data_root") or os.environ.get("CERVIX_DATA", "")
    folder = paths.public(Path(root).absolute()) if root else "as in notebooks 2 and 3"
    where = "demo (drawn pictures)" if root == "demo" else folder
    facts = {"configuration": settings.get("report_name", "unknown"), "data": where}
    facts |= {f"data fingerprint, {name}": digest for name, digest in (data or {}).items()}
    for name, run in (trained or {}).items():
        facts[f"initial weights, {name}"] = paths.public(run.recipe["weights"])
        facts[f"trained on, {name}"] = "{device} in {computed_in}".format_map(run.recipe)
    facts |= {"seed": settings["seed"], "commit": commit(), **versions()}
    facts["date (UTC)"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    table = pd.DataFrame({"value": facts}).astype(str)
    return table.style.hide(axis="columns").format(escape="html").format_index(escape="html")


def write_run_json(folder: Path, settings: Mapping, data: Mapping, stems: Sequence) -> Path:
    """Write the record of a run: versions, commit, configuration, seconds a
    notebook, fingerprints of ``data``."""
    runs = {stem: read(folder / f"{stem}.ipynb").metadata.papermill for stem in stems}
    record = {"name": folder.name, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    record |= {"commit": commit(), "versions": versions(), "configuration": paths.public(settings)}
    record["seconds"] = {stem: round(run.duration, 1) for stem, run in runs.items()}
    record["data_fingerprint"] = dict(data)
    return _write(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


# The overview and the model cards


def run_folders(report_dir: Path, task: str) -> list[Path]:
    """Folders of the runs whose predictions a report holds, one a network."""
    files = sorted((report_dir / "predictions").glob(f"{task}-*.csv"))
    rows = pd.concat([pd.read_csv(file, dtype=str).dropna(subset="run") for file in files])
    places = rows[["pipeline", "run"]].drop_duplicates().itertuples(index=False)
    return [report_dir / "runs" / Path(task, *place) for place in places]


def headline(results: pd.DataFrame) -> list[tuple[datasets.Dataset, pd.DataFrame]]:
    """Data sets and their tables of the overview: published values, protocols, best baseline."""
    from cervix_utils.evaluation import comparison

    tables, keys = [], comparison.NUMBER
    for task in sorted(results["task"].unique(), key=list(datasets.DATASETS).index):
        rows, dataset = results[results["task"] == task], datasets.get(task)
        networks = rows.loc[~comparison.is_reference(rows["pipeline"]), "pipeline"].unique()
        asked = [(task, name, metric) for name in networks for metric in SHOWN[dataset.ordered]]
        table = comparison.side_by_side(rows, asked)
        table[keys] = table[keys].map(label)
        tables.append((dataset, table.drop(columns="task").rename(columns=label)))
    return tables


def _entry(page: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """A page in the overview: title, question, protocol and fold, seconds, a figure."""
    html, place = page.read_text("utf-8"), re.search(PLACE, page.stem)
    parts = {"title": "<title>(.*?)</title>", "question": r"Question\.</strong>(.*?)</p>"}
    parts["figure"] = '<figure class="thumbnail"><img[^>]*?src="([^"]*)'
    found = {name: re.search(pattern, html, re.DOTALL) for name, pattern in parts.items()}
    texts = {name: match[1] if match else "" for name, match in found.items()}
    for name in ("title", "question"):
        texts[name] = BeautifulSoup(texts[name], "html.parser").get_text().strip()
    link = f"{label(place[1])}, fold {place[2]}" if place else "Open the page"
    return {"file": page.name, "words": link, "seconds": seconds.get(page.stem), **texts}


def _remove_others(report_dir: Path, books: Mapping[str, Any]) -> None:
    """Remove pages, notebooks and tables that a configuration no longer asks for; no run."""
    stale = [file for file in report_dir.glob("[0-9][0-9]_*.*") if file.stem not in books]
    parameters = [book.metadata.papermill.parameters for book in books.values()]
    asked = {table for values in parameters for table in values.get("page_names", [])}
    tables = (report_dir / "predictions").glob("*.csv")
    stale += [table for table in tables if asked and table.stem not in asked]
    explained = [] if "04_explainability" in books else [report_dir / "attribution.csv"]
    for file in [*stale, *explained, *report_dir.glob("model_card_*.html")]:
        file.unlink(missing_ok=True)


def _fill(path: Path, template: str, title: str, **values: Any) -> Path:
    """Write a template of this folder, filled; every value in it is escaped."""
    from cervix_utils.evaluation.metrics import written

    loader = jinja2.FileSystemLoader(TEMPLATES / "report")
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters |= {"label": label, "written": written, "drawn": _drawn}
    return _write(path, environment.get_template(template).render(page=_page(title), **values))


def glance(results: pd.DataFrame, metric: str = "accuracy") -> str:
    """The figure of the overview as SVG."""
    import matplotlib.pyplot as plt

    from cervix_utils.evaluation import comparison
    from cervix_utils.report import plots

    table, text = comparison.at_a_glance(results, metric), io.StringIO()
    order = {name: place for place, name in enumerate(words.table())}
    rows = table.sort_values(["pipeline", "protocol"], key=lambda names: names.map(order))
    with plt.rc_context(plots.LOOK):
        figure, ax = plt.subplots(figsize=(7, 1.6 + 0.6 * table["pipeline"].nunique()))
        plots.with_intervals(ax, rows, "pipeline", "protocol")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
        ax.set(xlabel=f"{label(metric)}, 95 % interval")
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return titled(text.getvalue())


def write_overview(folder: Path, name: str, report_dir: Path | None = None) -> Path:
    """Write index.html from the results.csv, differences.csv, run.json and pages of ``folder``; of
    ``report_dir``, which has the runs, also the model cards."""
    from cervix_utils.evaluation import comparison

    run = json.loads((folder / "run.json").read_text())
    results = pd.read_csv(folder / "results.csv", dtype={"fold": str})
    values = {"name": name, "run": run, "tables": headline(results), "cards": bool(report_dir)}
    for dataset, table in values["tables"] if report_dir else []:
        files = [place / "recipe.json" for place in run_folders(report_dir, dataset.name)]
        values["recipes"] = [paths.public(json.loads(file.read_text())) for file in files]
        card, title = folder / f"model_card_{dataset.name}.html", f"Model card: {dataset.title}"
        _fill(card, "model_card.html.j2", title, dataset=dataset, table=table, **values)
    table = comparison.summary(results)
    values["rows"] = table.set_index([*comparison.NUMBER, "protocol"]).to_dict("index")
    values["best"] = partial(comparison.best_baseline, table)
    values["apart"] = pd.read_csv(folder / "differences.csv").to_dict("records")
    values["glance"] = SVG + base64.b64encode(glance(results).encode()).decode()
    values["entries"] = [_entry(page, run["seconds"]) for page in sorted(folder.glob(PAGES))]
    title = f"Cervical screening images: report “{name}”"
    return _fill(folder / "index.html", "overview.html.j2", title, **values)


def write_index(report_dir: Path, name: str, stems: Sequence[str]) -> Path:
    """Write index.html and the model cards of a report whose pages are ``stems``; remove others."""
    _remove_others(report_dir, {stem: read(report_dir / f"{stem}.ipynb") for stem in stems})
    return write_overview(report_dir, name, report_dir)
