"""Results -> the papers' numbers beside ours, what leakage is worth, and what follows.

``results`` is a table as ``metrics.results`` makes it, ``predictions`` one of one task.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cervix_utils.data import datasets, splits
from cervix_utils.evaluation import metrics
from cervix_utils.evaluation.baselines import BASELINE, label_of
from cervix_utils.evaluation.metrics import KEYS, Frame, written

HEADLINE = ["accuracy", "f1_macro", "log_loss", "auc_mean", "mse"]
HEADLINE += ["binary_accuracy", "binary_f1", "kappa_quadratic"]
NUMBER = ["task", "pipeline", "metric"]
BEST = "best without a network, grouped"


def summary(results: Frame) -> Frame:
    """One row a number: KEYS, metric, value, low, high, paper, folds, n_test and text ('value (low
    to high)'); means over folds."""
    keys, single = [*KEYS, "metric"], ~results["fold"].isin(["mean", "pooled"])
    folds = results[single].groupby(keys, as_index=False).agg(folds=("fold", "size"))
    rows = pd.concat([results[results["fold"] == "mean"], results[single]])
    rows = rows.drop_duplicates(keys).drop(columns="fold")  # one fold alone has no mean
    rows = rows.merge(folds, on=keys).sort_values(keys, ignore_index=True)
    return rows.assign(text=[written(row) for row in rows.to_dict("records")])


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


def side_by_side(results: Frame, asked: Sequence[tuple[str, str, str]]) -> Frame:
    """One row a number of ``asked`` (task, pipeline, metric) that was measured, in that order.

    Columns: NUMBER, folds ('1 to 4' where protocols differ), published, one a protocol ('value (low
    to high)'), BEST.
    """
    table = summary(results)
    wide = table.pivot(index=NUMBER, columns="protocol", values="text").fillna("not run")
    wide = wide.loc[[number for number in dict.fromkeys(asked) if number in wide.index]]
    wide = wide[[name for name in splits.PROTOCOLS if name in wide]].rename_axis(columns=None)
    numbers = table.groupby(NUMBER)
    wide.insert(0, "folds", numbers["folds"].agg(lambda n: " to ".join(map(str, sorted({*n})))))
    wide.insert(1, "published", numbers["paper"].max().map("{:g}".format).replace("nan", "–"))
    best = [best_baseline(table, task, metric, "grouped") for task, _, metric in wide.index]
    texts = ["–" if row is None else f"{row['text']} {label_of(row['pipeline'])}" for row in best]
    return wide.assign(**{BEST: texts}).reset_index()


def at_a_glance(results: Frame, metric: str) -> Frame:
    """``summary`` of the networks in one metric, with rows for what was published and for the
    best without a network: protocol ``published`` and ``best``."""
    table = summary(results).query("metric == @metric")
    rows = table[~table["pipeline"].str.contains(f"^{BASELINE}|_without_|^average")]
    each = rows.drop_duplicates(["task", "pipeline"])
    stated = each.assign(protocol="published", value=each["paper"], low=np.nan, high=np.nan)
    best = [best_baseline(table, task, metric, "grouped") for task in rows["task"].unique()]
    best = pd.DataFrame([row for row in best if row is not None], columns=table.columns)
    best = best.assign(protocol="best").drop(columns="pipeline").merge(each[["task", "pipeline"]])
    return pd.concat([stated.dropna(subset="value"), rows, best], ignore_index=True)


def with_intervals(results: Frame, names: list[str], pipelines: Sequence[str]) -> Frame:
    """One row a pipeline and protocol, one column a metric of ``names``: 'value (low to high)'."""
    rows = summary(results)
    rows = rows[rows["metric"].isin(names) & rows["pipeline"].isin(pipelines)]
    wide = rows.pivot(index=["pipeline", "protocol"], columns="metric", values="text")
    return wide.reindex(columns=names).dropna(axis=1, how="all").fillna("–")


def networks(predictions: Frame) -> list[str]:
    """Names of the pipelines that are networks as trained: they predict the training part too."""
    return list(predictions.loc[predictions["part"] == "train", "pipeline"].unique())


def _verdict(row: pd.Series, baseline: pd.Series) -> str:
    """Whether a row of ``summary`` is better than the baseline's, by value and intervals."""
    lower = metrics.describe(row["metric"]).lower_is_better
    better, worse = (baseline, row) if lower else (row, baseline)
    verdict = "better, within the uncertainty" if better["value"] > worse["value"] else "not better"
    verdict = "clearly better" if better["low"] > worse["high"] else verdict
    return f"{label_of(row['pipeline'])} {row['text']}, {verdict}"


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
        f"{baseline['text']}; against it: {verdicts}. Clearly: the 95 % intervals do not meet; "
        f"they are of resampled groups of {baseline['n_test']} test images, each network trained "
        "once."
    )


def without_leakage(results: Frame, task: str, pipeline: str, metric: str = "accuracy") -> str:
    """What remains of a published number where no image of a test image's group was in training."""
    rows = summary(results).query("task == @task and pipeline == @pipeline and metric == @metric")
    rows = rows.set_index("protocol")
    text = f"**{datasets.get(task).title}, {label_of(pipeline)}, {metrics.label_of(metric)}:**"
    if not {"paper", "grouped"} <= set(rows.index):
        return f"{text} only one protocol was run: nothing can be said about leakage."
    random, grouped = rows.loc["paper"], rows.loc["grouped"]
    text += f" {random['text']} on random images, {grouped['text']} where no image of the group"
    text += " of a test image was in training (95 % of resamples of groups; trained once)."
    if np.isnan(paper := grouped["paper"]):
        return text
    better = (grouped["value"] > paper) != metrics.describe(metric).lower_is_better
    verdict = "exceeded" if better else "not reached"
    if grouped["low"] <= paper <= grouped["high"]:
        verdict = "inside that interval"
    return f"{text} The published {paper:g} is {verdict} without leakage."
