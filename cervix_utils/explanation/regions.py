"""Attribution inside masks: shares (paper H, equations 1 and 2), and what they say of many images.

Functions over many images take the table of ``maps.table``. Their 95 % intervals come from whole
groups of its images drawn anew; ``dropped`` counts the draws that have no value.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cervix_utils.data.images import BACKGROUND, CYTOPLASM, NUCLEUS
from cervix_utils.evaluation import metrics

# unknown: seams and rim, images without a mask
REGIONS = dict(nucleus=NUCLEUS, cytoplasm=CYTOPLASM, background=BACKGROUND, unknown=[0, 1])
LEAST = 1e-3  # signed shares explode where |sum of map| is below this part of the sum of |map|
FITS = {True: "compatible", False: "not compatible"}
BESIDE = ["more than that of", "less than that of", "not distinguishable from that of"]


def shares(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """Share of attribution in each region (paper H, equations 1 and 2), one row an image.

    maps: float (n, s, s); masks: palette indices (n, s, s). Columns area_<region>; for each form
    (signed as in the paper, absolute, positive) <form>_at_<region> (these sum to 1, as areas do),
    <form>_per_area_<region> (their quotient), <form>_log_ratio (of nucleus to cytoplasm; NaN where
    one is not positive), <form>_usable (False where the total is near 0, see LEAST); cancellation
    (sum of |map| over |sum of map|, 1 or more); and middle (share of what is positive in the middle
    quarter of the picture, 0.25 in an even map, NaN where nothing is).
    """
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
    table["cancellation"] = pd.Series(np.abs(maps).sum(axis=(1, 2))) / np.abs(maps.sum(axis=(1, 2)))
    positive, side = forms["positive"], maps.shape[1] // 4
    middle = pd.Series(positive[:, side:-side, side:-side].sum(axis=(1, 2)))
    table["middle"] = middle / positive.sum(axis=(1, 2))
    return table


def _resampled(table: pd.DataFrame, by: str, n_boot: int, seed: int) -> pd.DataFrame:
    """``table`` itself (column ``draw``: 0), then ``n_boot`` times whole groups of each ``by``."""
    parts = [table.iloc[:0].assign(draw=0)]
    for _, part in table.groupby(by, sort=False):
        times = metrics.with_resamples(part["group"], n_boot, seed).astype(int)
        draw, row = np.divmod(np.repeat(np.arange(times.size), times.ravel()), len(part))
        parts.append(part.iloc[row].assign(draw=draw))
    return pd.concat(parts)


def _drawn(table: pd.DataFrame, by: str, names, how: str, n_boot, seed) -> list[pd.DataFrame]:
    """``how`` (mean, median) of column ``value`` by ``by`` and ``name``: over draws, and of what.

    The second has the numbers of finite values and of their groups (columns size, nunique).
    """
    values = table["value"].astype(float)
    table = table.assign(value=values.where(np.isfinite(values)))
    index = pd.MultiIndex.from_product([table[by].unique(), names], names=[by, "name"])
    values = _resampled(table, by, n_boot, seed).groupby([by, "name", "draw"])["value"].agg(how)
    counts = table.dropna(subset="value").groupby([by, "name"])["group"].agg(["size", "nunique"])
    return [values.unstack().reindex(index), counts.reindex(index, fill_value=0)]


def _intervals(drawn: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """n, value, low, high, dropped of rows over draws; a single group has no limits."""
    rows = [metrics.interval(row) for row in drawn.to_numpy()]
    table = pd.DataFrame(rows, drawn.index, ["value", "low", "high", "dropped"])
    table.loc[counts["nunique"] == 1, ["low", "high"]] = np.nan
    table.insert(0, "n", counts["size"])
    return table


def medians(table: pd.DataFrame, column: str, by="label", n_boot=1000, seed=0) -> pd.DataFrame:
    """Median of ``column`` by network and class (column ``by``, in order of severity).

    Columns: n (finite values), value, low, high (NaN where a class is of one group), dropped.
    """
    names = table.sort_values("severity", kind="stable")[by].unique()
    values = table[["network", "group"]].assign(name=table[by], value=table[column])
    return _intervals(*_drawn(values, "network", names, "median", n_boot, seed))


def means(table: pd.DataFrame, measures: Sequence[str], n_boot=1000, seed=0) -> pd.DataFrame:
    """Mean of each of the columns ``measures`` by map (column ``title``).

    Columns: n (finite values), value, low, high, dropped.
    """
    values = table.melt(["title", "group"], measures, "name", "value")
    return _intervals(*_drawn(values, "title", measures, "mean", n_boot, seed))


def trends(table: pd.DataFrame, column: str, n_boot=1000, seed=0) -> pd.DataFrame:
    """Spearman correlation of ``column`` with severity by network, -1..1; NaN if one is constant.

    Rows: ``plain``, and with the nucleus's ``area held constant``. Columns: n, value, low, high,
    dropped.
    """
    sides = [column, "severity", "area_nucleus"]
    table = table.loc[np.isfinite(table[column]), ["network", "group", *sides]]
    drawn, names = {}, ["plain", "area held constant"]
    for network, rows in _resampled(table, "network", n_boot, seed).groupby("network"):
        r = rows.groupby("draw")[sides].corr("spearman").unstack()
        xy, xz, yz = (r[pair] for pair in itertools.combinations(sides, 2))
        partial = (xy - xz * yz) / np.sqrt(((1 - xz**2) * (1 - yz**2)).clip(lower=0))
        drawn[network, names[0]] = xy
        drawn[network, names[1]] = partial.replace([np.inf, -np.inf], np.nan)
    counts = table.groupby("network", sort=False)["group"].agg(["size", "nunique"])
    index = pd.MultiIndex.from_product([counts.index, names], names=["network", "name"])
    return _intervals(pd.DataFrame(drawn, columns=index).T, counts.reindex(index, level="network"))


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
    trained = table[table["network"] == "trained"].set_index("id")[column]
    table = table[table["id"].isin(trained.index)]
    severity, how = table["severity"], ("network", ["low", "high"], "median", n_boot, seed)
    lowest, highest = (severity.groupby(table["network"]).transform(x) for x in ("min", "max"))
    name = np.select([severity == lowest, severity == highest], ["low", "high"], "between")
    values = table[["network", "group"]].assign(name=name, value=table[column])
    drawn, counts = _drawn(values, *how)
    counts = counts.groupby("network", sort=False).agg({"size": "sum", "nunique": "min"})
    known, _ = _drawn(values.assign(value=table["id"].map(trained)), *how)
    drawn = {"rise": _quotient(drawn), "beyond": _quotient(known) / _quotient(drawn)}
    index = pd.MultiIndex.from_product([counts.index, drawn], names=["network", "name"])
    drawn = pd.concat(drawn).swaplevel().reindex(index)
    return _intervals(drawn, counts.reindex(index, level="network"))


def _quotient(drawn: pd.DataFrame) -> pd.DataFrame:
    """Rows ``high`` over rows ``low`` by network; NaN where one is not positive."""
    high, low = (drawn.query("name == @end").droplevel("name") for end in ("high", "low"))
    return high.where(high > 0) / low.where(low > 0)


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
    claim += f" for this one network: **{FITS[low <= 2 <= high]} with the paper's 2,"
    claim += f" {FITS[low <= 1 <= high]} with 1 (no rise)**."
    beyond = rises.xs("beyond", level="name").drop("trained")
    kinds = np.select([beyond["low"] > 1, beyond["high"] < 1], BESIDE[:2], BESIDE[2])
    said = [f"{x} {', '.join(beyond.index[kinds == x])}" for x in BESIDE if x in kinds]
    return f"{claim} On the same cells the rise is {'; '.join(said)}."
