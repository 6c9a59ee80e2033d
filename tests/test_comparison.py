"""Numbers beside the papers', and sentences that say no more than the intervals allow."""

import numpy as np
import pandas as pd
import pytest

from cervix_utils.evaluation import comparison, metrics

PAPER = {("classification", "accuracy"): 0.701, ("combined", "accuracy"): 0.745}
PAPER[("combined", "mse")] = 0.51


def row(pipeline, protocol, fold, metric, value, low, high):
    numbers = (100, metric, value, low, high, PAPER.get((pipeline, metric), np.nan))
    return dict(zip(metrics.COLUMNS, ("herlev", pipeline, protocol, fold, *numbers)))


def results(baseline=(0.55, 0.50, 0.60), combined=(0.74, 0.70, 0.78)) -> pd.DataFrame:
    rows = [
        row("classification", "paper", "0", "accuracy", 0.60, 0.55, 0.65),
        row("classification", "paper", "1", "accuracy", 0.62, 0.56, 0.68),
        row("classification", "paper", "mean", "accuracy", 0.61, 0.57, 0.66),
        row("classification", "paper", "pooled", "accuracy", 0.99, 0.9, 1.0),
        row("classification", "paper", "0", "mse", 0.90, 0.7, 1.1),
        row("combined", "paper", "0", "accuracy", *combined),
        row("combined", "paper", "0", "mse", 0.50, 0.4, 0.6),
        row("combined", "grouped", "0", "accuracy", 0.58, 0.5, 0.66),
        row("combined_without_nucleus", "grouped", "0", "accuracy", 0.2, 0.1, 0.3),
        row("baseline_size_forest", "grouped", "0", "accuracy", 0.40, 0.3, 0.5),
        row("baseline_all_forest", "grouped", "0", "accuracy", *baseline),
        row("baseline_all_forest", "grouped", "0", "mse", 0.8, 0.7, 0.9),
        row("baseline_size_forest", "grouped", "0", "mse", 0.7, 0.6, 0.8),
    ]
    return pd.DataFrame(rows, columns=metrics.COLUMNS)


def test_summary_takes_the_mean_over_folds_where_there_are_several():
    found = comparison.summary(results()).set_index(["pipeline", "protocol", "metric"])
    several = found.loc[("classification", "paper", "accuracy")]
    assert (several["value"], several["low"], several["folds"]) == (0.61, 0.57, 2)
    assert several["text"] == "0.610 (0.570 to 0.660)"
    one = found.loc[("combined", "paper", "accuracy")]
    assert (one["value"], one["folds"]) == (0.74, 1)
    assert not found.index.duplicated().any()


def test_best_baseline_is_the_highest_or_for_errors_the_lowest():
    found = comparison.summary(results())
    best = [comparison.best_baseline(found, "herlev", m, "grouped") for m in ("accuracy", "mse")]
    assert [each["pipeline"] for each in best] == ["baseline_all_forest", "baseline_size_forest"]
    assert comparison.best_baseline(found, "herlev", "accuracy", "paper") is None


def test_side_by_side_says_what_was_not_run_and_names_the_best_baseline():
    asked = [("herlev", name, "mse") for name in ("classification", "combined", "none")]
    asked += [("herlev", name, "accuracy") for name in ("combined", "classification")]
    found = comparison.side_by_side(results(), asked).set_index(["pipeline", "metric"])
    assert [("herlev", *number) for number in found.index] == asked[:2] + asked[3:]
    best = "best without a network, grouped"
    assert list(found) == ["task", "folds", "published", "paper", "grouped", best]
    assert found.loc[("classification", "accuracy"), "folds"] == "2"
    combined = found.loc[("combined", "accuracy")]
    assert combined["paper"] == "0.740 (0.700 to 0.780)" and combined["published"] == "0.745"
    assert combined[best] == "0.550 (0.500 to 0.600) random forest on all features"
    error = found.loc[("combined", "mse")]
    assert (error["folds"], error["grouped"]) == ("1", "not run")
    assert error[best] == "0.700 (0.600 to 0.800) random forest on image size"
    assert found.loc[("classification", "mse"), "published"] == "–"
    alone = comparison.side_by_side(results()[:6], asked)
    assert (alone[best] == "–").all()


