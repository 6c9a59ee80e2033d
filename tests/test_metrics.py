"""Metrics: equal to their slow twins, exact at their limits; intervals that know of groups."""

import itertools
from dataclasses import replace

import naive
import numpy as np
import pandas as pd
import pytest

from cervix_utils import paths
from cervix_utils.data import datasets, tables
from cervix_utils.data.tables import PredictionsError
from cervix_utils.evaluation import metrics

SEVERITY = np.arange(1, 6)


def table(label, p, task="herlev", groups=None, score=None) -> pd.DataFrame:
    """Test predictions from class indices (n,) and probabilities (n, k); NaN: regression."""
    dataset, n = datasets.get(task), len(label)
    groups = np.arange(n) if groups is None else groups
    found = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{g}" for g in groups]})
    found = found.assign(
        task=task, pipeline="combined", protocol="paper", fold=0, run="", part="test"
    )
    found["label"] = [dataset.classes[k] for k in label]
    found[[f"p_{name}" for name in dataset.classes]] = p
    if dataset.ordered:
        found["score"] = p @ SEVERITY if score is None else score
    return found[[*metrics.PLACE, *tables.columns(task)]]


def drawn(kind: str, seed: int, n: int = 60) -> pd.DataFrame:
    """Random predictions that know a little; ``kind`` says what is odd about them."""
    rng = np.random.default_rng(seed)
    task = kind if kind in datasets.DATASETS else "herlev"
    k = len(datasets.get(task).classes)
    label = rng.choice([0, 2, 3] if kind == "missing" else range(k), n)
    p = rng.dirichlet(np.ones(k), n) + 0.4 * np.eye(k)[label]
    p /= p.sum(axis=1, keepdims=True)
    if kind == "ties":
        p = np.round(p * 4) + 1
        p /= p.sum(axis=1, keepdims=True)
    if kind == "one answer":
        p = np.tile(np.eye(k)[3], (n, 1))
    score = None
    if kind == "regression":  # half grades: ties
        p, score = np.full((n, k), np.nan), np.round(rng.normal(label + 1, 1.5) * 2) / 2
    return table(label, p, task, rng.integers(0, 15, n), score)


def value(predictions: pd.DataFrame) -> dict[str, float]:
    return {name: values[0] for name, values in metrics.measure(predictions).items()}


@pytest.fixture(autouse=True)
def pair(monkeypatch):
    """A data set of two classes that are no grades."""
    two = replace(datasets.get("colposcopy"), name="pair", title="Pairs", classes=("dark", "light"))
    monkeypatch.setitem(datasets.DATASETS, "pair", two)


ERRORS = {name for name, metric in metrics.METRICS.items() if metric.lower_is_better}
KINDS = ["plain", "ties", "missing", "one answer", "regression", "colposcopy", "pair"]


