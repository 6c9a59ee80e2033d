"""Attribution inside masks, against slow twins and at the limits; medians, rises, a verdict."""

import itertools

import naive
import numpy as np
import pandas as pd
import pytest

from cervix_utils.evaluation import metrics
from cervix_utils.explanation import regions

REGIONS = ["nucleus", "cytoplasm", "background", "unknown"]
FORMS = {"signed": lambda x: x, "absolute": np.abs, "positive": lambda x: np.where(x > 0, x, 0)}
LIMITS = ["value", "low", "high"]


def random_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1, (4, 7, 7)), rng.integers(0, 5, (4, 7, 7))


# Shares


@pytest.mark.parametrize(("form", "seed"), itertools.product(FORMS, range(3)))
def test_shares_equal_the_double_loop_and_sum_to_one(form, seed):
    maps, masks = random_maps(seed)
    table = regions.shares(maps, masks)
    for row, (values, mask) in enumerate(zip(maps, masks)):
        slow = naive.mask_shares(FORMS[form](values), mask)
        for region in REGIONS:
            at, area = slow[f"at_{region}"], slow[f"area_{region}"]
            assert table.loc[row, f"{form}_at_{region}"] == pytest.approx(at, abs=1e-12, rel=1e-12)
            assert table.loc[row, f"area_{region}"] == pytest.approx(area, rel=1e-12)
            quotient = table.loc[row, f"{form}_per_area_{region}"]
            assert quotient == pytest.approx(at / area, rel=1e-12)
        nucleus, cytoplasm = slow["at_nucleus"], slow["at_cytoplasm"]
        both = nucleus > 0 and cytoplasm > 0
        ratio = np.log(nucleus / cytoplasm) if both else np.nan
        log_ratio = table.loc[row, f"{form}_log_ratio"]
        assert log_ratio == pytest.approx(ratio, abs=1e-12, nan_ok=True)
    for kind in (f"{form}_at", "area"):
        total = table[[f"{kind}_{region}" for region in REGIONS]].sum(axis=1)
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_uniform_map_gives_each_region_its_area(form):
    table = regions.shares(np.ones((4, 7, 7)), random_maps(5)[1])
    quotients = table[[f"{form}_per_area_{region}" for region in REGIONS]]
    np.testing.assert_allclose(quotients, 1, rtol=0, atol=1e-12)
    expected = np.log(table["area_nucleus"] / table["area_cytoplasm"])
    np.testing.assert_allclose(table[f"{form}_log_ratio"], expected, atol=1e-12)
    assert table[f"{form}_usable"].all() and (table["cancellation"] == 1).all()


def test_the_log_ratio_needs_two_positive_shares():
    masks = np.broadcast_to([[2, 3], [4, 0]], (3, 2, 2))
    maps = np.array([[[6, 2], [1, 1]], [[-1, 2], [3, 4]], [[5, 0], [1, 1]]], float)
    log_ratio = regions.shares(maps, masks)["signed_log_ratio"]
    assert log_ratio[0] == pytest.approx(np.log(3), abs=1e-12)
    assert np.isnan(log_ratio[[1, 2]]).all()
    negative = regions.shares(-maps[:1], masks[:1])["signed_log_ratio"]
    assert negative[0] == log_ratio[0]  # shares of a negative total are positive


def test_totals_near_zero_are_flagged_for_signed_shares_alone_and_cancellation_tells():
    maps = np.ones((4, 2, 2))
    maps[0, 0] = -1  # cancels exactly
    maps[1, 0] = -0.999  # 0.05 % of the sum of |map| is left
    maps[2, 0] = -0.9
    table = regions.shares(maps, np.broadcast_to([[2, 2], [3, 4]], (4, 2, 2)))
    assert table["signed_usable"].tolist() == [False, False, True, True]
    assert table["absolute_usable"].all() and table["positive_usable"].all()
    np.testing.assert_allclose(table["cancellation"], [np.inf, 3.998 / 0.002, 19, 1], rtol=1e-9)
    nothing = regions.shares(np.zeros((1, 2, 2)), np.full((1, 2, 2), 2))
    usable = nothing.filter(like="usable")
    assert not usable.any(axis=None) and np.isnan(nothing["cancellation"][0])
    negative = regions.shares(-np.ones((1, 2, 2)), np.full((1, 2, 2), 2))
    assert negative.filter(like="usable").iloc[0].tolist() == [True, True, False]


