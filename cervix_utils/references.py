"""What a network's numbers are read against: predictions of baselines, and of networks shown blanked images."""

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cervix_utils import metrics, paths, runs
from cervix_utils.datasets import CLASSES

ALL_FEATURES = "baseline_all_logistic"
BASELINE = "baseline_"  # how the names of predictions made without a network begin
SHOWN = ["accuracy", "low", "high", "f1_macro", "binary_accuracy", "binary_f1", "mse", "auc_mean", "log_loss"]


def as_predictions(rows: pd.DataFrame, values: np.ndarray, task: str) -> pd.DataFrame:
    """The contract's table from ``rows`` (id, group, part, label) and probabilities (n, n_classes) or scores (n, 1)."""
    table, classes = rows[["id", "group", "part", "label"]].reset_index(drop=True), CLASSES[task]
    values = np.asarray(values, dtype=float)
    for index, name in enumerate(classes):
        table[f"p_{name}"] = values[:, index] if values.shape[1] > 1 else np.nan
    if task == "herlev":
        severity = np.arange(1, len(classes) + 1)
        table["score"] = values @ severity if values.shape[1] > 1 else values[:, 0]
    metrics.check_predictions(table, task)
    return table


def write(report_dir: Path, task: str, name: str, protocol: str, fold: int, predictions: pd.DataFrame) -> runs.Run:
    """Keep the test rows of ``predictions`` (5 decimals) as ``paths.reference_file``, in one step; returns them read."""
    metrics.check_predictions(predictions, task)
    if not (predictions["part"] == "test").any():
        raise ValueError(f"{name}: the predictions hold no test image, so there is nothing to keep")
    file = paths.reference_file(report_dir, task, name, protocol, fold)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        predictions[predictions["part"] == "test"].round(5).to_csv(part, index=False)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return read(file)


def read(file: Path) -> runs.Run:
    """One reference as a Run without history; ``recipe`` holds task, pipeline (its name), protocol and fold."""
    protocol, _, fold = file.stem.rpartition("-")
    recipe = {"task": file.parents[1].name, "pipeline": file.parent.name, "protocol": protocol, "fold": int(fold)}
    return runs.Run(file, recipe, pd.DataFrame(), runs.read_table(file))


def all_references(report_dir: Path, task: str) -> Iterator[runs.Run]:
    """Every reference of a task, sorted by name, protocol and fold; ``metrics.results`` takes them beside runs."""
    for file in sorted(paths.references_dir(report_dir, task).glob("*/[!.]*.csv")):
        yield read(file)


def average(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Predictions that are the mean of several tables' probabilities, on the same images; score: expected severity.

    Raises ValueError where the images differ or a table has no probabilities.
    """
    first, *others = (table.set_index("id") for table in tables)
    if not all(metrics.has_probabilities(table) and set(table.index) == set(first.index) for table in (first, *others)):
        raise ValueError(
            "only probabilities of the same images can be averaged: give tables of one fold, none of regression"
        )
    columns = [name for name in first if name.startswith("p_")]
    mean = sum(table.loc[first.index, columns] for table in (first, *others)) / len(tables)
    found = first.assign(**mean)
    if "score" in found:
        found["score"] = mean.to_numpy() @ np.arange(1, len(columns) + 1)
    return found.reset_index()[list(tables[0])]


def averages(found: Sequence, against: Sequence) -> list[runs.Run]:
    """Herlev's classification and combined networks of each fold averaged, and these two with the mask-fed ``all_logistic``.

    Fixed beforehand, so that nothing is chosen on a test part: ``average_of_networks`` and ``average_with_baseline``.
    """
    tables = {tuple(one.recipe[key] for key in (*metrics.KEYS, "fold")): one.test for one in (*found, *against)}
    made = []
    for _, _, protocol, fold in [key for key in tables if key[:2] == ("herlev", "combined")]:
        members = [
            tables.get(("herlev", name, protocol, fold)) for name in ("classification", "combined", ALL_FEATURES)
        ]
        for name, some in (("average_of_networks", members[:2]), ("average_with_baseline", members)):
            if all(member is not None for member in some):
                recipe = {"task": "herlev", "pipeline": name, "protocol": protocol, "fold": fold}
                made.append(runs.Run(Path(), recipe, pd.DataFrame(), average(some)))
    return made


def everything(report_dir: Path) -> tuple[list[runs.Run], list[runs.Run]]:
    """(finished runs, what they are read against: references and averages) of a report folder."""
    found = [run for task in CLASSES for run in runs.all_runs(report_dir / "runs", task)]
    against = [one for task in CLASSES for one in all_references(report_dir, task)]
    return found, against + averages(found, against)


def beside(results: pd.DataFrame) -> pd.DataFrame:
    """``metrics.results`` of one fold as a table to read, best accuracy first: one row a pipeline, columns of SHOWN.

    ``low`` and ``high`` limit the 95 % interval of accuracy. Metrics that a pipeline lacks are NaN.
    """
    if results.duplicated(["pipeline", "metric"]).any():
        raise ValueError("results hold several folds, protocols or tasks: give those of one fold")
    wide = results.pivot(index="pipeline", columns="metric", values="value").rename_axis(columns=None)
    wide = wide.join(results.query("metric == 'accuracy'").set_index("pipeline")[["low", "high"]])
    return wide[[name for name in SHOWN if name in wide]].sort_values("accuracy", ascending=False)


def best_baseline(table: pd.DataFrame) -> str:
    """What ``beside`` says, in a sentence: the best baseline by accuracy, and which networks are above it."""
    known = table.index.str.startswith(BASELINE)
    best, networks = table[known].iloc[0], table[~known]

    def named(rows: pd.DataFrame) -> str:
        each = [f"{row.Index} ({row.accuracy:.3f}, {row.low:.3f} to {row.high:.3f})" for row in rows.itertuples()]
        return ", ".join(each) or "none"

    above = networks["accuracy"] > best["accuracy"]
    return (
        f"The best of {known.sum()} baselines by accuracy is **{best.name.removeprefix(BASELINE)}**: {best['accuracy']:.3f} "
        f"(95 % interval {best['low']:.3f} to {best['high']:.3f}). Networks above it: {named(networks[above])}; "
        f"not above it: {named(networks[~above])}."
    )
