"""Metrics: equal to their slow twins, exact at their limits, and intervals that know about groups."""

import itertools
from pathlib import Path

import naive
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cervix_utils import clinical, metrics, runs, weighted
from cervix_utils.datasets import CLASSES

SEVERITY = np.arange(1, 6)


def table(label: np.ndarray, p: np.ndarray, task: str = "herlev", groups=None, score=None) -> pd.DataFrame:
    """A predictions table of the contract from class indices and probabilities (NaN: regression)."""
    names, n = CLASSES[task], len(label)
    groups = np.arange(n) if groups is None else groups
    found = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{g}" for g in groups], "part": "test"})
    found["label"] = [names[k] for k in label]
    found[[f"p_{name}" for name in names]] = p
    if task == "herlev":
        found["score"] = p @ SEVERITY if score is None else score
    return found


def drawn(kind: str, seed: int, n: int = 60) -> tuple[pd.DataFrame, str]:
    """Random predictions that know a little; ``kind`` says what is odd about them."""
    rng = np.random.default_rng(seed)
    task = "colposcopy" if kind == "colposcopy" else "herlev"
    k = len(CLASSES[task])
    label = rng.choice([0, 2, 3] if kind == "missing" else range(k), n)
    p = rng.dirichlet(np.ones(k), n) + 0.4 * np.eye(k)[label]
    p /= p.sum(axis=1, keepdims=True)
    if kind == "ties":
        p = np.round(p * 4) + 1
        p /= p.sum(axis=1, keepdims=True)
    if kind == "one answer":
        p = np.tile(np.eye(k)[3], (n, 1))
    score = None
    if kind == "regression":
        p, score = np.full((n, k), np.nan), np.round(rng.normal(label + 1, 1.5) * 2) / 2  # half grades: ties
    return table(label, p, task, rng.integers(0, 15, n), score), task


ERRORS = metrics.LOWER_IS_BETTER
KINDS = ["plain", "ties", "missing", "one answer", "regression", "colposcopy"]


