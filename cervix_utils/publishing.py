"""A finished report -> reports/published: numbers, predictions, figures and pages that may be committed and mailed."""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd

from cervix_utils import comparison, jobs, paths, references, runs
from cervix_utils.datasets import CLASSES

PAGES = ("02", "03", "04", "05", "06")  # notebooks that can be without pictures of patients
ATTRIBUTIONS = "attribution/*/attribution.csv"
EXPLAINING = ("attribution-", "photographs-")  # how the figures of notebook 4 are called
TABLES = ["recipe.json", "history.csv", "predictions.csv"]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
WORDS = {
    "accuracy": "accuracy",
    "binary_accuracy": "binary accuracy",
    "binary_f1": "binary F1",
    "mse": "MSE of the score",
    "auc_mean": "mean AUC",
    "kappa_quadratic": "quadratic kappa",
    "f1_macro": "F1, macro",
    "log_loss": "log-loss",
}
SHOWN = {
    "herlev": ["accuracy", "binary_accuracy", "binary_f1", "mse", "auc_mean", "kappa_quadratic"],
    "colposcopy": ["accuracy", "f1_macro", "log_loss"],
}
TITLES = {"herlev": "cells", "colposcopy": "cervix types"}
TRAINED_BY = {jobs.COLPOSCOPY: "colposcopy", jobs.HERLEV: "herlev"}


class PublishError(ValueError):
    """A report is not fit to be published; the message says what is missing or must not be there."""


def publish(name: str) -> Path:
    """Copy what may be shared of ``reports/<name>`` to ``reports/published``; models and pictures stay behind.

    Returns the folder. What was published before is replaced, but for the pages of ``kept_pages``, and for notebook 4
    with its figures and attributions where the report has none. Raises PublishError where the report is not whole, or was
    made with cells or photographs in its pages.
    """
    source, target = paths.reports_dir(name), paths.reports_dir("published")
    for file in ("results.csv", "run.json", "05_comparison.ipynb"):
        if not (source / file).is_file():
            raise PublishError(f"{source / file} is missing: make reports CONFIG={name} first")
    pages = fit_pages(source, PAGES)
    explained = any(page.stem == jobs.EXPLAIN for page in pages)
    kept = kept_pages(source, target) | (set() if explained else {f"{jobs.EXPLAIN}.html"})
    for old in ("runs", "references", *(["attribution"] if explained else [])):
        shutil.rmtree(target / old, ignore_errors=True)
    for old in (*target.glob("*.html"), *target.glob("figures/*.svg")):
        if old.name not in kept and (explained or not old.name.startswith(EXPLAINING)):
            old.unlink()
    for task in CLASSES:
        for one in (*runs.all_runs(source / "runs", task), *references.all_references(source, task)):
            copy(one.folder, target / one.folder.relative_to(source))
    for file in (source / "results.csv", source / "run.json", *pages):
        shutil.copyfile(file, target / file.name)
    _draw([page for page in pages if page.name.startswith(("04", "05", "06"))], target / "figures")
    _copy_attributions(source, target)
    return target


def publish_explanations(name: str) -> Path:
    """Copy what may be shared of notebook 4 of ``reports/<name>``, which need not be whole: page, figures, attributions.

    Returns the folder. Raises PublishError as ``publish``, and where there is no page or no attribution.csv.
    """
    source, target = paths.reports_dir(name), paths.reports_dir("published")
    pages = fit_pages(source, (jobs.EXPLAIN,))
    if not (pages and list(source.glob(ATTRIBUTIONS))):
        raise PublishError(
            f"{source} has no {jobs.EXPLAIN}.html with its attribution.csv: make reports CONFIG={name} first"
        )
    _copy_attributions(source, target)
    for page in pages:
        shutil.copyfile(page, target / page.name)
    _draw(pages, target / "figures")
    return target


def _copy_attributions(source: Path, target: Path) -> None:
    """For every explained network attribution.csv (ids and numbers) beside its recipe.json and predictions.csv.

    No map is copied: one shows its picture."""
    for table in source.glob(ATTRIBUTIONS):
        run = paths.run_dir(source / "runs", "herlev", *table.parent.name.rsplit("-", 2))
        to = target / table.parent.relative_to(source)
        to.mkdir(parents=True, exist_ok=True)
        for file in (table, run / "recipe.json", run / "predictions.csv"):
            shutil.copyfile(file, to / file.name)