@pytest.mark.parametrize(("kind", "seed"), itertools.product(KINDS, range(4)))
def test_every_metric_equals_its_slow_twin(kind, seed):
    predictions = drawn(kind, seed)
    fast, slow = metrics.measure(predictions), naive.measure(predictions)
    assert fast.keys() == slow.keys()
    for name in slow:
        np.testing.assert_allclose(fast[name], slow[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_same_as_repeated_rows(kind):
    predictions = drawn(kind, 9)
    weights = metrics.group_weights(predictions["group"], 6, seed=1)
    fast = metrics.measure(predictions, weights)
    for row, each in enumerate(weights):
        slow = naive.measure(naive.repeated(predictions, each))
        for name in slow:
            np.testing.assert_allclose(fast[name][row], slow[name], rtol=0, atol=1e-12)


def test_perfect_predictions_give_exactly_one_and_no_error():
    label = np.repeat(range(5), 4)
    found = value(table(label, np.eye(5)[label]))
    errors = ERRORS & found.keys()
    assert {name for name in found if found[name] == 0} == errors and len(errors) == 8
    assert {name for name in found if found[name] == 1} == found.keys() - errors


def test_perfect_scores_without_probabilities_give_exactly_one():
    label = np.repeat(range(5), 4)
    found = value(table(label, np.full((20, 5), np.nan), score=label + 1.0))
    assert not {"log_loss", "brier", "rps"} & found.keys()
    assert {name for name in found if found[name] == 0} == ERRORS & found.keys()
    assert {name for name in found if found[name] == 1} == found.keys() - ERRORS


def test_the_same_answer_for_all_is_chance():
    label = np.repeat(range(5), [3, 5, 7, 2, 4])
    found = value(table(label, np.full((21, 5), 0.2)))
    assert all(found[name] == 0.5 for name in found if name.startswith("auc"))
    assert found["log_loss"] == pytest.approx(np.log(5), abs=1e-12)
    assert found["kappa_quadratic"] == 0
    assert (found["sensitivity"], found["specificity"]) == (0, 1)


def test_reversed_order_gives_zero():
    positive, weights = np.repeat([True, False], 5), np.ones((1, 10))
    assert metrics.auc(positive, np.arange(10.0), weights)[0] == 0
    assert metrics.auc(positive, -np.arange(10.0), weights)[0] == 1
    label = np.repeat([0, 4], 10)
    found = value(table(label, np.eye(5)[4 - label]))
    assert found["accuracy"] == found["binary_f1"] == found["auc_normal"] == 0
    assert found["kappa_quadratic"] == -1
    assert found["mse"] == 16 and found["adjacent_accuracy"] == 0
    assert found["severe_miss"] == found["cis_called_normal"] == found["normal_called_cis"] == 1
    assert found["brier"] == 2 and found["rps"] == 4
    assert found["sensitivity_at_specificity_90"] == found["specificity_at_sensitivity_95"] == 0


def test_metrics_of_grades_exist_for_ordered_classes_alone():
    graded = {name for name, metric in metrics.METRICS.items() if "grades" in metric.needs}
    assert len(graded) == 14 and graded <= value(drawn("plain", 0)).keys()
    for kind in ("colposcopy", "pair"):
        found = value(drawn(kind, 0))
        assert not graded & found.keys() and not any("bethesda" in name for name in found)
        assert {"accuracy", "log_loss", "brier", "auc_mean", "f1_macro"} <= found.keys()


def test_two_classes_without_order_are_ranked_alike_from_both_sides():
    found = value(drawn("pair", 3))
    assert found["auc_dark"] == pytest.approx(found["auc_light"], abs=1e-12) and "f1_light" in found
    assert metrics.label_of("auc_light") == "AUC, light"


def test_grades_of_another_scale_have_no_bethesda_groups(monkeypatch):
    scale = replace(
        datasets.get("herlev"), name="scale", labels={}, classes=("none", "some", "all")
    )
    monkeypatch.setitem(datasets.DATASETS, "scale", scale)
    label = np.arange(9) % 3
    p = np.eye(3)[label]
    found = value(table(label, p, "scale", score=p @ [1, 2, 3]))
    assert found["mse"] == 0 and found["binary_f1"] == 1 and "hsil_sensitivity" not in found


@pytest.mark.parametrize(
    ("score", "index", "abnormal"),
    [
        (-3, 0, False),
        (1.49, 0, False),
        (1.5, 1, True),
        (2.51, 2, True),
        (4.6, 4, True),
        (9, 4, True),
    ],
)
def test_regressed_scores_become_classes_and_calls(score, index, abnormal):
    row = table(np.array([0]), np.full((1, 5), np.nan), score=[float(score)])
    assert metrics.predicted_class(row)[0] == index
    assert (metrics.predicted_class(row)[0] != 0) == abnormal


def test_confusion_rows_are_the_reference():
    true, predicted, weights = np.array([0, 0, 1]), np.array([1, 1, 2]), np.array([[1.0, 2.0, 5.0]])
    matrix = metrics.confusion(true, predicted, 3, weights)
    assert matrix.tolist() == [[[0, 3, 0], [0, 0, 5], [0, 0, 0]]]


def test_operating_points_by_hand():
    sick = np.array([True] * 4 + [False] * 10)
    score = np.array([9, 8, 7, 1, 7.5, *np.arange(-9, 0)], float)  # one healthy above a sick one
    once = np.ones((1, 14))
    found = [metrics.sensitivity_at(level, sick, score, once)[0] for level in (1.0, 0.9, 0.89)]
    assert found == [0.5, 1.0, 1.0]
    assert metrics.sensitivity_at(1.0, ~sick, -score, once)[0] == 0.9
    all_sick = np.ones(3, bool)
    assert np.isnan(metrics.sensitivity_at(0.9, all_sick, np.arange(3.0), np.ones((1, 3)))[0])


# Resampling


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


def test_no_group_has_no_weights():
    assert metrics.group_weights(pd.Series([], dtype=str), 7, 0).shape == (7, 0)


def coin(n: int, groups: np.ndarray) -> pd.DataFrame:
    """Two classes, right in 80 %; rows of one group are right or wrong together."""
    right = np.random.default_rng(5).random(groups.max() + 1)[groups] < 0.8
    label = np.arange(n) % 2
    return table(label, np.eye(5)[np.where(right, label, 1 - label)], groups=groups)


def width(predictions: pd.DataFrame) -> float:
    found = metrics.intervals(predictions, 1000, 0).set_index("metric").loc["accuracy"]
    assert found["low"] < found["value"] < found["high"]
    return found["high"] - found["low"]


def test_interval_of_independent_rows_is_the_binomial_one_and_groups_widen_it():
    alone = coin(400, np.arange(400))
    p = value(alone)["accuracy"]
    assert width(alone) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.1)
    alike = coin(400, np.repeat(range(40), 10))
    blind = alike.assign(group=alike["id"])
    assert width(alike) / width(blind) == pytest.approx(np.sqrt(10), rel=0.2)


def test_resamples_without_a_class_are_left_out_of_its_interval_and_counted():
    label = np.array([0] * 20 + [1])
    predictions = table(label, np.random.default_rng(0).dirichlet(np.ones(5), 21))
    found = metrics.intervals(predictions, 200, seed=0).set_index("metric")
    light, never = found.loc["auc_light_dysplastic"], found.loc["auc_severe_dysplastic"]
    assert np.isfinite(light[["value", "low", "high"]].to_numpy(float)).all()
    without = metrics.group_weights(predictions["group"], 200, 0)[:, -1] == 0
    assert light["dropped"] == without.sum() > 50
    assert never[["value", "low", "high"]].isna().all() and never["dropped"] == 200
    assert found.loc["accuracy", "dropped"] == 0
    counted = metrics.over_folds(predictions, 200).set_index("metric")["dropped"]
    assert counted.equals(found["dropped"])
    assert list(metrics.results(predictions, 200)) == metrics.COLUMNS  # results.csv has none


def test_limits_leave_out_what_does_not_exist():
    assert np.isnan(metrics.interval(np.full(5, np.nan))["low"])
    found = metrics.interval(np.array([7.0, np.nan, *np.arange(101.0)]))
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([7, 2.5, 97.5])


# results.csv


def test_results_are_sorted_one_a_number_and_carry_the_published_values():
    cells, types = drawn("plain", 1), drawn("colposcopy", 1)
    train = cells.assign(part="train", label="normal")  # must not count
    herlev = [
        pd.concat([train, cells]).assign(pipeline="classification", fold=1),
        cells.assign(pipeline="classification", protocol="grouped"),
    ]
    colposcopy = [types.assign(pipeline="sgd"), types.assign(pipeline="modern")]
    frames = {"herlev": pd.concat(herlev), "colposcopy": pd.concat(colposcopy)}
    found = metrics.results(frames, n_boot=50)
    columns = "task pipeline protocol fold n_test metric value low high paper"
    assert list(found) == metrics.COLUMNS == columns.split()
    keys = ["task", "pipeline", "protocol", "fold", "metric"]
    assert found[keys].apply(tuple, axis=1).is_monotonic_increasing
    assert not found.duplicated(keys).any() and (found["n_test"] == 60).all()
    rows = found.set_index(keys)
    assert rows.loc[("colposcopy", "sgd", "paper", "0", "accuracy"), "paper"] == 0.77
    assert rows.loc[("herlev", "classification", "paper", "1", "binary_f1"), "paper"] == 0.94
    assert rows.loc[("colposcopy", "modern", "paper", "0"), "paper"].isna().all()
    for name, expected in naive.measure(cells).items():
        given = rows.loc[("herlev", "classification", "paper", "1", name), "value"]
        assert given == pytest.approx(expected, abs=1e-12)
    pd.testing.assert_frame_equal(
        metrics.results(frames["colposcopy"], 50), found[found["task"] == "colposcopy"]
    )


@pytest.mark.parametrize("kind", ["plain", "colposcopy"])
def test_mean_and_pooled_over_folds_with_limits_from_draws_shared_by_the_folds(kind):
    folds = [drawn(kind, seed).assign(fold=seed) for seed in range(3)]
    both = pd.concat(folds, ignore_index=True)
    found = metrics.over_folds(both, 40, 7).set_index(["fold", "metric"])
    for name, expected in naive.measure(both).items():
        assert found.loc[("pooled", name), "value"] == pytest.approx(expected, abs=1e-12)
        each = [naive.measure(fold)[name] for fold in folds]
        assert found.loc[("mean", name), "value"] == pytest.approx(np.mean(each), abs=1e-12)
    names = naive.class_names(both)
    right = [[names[k] for k in naive.predicted(fold)] == fold["label"] for fold in folds]
    means = []
    for row in metrics.group_weights(both["group"], 40, 7):
        parts = zip(right, np.split(row, 3))
        means.append(np.mean([np.average(hits, weights=weights) for hits, weights in parts]))
    limits = found.loc[("mean", "accuracy"), ["low", "high"]].tolist()
    assert limits == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)
    assert (found.loc["mean", "n_test"] == 180).all() and (found.loc["1", "n_test"] == 60).all()


