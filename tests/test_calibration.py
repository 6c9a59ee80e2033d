"""Calibration and prediction sets: equal to torchmetrics and slow twins, exact at their limits;
sets hold what they promise on data where the promise is meant."""

import itertools
from types import SimpleNamespace

import naive
import numpy as np
import pandas as pd
import pytest
import test_metrics
import torch
from mapie.classification import SplitConformalClassifier
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from cervix_utils.data import datasets
from cervix_utils.evaluation import calibration, metrics
from cervix_utils.evaluation.calibration import BY_GROUP, EVERY

NAMES = ["ece", "ece_classwise", "overconfidence"]
pair = test_metrics.pair  # a data set of two classes


def area(curve):
    return (np.diff(curve["coverage"], prepend=0) * curve["error"]).sum()


def table(label, p=None, score=None, groups=None, part="test", task="herlev") -> pd.DataFrame:
    """Predictions from class indices (n,) and probabilities (n, k), or regressed scores (n,)."""
    if p is None:
        p = np.full((len(label), len(datasets.get(task).classes)), np.nan)
    return test_metrics.table(label, p, task, groups, score).assign(part=part)


def forecast(seed=0, n=400, sharpen=1.0, classes=5, part="test", groups=None) -> pd.DataFrame:
    """Labels drawn from probabilities, raised to ``sharpen``: 1 is calibrated, 2 needs T = 2."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), n)
    label = (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    p, task = p**sharpen, {5: "herlev", 3: "colposcopy", 2: "pair"}[classes]
    p /= p.sum(axis=1, keepdims=True)
    return table(label, p, part=part, groups=groups, task=task)


def measured(predictions, **options) -> dict[str, float]:
    p, true = calibration.probabilities(predictions), metrics.true_class(predictions)
    values = calibration.measure(p, true, **options)
    return {name: float(value[0]) for name, value in values.items()}


@pytest.mark.parametrize(
    ("seed", "classes", "bins"), itertools.product(range(3), (2, 3, 5), (10, 7))
)
def test_errors_equal_torchmetrics(seed, classes, bins):
    predictions = forecast(seed, 90, 1.5, classes)
    p = torch.tensor(calibration.probabilities(predictions))
    true = torch.tensor(metrics.true_class(predictions))
    found = measured(predictions, bins=bins)
    single = float(multiclass_calibration_error(p, true, classes, bins))  # float32, whatever given
    assert found["ece"] == pytest.approx(single, abs=1e-6)
    each = [
        float(binary_calibration_error(p[:, k].contiguous(), (true == k).long(), bins))
        for k in range(classes)
    ]
    assert found["ece_classwise"] == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_overconfidence_is_confidence_minus_accuracy(classes):
    predictions = forecast(4, 80, 1.3, classes)
    found, names = measured(predictions), naive.class_names(predictions)
    assert list(found) == NAMES
    confidence = predictions[[f"p_{name}" for name in names]].max(axis=1).mean()
    accuracy = metrics.measure(predictions)["accuracy"][0]
    assert found["overconfidence"] == pytest.approx(confidence - accuracy, abs=1e-12)


def test_weights_are_the_same_as_repeated_rows():
    predictions = forecast(5, 60, groups=np.arange(60) // 4)
    weights = metrics.group_weights(predictions["group"], 5, seed=1)
    p, true = calibration.probabilities(predictions), metrics.true_class(predictions)
    fast = calibration.measure(p, true, weights)
    for row, each in enumerate(weights):
        slow = measured(naive.repeated(predictions, each))
        for name in NAMES:
            assert fast[name][row] == pytest.approx(slow[name], abs=1e-12), name


def test_limits_perfect_worst_and_undecided():
    label = np.repeat(range(5), 4)
    assert measured(table(label, np.eye(5)[label])) == dict.fromkeys(NAMES, 0)
    worst = measured(table(label, np.eye(5)[(label + 1) % 5]))
    assert (worst["ece"], worst["overconfidence"]) == (1, 1)
    assert worst["ece_classwise"] == pytest.approx(0.4)
    undecided = measured(table(label, np.full((20, 5), 0.2)))
    assert undecided["ece"] == pytest.approx(0) and undecided["ece_classwise"] == pytest.approx(0)


def test_a_missing_class_is_no_obstacle():
    predictions = table(np.zeros(6, dtype=int), np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (6, 1)))
    found = measured(predictions)
    assert found["ece"] == pytest.approx(0.4)
    assert found["ece_classwise"] == pytest.approx((0.4 + 4 * 0.1) / 5)
    drawn = calibration.calibration(predictions, 50)
    assert np.isfinite(drawn[["value", "low", "high"]].to_numpy()).all()


def test_bins_hold_their_lower_edge_and_the_last_one_its_upper():
    values = np.array([0, 0.0999999, 0.1, 0.3, 0.6, 0.7, 0.9, 1])
    places = calibration.in_bins(values, 10)
    assert places.tolist() == [0, 0, 1, 3, 6, 7, 9, 9]


def test_reliability_adds_up_to_the_calibration_error():
    predictions = forecast(6, 150, 2)
    found = calibration.reliability(predictions)
    assert len(found) < 10 and found["count"].sum() == 150 and (found["count"] > 0).all()
    assert found["confidence"].between(found.index / 10, (found.index + 1) / 10).all()
    gaps = (found["confidence"] - found["accuracy"]).abs()
    assert (gaps * found["count"]).sum() / 150 == pytest.approx(measured(predictions)["ece"])


# Temperature


def log_loss(predictions) -> float:
    return metrics.measure(predictions, names=["log_loss"])["log_loss"][0]


@pytest.mark.parametrize("sharpen", [0.5, 1.0, 3.0])
def test_temperature_finds_what_was_sharpened_and_looks_at_the_valid_part_alone(sharpen):
    valid = forecast(7, 6000, sharpen, part="valid")
    misleading = table(np.zeros(500, dtype=int), np.tile(np.eye(5)[1], (500, 1)))
    both = pd.concat([misleading, valid, misleading.assign(part="train")])
    found = calibration.temperature(both)
    assert found == pytest.approx(sharpen, rel=0.1) and found == calibration.temperature(valid)
    grid = np.geomspace(0.1, 10, 60)
    losses = [log_loss(calibration.scaled(valid, t)) for t in grid]
    lowest = log_loss(calibration.scaled(valid, found))
    assert lowest <= min(losses) + 1e-9


def test_temperature_stays_within_its_bounds_on_separable_data():
    label = np.repeat(range(5), 4)
    p = 0.5 * np.eye(5)[label] + 0.1
    right, wrong = table(label, p, part="valid"), table((label + 1) % 5, p, part="valid")
    assert calibration.temperature(right) == pytest.approx(0.05, rel=0.01)
    assert calibration.temperature(wrong) == pytest.approx(20, rel=0.01)


def test_scaled_is_the_identity_at_one_keeps_the_order_and_recomputes_the_score():
    predictions = forecast(8, 50, 2)
    same = calibration.scaled(predictions, 1.0)
    pd.testing.assert_frame_equal(same, predictions, atol=1e-5, check_exact=False)
    found = calibration.scaled(predictions, 2.0)
    p = np.sqrt(metrics.probabilities(predictions))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(metrics.probabilities(found), p, atol=1e-5)
    expected = metrics.probabilities(found) @ np.arange(1, 6)
    np.testing.assert_allclose(found["score"], expected, atol=1e-12)
    assert (metrics.predicted_class(found) == metrics.predicted_class(predictions)).all()
    assert "score" not in calibration.scaled(forecast(8, 50, classes=3), 2.0)
    for extreme in (1e-4, 2.0, 1e4):
        metrics.check_predictions(calibration.scaled(predictions, extreme))


def test_each_fold_of_each_network_is_rescaled_by_its_own_valid_part():
    parts = []
    for fold, (pipeline, sharpen) in enumerate([("a", 1.0), ("a", 3.0), ("b", 2.0)]):
        for part, n in (("valid", 300), ("test", 50), ("train", 20)):
            rows = forecast(fold, n, sharpen, part=part)
            parts.append(rows.assign(pipeline=pipeline, fold=fold, id=rows["id"] + part))
    both = pd.concat(parts, ignore_index=True)
    found = calibration.rescaled(both.sample(frac=1, random_state=0))
    assert len(found) == 150 and set(found["part"]) == {"test"}
    for fold, rows in found.groupby("fold"):
        one = both[both["fold"] == fold]
        t = calibration.temperature(one)
        expected = calibration.scaled(one[one["part"] == "test"], t)
        pd.testing.assert_frame_equal(
            rows.sort_values("id", ignore_index=True), expected.sort_values("id", ignore_index=True)
        )


def test_what_cannot_be_calibrated_is_said():
    regressed = table([0, 1], score=[1.0, 2.0], part="valid")
    for function in (calibration.temperature, calibration.calibration, calibration.reliability):
        with pytest.raises(ValueError, match="no probabilities"):
            function(regressed)
    with pytest.raises(ValueError, match="no valid or inner part"):
        calibration.temperature(forecast(0, 10))
    with pytest.raises(ValueError, match="no probabilities"):
        calibration.calibration(forecast(0, 10)[:0])
    for wrong in (0, -1, np.nan):
        with pytest.raises(ValueError, match="above 0"):
            calibration.scaled(forecast(0, 10), wrong)


# Intervals and chance


def test_intervals_know_about_groups_and_chance_about_calibration():
    tables = [calibration.calibration(forecast(1, 500, s), 400) for s in (1, 3)]
    right, sharp = (table.set_index("metric") for table in tables)
    assert list(right.index) == NAMES and (right["low"] < right["high"]).all()
    for name in ("ece", "ece_classwise"):
        assert right.loc[name, "value"] < right.loc[name, "by_chance"]
        assert sharp.loc[name, "by_chance"] < sharp.loc[name, "value"]
    assert right.loc["overconfidence", "low"] < 0 < right.loc["overconfidence", "high"]
    assert sharp.loc["overconfidence", "low"] > 0.1
    copied = pd.concat([forecast(2, 100)] * 9)
    widths = []
    for groups in (copied["group"], [f"g{i}" for i in range(900)]):
        found = calibration.calibration(copied.assign(group=groups), 400)
        sure = found.set_index("metric").loc["overconfidence"]
        widths.append(sure["high"] - sure["low"])
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.25)


def test_chance_is_passed_by_few_calibrated_forecasts():
    tables = [calibration.calibration(forecast(seed, 120), 200) for seed in range(80)]
    tables = [table.set_index("metric") for table in tables]
    for name in ("ece", "ece_classwise"):
        over = [found.loc[name, "value"] > found.loc[name, "by_chance"] for found in tables]
        assert np.mean(over) < 0.025 + 4 * np.sqrt(0.025 * 0.975 / 80), name


@pytest.mark.parametrize(
    ("sharpen", "words"),
    [
        (1, ["**neither over- nor underconfident**: confidence", "may be chance"]),
        (3, ["**overconfident**: confidence minus accuracy 0."]),
        (0.4, ["**underconfident**: confidence minus accuracy -0."]),
    ],
)
def test_sentences_say_no_more_than_the_numbers(sharpen, words):
    predictions = forecast(3, 400, sharpen)
    states = predictions, calibration.scaled(predictions, sharpen)
    before, after = (calibration.calibration(each, 200) for each in states)
    sentence = calibration.is_it_calibrated(before, after, float(sharpen))
    assert all(word in sentence for word in words)
    error, after = before.set_index("metric").loc["ece"], after.set_index("metric")["value"]
    assert f"error {error['value']:.3f} ({error['by_chance']:.3f} may be chance)" in sentence
    assert f"{after['ece']:.3f} after a temperature of {sharpen:.2f}." in sentence


# Risk and coverage


def slow_area(sure, wrong) -> float:
    """Mean over images of the error among those at least as sure, one image at a time."""
    errors = []
    for level in sure:
        kept = [w for s, w in zip(sure, wrong) if s >= level]
        errors.append(sum(kept) / len(kept))
    return sum(errors) / len(errors)


@pytest.mark.parametrize(
    ("kind", "seed"), itertools.product(["plain", "ties", "regression"], range(3))
)
def test_risk_coverage_equals_its_slow_twin_whatever_the_order(kind, seed):
    rng = np.random.default_rng(seed)
    predictions = forecast(seed, 70)
    if kind == "ties":
        p = np.round(metrics.probabilities(predictions) * 4) + 1
        predictions = table(metrics.true_class(predictions), p / p.sum(axis=1, keepdims=True))
    if kind == "regression":
        score = np.round(rng.uniform(0, 6.5, 70), 1)
        predictions = table(rng.integers(0, 5, 70), score=score)
    curve = calibration.risk_coverage(predictions)
    sure = list(calibration.confidence(predictions))
    wrong = list(metrics.predicted_class(predictions) != metrics.true_class(predictions))
    assert area(curve) == pytest.approx(slow_area(sure, wrong), abs=1e-12)
    assert list(curve) == ["confidence", "coverage", "error"]
    assert curve["coverage"].is_monotonic_increasing and curve["coverage"].iloc[-1] == 1
    assert curve["confidence"].is_monotonic_decreasing
    assert curve["error"].iloc[-1] == pytest.approx(np.mean(wrong))
    shuffled = calibration.risk_coverage(predictions.sample(frac=1, random_state=seed))
    pd.testing.assert_frame_equal(curve, shuffled)


def test_risk_coverage_at_its_limits():
    label = np.repeat(range(5), 4)
    perfect = calibration.risk_coverage(table(label, np.eye(5)[label]))
    assert len(perfect) == 1 and area(perfect) == 0
    p = np.full((10, 5), 0.1)
    p[:, 0] = np.linspace(0.5, 0.95, 10)
    p[:, 1:] = (1 - p[:, :1]) / 4
    late, early = np.arange(10) < 3, np.arange(10) >= 7  # errors among the least, the most sure
    curve = calibration.risk_coverage(table(late.astype(int), p))
    assert area(curve) == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 10)
    assert area(calibration.risk_coverage(table(early.astype(int), p))) > 0.6
    same = table([0, 0, 1, 1], np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (4, 1)))
    assert area(calibration.risk_coverage(same)) == 0.5


def test_a_score_is_sure_where_it_is_near_a_grade_and_unsure_beyond_the_scale():
    found = calibration.confidence(table([0] * 5, score=[1.0, 1.4, 3.25, 7.0, -1.0]))
    np.testing.assert_allclose(found, [0, -0.4, -0.25, -2, -2])


# Prediction sets


def parts(seed, n_valid=60, n_test=200, sharpen=1.5, classes=5, size=1) -> pd.DataFrame:
    """A valid and a test part of independent groups of ``size`` images each."""
    groups = np.arange(n_valid * size) // size
    valid = forecast(seed, n_valid * size, sharpen, classes, "valid", groups)
    test = forecast(seed + 10_000, n_test, sharpen, classes)
    return pd.concat([valid.assign(id="v" + valid["id"]), test], ignore_index=True)


def regressed(seed, n_valid=60, n_test=200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, n_valid + n_test)
    part = ["valid"] * n_valid + ["test"] * n_test
    return table(label, score=rng.normal(label + 1, 0.8), part=part)


def the_test_part(predictions) -> pd.DataFrame:
    return predictions[predictions["part"] == "test"].reset_index(drop=True)


def test_one_image_of_each_valid_group_is_drawn_at_random():
    predictions = parts(0, 30, 50, size=4)
    drawn = [calibration.one_a_group(predictions, seed) for seed in range(40)]
    names = sorted({f"g{i}" for i in range(30)})
    for each in drawn:
        assert (each["part"] == "valid").all() and sorted(each["group"]) == names
    valid = predictions.loc[predictions["part"] == "valid", "id"]
    assert set(pd.concat(drawn)["id"]) == set(valid)  # each image has a chance
    pd.testing.assert_frame_equal(drawn[3], calibration.one_a_group(predictions, 3))


@pytest.mark.parametrize("kind", ["probabilities", "regression"])
def test_coverage_reaches_its_level_on_exchangeable_groups(kind):
    hits, level = [], 0.9
    for seed in range(80):
        pairs = parts(seed, 39, 100, size=2)
        predictions = regressed(seed, 39, 100) if kind == "regression" else pairs
        sets = calibration.prediction_sets(predictions, level, seed)
        hits.append(sets[np.arange(100), metrics.true_class(the_test_part(predictions))].mean())
    error = np.std(hits) / np.sqrt(len(hits))
    assert np.mean(hits) > level - 3 * error
    if kind == "regression":  # sets from probabilities are larger than need be
        assert np.mean(hits) < level + 1 / 40 + 3 * error


def test_copies_in_calibration_promise_no_more_as_one_image_a_group_is_drawn():
    """39 groups of 6 copies count as 39 images, not as 234."""
    predictions = parts(3, 39, 100)
    valid = predictions[predictions["part"] == "valid"]
    copies = [valid.assign(id=valid["id"] + f"-{i}") for i in range(6)]
    copied = pd.concat([*copies, the_test_part(predictions)], ignore_index=True)
    once, again = (calibration.prediction_sets(each, 0.9, 0) for each in (predictions, copied))
    assert (once == again).all()


@pytest.mark.parametrize("seed", range(4))
def test_sets_are_contiguous_never_empty_and_grow_with_the_level(seed):
    for predictions in (parts(seed), parts(seed, classes=3), regressed(seed)):
        last = None
        for level in (0.51, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
            found = calibration.prediction_sets(predictions, level, seed)
            edges = np.abs(np.diff(np.pad(found, ((0, 0), (1, 1))).astype(int), axis=1))
            assert found.dtype == bool and (edges.sum(axis=1) == 2).all()  # one way in, one out
            called = metrics.predicted_class(the_test_part(predictions))
            assert found[np.arange(len(found)), called].all()
            assert last is None or (found >= last).all()
            last = found
        assert last.all()  # 60 groups cannot promise 0.99


def slow_distance(row) -> list[float]:
    """One image: probability of the classes taken before each, to the more probable neighbour."""
    taken, found, mass = [row.index(max(row))], {row.index(max(row)): 0.0}, max(row)
    while len(taken) < len(row):
        sides = [k for k in (min(taken) - 1, max(taken) + 1) if 0 <= k < len(row)]
        new = max(sides, key=lambda k: row[k])
        found[new] = mass
        mass += row[new]
        taken.append(new)
    return [found[k] for k in range(len(row))]


@pytest.mark.parametrize(("seed", "classes"), itertools.product(range(3), (2, 3, 5)))
def test_distance_equals_its_slow_twin(seed, classes):
    predictions = forecast(seed, 60, 2, classes)
    slow = [slow_distance(row) for row in metrics.probabilities(predictions).tolist()]
    np.testing.assert_allclose(calibration.distance(predictions), slow, atol=1e-12)


def test_distance_of_a_score_is_in_grades():
    found = calibration.distance(table([0, 0], score=[2.2, 6.0]))
    np.testing.assert_allclose(found, [[1.2, 0.2, 0.8, 1.8, 2.8], [5, 4, 3, 2, 1]])


@pytest.mark.parametrize(("n", "level"), [(30, 0.9), (49, 0.8), (60, 0.95)])
def test_the_limit_is_the_split_conformal_quantile_by_hand_and_that_of_mapie(n, level):
    predictions = parts(n, n, 300)
    valid, rest = predictions[predictions["part"] == "valid"], the_test_part(predictions)
    scores = [1 - row[f"p_{row['label']}"] for _, row in valid.iterrows()]
    limit = calibration.limit(np.array(scores), level)
    assert limit == sorted(scores)[int(np.ceil((n + 1) * level)) - 1]
    fitted = SimpleNamespace(predict_proba=lambda p: p, classes_=np.arange(5))
    mapie = SplitConformalClassifier(fitted, confidence_level=level, conformity_score="lac")
    mapie.conformalize(metrics.probabilities(valid), metrics.true_class(valid))
    expected = mapie.predict_set(metrics.probabilities(rest))[1][:, :, 0]
    assert (expected == (1 - metrics.probabilities(rest) <= limit)).all()


REACHED = [(9, 0.9), (4, 0.8), (19, 0.95)]
MISSED = [(8, 0.9), (3, 0.8), (18, 0.95), (1, 0.9)]


@pytest.mark.parametrize(("n", "level"), REACHED + MISSED)
def test_too_few_groups_get_all_classes_and_are_told_apart(n, level):
    reached = (n, level) in REACHED
    found = calibration.prediction_sets(parts(1, n, 30, sharpen=4), level, 0)
    assert found.shape == (30, 5) and found.dtype == bool
    assert found.all() != reached
    low, high = calibration.by_chance(n, level)
    assert (low < level < high) if reached else low == high == 1


def test_by_chance_is_where_true_coverages_lie():
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):  # scores uniform in 0..1: the coverage is the quantile itself
        found.append(np.sort(rng.random(35))[int(np.ceil(36 * 0.9)) - 1])
    expected = np.percentile(found, [2.5, 97.5])
    np.testing.assert_allclose(calibration.by_chance(35, 0.9), expected, atol=0.01)


def test_one_answer_for_all_still_covers():
    """Certain and mostly wrong: a probability of 0 rules no class out."""
    label, part = np.arange(80) % 5, ["valid"] * 40 + ["test"] * 40
    wrong = table(label, np.tile(np.eye(5)[2], (80, 1)), part=part)
    assert calibration.prediction_sets(wrong, 0.9, 0).all()
    perfect = table(label, np.eye(5)[label], part=part)
    assert calibration.prediction_sets(perfect, 0.9, 0).sum(axis=1).max() == 1


def test_a_class_missing_from_calibration_is_allowed():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 30)
    valid = table(np.repeat([0, 1, 2], 10), p, part="valid")
    predictions = pd.concat([valid, forecast(1, 20)], ignore_index=True)
    assert calibration.prediction_sets(predictions, 0.9, 0).shape == (20, 5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no valid or inner part"):
        calibration.prediction_sets(the_test_part(parts(0)), 0.9, 0)


def test_coverage_counts_images_groups_and_classes():
    predictions = table([0, 0, 0, 1], np.full((4, 5), 0.2), groups=[0, 0, 0, 1])
    sets = np.zeros((4, 5), dtype=bool)
    sets[:3, 0], sets[3, 2:] = True, True
    found = calibration.coverage(sets, predictions, 200, 0).set_index(["of", "measure"])
    names = (EVERY, BY_GROUP, "normal", "light_dysplastic")
    values = [found.loc[(name, "coverage"), "value"] for name in names]
    assert values == [0.75, 0.5, 1.0, 0.0]
    assert found.loc[(EVERY, "size"), "value"] == 1.5
    assert found.loc[(BY_GROUP, "size"), "value"] == 2
    assert found.loc[("normal", "coverage"), "images"] == 3
    never = found.loc["carcinoma_in_situ", ["value", "low", "high"]]
    assert never.isna().all(axis=None)
    limits = found.loc[(EVERY, "coverage"), ["low", "high"]].tolist()
    assert limits == [0, 1]  # two groups: both draws may be of the same


def test_coverage_intervals_are_binomial_for_lone_images_and_wider_for_groups():
    hit = np.random.default_rng(2).random(400) < 0.9
    alone = table(np.zeros(400, dtype=int), np.full((400, 5), 0.2))
    sets = np.eye(5, dtype=bool)[np.where(hit, 0, 1)]
    row = calibration.coverage(sets, alone, 1000, 0).iloc[0]
    width, p = row["high"] - row["low"], hit.mean()
    assert row["value"] == p
    assert width == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.12)
    copied = pd.concat([alone] * 4)
    again = calibration.coverage(np.concatenate([sets] * 4), copied, 1000, 0).iloc[0]
    assert again["high"] - again["low"] == pytest.approx(width, rel=0.1)


def test_every_network_gets_sets_over_its_folds():
    one = [parts(seed, 20 + seed, 30).assign(fold=seed) for seed in range(2)]
    other = regressed(0, 20, 30).assign(pipeline="regression")
    found = calibration.covered(pd.concat([*one, other], ignore_index=True), 0.9, 50)
    assert list(found["pipeline"].unique()) == ["combined", "regression"]
    assert (found["groups"] == 20).all() and set(found["protocol"]) == {"paper"}
    hits = []
    for fold in one:
        sets = calibration.prediction_sets(fold, 0.9, 0)
        hits.append(sets[np.arange(30), metrics.true_class(the_test_part(fold))].mean())
    first = found.query("pipeline == 'combined' and measure == 'coverage'").iloc[0]
    assert first["value"] == pytest.approx(np.mean(hits)) and first["images"] == 60


def judged(hits: np.ndarray, groups: np.ndarray, n: int = 30) -> pd.DataFrame:
    """``covered`` of sets that hold the reference standard of the images ``hits``."""
    predictions = table(np.zeros(len(hits), dtype=int), np.full((len(hits), 5), 0.2), groups=groups)
    sets = np.eye(5, dtype=bool)[np.where(hits, 0, 1)]
    place = {"task": "herlev", "pipeline": "combined", "protocol": "grouped"}
    return calibration.coverage(sets, predictions, 400, 0).assign(**place, groups=n)


def test_the_verdict_is_on_one_image_a_group_which_is_what_is_promised():
    """276 lone images covered, 24 groups of 10 not: 0.535 of all images, but 0.92 by group."""
    sizes = np.repeat([1, 10], [276, 24])
    found = judged(np.repeat(sizes == 1, sizes), np.repeat(np.arange(300), sizes))
    rows = found[found["measure"] == "coverage"].set_index("of")
    assert rows.loc[EVERY, "high"] < 0.9 < rows.loc[BY_GROUP, "value"]
    said = calibration.do_they_hold(found, 0.9)
    assert "is **held**: " in said and "for 0 of 1 networks (lowest: combined 0.920" in said


def test_sets_that_fail_by_group_are_named_and_too_few_groups_promise_nothing():
    """240 lone images not covered, 24 groups of 10 images covered: most images, few groups."""
    sizes = np.repeat([1, 10], [100, 200])
    found = judged(np.repeat(sizes > 1, sizes), np.repeat(np.arange(300), sizes))
    rows = found[found["measure"] == "coverage"].set_index("of")
    assert rows.loc[EVERY, "low"] > 0.9 > rows.loc[BY_GROUP, "high"]
    good = judged(np.ones(50, dtype=bool), np.arange(50)).assign(pipeline="corn")
    said = calibration.do_they_hold(pd.concat([found, good]), 0.9)
    assert "**not held by combined 0.667 (" in said and "for 1 of 2 networks" in said
    said = calibration.do_they_hold(good.assign(groups=8), 0.9)
    assert said == "8 calibration groups are too few to promise 0.9: sets hold all classes."
