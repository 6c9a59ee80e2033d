"""Two on the same images: differences and the corrected t against textbook forms."""

import naive
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_metrics import drawn, table

from cervix_utils.evaluation import metrics, paired


def folds(kind: str, seeds) -> pd.DataFrame:
    """Predictions of several folds; fold f of any kind and seed holds the same images."""
    made = []
    for fold, seed in enumerate(seeds):
        base = drawn("plain", 100 + fold)
        ids = [f"{fold}-{i}" for i in range(60)]
        same = {"id": ids, "group": base["group"], "label": base["label"], "fold": fold}
        made.append(drawn(kind, seed).assign(**same))
    return pd.concat(made, ignore_index=True)


def test_the_same_twice_is_no_difference_at_all():
    one = folds("plain", [0, 1])
    found = paired.difference(one, one, 30, 0)
    known = found.dropna(subset="difference")
    assert (known[["difference", "low", "high"]] == 0).all(axis=None) and len(known) > 30


def test_difference_resamples_groups_together():
    a, b = folds("plain", [0, 1]), folds("ties", [2, 3])
    found = paired.difference(a, b, 25, seed=4).set_index("metric").loc["mse"]
    parts = [part for side in (a, b) for _, part in side.groupby("fold")]
    weights = metrics.group_weights(pd.concat(parts)["group"], 25, 4)
    assert (weights[:, :120] == weights[:, 120:]).all()  # paired: the same images count the same
    errors = [((part["score"] - metrics.true_class(part) - 1) ** 2).to_numpy() for part in parts]
    gaps = []
    for row in weights:
        mse = [np.average(e, weights=w) for e, w in zip(errors, np.split(row, 4))]
        gaps.append(np.mean(mse[2:]) - np.mean(mse[:2]))
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(gaps, [2.5, 97.5]))
    values = [naive.measure(part)["mse"] for part in parts]
    assert found["first"] == pytest.approx(np.mean(values[:2]), abs=1e-12)
    assert found["difference"] == pytest.approx(np.mean(values[2:]) - found["first"], abs=1e-12)


def test_metrics_that_one_side_lacks_are_not_compared():
    found = paired.difference(folds("plain", [0]), folds("regression", [1]), 10)
    assert "log_loss" not in set(found["metric"]) and "mse" in set(found["metric"])


def test_resamples_in_which_a_metric_does_not_exist_are_counted():
    rare = table(np.array([0] * 20 + [1]), np.random.default_rng(0).dirichlet(np.ones(5), 21))
    found = paired.difference(rare, rare, 100).set_index("metric")
    assert found.loc["auc_light_dysplastic", "dropped"] > 20
    assert found.loc["accuracy", "dropped"] == 0


def test_corrected_t_is_students_t_where_nothing_overlaps_and_wider_where_it_does():
    gaps = np.array([0.1, 0.3, 0.2, 0.25])
    low, high, p = paired.corrected_t(gaps, 1e-12)
    plain = stats.ttest_1samp(gaps, 0)
    assert (low, high) == pytest.approx(tuple(plain.confidence_interval(0.95)))
    assert p == pytest.approx(plain.pvalue)
    wide = paired.corrected_t(gaps, 0.25)
    assert (wide[1] - wide[0]) / (high - low) == pytest.approx(np.sqrt((1 / 4 + 1 / 3) * 4))
    assert wide[2] > p and np.isnan(paired.corrected_t(np.array([0.1]), 0.25)).all()


def test_a_difference_has_its_t_test_over_folds_and_its_groups():
    first, second = folds("plain", [0, 1]), folds("ties", [2, 3])
    found = paired.difference(first, second, 20, 0, ["mse", "accuracy"], 0.25)
    assert found["metric"].tolist()[:2] == ["mse", "accuracy"]
    assert found["t_p"].between(0, 1).all() and (found["groups"] == 15).all()
    assert paired.difference(first, second, 20)["t_p"].isna().all()
    gaps = [
        naive.measure(b)["mse"] - naive.measure(a)["mse"]
        for (_, a), (_, b) in zip(first.groupby("fold"), second.groupby("fold"))
    ]
    expected = paired.corrected_t(np.array(gaps), 0.25)
    assert found.loc[0, ["t_low", "t_high", "t_p"]].tolist() == pytest.approx(expected)


def test_only_test_rows_of_folds_that_both_have_are_compared():
    first, second = folds("plain", [0, 1, 2]), folds("ties", [2, 3])
    found = paired.difference(first, second, 20, 0, ["mse", "accuracy"], 0.25)
    train = first.assign(part="train", label="normal")
    both = pd.concat([train, first[first["fold"] < 2]])
    again = paired.difference(both, second, 20, 0, ["mse", "accuracy"], 0.25)
    pd.testing.assert_frame_equal(found, again)
    assert (found["folds"] == 2).all()
    with pytest.raises(ValueError, match="no fold in common: 2 on one side, 0, 1 on the other"):
        paired.difference(first[first["fold"] == 2], second, 20)


@pytest.mark.parametrize(
    ("metric", "gap", "low", "high", "p", "words"),
    [
        ("accuracy", 0.1, 0.02, 0.2, 0.01, "**combined is better** on them"),
        ("accuracy", -0.1, -0.2, -0.02, 0.01, "**classification is better** on them"),
        ("mse", -0.1, -0.2, -0.02, 0.01, "**combined is better** on them"),
        ("accuracy", 0.1, -0.02, 0.2, 0.01, "no difference can be concluded"),
        ("accuracy", 0.1, 0.0, 0.2, 0.01, "no difference can be concluded"),
        ("accuracy", 0.1, np.nan, np.nan, 0.01, "no difference can be concluded"),
        ("accuracy", 0.1, 0.02, 0.2, 0.2, "though the t-test over folds would not say so"),
    ],
)
def test_a_sentence_claims_only_what_the_interval_allows(metric, gap, low, high, p, words):
    row = {"metric": metric, "first": 0.6, "second": 0.6 + gap, "difference": gap}
    row |= {"low": low, "high": high, "groups": 10, "dropped": 0, "t_p": p}
    said = paired.sentence(pd.Series(row), "classification", "combined")
    assert words in said and f"{gap:+.3f}" in said
    assert "in 95 % of resamples of 10 groups of test images)" in said  # what the interval covers
    left_out = paired.sentence(pd.Series(row | {"dropped": 7}), "classification", "combined")
    assert "of 10 groups of test images, 7 of them left out)" in left_out
    assert ("is better" in said) == ("each network trained once" in said)
    trained = row | {"trained": "from 3 seeds"}
    trained = paired.sentence(pd.Series(trained), "classification", "combined")
    assert ("is better" in trained) == ("on them, from 3 seeds" in trained)


def test_folds_of_several_seeds_are_averaged_and_their_groups_drawn_together():
    """The same predictions from two seeds: the interval is that of one, not narrower."""
    first, second = folds("plain", [0, 1, 2]), folds("ties", [0, 1, 2])
    one = paired.difference(first, second, 200, 0, ["mse", "accuracy"])
    twice = [pd.concat([side, side.assign(fold=side["fold"] + 1000)]) for side in (first, second)]
    two = paired.difference(*twice, 200, 0, ["mse", "accuracy"])
    for column in ("first", "second", "difference", "low", "high"):
        np.testing.assert_allclose(two[column], one[column])