def fit_pages(report: Path, notebooks: tuple[str, ...]) -> list[Path]:
    """Pages of those notebooks in ``report``. Raises PublishError where one was made with pictures, or holds a bitmap."""
    pages = sorted(page for page in report.glob("0*.html") if page.name.startswith(notebooks))
    for page in pages:
        book = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
        shown = book.metadata.get("papermill", {}).get("parameters", {})
        if shown.get("show_photographs") or shown.get("show_cells"):
            raise PublishError(f"{page.name} was made with pictures: set show_cells and show_photographs to false")
        if any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])):
            raise PublishError(f"{page.name} holds a bitmap: only drawn figures (SVG) may be published")
    return pages


def _draw(pages: Sequence[Path], folder: Path) -> None:
    """The tagged figures of executed notebooks as SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        for title, svg in figures(page.with_suffix(".ipynb")).items():
            (folder / f"{title}.svg").write_text(svg)


def copy(source: Path, to: Path) -> None:
    """Copy the tables of a run folder, or the file of a reference, in one step."""
    part = to.with_name(f".{to.name}.new")
    part.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        part.mkdir(exist_ok=True)
        for file in TABLES:
            shutil.copyfile(source / file, part / file)
    else:
        shutil.copyfile(source, part)
    part.rename(to)


def predictions(report: Path, task: str, fold: str) -> dict[str, bytes]:
    """Pipeline -> content of predictions.csv, for every run of a fold such as ``grouped-0``."""
    return {file.parts[-3]: file.read_bytes() for file in (report / "runs" / task).glob(f"*/{fold}/predictions.csv")}


def kept_pages(report: Path, published: Path) -> set[str]:
    """Names of published pages (notebooks 2 and 3) of a fold whose runs in ``report`` are the published ones, to the byte."""
    kept = set()
    for page in published.glob("0*.html"):
        notebook = jobs.notebook_of(page.stem)
        task, fold = TRAINED_BY.get(notebook, ""), page.stem.removeprefix(f"{notebook}_")
        if (here := predictions(report, task, fold)) and here == predictions(published, task, fold):
            kept.add(page.name)
    return kept


def figures(notebook: Path) -> dict[str, str]:
    """Title -> SVG of every figure whose cell has a tag ``figure-<title>``; ``<title>-1``, ... where it has several."""
    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        titles = [tag.removeprefix("figure-") for tag in cell.metadata.get("tags", []) if tag.startswith("figure-")]
        drawn = [
            one["data"]["image/svg+xml"] for one in cell.get("outputs", []) if "image/svg+xml" in one.get("data", {})
        ]
        found |= {
            f"{title}-{n}" if len(drawn) > 1 else title: svg for title in titles for n, svg in enumerate(drawn, 1)
        }
    return found


def results_table(results: pd.DataFrame) -> str:
    """README's table in Markdown: published, paper protocol, grouped, best baseline without a network (grouped)."""
    table = comparison.summary(results)
    lines = [
        "| | folds | | published | paper protocol | grouped | best without a network, grouped |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, names in SHOWN.items():
        of = table[(table["task"] == task) & ~comparison.is_reference(table["pipeline"])]
        for pipeline in of["pipeline"].unique():
            for metric in names:
                rows = of[(of["pipeline"] == pipeline) & (of["metric"] == metric)].dropna(subset="value")
                if rows.empty:
                    continue
                own = rows.set_index("protocol")
                paper = own["paper"].dropna()
                cells = [comparison.written(own.loc[p] if p in own.index else None) for p in ("paper", "grouped")]
                best = comparison.best_baseline(table, task, metric, "grouped")
                name = "" if best is None else best["pipeline"].removeprefix(references.BASELINE).replace("_", " ")
                first = f"{TITLES[task]}, {pipeline.replace('_', ' ')}" if metric == names[0] else ""
                folds = comparison.folds_run(rows) if metric == names[0] else ""
                cells = [first, folds, WORDS[metric], f"{paper.iloc[0]:g}" if len(paper) else "–", *cells]
                lines.append(f"| {' | '.join([*cells, f'{comparison.written(best)} {name}'.strip()])} |")
    return "\n".join(lines)


def with_table(readme: str, results: pd.DataFrame) -> str:
    """The text of a README with the table of ``results`` between its two marks."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise PublishError(f"README.md needs one line '{BEGIN}' and one line '{END}' around the table")
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{results_table(results)}\n{END}", readme, flags=re.DOTALL)


def main(arguments: Sequence[str]) -> None:
    """``publish NAME`` (all of it) or ``explanations NAME`` (notebook 4 alone); SystemExit with what is wrong."""
    step, name = arguments
    try:
        folder = publish(name) if step == "publish" else publish_explanations(name)
        if step == "publish":
            readme = paths.ROOT / "README.md"
            readme.write_text(with_table(readme.read_text(), pd.read_csv(folder / "results.csv", dtype={"fold": str})))
        print(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
