"""Attribution inside masks: shares (paper H, equations 1 and 2), localisation, their medians with intervals, trends."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cervix_utils import weighted
from cervix_utils.images import BACKGROUND, CYTOPLASM, NUCLEUS

REGIONS = {"nucleus": [NUCLEUS], "cytoplasm": [CYTOPLASM], "background": [BACKGROUND], "unknown": [0, 1]}
FORMS = {"signed": lambda maps: maps, "absolute": np.abs, "positive": lambda maps: np.maximum(maps, 0)}


def mask_shares(maps: np.ndarray, masks: np.ndarray, form: str = "signed", least: float = 1e-3) -> pd.DataFrame:
    """Share of each image's attribution in each region (paper H, equations 1 and 2), beside the share of its area.

    maps: float (n, s, s); masks: palette indices (n, s, s). ``form``: ``signed`` (paper), ``absolute`` or
    ``positive``. Columns: at_<region>, area_<region> (both sum to 1), per_area_<region> (their quotient), log_ratio
    (of nucleus to cytoplasm; NaN where one of them is not positive), usable (False where |total| < ``least`` * sum
    |map|: signed shares explode there). Raises ValueError where maps and masks differ in shape.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps have shape {maps.shape}, masks {masks.shape}: bring both to the same size")
    values = FORMS[form](maps).astype(float)
    total, size = values.sum(axis=(1, 2)), np.abs(values).sum(axis=(1, 2))
    table = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for region, codes in REGIONS.items():
            inside = np.isin(masks, codes)
            table[f"at_{region}"] = (values * inside).sum(axis=(1, 2)) / total
            table[f"area_{region}"] = inside.mean(axis=(1, 2))
            table[f"per_area_{region}"] = table[f"at_{region}"] / table[f"area_{region}"]
        both = (table["at_nucleus"] > 0) & (table["at_cytoplasm"] > 0)
        table["log_ratio"] = np.where(both, np.log(table["at_nucleus"] / table["at_cytoplasm"]), np.nan)
    return pd.DataFrame(table).assign(usable=(np.abs(total) >= least * size) & (size > 0))