@pytest.mark.parametrize(("kind", "seed"), itertools.product(KINDS, range(4)))
def test_every_metric_equals_its_slow_twin(kind, seed):
    predictions, task = drawn(kind, seed)
    fast, slow = metrics.measure(predictions, task), naive.measure(predictions, task)
    assert fast.keys() == slow.keys()
    for name in slow:
        np.testing.assert_allclose(fast[name], slow[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_same_as_repeated_rows(kind):
    predictions, task = drawn(kind, 9)
    weights = metrics.group_weights(predictions["group"], 6, seed=1)
    fast = metrics.measure(predictions, task, weights)
    for row, each in enumerate(weights):
        slow = naive.measure(naive.repeated(predictions, each), task)
        for name in slow:
            np.testing.assert_allclose(fast[name][row], slow[name], rtol=0, atol=1e-12, err_msg=name)


def test_perfect_predictions_give_exactly_one_and_no_error():
    label = np.repeat(range(5), 4)
    found = metrics.measure(table(label, np.eye(5)[label]), "herlev")
    assert {name for name, value in found.items() if value[0] == 0} == ERRORS
    assert {name for name, value in found.items() if value[0] == 1} == found.keys() - ERRORS


def test_perfect_scores_without_probabilities_give_exactly_one():
    label = np.repeat(range(5), 4)
    found = metrics.measure(table(label, np.full((20, 5), np.nan), score=label + 1.0), "herlev")
    assert not {"log_loss", "brier", "rps"} & found.keys()
    assert {name for name, value in found.items() if value[0] == 0} == ERRORS & found.keys()
    assert {name for name, value in found.items() if value[0] == 1} == found.keys() - ERRORS


def test_the_same_answer_for_all_is_chance():
    label = np.repeat(range(5), [3, 5, 7, 2, 4])
    found = metrics.measure(table(label, np.full((21, 5), 0.2)), "herlev")
    assert all(found[name][0] == 0.5 for name in found if name.startswith("auc"))
    assert found["log_loss"][0] == pytest.approx(np.log(5), abs=1e-12)
    assert found["kappa_quadratic"][0] == 0
    assert (found["sensitivity"][0], found["specificity"][0]) == (0, 1)


def test_reversed_order_gives_zero():
    positive, weights = np.repeat([True, False], 5), np.ones((1, 10))
    assert metrics.auc(positive, np.arange(10.0), weights)[0] == 0
    assert metrics.auc(positive, -np.arange(10.0), weights)[0] == 1
    label = np.repeat([0, 4], 10)
    found = metrics.measure(table(label, np.eye(5)[4 - label]), "herlev")
    assert found["accuracy"][0] == found["binary_f1"][0] == found["auc_normal"][0] == 0
    assert found["kappa_quadratic"][0] == -1
    assert found["mse"][0] == 16
    assert found["kendall_tau"][0] == -1 and found["adjacent_accuracy"][0] == 0
    assert found["severe_miss"][0] == found["cis_called_normal"][0] == found["normal_called_cis"][0] == 1
    assert found["brier"][0] == 2 and found["rps"][0] == 4
    assert found["sensitivity_at_specificity_90"][0] == found["specificity_at_sensitivity_95"][0] == 0


@pytest.mark.parametrize(
    ("score", "index", "abnormal"),
    [(-3.0, 0, False), (1.49, 0, False), (1.5, 1, True), (2.51, 2, True), (4.6, 4, True), (9.0, 4, True)],
)
def test_regressed_scores_become_classes_and_calls(score, index, abnormal):
    row = table(np.array([0]), np.full((1, 5), np.nan), score=[score])
    assert metrics.predicted_class(row)[0] == index
    assert metrics.predicted_abnormal(row)[0] == abnormal


def test_confusion_rows_are_the_reference():
    matrix = metrics.confusion(np.array([0, 0, 1]), np.array([1, 1, 2]), 3, np.array([[1.0, 2.0, 5.0]]))
    assert matrix.tolist() == [[[0, 3, 0], [0, 0, 5], [0, 0, 0]]]


def test_resampling_draws_whole_groups_and_as_many_as_there_are():
    groups = pd.Series(list("aabbbcdd"))
    weights = metrics.group_weights(groups, 200, 3)
    for name in "abcd":
        inside = weights[:, groups == name]
        assert (inside == inside[:, :1]).all()
    assert (weights[:, [0, 2, 5, 6]].sum(axis=1) == 4).all()
    assert len(np.unique(weights, axis=0)) > 20
    assert (weights == metrics.group_weights(groups, 200, 3)).all()
    assert (weights != metrics.group_weights(groups, 200, 4)).any()


def coin(n: int, groups: np.ndarray) -> pd.DataFrame:
    """Two classes, right in 80 %; rows of one group are right or wrong together."""
    right = np.random.default_rng(5).random(groups.max() + 1)[groups] < 0.8
    label = np.arange(n) % 2
    return table(label, np.eye(5)[np.where(right, label, 1 - label)], groups=groups)


def width(predictions: pd.DataFrame, name: str = "accuracy") -> float:
    found = metrics.intervals(predictions, "herlev", 1000, 0).set_index("metric").loc[name]
    assert found["low"] < found["value"] < found["high"]
    return found["high"] - found["low"]


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_interval_of_independent_rows_is_the_binomial_one_and_groups_widen_it():
    alone = coin(400, np.arange(400))
    p = metrics.measure(alone, "herlev")["accuracy"][0]
    assert width(alone) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.1)
    related = coin(400, np.repeat(range(40), 10))
    blind = related.assign(group=related["id"])
    assert width(related) / width(blind) == pytest.approx(np.sqrt(10), rel=0.2)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_resamples_without_a_class_are_left_out_of_its_interval():
    label = np.array([0] * 20 + [1])
    p = np.random.default_rng(0).dirichlet(np.ones(5), 21)
    found = metrics.intervals(table(label, p), "herlev", 200).set_index("metric")
    assert np.isfinite(found.loc["auc_light_dysplastic"].to_numpy(float)).all()
    assert found.loc["auc_severe_dysplastic", ["value", "low", "high"]].isna().all()


def run(predictions: pd.DataFrame, task: str, pipeline: str, protocol: str, fold: int) -> runs.Run:
    recipe = {"task": task, "pipeline": pipeline, "protocol": protocol, "fold": fold}
    return runs.Run(Path(), recipe, pd.DataFrame(), predictions)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_results_keep_the_contract_and_carry_the_published_values():
    cells, types = drawn("plain", 1)[0], drawn("colposcopy", 1)[0]
    train = cells.assign(part="train", label="normal")  # must not count
    found = metrics.results(
        [
            run(pd.concat([train, cells]), "herlev", "classification", "paper", 1),
            run(cells, "herlev", "classification", "grouped", 0),
            run(types, "colposcopy", "sgd", "paper", 0),
            run(types, "colposcopy", "modern", "paper", 0),
        ],
        n_boot=50,
    )
    assert list(found) == ["task", "pipeline", "protocol", "fold", "n_test", "metric", "value", "low", "high", "paper"]
    keys = ["task", "pipeline", "protocol", "fold", "metric"]
    assert found[keys].apply(tuple, axis=1).is_monotonic_increasing
    assert not found.duplicated(keys).any()
    assert (found["n_test"] == 60).all()
    row = found.set_index(keys)
    assert row.loc[("colposcopy", "sgd", "paper", "0", "accuracy"), "paper"] == 0.77
    assert row.loc[("herlev", "classification", "paper", "1", "binary_f1"), "paper"] == 0.94
    assert row.loc[("colposcopy", "modern", "paper", "0"), "paper"].isna().all()
    slow = naive.measure(cells, "herlev")
    for name, value in slow.items():
        assert row.loc[("herlev", "classification", "paper", "1", name), "value"] == pytest.approx(value, abs=1e-12)


def test_published_table_names_metrics_that_exist_once_each_with_the_papers_figures():
    found = metrics.published()
    assert not found.duplicated(["task", "pipeline", "metric"]).any()
    for (task, pipeline), rows in found.groupby(["task", "pipeline"]):
        kind = {"regression": "regression", "sgd": "colposcopy"}.get(pipeline, "plain")
        assert set(rows["metric"]) <= metrics.measure(*drawn(kind, 0)).keys(), (task, pipeline)
    paper = found.set_index(["pipeline", "metric"])["paper"]
    expected = {
        ("sgd", "accuracy"): 0.77,
        ("sgd", "f1_macro"): 0.79,
        ("classification", "accuracy"): 0.701,
        ("classification", "auc_mean"): 0.90,
        ("classification", "binary_accuracy"): 0.908,
        ("regression", "accuracy"): 0.606,
        ("regression", "mse"): 0.58,
        ("regression", "binary_f1"): 0.95,
        ("combined", "accuracy"): 0.745,
        ("combined", "mse"): 0.51,
        ("combined", "binary_accuracy"): 0.94,
        ("combined", "binary_f1"): 0.96,
        ("combined", "auc_mean"): 0.94,
    }
    assert {key: paper[key] for key in expected} == expected


def test_log_loss_of_class_priors_is_the_cross_entropy_of_the_shares():
    parts = [("train", "Type_1", 1), ("train", "Type_2", 3), ("valid", "Type_3", 50), ("test", "Type_2", 2)]
    rows = [{"part": part, "label": label} for part, label, times in parts for _ in range(times)]
    found = metrics.class_priors_log_loss(pd.DataFrame([*rows, {"part": "test", "label": "Type_1"}]))
    assert found == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3, abs=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        lambda t: t.rename(columns={"p_normal": "normal"}),
        lambda t: t.drop(columns="score"),
        lambda t: t[[*t.columns[::-1]]],
        lambda t: t.assign(p_normal=t["p_normal"] + 0.01),
        pytest.param(lambda t: t.assign(part="tset")),
        pytest.param(lambda t: t.assign(label="normall")),
        pytest.param(lambda t: t.assign(p_normal=t["p_normal"].mask(t.index == 0))),
    ],
)
def test_predictions_that_break_the_contract_are_refused(broken):
    good = drawn("plain", 0)[0]
    metrics.check_predictions(good, "herlev")
    with pytest.raises(ValueError):
        metrics.check_predictions(broken(good), "herlev")


