"""Attribution inside masks: shares (paper H, equations 1 and 2), and what they say of many images.

Functions over many images take the table of ``maps.table``. Their 95 % intervals come from whole
groups of its images drawn anew; ``dropped`` counts the draws that have no value.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from cervix_utils.data.images import BACKGROUND, CYTOPLASM, NUCLEUS
from cervix_utils.evaluation import metrics

# unknown: seams and rim, images without a mask
REGIONS = dict(nucleus=NUCLEUS, cytoplasm=CYTOPLASM, background=BACKGROUND, unknown=[0, 1])
LEAST = 1e-3  # signed shares explode where |sum of map| is below this part of the sum of |map|
ALLOWED = {  # whether an interval holds the paper's 2, and 1
    (True, True): "compatible with the paper's 2, and with 1 (no rise)",
    (True, False): "compatible with the paper's 2, not with 1 (no rise)",
    (False, True): "compatible with 1 (no rise), not with the paper's 2",
    (False, False): "compatible neither with the paper's 2 nor with 1 (no rise)",
}
BESIDE = ["more than that of", "less than that of", "not distinguishable from that of"]


def shares(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """Share of attribution in each region (paper H, equations 1 and 2), one row an image.

    maps: float (n, s, s); masks: palette indices (n, s, s). Columns area_<region>; for each form
    (signed as in the paper, absolute, positive) <form>_at_<region> (these sum to 1, as areas do),
    <form>_per_area_<region> (their quotient), <form>_log_ratio (of nucleus to cytoplasm; NaN where
    one is not positive), <form>_usable (False where the total is near 0, see LEAST); cancellation
    (sum of |map| over |sum of map|, 1 or more); middle (share of what is positive in the middle
    quarter of the picture, 0.25 in an even map, NaN where nothing is); and ``localisation``.
    Raises ValueError where maps and masks differ in shape.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape}, masks {masks.shape}: bring both to the same size")
    forms = {"signed": maps, "absolute": np.abs(maps), "positive": np.maximum(maps, 0)}
    inside = {region: np.isin(masks, codes) for region, codes in REGIONS.items()}
    table = pd.DataFrame({f"area_{name}": mask.mean(axis=(1, 2)) for name, mask in inside.items()})
    for form, values in forms.items():
        values = values.astype(float)
        total, size = (pd.Series(part.sum(axis=(1, 2))) for part in (values, np.abs(values)))
        for region, mask in inside.items():
            share = (values * mask).sum(axis=(1, 2)) / total
            table[f"{form}_at_{region}"] = share
            table[f"{form}_per_area_{region}"] = share / table[f"area_{region}"]
        nucleus, cytoplasm = table[f"{form}_at_nucleus"], table[f"{form}_at_cytoplasm"]
        table[f"{form}_log_ratio"] = np.log(nucleus[nucleus > 0] / cytoplasm[cytoplasm > 0])
        table[f"{form}_usable"] = (total.abs() >= LEAST * size) & (size > 0)
    size = pd.Series(np.abs(maps).sum(axis=(1, 2)))
    table["cancellation"] = size / np.abs(maps.sum(axis=(1, 2)))
    quarter, side = forms["positive"], maps.shape[1] // 4
    quarter = quarter[:, side:-side, side:-side].sum(axis=(1, 2))
    table["middle"] = quarter / pd.Series(forms["positive"].sum(axis=(1, 2)))
    return pd.concat([table, localisation(maps, masks)], axis=1)


def localisation(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """How well the positive part of a map finds the nucleus; by chance each is about ``chance``.

    Columns, 0..1: mass (share of positive relevance in the nucleus) and rank (share of the K
    largest pixels in it, K its size; both after Arras et al. 2022), pointing (1 where the largest
    pixel lies in it, Zhang et al. 2018), chance (its area share). NaN where an image has no
    nucleus; mass also where nothing is positive. Equal pixels share.
    """
    rows = []
    for values, mask in zip(maps.reshape(len(maps), -1), masks.reshape(len(maps), -1)):
        inside = mask == NUCLEUS
        k, positive = inside.sum(), np.maximum(values, 0)
        if not k:
            rows.append([np.nan] * 4)
            continue
        least = np.partition(values, -k)[-k]
        above, equal = values > least, values == least
        rank = (inside[above].sum() + (k - above.sum()) * inside[equal].mean()) / k
        mass = positive[inside].sum() / positive.sum() if positive.any() else np.nan
        rows.append([mass, rank, inside[values == values.max()].mean(), inside.mean()])
    return pd.DataFrame(rows, columns=["mass", "rank", "pointing", "chance"])


def _finite(table: pd.DataFrame, column: str) -> np.ndarray:
    return np.isfinite(table[column].to_numpy(dtype=float))


def _summary(table: pd.DataFrame, by: str, statistics: Callable, n_boot, seed) -> pd.DataFrame:
    """Intervals of what ``statistics`` yields (name, n, values over resamples) for each ``by``.

    A single group has no limits.
    """
    rows = []
    for key, part in table.groupby(by, sort=False):
        weights = metrics.with_resamples(part["group"], n_boot, seed)
        limits = {"low": np.nan, "high": np.nan} if part["group"].nunique() == 1 else {}
        for name, n, drawn in statistics(part, weights):
            rows.append({by: key, "name": name, "n": n} | metrics.interval(drawn) | limits)
    columns = [by, "name", "n", "value", "low", "high", "dropped"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2])