def localisation(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """How well the positive part of a map finds the nucleus; for a map that knows nothing each is about ``chance``.

    Columns, 0..1: mass (share of positive relevance in the nucleus) and rank (share of the K largest pixels in it, K
    its size; both after Arras et al. 2022), pointing (1 where the largest pixel lies in it, Zhang et al. 2018), chance
    (its area share). NaN where an image has no nucleus; mass also where nothing is positive. Equal pixels share.
    """
    rows = []
    for values, inside in zip(maps.reshape(len(maps), -1), (masks == NUCLEUS).reshape(len(masks), -1)):
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


def shares(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """One row an image: ``mask_shares`` in the three forms (columns <form>_at_<region>, ...), area_<region>,
    ``localisation``. Columns that only repeat the areas are left out."""
    tables = [mask_shares(maps, masks, form) for form in FORMS]
    area = tables[0][[f"area_{region}" for region in REGIONS]]
    own = [table.drop(columns=list(area)).add_prefix(f"{form}_") for form, table in zip(FORMS, tables)]
    return pd.concat([*own, area, localisation(maps, masks)], axis=1)


def medians(
    table: pd.DataFrame, column: str, by: str, order: Sequence[str], n_boot: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Median of ``column`` for each class of column ``by``: n, missing, value, low, high, q25, q75; one row a class.

    95 % intervals from resampling whole groups (column ``group``); a class of one group has none (NaN). Values that are
    not finite count as missing.
    """
    weights = weighted.group_weights(table["group"], n_boot, seed)
    rows = []
    for name in order:
        inside = (table[by] == name).to_numpy()
        known = inside & np.isfinite(table[column].to_numpy(dtype=float))
        values = table.loc[known, column].to_numpy(dtype=float)
        row = {by: name, "n": int(known.sum()), "missing": int((inside & ~known).sum())}
        if len(values):
            several = table.loc[known, "group"].nunique() > 1
            low, high = weighted.limits(weighted.median(values, weights[:, known])) if several else (np.nan, np.nan)
            row |= {"value": np.median(values), "low": low, "high": high}
            row |= {"q25": np.quantile(values, 0.25), "q75": np.quantile(values, 0.75)}
        rows.append(row)
    return pd.DataFrame(rows, columns=[by, "n", "missing", "value", "low", "high", "q25", "q75"]).set_index(by)


def means(each: Mapping[str, pd.DataFrame], groups: pd.Series, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean of every measure for each method, with 95 % intervals over resampled ``groups``.

    ``each``: method -> one row an image, one column a measure. Rows: methods; columns: (measure, value | low | high),
    NaN where a method lacks a measure.
    """
    weights, rows = weighted.group_weights(groups, n_boot, seed), {}
    for method, table in each.items():
        rows[method] = {}
        for measure, values in table.astype(float).items():
            known = np.isfinite(values.to_numpy())
            value = values[known].mean() if known.any() else np.nan
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn = weights[:, known] @ values.to_numpy()[known] / weights[:, known].sum(axis=1)
            found = [value, *weighted.limits(drawn)]
            rows[method] |= {(measure, name): number for name, number in zip(("value", "low", "high"), found)}
    return pd.DataFrame.from_dict(rows, orient="index")


def trend(table: pd.DataFrame, column: str, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Spearman correlation of ``column`` with ``severity``, as it is and with ``area_nucleus`` held constant.

    Rows ``spearman``, ``area held constant``; columns n, value, low, high (95 %, whole groups resampled). NaN where a
    side is constant.
    """
    known = table[np.isfinite(table[column].astype(float))]
    ones, weights = np.ones((1, len(known))), weighted.group_weights(known["group"], n_boot, seed)
    x, y, area = (known[name].to_numpy(dtype=float) for name in (column, "severity", "area_nucleus"))
    rows = {
        "spearman": lambda w: weighted.spearman(x, y, w),
        "area held constant": lambda w: weighted.partial_spearman(x, y, area, w),
    }
    found = {name: [len(known), float(f(ones)[0]), *weighted.limits(f(weights))] for name, f in rows.items()}
    return pd.DataFrame.from_dict(found, orient="index", columns=["n", "value", "low", "high"])


def rise(
    table: pd.DataFrame, column: str, other: pd.DataFrame | None = None, n_boot: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """(value, low, high): median of ``column`` at the highest severity of ``table`` over that at the lowest.

    With ``other``, a table of the same images (column ``id``): that quotient over the quotient of ``other``, resampled
    together, 1 where both rise alike. Quotients of medians that are not both positive are NaN, and so are the limits
    where either severity has a single group.
    """
    tables = [table] if other is None else [table, other[other["id"].isin(table["id"])]]
    groups = pd.concat(tables)["group"].drop_duplicates().reset_index(drop=True)
    drawn = np.vstack([np.ones(len(groups)), weighted.group_weights(groups, n_boot, seed)])
    quotients, several = [], True
    for one in tables:
        ends = []
        for severity in (table["severity"].max(), table["severity"].min()):
            rows = one[(one["severity"] == severity) & np.isfinite(one[column].astype(float))]
            weights = drawn[:, pd.Index(groups).get_indexer(rows["group"])]
            several &= rows["group"].nunique() > 1
            ends.append(weighted.median(rows[column].to_numpy(dtype=float), weights) if len(rows) else np.nan)
        high, low = ends
        with np.errstate(invalid="ignore", divide="ignore"):
            quotients.append(np.where((np.asarray(high) > 0) & (np.asarray(low) > 0), high / low, np.nan))
    found = np.broadcast_to(quotients[0] / (quotients[1] if other is not None else 1), len(drawn))
    return (float(found[0]), *(map(float, weighted.limits(found[1:])) if several else (np.nan, np.nan)))


def rises(
    table: pd.DataFrame, nulls: Mapping[str, pd.DataFrame], column: str, n_boot: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How much the share of the nucleus rises from the lowest to the highest severity, beside maps that know nothing.

    One row for the network (``table``) and each of ``nulls``: value, low, high (``rise`` of ``column``), and
    beyond, beyond_low, beyond_high: the network's rise over the null's on the images that both have, 1 where alike.
    ``uniform`` among the nulls is the rise of the area.
    """
    rows = {"network": [*rise(table, column, None, n_boot, seed), *[np.nan] * 3]}
    for name, other in nulls.items():
        own, same = table[table["id"].isin(other["id"])], other[other["id"].isin(table["id"])]
        rows[name] = [*rise(same, column, None, n_boot, seed), *rise(own, column, same, n_boot, seed)]
    columns = ["value", "low", "high", "beyond", "beyond_low", "beyond_high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def verdict(found: pd.DataFrame) -> str:
    """``rises`` as a sentence: does paper H's claim of section 4 survive area and the other nulls in this sample?"""
    network, nulls = found.loc["network"], found.drop(index="network")
    if np.isnan(network["value"]):
        return "**No verdict**: no cell of the lowest or of the highest severity has a usable share."
    beyond = nulls["beyond_low"] > 1
    passed, failed = (", ".join(nulls.index[rows]) or "none" for rows in (beyond, ~beyond))
    interval = f"95 % interval {network['low']:.2f} to {network['high']:.2f}"
    if np.isnan(network["low"]):
        interval = "no interval: a severity has a single group of cells"
    text = (
        f"The nucleus's share in carcinoma in situ is {network['value']:.2f} times that in normal cells "
        f"({interval}; paper H: 2). "
    )
    if beyond.all() and network["low"] > 1:
        return text + f"**The claim survives here**: it rises more than each null does ({passed})."
    short = "itself is not clearly above 1"
    if not beyond.all():
        short = f"is not clearly beyond that of {failed} (clearly beyond: {passed})"
    return text + f"**The claim does not survive here**: the rise {short}."
