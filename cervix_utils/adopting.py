"""Published runs of the very recipe that a configuration would train -> the report of another machine."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cervix_utils import datasets, jobs, paths, publishing, recipes, references, runs, splits
from cervix_utils.datasets import CLASSES

PLACE = ("task", "protocol", "fold", "n_folds", "valid_fraction", "seed")  # as splits.assign_parts takes them


def adopt(name: str, overrides: Mapping[str, Any]) -> list[Path]:
    """Copy published runs that ``config/<name>.yaml`` with ``overrides`` would train today to ``reports/<name>``.

    References go with them (see ``alone``). Returns the run folders and files made; prints a line for each, and one with
    the reason for each that was not adopted (see ``difference``). What exists is never overwritten. The lists of folds,
    protocols and pipelines do not matter, so that ``herlev_folds=[1]`` adopts fold 0. An adopted run has no weights:
    notebooks 2, 3, 5 and 6 read it (`runs.find`), notebook 4 cannot explain it (``attribution_images=0`` leaves that out).
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
                publishing.copy(one.folder, to)
                made.append(to)
            print(f"{one.name}  {f'not adopted: {why}' if why else 'adopted'}", flush=True)
    return made


def difference(run: runs.Run, settings: Mapping[str, Any], table: pd.DataFrame) -> str:
    """`runs.difference` of a run and the one that ``settings`` would train on ``table`` (with groups) in its place."""
    old = run.recipe
    own = settings | {"protocol": old["protocol"], "fold": old["fold"]}
    recipe = {"herlev": recipes.herlev, "colposcopy": recipes.colposcopy}[old["task"]](own, old["pipeline"])
    try:
        split = splits.assign_parts(table, *(getattr(recipe, name) for name in PLACE))
    except splits.SplitError as error:
        return f"split: {error}"
    return runs.difference(run, runs.described(recipe, split), split)


def alone(reference: runs.Run, report: Path, published: Path) -> str:
    """Why a published reference has no run in ``report`` to be read beside; empty where it has one.

    Blanked images need the run of that very network, adopted; a baseline needs any run on the same test images.
    """
    task, fold, names = reference.recipe["task"], reference.folder.stem, reference.test[runs.NAMES]
    here, (pipeline, blanked, _) = (
        publishing.predictions(report, task, fold),
        reference.recipe["pipeline"].partition("_without_"),
    )
    if blanked:
        adopted = pipeline in here and here[pipeline] == publishing.predictions(published, task, fold).get(pipeline)
        return "" if adopted else f"the run of {pipeline} was not adopted"
    beside = (runs.read(report / "runs" / task / pipeline / fold) for pipeline in here)
    return "" if any(run.test[runs.NAMES].equals(names) for run in beside) else "no run of these test images is there"


def main(arguments: Sequence[str]) -> None:
    """``NAME key=value ...`` as ``make reports`` takes them; SystemExit with what is wrong."""
    from snakemake.cli import parse_config  # the same words mean the same as to the workflow

    name, *words = arguments
    try:
        adopt(name, parse_config(words))
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