@pytest.mark.parametrize("task", ["herlev", "colposcopy"])
def test_mean_and_pooled_over_folds_with_limits_from_draws_shared_by_the_folds(task):
    kind = "plain" if task == "herlev" else "colposcopy"
    folds = {str(seed): drawn(kind, seed)[0] for seed in range(3)}
    found = metrics.over_folds(folds, task, 40, 7).set_index(["fold", "metric"])
    both = pd.concat(folds.values(), ignore_index=True)
    weights = metrics.group_weights(both["group"], 40, 7)
    parts = np.split(weights, 3, axis=1)  # the three tables have as many rows
    for name, value in naive.measure(both, task).items():
        assert found.loc[("pooled", name), "value"] == pytest.approx(value, abs=1e-12)
        each = [naive.measure(table, task)[name] for table in folds.values()]
        assert found.loc[("mean", name), "value"] == pytest.approx(np.mean(each), abs=1e-12)
    drawn_means = [
        np.mean([naive.measure(naive.repeated(t, own), task)["accuracy"] for t, own in zip(folds.values(), row)])
        for row in zip(*parts)
    ]
    low, high = found.loc[("mean", "accuracy"), ["low", "high"]]
    assert [low, high] == pytest.approx(np.percentile(drawn_means, [2.5, 97.5]), abs=1e-12)
    assert (found.loc["mean", "n_test"] == 180).all() and (found.loc["1", "n_test"] == 60).all()


