"""Attribution inside masks: shares, localisation, medians, trends and rises, against slow twins and at their limits."""

import itertools

import naive
import numpy as np
import pandas as pd
import pytest

from cervix_utils import regions, weighted

REGIONS = ["nucleus", "cytoplasm", "background", "unknown"]
FORMS = {"signed": lambda x: x, "absolute": np.abs, "positive": lambda x: np.where(x > 0, x, 0)}


def random_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1, (4, 7, 7)), rng.integers(0, 5, (4, 7, 7))


# Shares


@pytest.mark.parametrize(("form", "seed"), itertools.product(FORMS, range(3)))
def test_shares_equal_the_double_loop_and_sum_to_one(form, seed):
    maps, masks = random_maps(seed)
    found = regions.mask_shares(maps, masks, form)
    for row, (each, mask) in enumerate(zip(maps, masks)):
        slow = naive.mask_shares(FORMS[form](each), mask)
        for name, value in slow.items():
            assert found.loc[row, name] == pytest.approx(value, abs=1e-12, rel=1e-12), name
        for region in REGIONS:
            quotient = slow[f"at_{region}"] / slow[f"area_{region}"]
            assert found.loc[row, f"per_area_{region}"] == pytest.approx(quotient, rel=1e-12)
        nucleus, cytoplasm = slow["at_nucleus"], slow["at_cytoplasm"]
        ratio = np.log(nucleus) - np.log(cytoplasm) if min(nucleus, cytoplasm) > 0 else np.nan
        assert found.loc[row, "log_ratio"] == pytest.approx(ratio, abs=1e-12, nan_ok=True)
    for kind in ("at", "area"):
        np.testing.assert_allclose(found[[f"{kind}_{region}" for region in REGIONS]].sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_uniform_map_gives_each_region_its_area(form):
    masks = random_maps(5)[1]
    found = regions.mask_shares(np.ones((4, 7, 7)), masks, form)
    np.testing.assert_allclose(found[[f"per_area_{region}" for region in REGIONS]], 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["log_ratio"], np.log(found["area_nucleus"] / found["area_cytoplasm"]), atol=1e-12)
    assert found["usable"].all()


def test_the_log_ratio_needs_two_positive_shares():
    masks = np.broadcast_to([[2, 3], [4, 0]], (3, 2, 2))
    maps = np.array([[[6, 2], [1, 1]], [[-1, 2], [3, 4]], [[5, 0], [1, 1]]], float)
    found = regions.mask_shares(maps, masks)["log_ratio"]
    assert found[0] == pytest.approx(np.log(3), abs=1e-12)
    assert np.isnan(found[[1, 2]]).all()
    negative = regions.mask_shares(-maps[:1], masks[:1])["log_ratio"]
    assert negative[0] == found[0]  # shares of a negative total are positive


def test_totals_near_zero_are_flagged_for_signed_shares_alone():
    maps = np.ones((3, 2, 2))
    maps[0, 0] = -1  # cancels exactly
    maps[1, 0] = -0.999  # 0.05 % of the sum of |map| is left
    masks = np.broadcast_to([[2, 2], [3, 4]], (3, 2, 2))
    assert regions.mask_shares(maps, masks)["usable"].tolist() == [False, False, True]
    assert regions.mask_shares(maps, masks, least=1e-4)["usable"].tolist() == [False, True, True]
    assert regions.mask_shares(maps, masks, "absolute")["usable"].all()
    assert regions.mask_shares(np.zeros((1, 2, 2)), masks[:1])["usable"].tolist() == [False]
    assert regions.mask_shares(-np.ones((1, 2, 2)), masks[:1])["usable"].tolist() == [True]  # large, if negative
    assert regions.mask_shares(-np.ones((1, 2, 2)), masks[:1], "positive")["usable"].tolist() == [False]


def test_maps_and_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 8\), masks \(2, 4, 4\): bring both to the same size"):
        regions.mask_shares(np.ones((2, 8, 8)), np.ones((2, 4, 4), dtype=int))


def test_the_table_of_shares_holds_three_forms_the_areas_once_and_localisation():
    maps, masks = random_maps(0)
    found = regions.shares(maps, masks)
    assert found.columns.is_unique
    for form in FORMS:
        own = regions.mask_shares(maps, masks, form)
        for name in [*(f"at_{region}" for region in REGIONS), "per_area_nucleus", "log_ratio", "usable"]:
            pd.testing.assert_series_equal(found[f"{form}_{name}"], own[name], check_names=False)
        assert f"{form}_area_nucleus" not in found
    assert [name for name in found if name.startswith("area_")] == [f"area_{region}" for region in REGIONS]
    pd.testing.assert_frame_equal(found[["mass", "rank", "pointing", "chance"]], regions.localisation(maps, masks))
    pd.testing.assert_series_equal(found["chance"], found["area_nucleus"], check_names=False)


