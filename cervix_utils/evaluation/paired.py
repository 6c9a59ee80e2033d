"""Two pipelines, or two protocols, on the same images: how far apart, could chance have done it."""

import numpy as np
import pandas as pd
from scipy import stats

from cervix_utils.evaluation import metrics
from cervix_utils.evaluation.metrics import Frame


def folds_in_common(first: Frame, second: Frame) -> list[dict[int, Frame]]:
    """Fold -> test rows on both sides, of the folds that both have. ValueError where none is."""
    sides = [metrics.by_fold(side) for side in (first, second)]
    shared = [fold for fold in sides[0] if fold in sides[1]]
    if not shared:
        a, b = (", ".join(map(str, side)) for side in sides)
        raise ValueError(f"no fold in common: {a} on one side, {b} on the other")
    return [{fold: side[fold] for fold in shared} for side in sides]


def difference(
    first: Frame, second: Frame, n_boot=1000, seed=0, names=metrics.METRICS, test_share=np.nan
) -> Frame:
    """metric, first, second, difference (second - first), low, high, dropped: means over folds.

    ``first``, ``second``: predictions of one pipeline and protocol each. Groups of both are
    resampled together: paired where the images are the same, and right for the groups in common
    where they are not. See ``folds_in_common`` and ``metrics.interval``. Further columns: t_low,
    t_high, t_p (``corrected_t`` over folds, NaN without ``test_share``); folds, groups (numbers).
    """
    sides = folds_in_common(first, second)
    parts = [rows for side in sides for rows in side.values()]
    drawn, n, lines = metrics.measure_together(parts, n_boot, seed, names), len(sides[0]), []
    for name in [name for name in drawn[0] if name in drawn[-1]]:
        a, b = np.split(np.array([fold[name] for fold in drawn]), 2)  # (n_folds, 1 + n_boot)
        low, high, p = corrected_t(b[:, 0] - a[:, 0], test_share)
        line = {"metric": name, "first": a[:, 0].mean(), "second": b[:, 0].mean()}
        line |= metrics.interval(b.mean(axis=0) - a.mean(axis=0))
        lines.append(line | {"t_low": low, "t_high": high, "t_p": p})
    groups = pd.concat(sides[0].values())["group"].nunique()
    table = pd.DataFrame(lines).rename(columns={"value": "difference"})
    return table.assign(folds=n, groups=groups)


def corrected_t(differences: np.ndarray, test_share: float) -> tuple[float, float, float]:
    """(low, high, p) of the mean of fold-wise ``differences`` (n_folds,); NaN for a single fold.

    Corrected for training parts that overlap: the variance is multiplied by 1/n + n_test/n_train
    (Nadeau and Bengio 2003, section 3); ``test_share`` is n_test / (n_test + n_train).
    """
    n = len(differences)
    if n < 2:
        return np.nan, np.nan, np.nan
    spread = np.sqrt(np.var(differences, ddof=1) * (1 / n + test_share / (1 - test_share)))
    mean, width = np.mean(differences), stats.t.ppf(0.975, n - 1) * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean - width, mean + width, float(2 * stats.t.sf(abs(mean / spread), n - 1))


def sentence(row: pd.Series, first: str, second: str) -> str:
    """What a row of ``difference`` allows to say of two pipelines, and what its interval covers.

    A column ``trained`` takes the place of "each network trained once".
    """
    omitted = f", {row['dropped']:g} of them left out" if row["dropped"] else ""
    text = (
        f"{metrics.label_of(row['metric'])} goes from {row['first']:.3f} ({first}) to "
        f"{row['second']:.3f} ({second}), by {row['difference']:+.3f} ({row['low']:+.3f} to "
        f"{row['high']:+.3f} in 95 % of resamples of {row['groups']} groups of test images"
        f"{omitted})"
    )
    if not (row["low"] > 0 or row["high"] < 0):
        return f"{text}: **no difference can be concluded** from these images."
    lower = metrics.describe(row["metric"]).lower_is_better
    winner = second if (row["difference"] < 0) == lower else first
    doubts = ", though the t-test over folds would not say so (p > 0.05)"
    doubts = doubts if row["t_p"] > 0.05 else ""
    trained = row.get("trained", "each network trained once")
    return f"{text}: **{winner} is better** on them, {trained}{doubts}."