def test_one_fold_has_neither_mean_nor_pooled():
    assert set(metrics.over_folds({"2": drawn("plain", 0)[0]}, "herlev", 10)["fold"]) == {"2"}


def test_limits_leave_out_what_does_not_exist():
    assert np.isnan(weighted.limits(np.full(5, np.nan))).all()
    assert weighted.limits(np.array([np.nan, *np.arange(101.0)])) == pytest.approx([2.5, 97.5])


def weighed(seed: int, n: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Three rows of numbers with ties, and integer weights of five resamples, many of them zero."""
    rng = np.random.default_rng(seed)
    x, y, z = rng.integers(0, 6, (3, n)) / 2.0
    return x, x + 2 * y, x + z, rng.choice([0, 0, 1, 2, 5], (5, n))


@pytest.mark.parametrize("seed", range(6))
def test_medians_and_rank_correlations_equal_those_of_repeated_rows(seed):
    x, y, z, weights = weighed(seed)
    drawn = [[np.repeat(values, row) for values in (x, y, z)] for row in weights]
    slow = {
        "median": [np.median(a) for a, _, _ in drawn],
        "spearman": [stats.spearmanr(a, b).statistic for a, b, _ in drawn],
        "partial": [naive.partial_spearman(*each) for each in drawn],
    }
    fast = {
        "median": weighted.median(x, weights),
        "spearman": weighted.spearman(x, y, weights),
        "partial": weighted.partial_spearman(x, y, z, weights),
    }
    for name in slow:
        np.testing.assert_allclose(fast[name], slow[name], rtol=0, atol=1e-10, err_msg=name)


def test_a_median_lies_halfway_where_the_weight_is_halved_and_skips_what_has_none():
    values = np.array([4.0, 1.0, 3.0, 2.0])
    weights = np.array([[1, 1, 1, 1], [2, 2, 0, 0], [1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]])
    np.testing.assert_array_equal(weighted.median(values, weights), [2.5, 2.5, 4, 2, np.nan])
    np.testing.assert_array_equal(weighted.median(values, weights / 3), [2.5, 2.5, 4, 2, np.nan])


def test_rank_correlations_reach_one_and_do_not_exist_where_nothing_varies():
    x, some = np.arange(8.0), np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 2, 0, 3, 0, 1, 0]])
    z = np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    for sign in (1, -1):
        np.testing.assert_allclose(weighted.spearman(x, sign * np.exp(x), some), sign, rtol=0, atol=1e-12)
        np.testing.assert_allclose(weighted.partial_spearman(x, sign * x**3, z, some), sign, rtol=0, atol=1e-12)
    none = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 7, 0, 0, 0]])
    assert np.isnan(weighted.spearman(x, z, none)).all()
    assert np.isnan(weighted.spearman(x, np.ones(8), some)).all()
    assert np.isnan(weighted.partial_spearman(x, z, np.ones(8), some)).all()


def test_no_group_has_no_weights():
    assert weighted.group_weights(pd.Series([], dtype=str), 7, 0).shape == (7, 0)


def test_operating_points_by_hand():
    sick = np.array([True] * 4 + [False] * 10)
    score = np.array([9, 8, 7, 1, 7.5, *np.arange(-9, 0)], float)  # one healthy above a sick one, nine far below
    at = lambda x: weighted.sensitivity_at(x, sick, score, np.ones((1, 14)))[0]  # noqa: E731
    assert (at(1.0), at(0.9), at(0.89)) == (0.5, 1.0, 1.0)
    assert weighted.sensitivity_at(1.0, ~sick, -score, np.ones((1, 14)))[0] == 0.9
    assert np.isnan(weighted.sensitivity_at(0.9, np.ones(3, bool), np.arange(3.0), np.ones((1, 3)))[0])


def test_predictive_values_are_counts_in_a_population():
    sick, healthy = 7_000, 93_000
    found = clinical.predictive_values(np.array([0.9]), np.array([0.8]), 0.07)
    assert found["ppv"][0] == pytest.approx(0.9 * sick / (0.9 * sick + 0.2 * healthy))
    assert found["npv"][0] == pytest.approx(0.8 * healthy / (0.8 * healthy + 0.1 * sick))
    perfect = clinical.predictive_values(np.array([1.0]), np.array([1.0]), 0.5)
    assert perfect["ppv"][0] == perfect["npv"][0] == 1