def test_the_table_of_shares_has_the_areas_once():
    table = regions.shares(*random_maps(0))
    assert table.columns.is_unique
    areas = [name for name in table if name.startswith("area_")]
    assert areas == [f"area_{region}" for region in REGIONS]


def test_an_even_map_has_a_quarter_of_its_evidence_in_the_middle_and_a_map_of_the_middle_all():
    maps, masks = np.full((5, 16, 16), 0.3), np.zeros((5, 16, 16), dtype=int)
    maps[1], maps[1, 4:12, 4:12] = 0, 2
    maps[2], maps[2, 4:12, 4:12] = 1, 0
    maps[3] = -1  # evidence against does not count
    maps[3, 6, 6], maps[3, 0, 9] = 3, 1
    maps[4] = 0
    middle = regions.shares(maps, masks)["middle"]
    np.testing.assert_allclose(middle, [0.25, 1, 0, 0.75, np.nan], rtol=0, atol=1e-12)


# Medians, means, trends


def cells(n: int = 40, seed: int = 0, groups: int = 12) -> pd.DataFrame:
    """Cells of three severities, a few of a group, whose share grows with severity and area."""
    rng = np.random.default_rng(seed)
    severity = np.arange(n) % 3 + 1
    area = rng.uniform(0.1, 0.4, n) + 0.1 * severity
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)]})
    table["group"] = [f"g{k}" for k in rng.integers(0, groups, n)]
    table["label"], table["severity"] = np.array(["a", "b", "c"])[severity - 1], severity
    table["area_nucleus"] = area
    table["share"] = np.round(area * rng.uniform(0.8, 1.4, n) + 0.05 * severity, 2)
    return table.assign(network="trained", title="map")


def beside(table: pd.DataFrame, **others: pd.DataFrame) -> pd.DataFrame:
    """One table of the trained network and of others."""
    return pd.concat([table, *(other.assign(network=name) for name, other in others.items())])


def test_medians_equal_numpy_over_rows_repeated_as_their_groups_are_drawn():
    table = cells()
    table.loc[[0, 3], "share"], table.loc[1, "share"] = np.nan, np.inf
    part = table.iloc[:30]
    medians = regions.medians(beside(table, other=part), "share", "label", 50, 3)
    assert medians.index.tolist() == list(itertools.product(["trained", "other"], ["a", "b", "c"]))
    assert list(medians) == ["n", *LIMITS, "dropped"]
    for network, rows in (("trained", table), ("other", part)):
        weights = metrics.group_weights(rows["group"], 50, 3)
        for name in "abc":
            known = ((rows["label"] == name) & np.isfinite(rows["share"])).to_numpy()
            values = rows.loc[known, "share"].to_numpy()
            drawn = [np.repeat(values, row.astype(int)) for row in weights[:, known]]
            drawn = [np.median(values) for values in drawn if len(values)]
            expected = [known.sum(), np.median(values), *np.percentile(drawn, [2.5, 97.5])]
            row = medians.loc[(network, name)]
            np.testing.assert_allclose(row[["n", *LIMITS]], expected, rtol=0, atol=1e-12)
            assert row["dropped"] == 50 - len(drawn)