# Localisation


@pytest.mark.parametrize("seed", range(6))
def test_localisation_equals_its_slow_twin_where_pixels_tie(seed):
    rng = np.random.default_rng(seed)
    maps, masks = rng.integers(-2, 3, (5, 3, 4)).astype(float), rng.choice([2, 3, 4], (5, 3, 4), p=[0.3, 0.3, 0.4])
    found = regions.localisation(maps, masks)
    for row, (each, mask) in enumerate(zip(maps, masks)):
        for name, value in naive.localisation(each, mask).items():
            assert found.loc[row, name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_a_perfect_map_finds_the_nucleus_exactly():
    masks = random_maps(1)[1]
    found = regions.localisation(np.where(masks == 2, 1.0, -1.0), masks)
    assert (found[["mass", "rank", "pointing"]] == 1).all(axis=None)
    assert (found["chance"] < 1).all()
    wrong = regions.localisation(np.where(masks == 2, -1.0, 1.0), masks)
    assert (wrong[["mass", "rank", "pointing"]] == 0).all(axis=None)


def test_a_uniform_map_finds_the_nucleus_by_chance():
    masks = random_maps(2)[1]
    found = regions.localisation(np.ones(masks.shape), masks)
    for name in ("mass", "rank", "pointing"):
        np.testing.assert_allclose(found[name], found["chance"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["chance"], (masks == 2).mean(axis=(1, 2)), rtol=0, atol=1e-12)


def test_a_map_at_random_finds_the_nucleus_by_chance_in_the_mean():
    rng = np.random.default_rng(0)
    masks = np.full((2000, 6, 6), 4)
    masks[:, :2, :3] = 2
    found = regions.localisation(rng.random(masks.shape), masks).mean()
    assert found[["mass", "rank", "pointing"]].to_numpy() == pytest.approx(1 / 6, abs=0.03)  # 3.6 errors of pointing


def test_without_a_nucleus_there_is_nothing_to_find():
    found = regions.localisation(np.ones((2, 2, 2)), np.array([[[3, 3], [4, 4]], [[2, 2], [2, 2]]]))
    assert found.loc[0].isna().all() and (found.loc[1] == 1).all()
    dark = regions.localisation(np.array([[[-1.0, -2], [-3, -4]]]), np.array([[[2, 3], [3, 3]]]))
    assert np.isnan(dark.loc[0, "mass"]) and (dark.loc[0, ["rank", "pointing"]] == 1).all()


# Medians, means, trends


def cells(n: int = 40, seed: int = 0, groups: int = 12) -> pd.DataFrame:
    """Cells of three severities, a few of a group, whose share grows with severity and area."""
    rng = np.random.default_rng(seed)
    severity = np.arange(n) % 3 + 1
    area = rng.uniform(0.1, 0.4, n) + 0.1 * severity
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{k}" for k in rng.integers(0, groups, n)]})
    table["label"], table["severity"] = np.array(["a", "b", "c"])[severity - 1], severity
    table["area_nucleus"], table["share"] = area, np.round(area * rng.uniform(0.8, 1.4, n) + 0.05 * severity, 2)
    return table


def test_medians_equal_numpy_over_rows_repeated_as_their_groups_are_drawn():
    table = cells()
    table.loc[[0, 3], "share"], table.loc[1, "share"] = np.nan, np.inf
    found = regions.medians(table, "share", "label", ["c", "b", "a", "d"], 50, 3)
    assert list(found.index) == ["c", "b", "a", "d"]
    assert list(found) == ["n", "missing", "value", "low", "high", "q25", "q75"]
    weights = weighted.group_weights(table["group"], 50, 3)
    for name, lost in (("a", 2), ("b", 1), ("c", 0)):
        known = ((table["label"] == name) & np.isfinite(table["share"])).to_numpy()
        values = table.loc[known, "share"].to_numpy()
        drawn = [np.repeat(values, row.astype(int)) for row in weights[:, known]]
        limits = np.percentile([np.median(one) for one in drawn if len(one)], [2.5, 97.5])
        expected = [known.sum(), lost, np.median(values), *limits, *np.quantile(values, [0.25, 0.75])]
        np.testing.assert_allclose(found.loc[name].astype(float), expected, rtol=0, atol=1e-12)
    assert (found.loc["d", ["n", "missing"]] == 0).all() and found.loc["d", "value":].isna().all()


def test_the_median_of_one_group_has_no_interval():
    table = cells().iloc[:4].assign(group="one", label="normal")
    found = regions.medians(table, "share", "label", ["normal"], 20).loc["normal"]
    assert found["value"] == table["share"].median() and np.isnan([found["low"], found["high"]]).all()
    assert np.isfinite([found["q25"], found["q75"]]).all()


def test_a_rise_from_a_single_group_has_no_interval_and_passes_no_null():
    table = cells()
    single = table.assign(group=table["group"].where(table["severity"] > 1, "one"))
    value, low, high = regions.rise(single, "share", None, 20)
    assert value == regions.rise(table, "share", None, 20)[0] and np.isnan([low, high]).all()
    nulls = {"flat": single.assign(share=1.0)}
    found = regions.rises(single, nulls, "share", 20)
    assert found.loc["flat", "beyond"] == value and np.isnan(found.loc["flat", "beyond_low"])
    assert "no interval: a severity has a single group" in regions.verdict(found)
    assert "**The claim does not survive here**" in regions.verdict(found)


def test_means_equal_numpy_over_repeated_rows_and_leave_out_what_is_missing():
    table = cells()
    each = {
        "one": table[["share", "area_nucleus"]].mask(table.index.to_series() < 5),
        "other": table[["share"]] > 0.5,
        "none": table[["share"]] * np.nan,
    }
    found = regions.means(each, table["group"], 40, 1)
    weights = weighted.group_weights(table["group"], 40, 1)
    for method, measure in (("one", "share"), ("one", "area_nucleus"), ("other", "share")):
        values = each[method][measure].astype(float).to_numpy()
        drawn = [np.nanmean(np.repeat(values, row.astype(int))) for row in weights]
        expected = [np.nanmean(values), *np.percentile(drawn, [2.5, 97.5])]
        np.testing.assert_allclose(found.loc[method, measure].astype(float), expected, rtol=0, atol=1e-12)
    assert found.loc["none", "share"].isna().all() and found.loc["other", "area_nucleus"].isna().all()
    assert list(found[("share")]) == ["value", "low", "high"]


def test_a_share_that_follows_severity_has_a_trend_of_one():
    table = cells().assign(share=lambda t: np.exp(t["severity"]))
    found = regions.trend(table, "share", 30)
    np.testing.assert_allclose(found[["value", "low", "high"]], 1, rtol=0, atol=1e-12)
    assert (found["n"] == 40).all()
    falling = regions.trend(table.assign(share=-table["share"]), "share", 30)
    np.testing.assert_allclose(falling[["value", "low", "high"]], -1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_trends_equal_their_slow_twins_over_repeated_rows(seed):
    table = cells(seed=seed)
    table.loc[2, "share"] = np.nan
    found = regions.trend(table, "share", 30, seed)
    known = table.drop(index=2)
    drawn = [naive.repeated(known, row) for row in weighted.group_weights(known["group"], 30, seed)]
    for name, slow in {
        "spearman": lambda t: t["share"].corr(t["severity"], "spearman"),
        "area held constant": lambda t: naive.partial_spearman(*(t[c] for c in ("share", "severity", "area_nucleus"))),
    }.items():
        expected = [39, slow(known), *np.percentile([slow(one) for one in drawn], [2.5, 97.5])]
        np.testing.assert_allclose(found.loc[name].astype(float), expected, rtol=0, atol=1e-10, err_msg=name)


def test_a_share_that_is_its_area_has_no_trend_of_its_own():
    table = cells()
    own = regions.trend(table.assign(share=table["area_nucleus"]), "share", 30)
    assert own.loc["spearman", "value"] > 0.2
    assert not abs(own.loc["area held constant", "value"]) > 1e-6  # 0 or, where rounding lets it, not defined


def test_a_trend_needs_two_sides_that_vary():
    table = cells()
    assert regions.trend(table.assign(share=1.0), "share", 10)[["value", "low", "high"]].isna().all(axis=None)
    assert regions.trend(table.assign(severity=2), "share", 10)[["value", "low", "high"]].isna().all(axis=None)


# Rises and the verdict


def test_a_rise_is_the_quotient_of_medians_over_repeated_rows():
    table = cells()
    value, *limits = regions.rise(table, "share", None, 60, 4)
    groups = table["group"].drop_duplicates()
    drawn = weighted.group_weights(groups, 60, 4)
    slow = lambda t: t.loc[t["severity"] == 3, "share"].median() / t.loc[t["severity"] == 1, "share"].median()  # noqa: E731
    each = [slow(naive.repeated(table, table["group"].map(dict(zip(groups, row))).to_numpy())) for row in drawn]
    assert value == pytest.approx(slow(table), abs=1e-12)
    assert limits == pytest.approx(np.nanpercentile(each, [2.5, 97.5]), abs=1e-12)


def test_a_table_against_itself_rises_by_exactly_one():
    table = cells()
    found = regions.rises(table, {"same": table, "part": table.iloc[:20]}, "share", 50)
    assert (found.loc[["same", "part"], ["beyond", "beyond_low", "beyond_high"]] == 1).all(axis=None)
    assert list(found.loc["same", ["value", "low", "high"]]) == list(found.loc["network", ["value", "low", "high"]])
    assert found.loc["network", "beyond":].isna().all()


def test_a_share_that_doubles_beyond_the_area_rises_by_two():
    table = cells()
    double = table.assign(share=table["area_nucleus"] * np.where(table["severity"] == 3, 2, 1))
    null = table.assign(share=table["area_nucleus"]).sample(frac=1, random_state=0)  # another order of the same cells
    found = regions.rises(double, {"uniform": null}, "share", 50)
    np.testing.assert_allclose(
        found.loc["uniform", ["beyond", "beyond_low", "beyond_high"]].astype(float), 2, atol=1e-12
    )
    assert found.loc["network", "value"] == pytest.approx(2 * found.loc["uniform", "value"], abs=1e-12)


def test_a_null_of_fewer_cells_is_compared_on_those_alone():
    table = cells()
    few = table[table.index % 4 != 0]
    found = regions.rises(table, {"few": few.assign(share=few["share"] / few["severity"])}, "share", 20)
    own, other = (regions.rise(t, "share", None, 20) for t in (few, few.assign(share=few["share"] / few["severity"])))
    assert found.loc["few", "value"] == pytest.approx(other[0], abs=1e-12)
    assert found.loc["few", "beyond"] == pytest.approx(own[0] / other[0], abs=1e-12)
    assert found.loc["few", "beyond"] == pytest.approx(3, abs=1e-12)


def test_medians_that_are_not_positive_have_no_quotient():
    table = cells()
    assert np.isnan(regions.rise(table.assign(share=-1.0), "share", None, 10)).all()
    lost = table.assign(share=table["share"].where(table["severity"] > 1))
    assert np.isnan(regions.rise(lost, "share", None, 10)).all()
    assert np.isnan(regions.rise(table, "share", lost, 10)).all()


def test_nothing_usable_has_no_trend_no_rise_and_no_verdict():
    none = cells().iloc[:0]
    assert regions.trend(none, "share", 10)[["value", "low", "high"]].isna().all(axis=None)
    found = regions.rises(none, {"uniform": cells()}, "share", 10)
    assert found.isna().all(axis=None)
    assert regions.verdict(found).startswith("**No verdict**")


def verdict(network: tuple[float, float, float], **beyond: float) -> str:
    rows = {"network": [*network, *[np.nan] * 3]}
    rows |= {name: [1.2, 1.0, 1.4, low + 0.3, low, low + 0.6] for name, low in beyond.items()}
    columns = ["value", "low", "high", "beyond", "beyond_low", "beyond_high"]
    return regions.verdict(pd.DataFrame.from_dict(rows, orient="index", columns=columns))


def test_a_claim_survives_when_it_is_clearly_beyond_every_null():
    found = verdict((2.5, 1.8, 3.3), uniform=1.1, darkness=1.01)
    assert "2.50 times that in normal cells (95 % interval 1.80 to 3.30; paper H: 2)" in found
    assert found.endswith("**The claim survives here**: it rises more than each null does (uniform, darkness).")


def test_a_claim_does_not_survive_one_null_that_rises_as_much():
    found = verdict((2.5, 1.8, 3.3), uniform=0.9, darkness=1.2, edges=np.nan)
    assert "**The claim does not survive here**" in found
    assert found.endswith("the rise is not clearly beyond that of uniform, edges (clearly beyond: darkness).")
    assert verdict((2.5, 1.8, 3.3), uniform=1.0).endswith("beyond that of uniform (clearly beyond: none).")


def test_a_claim_does_not_survive_without_a_clear_rise():
    found = verdict((1.1, 0.9, 1.4), uniform=1.2)
    assert found.endswith("**The claim does not survive here**: the rise itself is not clearly above 1.")


def test_without_a_rise_there_is_no_verdict():
    found = verdict((np.nan, np.nan, np.nan), uniform=np.nan)
    assert found == "**No verdict**: no cell of the lowest or of the highest severity has a usable share."