def medians(table: pd.DataFrame, column: str, by="label", n_boot=1000, seed=0) -> pd.DataFrame:
    """Median of ``column`` by network and class (column ``by``, in order of severity).

    Columns: n (finite values), value, low, high (NaN where a class is of one group), dropped.
    """
    names = table.sort_values("severity", kind="stable")[by].unique()

    def statistics(part, weights):
        for name in names:
            yield name, *_median(part, column, part[by] == name, weights)

    return _summary(table, "network", statistics, n_boot, seed)


def _median(part, column: str, chosen: pd.Series, weights) -> tuple[int, np.ndarray]:
    """(finite values, median (1 + n_boot,) over resamples) of ``column`` in the rows ``chosen``.

    NaN of no rows, no resamples of a single group.
    """
    used = chosen.to_numpy() & _finite(part, column)
    rows, weights = part[used], weights[:, used]
    if rows.empty:
        return 0, np.full(len(weights), np.nan)
    values = metrics.median(rows[column].to_numpy(dtype=float), weights)
    if rows["group"].nunique() == 1:
        values[1:] = np.nan
    return len(rows), values


def means(table: pd.DataFrame, measures: Sequence[str], n_boot=1000, seed=0) -> pd.DataFrame:
    """Mean of each of the columns ``measures`` by map (column ``title``).

    Columns: n (finite values), value, low, high, dropped.
    """

    def statistics(part, weights):
        for measure in measures:
            rows = _finite(part, measure)
            values, counts = part.loc[rows, measure].to_numpy(dtype=float), weights[:, rows]
            yield measure, rows.sum(), metrics.ratio(counts @ values, counts.sum(axis=1))

    return _summary(table, "title", statistics, n_boot, seed)


def trends(table: pd.DataFrame, column: str, n_boot=1000, seed=0) -> pd.DataFrame:
    """Spearman correlation of ``column`` with severity by network, -1..1; NaN if one is constant.

    Rows: ``plain``, and with the nucleus's ``area held constant``. Columns: n, value, low, high,
    dropped.
    """

    def statistics(part, weights):
        x, y, area = part[[column, "severity", "area_nucleus"]].to_numpy(dtype=float).T
        yield "plain", len(part), metrics.spearman(x, y, weights)
        yield "area held constant", len(part), metrics.partial_spearman(x, y, area, weights)

    return _summary(table[_finite(table, column)], "network", statistics, n_boot, seed)


def rises(table: pd.DataFrame, column: str, n_boot=1000, seed=0) -> pd.DataFrame:
    """How much the share ``column`` rises from the lowest to the highest severity, by network.

    ``table`` holds one map an image and network, among them ``trained``, whose images alone count.
    Rows: (network, rise): the median at the highest severity over that at the lowest;
    (network, beyond): the trained network's rise over this one's on the same images, resampled
    together, 1 where alike. Columns: n (images of the two severities), value, low, high, dropped.
    NaN where a median is not positive or all are of one severity; no limits for a single group.
    Raises ValueError where a network has two maps of an image.
    """
    if table.duplicated(["network", "id"]).any():
        raise ValueError("rises compares one map an image and network: choose a method or baseline")
    trained = table[table["network"] == "trained"].set_index("id")

    def statistics(part, weights):
        n, rise = _rise(part, column, weights)
        yield "rise", n, rise
        yield "beyond", n, _rise(trained.loc[part["id"]], column, weights)[1] / rise

    shared = table[table["id"].isin(trained.index)]
    return _summary(shared, "network", statistics, n_boot, seed)


def _rise(part: pd.DataFrame, column: str, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """(images of the two severities, quotient (1 + n_boot,) of their medians)."""
    severity = part["severity"]
    n_low, low = _median(part, column, severity == severity.min(), weights)
    n_high, high = _median(part, column, severity == severity.max(), weights)
    if severity.nunique() == 1:
        return n_low, np.full(len(weights), np.nan)
    return n_low + n_high, metrics.ratio(high, np.where((low > 0) & (high > 0), low, 0))


def verdict(rises: pd.DataFrame) -> str:
    """``rises`` in sentences: what this sample allows of paper H's claim in section 4."""
    trained = rises.reindex([("trained", "rise")]).iloc[0]
    n, value, low, high = trained[["n", "value", "low", "high"]]
    if np.isnan(value):
        return "**No verdict**: no two severities have cells with a usable, positive median share."
    claim = f"The nucleus's share in carcinoma in situ is {value:.2f} times that in normal cells"
    claim += f" (n = {n:.0f} cells of the two classes; paper H: 2)."
    if np.isnan(low):
        return f"{claim} **No verdict**: a class is of a single group, so there is no interval."
    claim += f" Its 95 % interval, {low:.2f} to {high:.2f}, covers groups of cells drawn anew,"
    allowed = ALLOWED[bool(low <= 2 <= high), bool(low <= 1 <= high)]
    claim += f" for this one network: **{allowed}**."
    beyond = rises.xs("beyond", level="name").drop("trained")
    kinds = np.select([beyond["low"] > 1, beyond["high"] < 1], BESIDE[:2], BESIDE[2])
    names = {words: ", ".join(beyond.index[kinds == words]) for words in BESIDE}
    beside = "; ".join(f"{words} {names[words]}" for words in BESIDE if names[words])
    return f"{claim} On the same cells the rise is {beside}."