def test_one_fold_has_neither_mean_nor_pooled():
    assert set(metrics.over_folds(drawn("plain", 0).assign(fold=2), 10)["fold"]) == {"2"}


def test_an_image_that_stands_twice_in_a_fold_is_refused_not_averaged_in():
    one, other = drawn("plain", 0), drawn("plain", 1).assign(run="of another seed")
    with pytest.raises(PredictionsError, match="image 'i0' stands twice in fold 0 of combined"):
        metrics.results(pd.concat([one, other]), 10)


def test_published_table_names_metrics_that_exist_once_each_with_the_papers_figures():
    found = metrics.PUBLISHED
    assert not found.duplicated(["task", "pipeline", "metric"]).any()
    for (task, pipeline), rows in found.groupby(["task", "pipeline"]):
        kind = {"regression": "regression", "sgd": "colposcopy"}.get(pipeline, "plain")
        assert set(rows["metric"]) <= value(drawn(kind, 0)).keys(), (task, pipeline)
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


# Words


def test_every_metric_that_is_measured_has_words_for_people():
    for name in value(drawn("plain", 0)):
        assert "_" not in metrics.label_of(name), name
    assert metrics.label_of("auc_light_dysplastic") == "AUC, light dysplastic"
    assert metrics.label_of("f1_Type_1") == "F1, Type 1"
    labels = [metric.label for metric in metrics.METRICS.values()]
    assert len(set(labels)) == len(labels)
    assert (
        not metrics.describe("auc_normal").lower_is_better
        and metrics.describe("mse").lower_is_better
    )


