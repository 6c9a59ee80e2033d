"""results.csv and finished runs -> the papers' numbers beside ours, what leakage is worth, sentences that say what follows."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from cervix_utils import clinical, metrics, paired
from cervix_utils.metrics import KEYS, LOWER_IS_BETTER
from cervix_utils.references import BASELINE
from cervix_utils.weighted import group_weights, limits

HEADLINE = ["accuracy", "f1_macro", "log_loss", "auc_mean", "mse", "binary_accuracy", "binary_f1", "kappa_quadratic"]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """One row a number: KEYS, metric, value, low, high, paper, folds, n_test; means over folds where there are several."""
    fold = results["fold"].astype(str)
    single, mean = results[~fold.isin(["mean", "pooled"])], results[fold == "mean"]
    keys = [*KEYS, "metric"]
    folds = single.groupby(keys, as_index=False).agg(folds=("fold", "size"))
    several = mean.set_index(keys).index
    rows = pd.concat([mean, single[~single.set_index(keys).index.isin(several)]])
    return rows.drop(columns="fold").merge(folds, on=keys).sort_values(keys, ignore_index=True)


def is_reference(pipelines: pd.Series) -> pd.Series:
    """Which names are no networks as trained: baselines without a network, and networks shown blanked images."""
    return pipelines.astype(str).str.contains(f"^{BASELINE}|_without_")


def best_baseline(table: pd.DataFrame, task: str, metric: str, protocol: str) -> pd.Series | None:
    """The row of ``summary`` with the best value of ``metric`` among the baselines without a network; None without any.

    The best is chosen on the test parts: it flatters the baseline, never the network.
    """
    rows = table[(table["task"] == task) & (table["metric"] == metric) & (table["protocol"] == protocol)]
    rows = rows[rows["pipeline"].str.startswith(BASELINE)].dropna(subset="value")
    if rows.empty:
        return None
    return rows.loc[rows["value"].idxmin() if metric in LOWER_IS_BETTER else rows["value"].idxmax()]


def beside_published(results: pd.DataFrame) -> pd.DataFrame:
    """One row a published number and protocol: task, pipeline, metric, published, protocol, value, low, high, folds."""
    rows = summary(results).rename(columns={"paper": "published"}).dropna(subset="published")
    return rows[["task", "pipeline", "metric", "published", "protocol", "value", "low", "high", "folds"]].reset_index(
        drop=True
    )


def written(row: pd.Series | None) -> str:
    """'0.745 (0.701 to 0.790)', a dash where there is nothing."""
    return "–" if row is None else f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def folds_run(rows: pd.DataFrame) -> str:
    """'4' where every protocol of these rows of ``summary`` has as many folds, else 'paper 4, grouped 1'."""
    several = rows.drop_duplicates("protocol").set_index("protocol")["folds"].sort_index(ascending=False)
    if several.nunique() == 1:
        return str(several.iloc[0])
    return ", ".join(f"{protocol} {n}" for protocol, n in several.items())


def side_by_side(results: pd.DataFrame, extra: Sequence[tuple[str, str, str]] = ()) -> pd.DataFrame:
    """One row a published number (and ``extra``: task, pipeline, metric), one column a protocol, 'value (low to high)',
    and the best baseline without a network under the grouped protocol (with its name)."""
    table = summary(results)
    wanted = dict.fromkeys(beside_published(results)[["task", "pipeline", "metric"]].itertuples(index=False, name=None))
    protocols = sorted(table["protocol"].unique(), key=lambda name: (name != "paper", name))
    rows = []
    for task, pipeline, metric in [*wanted, *(one for one in extra if one not in wanted)]:
        of = table[(table["task"] == task) & (table["pipeline"] == pipeline) & (table["metric"] == metric)]
        if of.empty:
            continue
        published = of["paper"].dropna()
        row = {"task": task, "pipeline": pipeline, "metric": metric, "folds": folds_run(of)}
        row["published"] = f"{published.iloc[0]:g}" if len(published) else "–"
        for protocol in protocols:
            own = of[of["protocol"] == protocol]
            row[protocol] = written(own.iloc[0]) if len(own) else "not run"
        baseline = best_baseline(table, task, metric, "grouped")
        name = "" if baseline is None else f" {baseline['pipeline'].removeprefix(BASELINE).replace('_', ' ')}"
        rows.append(row | {"best without a network, grouped": written(baseline) + name})
    return pd.DataFrame(rows)


def with_intervals(results: pd.DataFrame, task: str, names: Sequence[str], pipelines: Sequence[str]) -> pd.DataFrame:
    """One row a pipeline and protocol, one column a metric of ``names``: 'value (low to high)'; missing ones a dash."""
    rows = summary(results)
    rows = rows[(rows["task"] == task) & rows["metric"].isin(names) & rows["pipeline"].isin(pipelines)].copy()
    rows["text"] = [written(row) if np.isfinite(row["value"]) else "–" for _, row in rows.iterrows()]
    wide = rows.pivot(index=["pipeline", "protocol"], columns="metric", values="text").fillna("–")
    return wide[[name for name in names if name in wide]].rename_axis(columns=None)


def folds_of(found: Iterable, task: str, pipeline: str, protocol: str) -> dict[str, pd.DataFrame]:
    """Fold -> test rows of predictions.csv, of the finished runs (or references) with these three names."""
    wanted = (task, pipeline, protocol)
    return {str(run.recipe["fold"]): run.test for run in found if tuple(run.recipe[key] for key in KEYS) == wanted}


def relatives_in_training(predictions: pd.DataFrame) -> float:
    """Share (0..1) of the test images that have a relative (same slide or near-duplicate) in the training part."""
    part = predictions["part"]
    return float(predictions.loc[part == "test", "group"].isin(predictions.loc[part == "train", "group"]).mean())


def leakage(found: Sequence, names: Sequence[str] = tuple(HEADLINE), n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """For each task and pipeline run under both protocols: metric, grouped, paper, difference (paper - grouped), low, high.

    Means over the folds (by number, not by image) that both have; groups of both are resampled together. Empty if none.
    """
    tables = []
    for task, pipeline in dict.fromkeys((run.recipe["task"], run.recipe["pipeline"]) for run in found):
        grouped, random = (folds_of(found, task, pipeline, protocol) for protocol in ("grouped", "paper"))
        shared = [fold for fold in grouped if fold in random]
        if shared:
            sides = ({fold: side[fold] for fold in shared} for side in (grouped, random))
            table = paired.difference(*sides, task, n_boot, seed)
            tables.append(table[table["metric"].isin(names)].assign(task=task, pipeline=pipeline))
    columns = ["task", "pipeline", "metric", "grouped", "paper", "difference", "low", "high"]
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables).rename(columns={"first": "grouped", "second": "paper"})[columns].reset_index(drop=True)


def does_the_constraint_help(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Paper H's question: one sentence a protocol and metric, from ``paired.compare`` of classification and combined."""
    return [
        f"**{protocol} protocol:** {paired.sentence(row, 'classification', 'combined')}"
        for protocol, table in tables.items()
        for _, row in table.iterrows()
    ]


