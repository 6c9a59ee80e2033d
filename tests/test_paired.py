"""Two on the same images: differences, McNemar and the corrected t against textbook forms."""

import naive
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_metrics import drawn, table

from cervix_utils import metrics, paired


def folds(kind: str, seeds) -> dict[str, pd.DataFrame]:
    """Fold -> table; fold f of any kind and seed holds the same images, labels and groups."""
    made = {}
    for fold, seed in enumerate(seeds):
        found, base = drawn(kind, seed)[0], drawn("plain", 100 + fold)[0]
        made[str(fold)] = found.assign(id=[f"{fold}-{i}" for i in range(60)], group=base["group"], label=base["label"])
    return made


def test_the_same_twice_is_no_difference_at_all():
    one = folds("plain", [0, 1])
    found = paired.difference(one, one, "herlev", 30)
    assert (found[["difference", "low", "high"]] == 0).all(axis=None) and len(found) > 20
    assert paired.exact_mcnemar(one, one) == 1


def test_difference_resamples_groups_together():
    a, b = folds("plain", [0, 1]), folds("ties", [2, 3])
    found = paired.difference(a, b, "herlev", 25, seed=4).set_index("metric")
    tables = [*a.values(), *b.values()]
    weights = metrics.group_weights(pd.concat([t["group"] for t in tables]), 25, 4)
    assert (weights[:, :120] == weights[:, 120:]).all()  # paired: the same images count the same on both sides
    drawn_gaps = []
    for row in weights:
        each = [naive.measure(naive.repeated(t, w), "herlev")["mse"] for t, w in zip(tables, np.split(row, 4))]
        drawn_gaps.append(np.mean(each[2:]) - np.mean(each[:2]))
    assert found.loc["mse", ["low", "high"]].tolist() == pytest.approx(
        np.percentile(drawn_gaps, [2.5, 97.5]), abs=1e-12
    )
    values = [naive.measure(t, "herlev")["mse"] for t in tables]
    assert found.loc["mse", "difference"] == pytest.approx(np.mean(values[2:]) - np.mean(values[:2]), abs=1e-12)


def test_metrics_that_one_side_lacks_are_not_compared():
    found = paired.difference(folds("plain", [0]), folds("regression", [1]), "herlev", 10)
    assert "log_loss" not in set(found["metric"]) and "mse" in set(found["metric"])


def answers(right: list[bool]) -> dict[str, pd.DataFrame]:
    label = np.zeros(len(right), int)
    return {"0": table(label, np.eye(5)[np.where(right, 0, 1)])}


def test_mcnemar_is_the_sign_test_on_the_images_where_only_one_is_right():
    first = answers([True] * 10 + [True] * 9 + [False] * 2 + [False] * 5)
    second = answers([True] * 10 + [False] * 9 + [True] * 2 + [False] * 5)
    assert paired.right_and_wrong(first, second).tolist() == [[10, 9], [2, 5]]
    assert paired.exact_mcnemar(first, second) == pytest.approx(stats.binomtest(2, 11, 0.5).pvalue)


def test_mcnemar_matches_images_by_id_and_refuses_others():
    first, second = answers([True, False, True]), answers([True, False, True])
    shuffled = {"0": second["0"].iloc[[2, 0, 1]].reset_index(drop=True)}
    assert paired.right_and_wrong(first, shuffled).tolist() == [[2, 0], [0, 1]]
    with pytest.raises(ValueError, match="same images"):
        paired.exact_mcnemar(first, answers([True]))


def test_corrected_t_is_students_t_where_nothing_overlaps_and_wider_where_it_does():
    gaps = np.array([0.1, 0.3, 0.2, 0.25])
    low, high, p = paired.corrected_t(gaps, 1e-12)
    plain = stats.ttest_1samp(gaps, 0)
    assert (low, high) == pytest.approx(tuple(plain.confidence_interval(0.95))) and p == pytest.approx(plain.pvalue)
    wide = paired.corrected_t(gaps, 0.25)
    assert (wide[1] - wide[0]) / (high - low) == pytest.approx(np.sqrt((1 / 4 + 1 / 3) * 4))
    assert wide[2] > p and np.isnan(paired.corrected_t(np.array([0.1]), 0.25)).all()


def test_compare_has_one_row_a_metric_and_mcnemar_for_accuracy_alone():
    found = paired.compare(folds("plain", [0, 1]), folds("ties", [2, 3]), "herlev", ["mse", "accuracy"], 0.25, 20, 0)
    assert found["metric"].tolist() == ["mse", "accuracy"]
    assert found["mcnemar_p"].isna().tolist() == [True, False] and found["t_p"].between(0, 1).all()


def test_only_folds_that_both_have_are_compared():
    first, second = folds("plain", [0, 1, 2]), folds("ties", [2, 3])
    found = paired.compare(first, second, "herlev", ["mse", "accuracy"], 0.25, 20, 0)
    both = paired.compare({fold: first[fold] for fold in "01"}, second, "herlev", ["mse", "accuracy"], 0.25, 20, 0)
    pd.testing.assert_frame_equal(found, both)
    assert (found["folds"] == 2).all()
    with pytest.raises(ValueError, match="no fold in common: 2 on one side, 0, 1 on the other"):
        paired.compare({"2": first["2"]}, second, "herlev", ["mse"], 0.25, 20, 0)


@pytest.mark.parametrize(
    ("metric", "gap", "low", "high", "p", "words"),
    [
        ("accuracy", 0.1, 0.02, 0.2, 0.01, "**combined is better**."),
        ("accuracy", -0.1, -0.2, -0.02, 0.01, "**classification is better**."),
        ("mse", -0.1, -0.2, -0.02, 0.01, "**combined is better**."),
        ("accuracy", 0.1, -0.02, 0.2, 0.01, "no difference can be concluded"),
        ("accuracy", 0.1, 0.0, 0.2, 0.01, "no difference can be concluded"),
        ("accuracy", 0.1, 0.02, 0.2, 0.2, "though McNemar's test and the t-test over folds would not say so"),
    ],
)
def test_a_sentence_claims_only_what_the_interval_allows(metric, gap, low, high, p, words):
    row = {"metric": metric, "first": 0.6, "second": 0.6 + gap, "difference": gap, "low": low, "high": high}
    said = paired.sentence(pd.Series(row | {"mcnemar_p": p, "t_p": p}), "classification", "combined")
    assert words in said and f"{gap:+.3f}" in said
