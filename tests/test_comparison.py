"""Numbers beside the papers', and sentences that say no more than the intervals allow."""

import pandas as pd
import pytest

from cervix_utils import comparison, metrics


def row(task, pipeline, protocol, fold, metric, value, low, high, paper=None):
    return dict(zip(metrics.COLUMNS, (task, pipeline, protocol, fold, 100, metric, value, low, high, paper)))


def results(combined=(0.74, 0.70, 0.78)):
    rows = [
        row("herlev", "classification", "paper", 0, "accuracy", 0.60, 0.55, 0.65, 0.701),
        row("herlev", "classification", "paper", 1, "accuracy", 0.62, 0.56, 0.68, 0.701),
        row("herlev", "classification", "paper", 0, "mse", 0.90, 0.7, 1.1),
        row("herlev", "combined", "paper", 0, "accuracy", *combined, 0.745),
        row("herlev", "combined", "paper", 0, "mse", 0.50, 0.4, 0.6, 0.51),
        row("herlev", "combined", "grouped", 0, "accuracy", 0.58, 0.5, 0.66, 0.745),
    ]
    return pd.DataFrame(rows, columns=metrics.COLUMNS)


def test_one_line_a_published_number_with_the_widest_limits_over_folds():
    beside = comparison.beside_published(results()).set_index(["pipeline", "metric", "protocol"])
    line = beside.loc["classification", "accuracy", "paper"]
    assert line["value"] == pytest.approx(0.61) and (line["low"], line["high"], line["folds"]) == (0.55, 0.68, 2)
    assert "mse" not in beside.loc["classification"].index.get_level_values("metric")  # the paper gives none


def test_side_by_side_says_what_was_not_run():
    table = comparison.side_by_side(comparison.beside_published(results())).set_index(["pipeline", "metric"])
    assert list(table.columns) == ["task", "published", "paper", "grouped"]
    assert table.loc[("combined", "accuracy"), "paper"] == "0.740 (0.700 to 0.780)"
    assert table.loc[("combined", "mse"), "grouped"] == "not run"


def test_leakage_is_paper_minus_grouped_and_empty_for_one_protocol():
    table = comparison.leakage(results())
    assert table.loc[("herlev", "combined", "accuracy"), "difference"] == pytest.approx(0.16)
    assert comparison.leakage(results().query("protocol == 'paper'")).empty


@pytest.mark.parametrize(
    "combined, words", [((0.74, 0.70, 0.78), "do not overlap"), ((0.66, 0.60, 0.72), "shows no difference")]
)
def test_a_difference_is_claimed_only_where_intervals_are_apart(combined, words):
    (sentence,) = comparison.does_the_constraint_help(results(combined))
    assert sentence.startswith("**paper protocol:**") and words in sentence
    assert f"from 0.610 to {combined[0]:.3f}" in sentence and "from 0.90 to 0.50" in sentence


def test_what_is_left_names_both_numbers_or_says_that_nothing_can_be_said():
    (sentence,) = comparison.what_is_left(results().query("pipeline == 'combined'"))
    assert "0.740 on random images and 0.580" in sentence
    (silence,) = comparison.what_is_left(results().query("protocol == 'grouped'"))
    assert "nothing can be said" in silence