def above_the_baseline(results: pd.DataFrame, task: str, metric: str, protocol: str = "grouped") -> str:
    """Whether each network (and average) is better than the best baseline without one, by the intervals, one sentence."""
    table = summary(results)
    baseline = best_baseline(table, task, metric, protocol)
    rows = table[(table["task"] == task) & (table["metric"] == metric) & (table["protocol"] == protocol)]
    rows = rows[~is_reference(rows["pipeline"])]
    if baseline is None or rows.empty:
        return f"**{task}:** no baseline without a network was run under the {protocol} protocol."
    sign = -1 if metric in LOWER_IS_BETTER else 1
    words = []
    for _, row in rows.iterrows():
        apart = row["low"] > baseline["high"] if sign > 0 else row["high"] < baseline["low"]
        better = sign * (row["value"] - baseline["value"]) > 0
        verdict = "clearly better" if apart else "better, within the uncertainty" if better else "not better"
        own, its = row["folds"], baseline["folds"]
        other = "" if own == its else f"; mean of {own} of its {its} folds"
        words.append(f"{row['pipeline']} {row['value']:.3f} ({verdict}{other})")
    name = baseline["pipeline"].removeprefix(BASELINE).replace("_", " ")
    return (
        f"**{task}, {metric.replace('_', ' ')}, {protocol} protocol:** the best baseline without a network ({name}) has "
        f"{written(baseline)}; against it: {', '.join(words)}."
    )


