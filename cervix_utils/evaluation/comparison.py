"""Results -> the papers' numbers beside ours, what leakage is worth, and what follows.

``results`` is a table as ``metrics.results`` makes it, ``predictions`` one of one task.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cervix_utils.data import datasets, splits
from cervix_utils.evaluation import metrics, paired
from cervix_utils.evaluation.baselines import BASELINE, label_of
from cervix_utils.evaluation.metrics import KEYS, Frame, written

HEADLINE = ["accuracy", "f1_macro", "log_loss", "auc_mean", "mse"]
HEADLINE += ["binary_accuracy", "binary_f1", "kappa_quadratic"]
NUMBER = ["task", "pipeline", "metric"]
BEST = "best without a network, grouped"


def summary(results: Frame) -> Frame:
    """One row a number: KEYS, metric, value, low, high, paper, folds, n_test; means over folds."""
    keys, single = [*KEYS, "metric"], ~results["fold"].isin(["mean", "pooled"])
    folds = results[single].groupby(keys, as_index=False).agg(folds=("fold", "size"))
    rows = pd.concat([results[results["fold"] == "mean"], results[single]])
    rows = rows.drop_duplicates(keys).drop(columns="fold")  # one fold alone has no mean
    return rows.merge(folds, on=keys).sort_values(keys, ignore_index=True)


def is_reference(pipelines: pd.Series) -> pd.Series:
    """Which names are baselines without a network, or networks shown blanked images."""
    return pipelines.astype(str).str.contains(f"^{BASELINE}|_without_")


def best_baseline(table: Frame, task: str, metric: str, protocol: str) -> pd.Series | None:
    """The row of ``summary`` of the best baseline without a network; None without any.

    The best is chosen on the test parts: it flatters the baseline, never the network.
    """
    rows = table.query("task == @task and metric == @metric and protocol == @protocol")
    rows = rows[rows["pipeline"].str.startswith(BASELINE)].dropna(subset="value")
    lower = metrics.describe(metric).lower_is_better
    rows = rows.sort_values("value", ascending=lower, kind="stable")
    return None if rows.empty else rows.iloc[0]


def folds_run(rows: Frame) -> str:
    """'4' where every protocol of these rows of ``summary`` has 4, else 'paper 4, grouped 1'."""
    folds = rows.drop_duplicates("protocol").set_index("protocol")["folds"]
    if folds.nunique() == 1:
        return str(folds.iloc[0])
    return ", ".join(f"{name} {folds[name]}" for name in splits.PROTOCOLS if name in folds)


def beside_published(results: Frame) -> Frame:
    """One row a published number and protocol: ``summary``, with ``published`` for ``paper``."""
    rows = summary(results).rename(columns={"paper": "published"})
    return rows.dropna(subset="published").reset_index(drop=True)


def side_by_side(results: Frame, extra: Sequence[tuple[str, str, str]] = ()) -> Frame:
    """One row a published number (and ``extra``: task, pipeline, metric) that was measured.

    Columns: NUMBER, folds, published, one a protocol ('value (low to high)'), BEST.
    """
    table = summary(results)
    texts = table.assign(text=[written(row) for _, row in table.iterrows()])
    wide = texts.pivot(index=NUMBER, columns="protocol", values="text").fillna("not run")
    wanted = [*beside_published(results)[NUMBER].itertuples(index=False, name=None), *extra]
    wide = wide.loc[[number for number in dict.fromkeys(wanted) if number in wide.index]]
    wide = wide[[name for name in splits.PROTOCOLS if name in wide]].rename_axis(columns=None)
    numbers = table.groupby(NUMBER)
    wide.insert(0, "folds", numbers.apply(folds_run))
    wide.insert(1, "published", numbers["paper"].max().map("{:g}".format).replace("nan", "–"))
    best = [best_baseline(table, task, metric, "grouped") for task, _, metric in wide.index]
    names = ["" if row is None else label_of(row["pipeline"]) for row in best]
    wide[BEST] = [f"{written(row)} {name}".strip() for row, name in zip(best, names)]
    return wide.reset_index()


def at_a_glance(results: Frame, metric: str) -> Frame:
    """``summary`` of the networks in one metric, with rows for what was published and for the
    best without a network: protocol ``published`` and ``best``."""
    table = summary(results).query("metric == @metric")
    rows = table[~table["pipeline"].str.contains(f"^{BASELINE}|_without_|^average")]
    stated = rows.dropna(subset="paper").drop_duplicates(["task", "pipeline"])
    stated = stated.assign(protocol="published", value=stated["paper"], low=np.nan, high=np.nan)
    best = [best_baseline(table, task, metric, "grouped") for task in rows["task"].unique()]
    best = pd.DataFrame([row for row in best if row is not None], columns=table.columns)
    best = best.drop(columns="pipeline").merge(rows[["task", "pipeline"]].drop_duplicates())
    return pd.concat([stated, rows, best.assign(protocol="best")], ignore_index=True)


def with_intervals(results: Frame, names: list[str], pipelines: Sequence[str]) -> Frame:
    """One row a pipeline and protocol, one column a metric of ``names``: 'value (low to high)'."""
    rows = summary(results)
    rows = rows[rows["metric"].isin(names) & rows["pipeline"].isin(pipelines)]
    texts = rows.assign(text=[written(row) for _, row in rows.iterrows()])
    wide = texts.pivot(index=["pipeline", "protocol"], columns="metric", values="text")
    return wide.reindex(columns=names).dropna(axis=1, how="all").fillna("–")


def networks(predictions: Frame) -> list[str]:
    """Names of the pipelines that are networks as trained: they predict the training part too."""
    return list(predictions.loc[predictions["part"] == "train", "pipeline"].unique())


def leakage(predictions: Frame, n_boot: int = 1000, seed: int = 0) -> Frame:
    """Networks under both protocols: pipeline, metric, grouped, paper, difference, low, high.

    ``difference``: paper - grouped, means over the folds (by number, not by image) that both have,
    of HEADLINE; groups of both are resampled together. Empty where no pipeline has both.
    """
    tables = [pd.DataFrame(columns=["pipeline", "metric", "first", "second", "difference"])]
    for pipeline in networks(predictions):
        rows = predictions[predictions["pipeline"] == pipeline]
        grouped, paper = (rows[rows["protocol"] == name] for name in ("grouped", "paper"))
        if set(grouped["fold"]) & set(paper["fold"]):
            table = paired.difference(grouped, paper, n_boot, seed)
            tables.append(table[table["metric"].isin(HEADLINE)].assign(pipeline=pipeline))
    sides = {"first": "grouped", "second": "paper"}
    return pd.concat(tables, ignore_index=True).rename(columns=sides)


def _verdict(row: pd.Series, baseline: pd.Series) -> str:
    """Whether a row of ``summary`` is better than the baseline's, by value and intervals."""
    lower = metrics.describe(row["metric"]).lower_is_better
    better, worse = (baseline, row) if lower else (row, baseline)
    verdict = "better, within the uncertainty" if better["value"] > worse["value"] else "not better"
    verdict = "clearly better" if better["low"] > worse["high"] else verdict
    if row["folds"] != baseline["folds"]:
        verdict += f" (mean of {row['folds']} of its {baseline['folds']} folds)"
    return f"{label_of(row['pipeline'])} {written(row)}, {verdict}"