def test_classes_of_a_median_stand_in_order_of_severity_and_may_be_those_of_the_folders():
    table = cells().sample(frac=1, random_state=0).replace({"label": {"a": "z"}})
    assert regions.medians(table, "share", n_boot=5).loc["trained"].index.tolist() == [
        "z",
        "b",
        "c",
    ]
    table["original"] = np.where(table["severity"] > 1, table["label"], table["id"].str[-1])
    medians = regions.medians(table, "share", "original", 5).loc["trained"]
    assert medians["n"].sum() == 40 and medians.index[-2:].tolist() == ["b", "c"]


def test_a_class_that_only_the_trained_network_has_has_no_median_in_the_others():
    table = cells()
    medians = regions.medians(beside(table, few=table[table["severity"] < 3]), "share", n_boot=5)
    assert medians.loc[("few", "c"), "n"] == 0
    assert medians.loc[("few", "c"), LIMITS].isna().all()


def test_the_median_of_one_group_has_no_interval():
    table = cells().iloc[:4].assign(group="one", label="normal")
    row = regions.medians(table, "share", n_boot=20).loc[("trained", "normal")]
    assert row["value"] == table["share"].median() and row[["low", "high"]].isna().all()


def test_means_equal_numpy_over_repeated_rows_and_leave_out_what_is_missing():
    table = cells().assign(right=lambda t: t["share"] > 0.5, none=np.nan)
    holes = table.assign(title="with holes", share=table["share"].where(table.index >= 5))
    means = regions.means(pd.concat([table, holes]), ["share", "right", "none"], 40, 1)
    weights = metrics.group_weights(table["group"], 40, 1)
    for title, rows in (("map", table), ("with holes", holes)):
        for measure in ("share", "right"):
            values = rows[measure].astype(float).to_numpy()
            drawn = [np.nanmean(np.repeat(values, row.astype(int))) for row in weights]
            expected = [np.nanmean(values), *np.percentile(drawn, [2.5, 97.5])]
            row = means.loc[(title, measure)]
            np.testing.assert_allclose(row[LIMITS], expected, rtol=0, atol=1e-12)
            assert row["n"] == np.isfinite(values).sum()
        assert means.loc[(title, "none"), LIMITS].isna().all()


def test_means_and_trends_of_one_group_have_no_interval():
    table = cells().assign(group="one")
    for found in (regions.means(table, ["share"], 20), regions.trends(table, "share", 20)):
        assert found["value"].notna().all() and found[["low", "high"]].isna().all(axis=None)


