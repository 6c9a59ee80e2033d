"""A finished report -> reports/published: numbers, predictions, figures and pages that may be committed and mailed.

And back: published runs of the very recipe that a configuration would train -> the report of another machine.
"""

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from cervix_utils import comparison, datasets, jobs, paths, recipes, references, runs, splits
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
PLACE = ("task", "protocol", "fold", "n_folds", "valid_fraction", "seed")  # as splits.assign_parts takes them
TRAINED_BY = {jobs.COLPOSCOPY: "colposcopy", jobs.HERLEV: "herlev"}


class PublishError(ValueError):
    """A report is not fit to be published; the message says what is missing or must not be there."""


def publish(name: str) -> Path:
    """Copy what may be shared of ``reports/<name>`` to ``reports/published``; models and pictures stay behind.

    Returns the folder. What was published before is replaced, but for the pages of ``kept_pages``. Raises PublishError
    where the report is not whole, or was made with cells or photographs in its pages.
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
    kept = kept_pages(source, target)
    for old in ("runs", "references", "figures"):
        shutil.rmtree(target / old, ignore_errors=True)
    for old in target.glob("*.html"):
        if old.name not in kept:
            old.unlink()
    for task in CLASSES:
        for one in (*runs.all_runs(source / "runs", task), *references.all_references(source, task)):
            _copy(one.folder, target / one.folder.relative_to(source))
    for file in (source / "results.csv", source / "run.json", *pages):
        shutil.copyfile(file, target / file.name)
    (target / "figures").mkdir()
    for page in pages:
        if page.name.startswith(("05", "06")):
            for title, svg in figures(page.with_suffix(".ipynb")).items():
                (target / "figures" / f"{title}.svg").write_text(svg)
    return target


def _copy(source: Path, to: Path) -> None:
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


def _predictions(report: Path, task: str, fold: str) -> dict[str, bytes]:
    """Pipeline -> content of predictions.csv, for every run of a fold such as ``grouped-0``."""
    return {file.parts[-3]: file.read_bytes() for file in (report / "runs" / task).glob(f"*/{fold}/predictions.csv")}


def kept_pages(report: Path, published: Path) -> set[str]:
    """Names of published pages (notebooks 2 and 3) of a fold whose runs in ``report`` are the published ones, to the byte."""
    kept = set()
    for page in published.glob("0*.html"):
        notebook = jobs.notebook_of(page.stem)
        task, fold = TRAINED_BY.get(notebook, ""), page.stem.removeprefix(f"{notebook}_")
        if (here := _predictions(report, task, fold)) and here == _predictions(published, task, fold):
            kept.add(page.name)
    return kept


def adopt(name: str, overrides: Mapping[str, Any]) -> list[Path]:
    """Copy published runs that ``config/<name>.yaml`` with ``overrides`` would train today to ``reports/<name>``.

    References go with them (see ``alone``). Returns the run folders and files made; prints a line for each, and one with
    the reason for each that was not adopted (see ``difference``). What exists is never overwritten. The lists of folds,
    protocols and pipelines do not matter, so that ``herlev_folds=[1]`` adopts fold 0. An adopted run has no model:
    notebooks 5 and 6 read it, and asking for its fold trains it again (``runs.find`` needs the weights).
    Raises a ValueError where ``jobs.plan`` does: unknown keys, no data, no weights.
    """
    settings, _ = jobs.plan(name, overrides)
    published, report = paths.reports_dir("published"), paths.reports_dir(name)
    made = []
    for task in CLASSES:
        table, _ = datasets.load(settings["data_root"], task, settings["seed"])
        table = splits.with_groups(table, settings["phash_distance"])
        for one in (*runs.all_runs(published / "runs", task), *references.all_references(published, task)):
            to = report / one.folder.relative_to(published)
            if to.exists():
                why = "one is there already"
            else:
                why = difference(one, settings, table) if one.folder.is_dir() else alone(one, report, published)
            if not why:
                _copy(one.folder, to)
                made.append(to)
            print(f"{one.name}  {f'not adopted: {why}' if why else 'adopted'}", flush=True)
    return made


def difference(run: runs.Run, settings: Mapping[str, Any], table: pd.DataFrame) -> str:
    """What sets a run apart from the one that ``settings`` would train on ``table`` (with groups); empty where nothing.

    Compared: every field of the recipe (one that the run does not know counts as off: False or 0), the initial weights by
    their description, the data by fingerprint, group, part and label of every image. Not compared: device, arithmetic,
    thread count, versions and code, which recipe.json records in part.
    """
    from cervix_utils import networks  # here, so that publishing does not import PyTorch

    old = run.recipe
    own = settings | {"protocol": old["protocol"], "fold": old["fold"]}
    recipe = {"herlev": recipes.herlev, "colposcopy": recipes.colposcopy}[old["task"]](own, old["pipeline"])
    today = json.loads(json.dumps(asdict(recipe)))  # tuples become lists, as in recipe.json
    today["initialisation"] = networks.describe_weights(today.pop("weights"), recipe.architecture)
    if other := [key for key, value in today.items() if old.get(key, 0) != value]:
        return "; ".join(f"{key}: published {old.get(key, 'without it')}, today {today[key]}" for key in other)
    try:
        split = splits.assign_parts(table, *(today[key] for key in PLACE))
    except splits.SplitError as error:
        return f"split: {error}"
    if (data := datasets.fingerprint(split)) != old.get("data_fingerprint"):
        return f"data_fingerprint: published {old.get('data_fingerprint')}, today {data}"
    changed = max(len(split), len(run.predictions)) - len(split.merge(run.predictions, on=runs.NAMES))
    return f"split: {changed} of {len(split)} images have another group, part or label today" if changed else ""


def alone(reference: runs.Run, report: Path, published: Path) -> str:
    """Why a published reference has no run in ``report`` to be read beside; empty where it has one.

    Blanked images need the run of that very network, adopted; a baseline needs any run on the same test images.
    """
    task, fold, names = reference.recipe["task"], reference.folder.stem, reference.test[runs.NAMES]
    here, (pipeline, blanked, _) = _predictions(report, task, fold), reference.recipe["pipeline"].partition("_without_")
    if blanked:
        adopted = pipeline in here and here[pipeline] == _predictions(published, task, fold).get(pipeline)
        return "" if adopted else f"the run of {pipeline} was not adopted"
    beside = (runs.read(report / "runs" / task / pipeline / fold) for pipeline in here)
    return "" if any(run.test[runs.NAMES].equals(names) for run in beside) else "no run of these test images is there"


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


def main(arguments: Sequence[str]) -> None:
    """``publish NAME``, or ``adopt NAME key=value ...`` as ``make reports`` takes them; SystemExit with what is wrong."""
    step, name, *words = arguments
    try:
        if step == "adopt":
            from snakemake.cli import parse_config  # the same words mean the same as to the workflow

            adopt(name, parse_config(words))
        else:
            folder = publish(name)
            readme = paths.ROOT / "README.md"
            readme.write_text(with_table(readme.read_text(), pd.read_csv(folder / "results.csv", dtype={"fold": str})))
            print(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
