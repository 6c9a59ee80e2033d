"""Numbers beside the papers', and sentences that say no more than the intervals allow."""

import numpy as np
import pandas as pd
import pytest
from test_metrics import drawn, run, table

from cervix_utils import comparison, metrics, paired, references


def row(task, pipeline, protocol, fold, metric, value, low, high, paper=np.nan):
    return dict(zip(metrics.COLUMNS, (task, pipeline, protocol, fold, 100, metric, value, low, high, paper)))


def results(baseline=(0.55, 0.50, 0.60), combined=(0.74, 0.70, 0.78)):
    rows = [
        row("herlev", "classification", "paper", "0", "accuracy", 0.60, 0.55, 0.65, 0.701),
        row("herlev", "classification", "paper", "1", "accuracy", 0.62, 0.56, 0.68, 0.701),
        row("herlev", "classification", "paper", "mean", "accuracy", 0.61, 0.57, 0.66, 0.701),
        row("herlev", "classification", "paper", "pooled", "accuracy", 0.99, 0.9, 1.0, 0.701),
        row("herlev", "classification", "paper", "0", "mse", 0.90, 0.7, 1.1),
        row("herlev", "combined", "paper", "0", "accuracy", *combined, 0.745),
        row("herlev", "combined", "paper", "0", "mse", 0.50, 0.4, 0.6, 0.51),
        row("herlev", "combined", "grouped", "0", "accuracy", 0.58, 0.5, 0.66, 0.745),
        row("herlev", "combined_without_nucleus", "grouped", "0", "accuracy", 0.2, 0.1, 0.3),
        row("herlev", "baseline_size_forest", "grouped", "0", "accuracy", 0.40, 0.3, 0.5),
        row("herlev", "baseline_all_forest", "grouped", "0", "accuracy", *baseline),
        row("herlev", "baseline_all_forest", "grouped", "0", "mse", 0.8, 0.7, 0.9),
        row("herlev", "baseline_size_forest", "grouped", "0", "mse", 0.7, 0.6, 0.8),
    ]
    return pd.DataFrame(rows, columns=metrics.COLUMNS)


def test_summary_takes_the_mean_over_folds_where_there_are_several():
    table = comparison.summary(results()).set_index(["pipeline", "protocol", "metric"])
    several, one = (table.loc[name, "paper", "accuracy"] for name in ("classification", "combined"))
    assert (several["value"], several["low"], several["folds"]) == (0.61, 0.57, 2)
    assert (one["value"], one["folds"]) == (0.74, 1)
    assert not table.index.duplicated().any()


def test_one_line_a_published_number():
    beside = comparison.beside_published(results()).set_index(["pipeline", "metric", "protocol"])
    line = beside.loc["classification", "accuracy", "paper"]
    assert (line["value"], line["low"], line["high"], line["folds"]) == (0.61, 0.57, 0.66, 2)
    assert "mse" not in beside.loc["classification"].index.get_level_values("metric")  # the paper gives none
    assert not any(name.startswith("baseline") for name in beside.index.get_level_values("pipeline"))


def test_best_baseline_is_the_highest_or_for_errors_the_lowest():
    table = comparison.summary(results())
    assert comparison.best_baseline(table, "herlev", "accuracy", "grouped")["pipeline"] == "baseline_all_forest"
    assert comparison.best_baseline(table, "herlev", "mse", "grouped")["pipeline"] == "baseline_size_forest"
    assert comparison.best_baseline(table, "herlev", "accuracy", "paper") is None