def what_is_left(results: pd.DataFrame, task: str, pipeline: str, metric: str = "accuracy") -> str:
    """What remains of a published number when no relative of a test image is in training, one sentence."""
    of = summary(results).query("task == @task and pipeline == @pipeline and metric == @metric").set_index("protocol")
    if not {"paper", "grouped"} <= set(of.index):
        return f"**{task}, {pipeline}:** only one protocol was run: nothing can be said about leakage."
    published, grouped = of["paper"].dropna(), of.loc["grouped"]
    claim = f"published {published.iloc[0]:g}, " if len(published) else ""
    stands = ""
    if len(published):
        inside = grouped["low"] <= published.iloc[0] <= grouped["high"]
        below = (grouped["value"] < published.iloc[0]) != (metric in LOWER_IS_BETTER)
        stands = (
            " The published value lies inside the grouped interval."
            if inside
            else f" The published value is {'not reached' if below else 'exceeded'} without leakage in this run."
        )
    return (
        f"**{task}, {pipeline}, {metric.replace('_', ' ')}:** {claim}{written(of.loc['paper'])} on random images, "
        f"{written(grouped)} where no relative of a test image was seen in training.{stands}"
    )


def _shares(answer: np.ndarray, of: np.ndarray, weights: np.ndarray) -> str:
    """'0.90 (0.85 to 0.95)': share of the images ``of`` (n,) for which ``answer`` (n,) is true, first weights: the data."""
    with np.errstate(invalid="ignore"):
        drawn = weights @ (answer & of) / (weights @ of)
    low, high = limits(drawn[1:])
    return f"{drawn[0]:.2f} ({low:.2f} to {high:.2f})"


def original_classes(folds: dict[str, pd.DataFrame], n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Herlev's seven classes (from the ids), folds pooled: cells, groups, and shares called normal, abnormal and CIS.

    Columnar normals are small, dark and easily taken for carcinoma in situ: the five grades hide them.
    """
    pooled = pd.concat(folds.values(), ignore_index=True)
    original, called = pooled["id"].str.split("/").str[0], metrics.predicted_class(pooled)
    weights = np.vstack([np.ones(len(pooled)), group_weights(pooled["group"], n_boot, seed)])
    top = len(metrics.class_columns(pooled)) - 1
    answers = {
        "right grade": called == metrics.true_class(pooled),
        "called abnormal": metrics.predicted_abnormal(pooled),
        "called carcinoma in situ": called == top,
    }
    order = pooled.assign(original=original, grade=metrics.true_class(pooled)).sort_values("grade", kind="stable")
    rows = []
    for name in order["original"].unique():
        of = (original == name).to_numpy()
        row = {"class": name, "cells": of.sum(), "groups": pooled.loc[of, "group"].nunique()}
        rows.append(row | {key: _shares(answer, of, weights) for key, answer in answers.items()})
    return pd.DataFrame(rows).set_index("class")


def at_prevalence(folds: dict[str, pd.DataFrame], prevalence: float, n_boot: int = 1000, seed: int = 0) -> pd.Series:
    """Sensitivity, specificity, PPV and NPV of the call 'abnormal', folds pooled, where a share ``prevalence`` is abnormal."""
    pooled = pd.concat(folds.values(), ignore_index=True)
    weights = np.vstack([np.ones(len(pooled)), group_weights(pooled["group"], n_boot, seed)])
    found = metrics.measure(pooled, "herlev", weights)
    found = {name: found[name] for name in ("sensitivity", "specificity")}
    found |= clinical.predictive_values(found["sensitivity"], found["specificity"], prevalence)
    texts = {}
    for name, drawn in found.items():
        low, high = limits(drawn[1:])
        texts[name] = f"{drawn[0]:.3f} ({low:.3f} to {high:.3f})"
    return pd.Series(texts)