def test_a_number_is_written_with_its_interval_or_as_a_dash():
    assert (
        metrics.written({"value": 0.7454, "low": 0.701, "high": 0.79}) == "0.745 (0.701 to 0.790)"
    )
    assert metrics.written({"value": np.nan, "low": 0, "high": 0}) == metrics.written(None) == "–"


# Files


def test_predictions_survive_their_file_and_names_stay_text(tmp_path):
    given = drawn("plain", 0).assign(fold=3, run="r1")
    given.loc[:2, "group"], given.loc[3, "id"] = ["NA", "007", ""], "1e5"
    regressed = drawn("regression", 0).assign(pipeline="regression", fold=3)
    both = pd.concat([given, regressed], ignore_index=True)
    metrics.write(both[both.columns[::-1]], paths.predictions_file(tmp_path, "herlev", "paper", 3))
    metrics.write(
        drawn("colposcopy", 1), paths.predictions_file(tmp_path, "colposcopy", "paper", 0)
    )
    found = metrics.read(tmp_path)
    assert list(found) == ["colposcopy", "herlev"]
    pd.testing.assert_frame_equal(found["herlev"], both, rtol=0, atol=0.51e-6, check_dtype=False)
    assert found["herlev"]["fold"].dtype == int
    assert list(metrics.read(tmp_path, ["herlev-paper-3"])) == ["herlev"]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "colposcopy-paper-0.csv",
        "herlev-paper-3.csv",
    ]