def test_side_by_side_says_what_was_not_run_and_names_the_best_baseline():
    extra = [("herlev", "classification", "mse"), ("herlev", "combined", "mse"), ("herlev", "none", "mse")]
    table = comparison.side_by_side(results(), extra).set_index(["pipeline", "metric"])
    assert list(table.columns) == ["task", "folds", "published", "paper", "grouped", "best without a network, grouped"]
    assert table.loc[("classification", "accuracy"), "folds"] == "2" and table.loc[("combined", "mse"), "folds"] == "1"
    assert table.loc[("combined", "accuracy"), "paper"] == "0.740 (0.700 to 0.780)"
    assert table.loc[("combined", "mse"), "grouped"] == "not run"
    assert table.loc[("combined", "accuracy"), "best without a network, grouped"] == "0.550 (0.500 to 0.600) all forest"
    assert table.loc[("combined", "mse"), "best without a network, grouped"].endswith("size forest")
    assert table.loc[("classification", "mse"), "published"] == "–"
    assert list(table.index).count(("combined", "mse")) == 1 and "none" not in table.index.get_level_values(0)


@pytest.mark.parametrize(("paper", "grouped", "words"), [(4, 4, "4"), (4, 1, "paper 4, grouped 1"), (0, 2, "2")])
def test_the_number_of_folds_is_said_once_or_for_each_protocol(paper, grouped, words):
    rows = pd.DataFrame({"protocol": ["grouped", "paper"], "folds": [grouped, paper]})
    assert comparison.folds_run(rows[rows["folds"] > 0]) == words


def test_leakage_is_paper_minus_grouped_with_an_interval_and_empty_for_one_protocol():
    tables = {"paper": drawn("plain", 3)[0], "grouped": drawn("plain", 4)[0]}
    found = [run(table, "herlev", "combined", protocol, 0) for protocol, table in tables.items()]
    line = comparison.leakage(found, n_boot=50).set_index("metric").loc["accuracy"]
    both = [metrics.measure(tables[name], "herlev")["accuracy"][0] for name in ("paper", "grouped")]
    assert line["difference"] == pytest.approx(both[0] - both[1]) and line["low"] < line["difference"] < line["high"]
    assert comparison.leakage(found[:1]).empty
    more = run(drawn("ties", 5)[0], "herlev", "combined", "grouped", 1)  # a fold of one protocol alone changes nothing
    pd.testing.assert_frame_equal(comparison.leakage([*found, more], n_boot=50), comparison.leakage(found, n_boot=50))
    assert comparison.leakage([found[0], more]).empty


def test_relatives_in_training_counts_test_images_alone():
    rows = [("train", "a"), ("train", "b"), ("valid", "c"), ("test", "a"), ("test", "c"), ("test", "d"), ("test", "b")]
    assert comparison.relatives_in_training(pd.DataFrame(rows, columns=["part", "group"])) == 0.5


def test_the_constraint_is_judged_protocol_by_protocol():
    first, second = ({"0": drawn("plain", seed)[0]} for seed in (0, 0))
    table = paired.compare(first, second, "herlev", ["accuracy", "mse"], 0.25, 20, 0)
    said = comparison.does_the_constraint_help({"paper": table, "grouped": table})
    assert len(said) == 4 and said[0].startswith("**paper protocol:** accuracy goes from")
    assert all("no difference can be concluded" in one for one in said)


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
    assert f"combined 0.580 ({verdict})" in said and "nucleus" not in said
    assert "no baseline" in comparison.above_the_baseline(results(), "herlev", "accuracy", "paper")


def test_a_network_with_fewer_folds_than_the_baseline_says_so():
    second = row("herlev", "baseline_all_forest", "grouped", "1", "accuracy", 0.5, 0.4, 0.6)
    mean = second | {"fold": "mean"}
    said = comparison.above_the_baseline(pd.concat([results(), pd.DataFrame([second, mean])]), "herlev", "accuracy")
    assert "combined 0.580 (better, within the uncertainty; mean of 1 of its 2 folds)" in said
    assert "folds" not in comparison.above_the_baseline(results(), "herlev", "accuracy")


def test_what_is_left_names_all_three_numbers_or_says_that_nothing_can_be_said():
    said = comparison.what_is_left(results(), "herlev", "combined")
    assert "published 0.745, 0.740 (0.700 to 0.780) on random images, 0.580 (0.500 to 0.660)" in said
    assert "not reached without leakage" in said
    high = results().replace({"high": {0.66: 0.80}})
    assert "lies inside the grouped interval" in comparison.what_is_left(high, "herlev", "combined")
    assert "nothing can be said" in comparison.what_is_left(results(), "herlev", "classification")