def above_the_baseline(results: Frame, task: str, metric: str, protocol: str = "grouped") -> str:
    """Is each network (and average) better than the best baseline without one? One sentence."""
    table = summary(results).query("task == @task and metric == @metric and protocol == @protocol")
    baseline = best_baseline(table, task, metric, protocol)
    rows = table[~is_reference(table["pipeline"])].dropna(subset="value")
    title, label = datasets.get(task).title, splits.PROTOCOLS[protocol].label
    place = f"{title}, {metrics.label_of(metric)}, {label}"
    if baseline is None or rows.empty:
        return f"**{place}:** no network was run beside a baseline without one."
    verdicts = "; ".join(_verdict(row, baseline) for _, row in rows.iterrows())
    return (
        f"**{place}:** the best baseline without a network ({label_of(baseline['pipeline'])}) has "
        f"{written(baseline)}; against it: {verdicts}. Clearly: the 95 % intervals do not meet; "
        f"they are of resampled groups of {baseline['n_test']} test images, each network trained "
        "once."
    )


def without_leakage(results: Frame, task: str, pipeline: str, metric: str = "accuracy") -> str:
    """What remains of a published number where no image of a test image's group was in training."""
    rows = summary(results).query("task == @task and pipeline == @pipeline and metric == @metric")
    rows, paper = rows.set_index("protocol"), rows["paper"].max()
    text = f"**{datasets.get(task).title}, {label_of(pipeline)}, {metrics.label_of(metric)}:**"
    if not {"paper", "grouped"} <= set(rows.index):
        return f"{text} only one protocol was run: nothing can be said about leakage."
    random, grouped = rows.loc["paper"], rows.loc["grouped"]
    text += f" {written(random)} on random images, {written(grouped)} where no image of the group"
    text += " of a test image was in training (95 % of resamples of groups; trained once)."
    if np.isnan(paper):
        return text
    better = (grouped["value"] > paper) != metrics.describe(metric).lower_is_better
    verdict = "exceeded" if better else "not reached"
    if grouped["low"] <= paper <= grouped["high"]:
        verdict = "inside that interval"
    return f"{text} The published {paper:g} is {verdict} without leakage."


def original_classes(predictions: Frame, n_boot: int = 1000, seed: int = 0) -> Frame:
    """Classes of the folders (from the ids), folds pooled: cells, groups, how they are called.

    Columnar normals are small, dark and easily taken for carcinoma in situ: five grades hide them.
    """
    pooled = pd.concat(metrics.by_fold(predictions).values(), ignore_index=True)
    weights = metrics.with_resamples(pooled["group"], n_boot, seed)
    called, original = metrics.predicted_class(pooled), pooled["id"].str.partition("/")[0]
    answers = {"right grade": called == metrics.true_class(pooled), "called abnormal": called != 0}
    answers["called carcinoma in situ"] = called == len(metrics.class_columns(pooled)) - 1
    rows = {}
    for name in datasets.get(pooled["task"].iloc[0]).originals:
        inside = (original == name).to_numpy()
        rows[name] = {"cells": inside.sum(), "groups": pooled.loc[inside, "group"].nunique()}
        for answer, given in answers.items():
            drawn = metrics.ratio(weights @ (given & inside), weights @ inside)
            rows[name][answer] = written(metrics.interval(drawn))
    return pd.DataFrame(rows).T.query("cells > 0").rename_axis("class")
