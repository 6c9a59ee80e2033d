"""Two pipelines, or two protocols, on the same images: how far apart, and whether chance could have done it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from cervix_utils import metrics
from cervix_utils.weighted import group_weights, limits

Folds = Mapping[str, pd.DataFrame]  # fold -> test rows of predictions.csv


def difference(first: Folds, second: Folds, task: str, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """metric, first, second, difference (second - first), low, high; each a mean over folds, 95 % limits.

    Groups of all the tables are resampled together, so that what two tables share is drawn alike for both: paired
    where the images are the same, and right for the groups in common where they are not.
    """
    tables = [*first.values(), *second.values()]
    drawn = group_weights(pd.concat([table["group"] for table in tables]), n_boot, seed)
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])  # first the data themselves
    parts = np.split(weights, np.cumsum([len(table) for table in tables])[:-1], axis=1)
    found = [metrics.measure(table, task, own) for table, own in zip(tables, parts)]
    sides = [found[: len(first)], found[len(first) :]]
    rows = []
    for name in [name for name in found[0] if all(name in one for one in found)]:
        a, b = (np.mean([fold[name] for fold in side], axis=0) for side in sides)
        low, high = limits((b - a)[1:])
        rows.append(
            {"metric": name, "first": a[0], "second": b[0], "difference": b[0] - a[0], "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def right_and_wrong(first: Folds, second: Folds) -> np.ndarray:
    """Counts [[both right, only first], [only second, neither]] over the images of all folds.

    Raises ValueError where the two were not tested on the same images.
    """
    a, b = (
        pd.concat(
            [
                pd.Series(metrics.true_class(table) == metrics.predicted_class(table), table["id"])
                for _, table in sorted(side.items())
            ]
        ).sort_index(kind="stable")
        for side in (first, second)
    )
    if not a.index.equals(b.index):
        raise ValueError("the two were not tested on the same images: McNemar's test needs the same ones on both sides")
    return np.array([[sum(a & b), sum(a & ~b)], [sum(~a & b), sum(~a & ~b)]])


def exact_mcnemar(first: Folds, second: Folds) -> float:
    """p-value (0..1) of McNemar's exact test for equal accuracy on the same images (statsmodels)."""
    return float(mcnemar(right_and_wrong(first, second), exact=True).pvalue)


def corrected_t(differences: np.ndarray, test_share: float) -> tuple[float, float, float]:
    """(low, high, p) of the mean of fold-wise ``differences`` (n_folds,), corrected for training parts that overlap.

    The variance is multiplied by 1/n + n_test/n_train (Nadeau and Bengio 2003, section 3); ``test_share`` is
    n_test / (n_test + n_train). NaN for a single fold.
    """
    n = len(differences)
    if n < 2:
        return np.nan, np.nan, np.nan
    spread = np.sqrt(np.var(differences, ddof=1) * (1 / n + test_share / (1 - test_share)))
    mean, width = np.mean(differences), stats.t.ppf(0.975, n - 1) * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean - width, mean + width, float(2 * stats.t.sf(abs(mean / spread), n - 1))


def compare(
    first: Folds, second: Folds, task: str, names: list[str], test_share: float, n_boot: int, seed: int
) -> pd.DataFrame:
    """One row for each metric of ``names`` that both have: ``difference`` with its interval from resampled groups, over the
    ``folds`` (their number) that both have, the interval and p of the corrected t over folds, for accuracy p of exact McNemar.

    Raises ValueError where no fold is in both, or a fold was tested on other images.
    """
    shared = [fold for fold in first if fold in second]
    if not shared:
        raise ValueError(f"no fold in common: {', '.join(first)} on one side, {', '.join(second)} on the other")
    first, second = ({fold: side[fold] for fold in shared} for side in (first, second))
    table = difference(first, second, task, n_boot, seed).set_index("metric")
    table = table.loc[[name for name in names if name in table.index]]
    table["folds"] = len(shared)
    single = [[metrics.measure(side[fold], task) for side in (first, second)] for fold in shared]
    for name in table.index:
        gaps = np.array([b[name][0] - a[name][0] for a, b in single])
        table.loc[name, ["t_low", "t_high", "t_p"]] = corrected_t(gaps, test_share)
    table["mcnemar_p"] = np.nan
    if "accuracy" in table.index:
        table.loc["accuracy", "mcnemar_p"] = exact_mcnemar(first, second)
    return table.reset_index()


def sentence(row: pd.Series, first: str, second: str) -> str:
    """What one row of ``compare`` allows to say."""
    text = (
        f"{row['metric'].replace('_', ' ')} goes from {row['first']:.3f} ({first}) to {row['second']:.3f} ({second}), by "
        f"{row['difference']:+.3f} (95 % interval {row['low']:+.3f} to {row['high']:+.3f})"
    )
    if row["low"] <= 0 <= row["high"]:
        return f"{text}: **no difference can be concluded** from these cells."
    winner = second if (row["difference"] < 0) == (row["metric"] in metrics.LOWER_IS_BETTER) else first
    doubts = [
        name for name, p in (("McNemar's test", row["mcnemar_p"]), ("the t-test over folds", row["t_p"])) if p > 0.05
    ]
    return f"{text}: **{winner} is better**" + (
        f", though {' and '.join(doubts)} would not say so (p > 0.05)." if doubts else "."
    )