def test_tables_with_intervals_have_a_dash_where_nothing_was_measured():
    pipelines = ["classification", "combined"]
    found = comparison.with_intervals(results(), ["mse", "accuracy", "rps"], pipelines)
    assert list(found.columns) == ["mse", "accuracy"]
    assert found.loc[("combined", "grouped"), "mse"] == "–"
    assert found.loc[("classification", "paper"), "accuracy"] == "0.610 (0.570 to 0.660)"


# Sentences


@pytest.mark.parametrize(
    ("baseline", "verdict"),
    [
        ((0.40, 0.3, 0.45), "clearly better"),
        ((0.55, 0.5, 0.6), "better, within the uncertainty"),
        ((0.6, 0.5, 0.7), "not better"),
    ],
)
def test_networks_are_held_against_the_best_baseline(baseline, verdict):
    said = comparison.above_the_baseline(results(baseline), "herlev", "accuracy")
    assert said.startswith("**Herlev cells, accuracy, grouped split:** the best baseline")
    assert f"combined 0.580 (0.500 to 0.660), {verdict}" in said and "nucleus" not in said
    assert "resampled groups of 100 test images, each network trained once" in said
    none = comparison.above_the_baseline(results(), "herlev", "accuracy", "paper")
    assert none.endswith("no network was run beside a baseline without one.")


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((0.4, 0.3, 0.5), "clearly better"),
        ((0.65, 0.5, 0.8), "better, within the uncertainty"),
        ((0.7, 0.6, 0.8), "not better"),
    ],
)
def test_of_errors_the_lower_one_is_better(numbers, verdict):
    line = pd.DataFrame([row("combined", "grouped", "0", "mse", *numbers)])
    said = comparison.above_the_baseline(pd.concat([results(), line]), "herlev", "mse")
    assert f"), {verdict}. Clearly:" in said and "random forest on image size" in said


def test_a_network_with_fewer_folds_than_the_baseline_says_so():
    second = row("baseline_all_forest", "grouped", "1", "accuracy", 0.5, 0.4, 0.6)
    more = pd.DataFrame([second, second | {"fold": "mean"}])
    said = comparison.above_the_baseline(pd.concat([results(), more]), "herlev", "accuracy")
    assert "better, within the uncertainty" in said
    assert "folds" not in comparison.above_the_baseline(results(), "herlev", "accuracy")


def test_a_published_number_is_reached_or_not_without_leakage_or_nothing_can_be_said():
    said = comparison.without_leakage(results(), "herlev", "combined")
    assert said.startswith("**Herlev cells, combined, accuracy:** 0.740 (0.700 to 0.780) on random")
    assert "0.580 (0.500 to 0.660) where no image of the group of a test image was in tr" in said
    assert said.endswith("The published 0.745 is not reached without leakage.")
    assert "95 % of resamples of groups; trained once" in said
    wide = results().replace({"high": {0.66: 0.80}})
    said = comparison.without_leakage(wide, "herlev", "combined")
    assert "0.745 is inside that interval" in said
    high = results().replace({"value": {0.58: 0.9}, "low": {0.5: 0.8}, "high": {0.66: 1.0}})
    assert "0.745 is exceeded" in comparison.without_leakage(high, "herlev", "combined")
    said = comparison.without_leakage(results(), "herlev", "classification")
    assert said.endswith("only one protocol was run: nothing can be said about leakage.")
    unpublished = results().assign(paper=np.nan)
    assert "published" not in comparison.without_leakage(unpublished, "herlev", "combined")