def test_folds_of_one_task_are_read_together_and_only_the_pages_asked_for(tmp_path):
    for fold in range(3):
        file = paths.predictions_file(tmp_path, "herlev", "paper", fold)
        metrics.write(drawn("plain", fold).assign(fold=fold), file)
    found = metrics.read(tmp_path, [f"herlev-paper-{fold}" for fold in (0, 2)])["herlev"]
    assert set(found["fold"]) == {0, 2} and len(found) == 120 and found.index.is_unique


def test_a_compressed_table_is_read_in_one_call(tmp_path):
    file = tmp_path / "herlev.csv.gz"
    drawn("ties", 0).to_csv(file, index=False)
    pd.testing.assert_frame_equal(metrics.read_file(file), drawn("ties", 0), check_dtype=False)


BROKEN = {
    "column 'p_normal' is missing": lambda t: t.rename(columns={"p_normal": "normal"}),
    "column 'score' is missing": lambda t: t.drop(columns="score"),
    "column 'fold' is missing": lambda t: t.drop(columns="fold"),
    "column 'task' is missing": lambda t: t.drop(columns="task"),
    "do not sum to 1": lambda t: t.assign(p_normal=t["p_normal"] / 2),
    "outside 0..1": lambda t: t.assign(p_normal=5.0),
    "part 'tset' is unknown": lambda t: t.assign(part="tset"),
    "label 'normall' is unknown": lambda t: t.assign(label="normall"),
    "probabilities are missing": lambda t: t.assign(p_normal=t["p_normal"].mask(t.index == 0)),
    "combined: probabilities are missing": lambda t: t.assign(
        **{name: t[name].mask(t.index == 0) for name in t if name.startswith("p_")}
    ),
    "a score is missing": lambda t: t.assign(score=t["score"].mask(t.index == 0)),
    "image 'i7' stands twice in fold 0": lambda t: t.assign(id=t["id"].replace("i8", "i7")),
    "one task is needed": lambda t: t.assign(task=["colposcopy", *t["task"][1:]]),
    "unknown data set 'herlew'": lambda t: t.assign(task="herlew"),
}


@pytest.mark.parametrize("words", BROKEN)
def test_tables_that_cannot_be_predictions_are_refused_by_name(tmp_path, words):
    file = paths.predictions_file(tmp_path, "herlev", "paper", 0)
    metrics.write(drawn("plain", 0), file)
    broken = BROKEN[words](drawn("plain", 0))
    with pytest.raises(ValueError, match=words):
        metrics.write(broken, file)
    assert len(metrics.read(tmp_path)["herlev"]) == 60  # the old one is still whole
    broken.to_csv(file, index=False)
    with pytest.raises(ValueError, match=words) as refusal:
        metrics.read(tmp_path)
    assert "herlev-paper-0.csv" in str(refusal.value) or words.startswith("unknown data set")


def test_words_among_numbers_and_a_cut_file_are_refused(tmp_path):
    file = paths.predictions_file(tmp_path, "herlev", "paper", 0)
    metrics.write(drawn("plain", 0), file)
    text = file.read_text()
    for content in (text.replace("0.", "zero."), text[: len(text) // 2], ""):
        file.write_text(content)
        with pytest.raises(PredictionsError, match=r"herlev-paper-0.csv"):
            metrics.read(tmp_path)


def test_missing_files_are_named_with_the_remedy(tmp_path):
    with pytest.raises(PredictionsError, match=r"herlev-paper-1.csv is missing: run the notebook"):
        metrics.read(tmp_path, ["herlev-paper-1"])
    with pytest.raises(PredictionsError, match="holds no predictions: run notebooks 2 and 3 first"):
        metrics.read(tmp_path)


def test_a_copy_of_a_page_is_not_counted_twice(tmp_path):
    file = paths.predictions_file(tmp_path, "herlev", "paper", 0)
    metrics.write(drawn("plain", 0), file)
    file.with_name("copy.csv").write_bytes(file.read_bytes())
    with pytest.raises(PredictionsError, match="image 'i0' stands twice"):
        metrics.read(tmp_path)