def cells(rows: list[tuple[str, int, int, str]]) -> pd.DataFrame:
    """Rows (original class, label, prediction, group) as a predictions table."""
    found = table(np.array([r[1] for r in rows]), np.eye(5)[[r[2] for r in rows]], groups=None)
    return found.assign(id=[f"{r[0]}/{i}" for i, r in enumerate(rows)], group=[r[3] for r in rows])


def test_the_seven_classes_come_from_the_ids_and_keep_the_order_of_severity():
    rows = [("carcinoma_in_situ", 4, 4, "a"), ("normal_columnar", 0, 4, "b"), ("normal_columnar", 0, 0, "b")]
    found = comparison.original_classes({"0": cells(rows), "1": cells([("normal_columnar", 0, 1, "c")])}, 50)
    assert list(found.index) == ["normal_columnar", "carcinoma_in_situ"]
    columnar = found.loc["normal_columnar"]
    assert (columnar["cells"], columnar["groups"]) == (3, 2)
    assert columnar["right grade"].startswith("0.33 (") and columnar["called abnormal"].startswith("0.67 (")
    assert columnar["called carcinoma in situ"].startswith("0.33 (")
    assert found.loc["carcinoma_in_situ", "right grade"] == "1.00 (1.00 to 1.00)"


def test_predictive_values_at_a_prevalence_of_one_half_are_those_of_a_balanced_population():
    rows = [("x", 0, 0, "a"), ("x", 0, 1, "b"), ("x", 4, 4, "c"), ("x", 3, 4, "d")]
    found = comparison.at_prevalence({"0": cells(rows)}, 0.5, 20)
    assert list(found.index) == ["sensitivity", "specificity", "ppv", "npv"]
    assert [found[name].split()[0] for name in found.index] == ["1.000", "0.500", "0.667", "1.000"]


def test_tables_with_intervals_have_a_dash_where_nothing_was_measured():
    found = comparison.with_intervals(results(), "herlev", ["mse", "accuracy", "rps"], ["classification", "combined"])
    assert list(found.columns) == ["mse", "accuracy"]
    assert found.loc[("combined", "grouped"), "mse"] == "–"
    assert found.loc[("classification", "paper"), "accuracy"] == "0.610 (0.570 to 0.660)"


def test_an_average_is_the_mean_probability_of_the_same_images_in_any_order():
    first, second = drawn("plain", 0)[0], drawn("plain", 1)[0]
    found = references.average([first, second.sample(frac=1, random_state=0)])
    columns = [name for name in first if name.startswith("p_")]
    np.testing.assert_allclose(found[columns], (first[columns] + second[columns]) / 2)
    np.testing.assert_allclose(found["score"], (first["score"] + second["score"]) / 2)
    assert list(found) == list(first) and found["id"].equals(first["id"]) and found["label"].equals(first["label"])
    for other in (drawn("regression", 1)[0], second.iloc[1:]):
        with pytest.raises(ValueError, match="same images"):
            references.average([first, other])


def test_averages_are_made_where_their_members_are():
    tables = {name: drawn("plain", 5)[0] for name in ("classification", "combined", references.ALL_FEATURES)}
    found = [run(tables[name], "herlev", name, "paper", 1) for name in ("classification", "combined")]
    found.append(run(tables["combined"], "herlev", "combined", "grouped", 0))
    names = lambda made: [(one.recipe["pipeline"], one.recipe["protocol"], one.recipe["fold"]) for one in made]  # noqa: E731
    assert names(references.averages(found, [])) == [("average_of_networks", "paper", 1)]
    against = [run(tables["combined"], "herlev", references.ALL_FEATURES, "paper", 1)]
    assert ("average_with_baseline", "paper", 1) in names(references.averages(found, against))
