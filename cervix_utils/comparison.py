"""results.csv -> the papers' numbers beside ours, what leakage is worth, and sentences that say what follows."""

import pandas as pd

HEADLINE = ["accuracy", "f1_macro", "log_loss", "auc_mean", "mse", "binary_accuracy", "binary_f1", "kappa_quadratic"]


def beside_published(results: pd.DataFrame) -> pd.DataFrame:
    """One row a published number and protocol: task, pipeline, metric, published, protocol, value, low, high, folds.

    Over several folds ``value`` is the mean; ``low`` and ``high`` are the widest limits of the folds' 95 % intervals.
    """
    rows = results.rename(columns={"paper": "published"}).dropna(subset="published")
    keys = ["task", "pipeline", "metric", "published", "protocol"]
    found = rows.groupby(keys, as_index=False).agg(
        value=("value", "mean"), low=("low", "min"), high=("high", "max"), folds=("fold", "size")
    )
    return found.sort_values(keys, ignore_index=True)


def side_by_side(beside: pd.DataFrame) -> pd.DataFrame:
    """``beside_published`` as a table to read: one row a number, one column a protocol, 'value (low to high)'."""
    text = [f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in beside.itertuples()]
    keys = ["task", "pipeline", "metric", "published"]
    wide = beside.assign(ours=text).pivot(index=keys, columns="protocol", values="ours").fillna("not run")
    return wide[sorted(wide, reverse=True, key=lambda name: name == "paper")].rename_axis(columns=None).reset_index()


def leakage(results: pd.DataFrame) -> pd.DataFrame:
    """Headline metrics by protocol (means over folds), and ``difference``: paper minus grouped; empty if only one ran."""
    rows = results[results["metric"].isin(HEADLINE)]
    wide = rows.pivot_table(index=["task", "pipeline", "metric"], columns="protocol", values="value", aggfunc="mean")
    if not {"paper", "grouped"} <= set(wide):
        return pd.DataFrame(columns=["difference"])
    return wide.assign(difference=wide["paper"] - wide["grouped"]).rename_axis(columns=None)


def does_the_constraint_help(results: pd.DataFrame) -> list[str]:
    """Paper H's question, one sentence a protocol: classification against classification + regression."""
    rows = results[(results["task"] == "herlev") & results["metric"].isin(["accuracy", "mse"])]
    means = rows.groupby(["protocol", "pipeline", "metric"]).agg({"value": "mean", "low": "min", "high": "max"})
    sentences = []
    for protocol in sorted(rows["protocol"].unique(), reverse=True):
        if not {(protocol, "classification", "mse"), (protocol, "combined", "mse")} <= set(means.index):
            continue
        plain, both = (means.loc[(protocol, name, "accuracy")] for name in ("classification", "combined"))
        mse = [means.loc[(protocol, name, "mse"), "value"] for name in ("classification", "combined")]
        apart = both["low"] > plain["high"] or plain["low"] > both["high"]
        sentences.append(
            f"**{protocol} protocol:** with the regression constraint accuracy goes from {plain['value']:.3f} to "
            f"{both['value']:.3f} and the squared error of the score from {mse[0]:.2f} to {mse[1]:.2f}; the intervals of "
            f"accuracy {'do not overlap' if apart else 'overlap, so this run shows no difference in accuracy'}."
        )
    return sentences


def what_is_left(results: pd.DataFrame) -> list[str]:
    """What remains of each task's accuracy when no relative of a test image is in training, one sentence a task."""
    gap = leakage(results)
    if gap.empty:
        return ["Only one protocol was run: nothing can be said about leakage."]
    accuracy = gap.xs("accuracy", level="metric").groupby("task").mean()
    return [
        f"**{task}:** mean accuracy over the pipelines is {row.paper:.3f} on random images and {row.grouped:.3f} where no "
        f"relative of a test image was seen in training."
        for task, row in accuracy.iterrows()
    ]
