"""A finished report -> reports/published: numbers, predictions, figures and pages that may be committed and mailed."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd

from cervix_utils import comparison, paths, references, runs
from cervix_utils.datasets import CLASSES

PAGES = ("02", "03", "05", "06")  # notebooks without pictures of patients
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


class PublishError(ValueError):
    """A report is not fit to be published; the message says what is missing or must not be there."""


def publish(name: str) -> Path:
    """Copy what may be shared of ``reports/<name>`` to ``reports/published``; models and pictures stay behind.

    Raises PublishError where the report is not whole, or was made with cells or photographs in its pages.
    """
    source, target = paths.reports_dir(name), paths.reports_dir("published")
    for file in ("results.csv", "run.json", "05_comparison.ipynb"):
        if not (source / file).is_file():
            raise PublishError(f"{source / file} is missing: make reports CONFIG={name} first")
    pages = sorted(page for page in source.glob("0*.html") if page.name.startswith(PAGES))
    for page in pages:
        book = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
        shown = book.metadata.get("papermill", {}).get("parameters", {})
        if shown.get("show_photographs") or shown.get("show_cells"):
            raise PublishError(f"{page.name} was made with pictures: set show_cells and show_photographs to false")
        if any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])):
            raise PublishError(f"{page.name} holds a bitmap: only drawn figures (SVG) may be published")
    for old in ("runs", "references", "figures"):
        shutil.rmtree(target / old, ignore_errors=True)
    for old in target.glob("*.html"):
        old.unlink()
    for task in CLASSES:
        for run in runs.all_runs(source / "runs", task):
            to = target / run.folder.relative_to(source)
            to.mkdir(parents=True)
            for file in TABLES:
                shutil.copyfile(run.folder / file, to / file)
        for one in references.all_references(source, task):
            to = target / one.folder.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.folder, to)
    for file in (source / "results.csv", source / "run.json", *pages):
        shutil.copyfile(file, target / file.name)
    (target / "figures").mkdir()
    for page in pages:
        if page.name.startswith(("05", "06")):
            for title, svg in figures(page.with_suffix(".ipynb")).items():
                (target / "figures" / f"{title}.svg").write_text(svg)
    return target


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
        "| | | published | paper protocol | grouped | best without a network, grouped |",
        "|---|---|---|---|---|---|",
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
                cells = [first, WORDS[metric], f"{paper.iloc[0]:g}" if len(paper) else "–", *cells]
                lines.append(f"| {' | '.join([*cells, f'{comparison.written(best)} {name}'.strip()])} |")
    return "\n".join(lines)


def with_table(readme: str, results: pd.DataFrame) -> str:
    """The text of a README with the table of ``results`` between its two marks."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise PublishError(f"README.md needs one line '{BEGIN}' and one line '{END}' around the table")
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{results_table(results)}\n{END}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    folder = publish(sys.argv[1])
    readme = paths.ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), pd.read_csv(folder / "results.csv", dtype={"fold": str})))
    print(folder)