def test_a_share_that_follows_severity_has_a_trend_of_one():
    table = cells().assign(share=lambda t: np.exp(t["severity"]))
    falling = table.assign(share=-table["share"])
    trends = regions.trends(beside(table, falling=falling), "share", 30)
    np.testing.assert_allclose(trends.loc["trained", LIMITS], 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(trends.loc["falling", LIMITS], -1, rtol=0, atol=1e-12)
    assert (trends["n"] == 40).all()


@pytest.mark.parametrize("seed", range(3))
def test_trends_equal_their_slow_twins_over_repeated_rows(seed):
    table = cells(seed=seed)
    table.loc[2, "share"] = np.nan
    trends = regions.trends(table, "share", 30, seed).loc["trained"]
    known = table.drop(index=2)
    weights = metrics.group_weights(known["group"], 30, seed)
    drawn = [naive.repeated(known, row) for row in weights]
    for name, slow in {
        "plain": lambda t: t["share"].corr(t["severity"], "spearman"),
        "area held constant": lambda t: naive.partial_spearman(
            *(t[column] for column in ("share", "severity", "area_nucleus"))
        ),
    }.items():
        limits = np.percentile([slow(rows) for rows in drawn], [2.5, 97.5])
        row = trends.loc[name, ["n", *LIMITS]].astype(float)
        np.testing.assert_allclose(row, [39, slow(known), *limits], rtol=0, atol=1e-10)


def test_a_share_that_is_its_area_has_no_trend_of_its_own():
    trends = regions.trends(cells().assign(share=lambda t: t["area_nucleus"]), "share", 30)
    assert trends.loc[("trained", "plain"), "value"] > 0.2
    rest = trends.loc[("trained", "area held constant"), "value"]
    assert not abs(rest) > 1e-6  # 0 or, where rounding lets it, not defined


def test_a_trend_needs_two_sides_that_vary():
    for table in (cells().assign(share=1.0), cells().assign(severity=2)):
        assert regions.trends(table, "share", 10)[LIMITS].isna().all(axis=None)


# Rises and the verdict


def test_a_rise_is_the_quotient_of_medians_over_repeated_rows():
    table = cells()
    row = regions.rises(table, "share", 60, 4).loc[("trained", "rise")]
    ends = [table["severity"] == end for end in (3, 1)]
    value = table.loc[ends[0], "share"].median() / table.loc[ends[1], "share"].median()
    drawn = []
    for weights in metrics.group_weights(table["group"], 60, 4):
        rows = naive.repeated(table, weights)
        drawn.append(
            rows.loc[rows["severity"] == 3, "share"].median()
            / rows.loc[rows["severity"] == 1, "share"].median()
        )
    expected = [value, *np.nanpercentile(drawn, [2.5, 97.5])]
    np.testing.assert_allclose(row[LIMITS], expected, rtol=0, atol=1e-12)
    assert row["n"] == sum(map(sum, ends)) and row["dropped"] == np.isnan(drawn).sum()


def test_a_network_against_itself_rises_by_exactly_one():
    table = cells()
    rises = regions.rises(beside(table, same=table, part=table.iloc[:20]), "share", 50)
    assert (rises.xs("beyond", level="name")[LIMITS] == 1).all(axis=None)
    assert rises.loc[("same", "rise")].equals(rises.loc[("trained", "rise")])


def test_a_share_that_doubles_beyond_the_area_rises_by_two():
    table = cells()
    doubled = table["area_nucleus"] * np.where(table["severity"] == 3, 2, 1)
    null = table.assign(share=table["area_nucleus"]).sample(frac=1, random_state=0)
    rises = regions.rises(beside(table.assign(share=doubled), uniform=null), "share", 50)
    beyond = rises.loc[("uniform", "beyond"), LIMITS].astype(float)
    np.testing.assert_allclose(beyond, 2, atol=1e-12)
    quotient = rises.loc[("trained", "rise"), "value"] / rises.loc[("uniform", "rise"), "value"]
    assert quotient == pytest.approx(2, abs=1e-12)


def test_a_null_of_fewer_cells_is_compared_on_those_alone():
    table = cells()
    few = table[table.index % 4 != 0]
    null = few.assign(share=few["share"] / few["severity"])
    other = null.iloc[:1].assign(id="seen by no network", share=1e9)
    rises = regions.rises(beside(table, few=pd.concat([null, other])), "share", 20)
    alone = [
        regions.rises(rows, "share", 20).loc["trained", "value"].iloc[0] for rows in (few, null)
    ]
    assert rises.loc[("few", "rise"), "value"] == pytest.approx(alone[1], abs=1e-12)
    assert rises.loc[("few", "beyond"), "value"] == pytest.approx(alone[0] / alone[1], abs=1e-12)
    assert rises.loc[("few", "beyond"), "value"] == pytest.approx(3, abs=1e-12)


def test_medians_that_are_not_positive_have_no_quotient():
    table = cells()
    lost = table.assign(share=table["share"].where(table["severity"] > 1))
    for rows in (table.assign(share=-1.0), lost, table.assign(severity=2)):
        assert regions.rises(rows, "share", 10)[LIMITS].isna().all(axis=None)
    rises = regions.rises(beside(table, lost=lost), "share", 10)
    assert rises.loc[("lost", "beyond"), LIMITS].isna().all()


def test_a_rise_from_a_single_group_has_no_interval():
    table = cells()
    single = table.assign(group=table["group"].where(table["severity"] > 1, "one"))
    rises = regions.rises(beside(single, flat=single.assign(share=1.0)), "share", 20)
    value = regions.rises(table, "share", 20)["value"].iloc[0]
    assert rises["value"].tolist() == [value, 1, 1, value]
    assert rises[["low", "high"]].isna().all(axis=None)
    verdict = regions.verdict(rises)
    assert verdict.endswith(
        "**No verdict**: a class is of a single group, so there is no interval."
    )


def test_two_maps_of_an_image_are_refused():
    with pytest.raises(ValueError, match="rises compares one map an image and network: choose a"):
        regions.rises(beside(cells(), trained=cells()), "share", 10)


def test_nothing_usable_has_no_median_trend_rise_or_verdict():
    none, uniform = cells().iloc[:0], cells().assign(network="uniform")
    assert regions.medians(none, "share").empty and regions.means(none, ["share"]).empty
    assert regions.trends(none, "share").empty
    for table in (none, uniform):
        rises = regions.rises(table, "share", 10)
        assert rises.empty and regions.verdict(rises).startswith(
            "**No verdict**: no two severities"
        )


def verdict(rise: tuple[float, float, float], n: int = 10, **beyond: tuple[float, float]) -> str:
    rows = {("trained", "rise"): [n, *rise], ("trained", "beyond"): [n, 1, 1, 1]}
    for name, (low, high) in beyond.items():
        rows |= {(name, "rise"): [n, 1, 1, 1], (name, "beyond"): [n, low + 0.1, low, high]}
    index = pd.MultiIndex.from_tuples(rows, names=["network", "name"])
    return regions.verdict(pd.DataFrame(rows.values(), index=index, columns=["n", *LIMITS]))


@pytest.mark.parametrize(
    ("rise", "words"),
    [
        ((0.79, 0.28, 2.22), "compatible with the paper's 2, compatible with 1 (no rise)"),
        ((2.5, 1.8, 3.3), "compatible with the paper's 2, not compatible with 1 (no rise)"),
        ((1.1, 0.9, 1.4), "not compatible with the paper's 2, compatible with 1 (no rise)"),
        ((1.5, 1.2, 1.8), "not compatible with the paper's 2, not compatible with 1 (no rise)"),
        ((0.5, 0.2, 0.8), "not compatible with the paper's 2, not compatible with 1 (no rise)"),
        ((3.5, 2.2, 4.8), "not compatible with the paper's 2, not compatible with 1 (no rise)"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(rise, words):
    text = verdict(rise, uniform=(0.5, 1.5))
    value, low, high = rise
    assert f"is {value:.2f} times that in normal cells (n = 10 cells of the two classes" in text
    assert f"Its 95 % interval, {low:.2f} to {high:.2f}, covers groups of cells drawn anew" in text
    assert f"for this one network: **{words}**." in text
    assert "survive" not in text


def test_the_verdict_says_apart_from_that_which_null_maps_rise_as_much():
    text = verdict((2.5, 1.8, 3.3), uniform=(1.1, 1.9), darkness=(1.01, 3))
    assert text.endswith(" On the same cells the rise is more than that of uniform, darkness.")
    text = verdict((2.5, 1.8, 3.3), uniform=(0.9, 2), darkness=(1.2, 2), edges=(np.nan, np.nan))
    words = "more than that of darkness; not distinguishable from that of uniform, edges."
    assert text.endswith(words)
    text = verdict((0.5, 0.2, 0.8), uniform=(0.1, 0.9), darkness=(1.0, 1.2))
    words = "less than that of uniform; not distinguishable from that of darkness."
    assert text.endswith(words)


def test_without_a_rise_there_is_no_verdict():
    text = verdict((np.nan, np.nan, np.nan), uniform=(np.nan, np.nan))
    words = "no two severities have cells with a usable, positive median share."
    assert text == f"**No verdict**: {words}"
