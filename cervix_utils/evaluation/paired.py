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


def difference(first: Frame, second: Frame, n_boot=1000, seed=0, names=metrics.METRICS) -> Frame:
    """metric, first, second, difference (second - first), low, high, dropped: means over folds.

    ``first``, ``second``: predictions of one pipeline and protocol each. Groups of both are
    resampled together: paired where the images are the same, and right for the groups in common
    where they are not. See ``folds_in_common`` and ``metrics.interval``.
    """
    sides = folds_in_common(first, second)
    parts = [rows for side in sides for rows in side.values()]
    drawn, n, lines = metrics.measure_together(parts, n_boot, seed, names), len(sides[0]), []
    for name in [name for name in drawn[0] if name in drawn[-1]]:
        values = [fold[name] for fold in drawn]
        a, b = np.mean(values[:n], axis=0), np.mean(values[n:], axis=0)
        lines.append({"metric": name, "first": a[0], "second": b[0], **metrics.interval(b - a)})
    return pd.DataFrame(lines).rename(columns={"value": "difference"})


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


def compare(
    first: Frame, second: Frame, names: list, test_share: float, n_boot: int, seed: int
) -> Frame:
    """``difference`` of the metrics ``names`` that both have, with a test beside the interval.

    Further columns: folds, groups (numbers of them), t_low, t_high, t_p (``corrected_t`` over
    folds).
    """
    table, sides = difference(first, second, n_boot, seed), folds_in_common(first, second)
    table = table.set_index("metric").reindex(names).dropna(how="all")
    a, b = (pd.DataFrame([metrics.measure(rows) for rows in side.values()]) for side in sides)
    t = [corrected_t(np.concatenate(list(b[name] - a[name])), test_share) for name in table.index]
    table[["t_low", "t_high", "t_p"]] = t
    groups = pd.concat(sides[0].values())["group"].nunique()
    return table.assign(folds=len(a), groups=groups).reset_index()


def sentence(row: pd.Series, first: str, second: str) -> str:
    """What a row of ``compare`` allows to say of two pipelines, and what its interval covers."""
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
    return f"{text}: **{winner} is better** on them, each network trained once{doubts}."
