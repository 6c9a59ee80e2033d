"""Calibration: equal to torchmetrics and slow twins, exact at its limits, and silent where it cannot know."""

import itertools

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from cervix_utils import calibration, metrics
from cervix_utils.datasets import CLASSES

NAMES = ["ece", "ece_classwise", "brier", "log_loss", "overconfidence"]


def table(label, p=None, score=None, groups=None, part="test", task="herlev") -> pd.DataFrame:
    """Predictions of the contract from class indices (n,) and probabilities (n, k), or regressed scores (n,)."""
    names, n = CLASSES[task], len(label)
    groups = range(n) if groups is None else groups
    found = pd.DataFrame({"id": [f"i{i}" for i in range(n)], "group": [f"g{g}" for g in groups], "part": part})
    found["label"] = [names[index] for index in label]
    found[[f"p_{name}" for name in names]] = np.nan if p is None else p
    if task == "herlev":
        found["score"] = p @ np.arange(1, 6) if score is None else score
    return found


def forecast(seed=0, n=400, sharpen=1.0, classes=5, part="test", groups=None) -> pd.DataFrame:
    """Labels drawn from probabilities, which are then raised to ``sharpen``: 1 is calibrated, 2 needs T = 2."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), n)
    label = (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    p = p**sharpen
    task = "herlev" if classes == 5 else "colposcopy"
    return table(label, p / p.sum(axis=1, keepdims=True), part=part, groups=groups, task=task)


def measured(predictions, **options) -> dict[str, float]:
    p, true = calibration.probabilities(predictions), metrics.true_class(predictions)
    return {name: float(value[0]) for name, value in calibration.measure(p, true, **options).items()}


@pytest.mark.parametrize(("seed", "classes", "bins"), itertools.product(range(3), (3, 5), (10, 7)))
def test_errors_equal_torchmetrics(seed, classes, bins):
    predictions = forecast(seed, 90, 1.5, classes)
    p, true = torch.tensor(calibration.probabilities(predictions)), torch.tensor(metrics.true_class(predictions))
    found = measured(predictions, bins=bins)
    single = float(multiclass_calibration_error(p, true, classes, bins))  # computes in float32, whatever it is given
    assert found["ece"] == pytest.approx(single, abs=1e-6)
    each = [float(binary_calibration_error(p[:, k].contiguous(), (true == k).long(), bins)) for k in range(classes)]
    assert found["ece_classwise"] == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("classes", [3, 5])
def test_scores_equal_their_slow_twins_and_metrics_measure(classes):
    predictions = forecast(4, 80, 1.3, classes)
    found, names = measured(predictions), naive.class_names(predictions)
    assert list(found) == NAMES
    brier = [
        sum((row[f"p_{name}"] - (row["label"] == name)) ** 2 for name in names) for _, row in predictions.iterrows()
    ]
    assert found["brier"] == pytest.approx(sum(brier) / len(brier), abs=1e-12)
    other = metrics.measure(predictions, "herlev" if classes == 5 else "colposcopy")
    assert found["log_loss"] == pytest.approx(other["log_loss"][0], abs=1e-12)
    confidence = predictions[[f"p_{name}" for name in names]].max(axis=1).mean()
    assert found["overconfidence"] == pytest.approx(confidence - other["accuracy"][0], abs=1e-12)


def test_weights_are_the_same_as_repeated_rows():
    predictions = forecast(5, 60, groups=np.arange(60) // 4)
    weights = metrics.group_weights(predictions["group"], 5, seed=1)
    p, true = calibration.probabilities(predictions), metrics.true_class(predictions)
    fast = calibration.measure(p, true, weights)
    for row, each in enumerate(weights):
        slow = measured(naive.repeated(predictions, each))
        np.testing.assert_allclose([fast[name][row] for name in NAMES], [slow[name] for name in NAMES], atol=1e-12)


def test_limits_perfect_worst_and_undecided():
    label = np.repeat(range(5), 4)
    assert measured(table(label, np.eye(5)[label])) == dict.fromkeys(NAMES, 0)
    worst = measured(table(label, np.eye(5)[(label + 1) % 5]))
    assert (worst["ece"], worst["overconfidence"], worst["brier"]) == (1, 1, 2)
    assert worst["ece_classwise"] == pytest.approx(0.4) and worst["log_loss"] == pytest.approx(-np.log(2.0**-23))
    undecided = measured(table(label, np.full((20, 5), 0.2)))
    assert undecided["ece"] == pytest.approx(0) and undecided["ece_classwise"] == pytest.approx(0)
    assert undecided["log_loss"] == pytest.approx(np.log(5)) and undecided["brier"] == pytest.approx(0.8)


def test_a_missing_class_is_no_obstacle():
    predictions = table(np.zeros(6, dtype=int), np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (6, 1)))
    found = measured(predictions)
    assert found["ece"] == pytest.approx(0.4) and found["ece_classwise"] == pytest.approx((0.4 + 4 * 0.1) / 5)
    assert np.isfinite(calibration.calibration(predictions, 50)[["value", "low", "high"]].to_numpy()).all()


def test_bins_hold_their_lower_edge_and_the_last_one_its_upper():
    values = np.array([0, 0.0999999, 0.1, 0.3, 0.6, 0.7, 0.9, 1])
    assert calibration.in_bins(values, 10).argmax(axis=1).tolist() == [0, 0, 1, 3, 6, 7, 9, 9]
    assert (calibration.in_bins(values, 10).sum(axis=1) == 1).all()


def test_reliability_adds_up_to_the_calibration_error():
    predictions = forecast(6, 150, 2)
    found = calibration.reliability(predictions)
    assert len(found) == 10 and found["count"].sum() == 150 and found.loc[found["count"] == 0, "accuracy"].isna().all()
    filled = found[found["count"] > 0]
    assert ((filled["low"] <= filled["confidence"]) & (filled["confidence"] <= filled["high"])).all()
    ece = ((filled["confidence"] - filled["accuracy"]).abs() * filled["count"]).sum() / 150
    assert ece == pytest.approx(measured(predictions)["ece"], abs=1e-12)


@pytest.mark.parametrize("sharpen", [0.5, 1.0, 3.0])
def test_temperature_finds_what_was_sharpened_and_looks_at_the_valid_part_alone(sharpen):
    valid = forecast(7, 6000, sharpen, part="valid")
    misleading = table(np.zeros(500, dtype=int), np.tile(np.eye(5)[1], (500, 1)))
    both = pd.concat([misleading, valid, misleading.assign(part="train")])
    found = calibration.temperature(both)
    assert found == pytest.approx(sharpen, rel=0.1) and found == calibration.temperature(valid)
    grid = [measured(calibration.scaled(valid, t))["log_loss"] for t in np.geomspace(0.1, 10, 60)]
    assert measured(calibration.scaled(valid, found))["log_loss"] <= min(grid) + 1e-9


def test_temperature_stays_within_its_bounds_on_separable_data():
    label = np.repeat(range(5), 4)
    p = 0.5 * np.eye(5)[label] + 0.1
    assert calibration.temperature(table(label, p, part="valid")) == pytest.approx(0.05, rel=0.01)
    assert calibration.temperature(table((label + 1) % 5, p, part="valid")) == pytest.approx(20, rel=0.01)


def test_scaled_is_the_identity_at_one_keeps_the_order_and_recomputes_the_score():
    predictions = forecast(8, 50, 2)
    pd.testing.assert_frame_equal(calibration.scaled(predictions, 1.0), predictions, atol=1e-5, check_exact=False)
    found = calibration.scaled(predictions, 2.0)
    p = np.sqrt(predictions.filter(like="p_").to_numpy())
    np.testing.assert_allclose(found.filter(like="p_"), p / p.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found["score"], found.filter(like="p_") @ np.arange(1, 6), atol=1e-12)
    assert (metrics.predicted_class(found) == metrics.predicted_class(predictions)).all()
    metrics.check_predictions(found, "herlev")
    assert "score" not in calibration.scaled(forecast(8, 50, classes=3), 2.0)
    for cold in (1e-4, 1e4):
        metrics.check_predictions(calibration.scaled(predictions, cold), "herlev")


def test_what_cannot_be_calibrated_is_said():
    regressed = table([0, 1], score=[1.0, 2.0], part="valid")
    for function in (calibration.temperature, calibration.calibration, calibration.reliability):
        with pytest.raises(ValueError, match="no probabilities"):
            function(regressed)
    with pytest.raises(ValueError, match="no valid part"):
        calibration.temperature(forecast(0, 10))
    with pytest.raises(ValueError, match="no rows"):
        calibration.calibration(forecast(0, 10)[:0])
    for wrong in (0, -1, np.nan):
        with pytest.raises(ValueError, match="above 0"):
            calibration.scaled(forecast(0, 10), wrong)


def test_intervals_know_about_groups_and_chance_about_calibration():
    right, sharp = (calibration.calibration(forecast(1, 500, s), 400).set_index("metric") for s in (1, 3))
    assert list(right.index) == NAMES and (right["low"] < right["high"]).all()
    assert right.loc["ece", "value"] < right.loc["ece", "by_chance"] < sharp.loc["ece", "value"]
    assert right.loc["ece_classwise", "value"] < right.loc["ece_classwise", "by_chance"]
    assert sharp.loc["ece_classwise", "by_chance"] < sharp.loc["ece_classwise", "value"]
    assert right.loc["overconfidence", "low"] < 0 < right.loc["overconfidence", "high"]
    assert sharp.loc["overconfidence", "low"] > 0.1
    alone = forecast(2, 100)
    copied = pd.concat([alone] * 9)
    wide, narrow = (
        calibration.calibration(copied.assign(group=g), 400).set_index("metric").loc["brier"]
        for g in (copied["group"], [f"g{i}" for i in range(900)])
    )
    assert (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"]) == pytest.approx(3, rel=0.25)


def test_chance_is_passed_by_few_calibrated_forecasts():
    tables = [calibration.calibration(forecast(seed, 120), 200).set_index("metric") for seed in range(80)]
    for name in ("ece", "ece_classwise"):
        over = np.mean([found.loc[name, "value"] > found.loc[name, "by_chance"] for found in tables])
        assert over < 0.025 + 4 * np.sqrt(0.025 * 0.975 / 80), name


def slow_area(sure, wrong) -> float:
    """Mean over images of the error among those at least as sure, one image at a time."""
    errors = []
    for level in sure:
        kept = [w for s, w in zip(sure, wrong) if s >= level]
        errors.append(sum(kept) / len(kept))
    return sum(errors) / len(errors)


@pytest.mark.parametrize(("kind", "seed"), itertools.product(["plain", "ties", "regression"], range(3)))
def test_risk_coverage_equals_its_slow_twin_whatever_the_order(kind, seed):
    rng = np.random.default_rng(seed)
    predictions = forecast(seed, 70)
    if kind == "ties":
        p = np.round(predictions.filter(like="p_").to_numpy() * 4) + 1
        predictions = table(metrics.true_class(predictions), p / p.sum(axis=1, keepdims=True))
    if kind == "regression":
        predictions = table(rng.integers(0, 5, 70), score=np.round(rng.uniform(0, 6.5, 70), 1))
    curve = calibration.risk_coverage(predictions)
    sure = list(calibration.confidence(predictions))
    wrong = list(metrics.predicted_class(predictions) != metrics.true_class(predictions))
    assert calibration.area(curve) == pytest.approx(slow_area(sure, wrong), abs=1e-12)
    assert curve["coverage"].is_monotonic_increasing and curve["confidence"].is_monotonic_decreasing
    assert curve["coverage"].iloc[-1] == 1 and curve["error"].iloc[-1] == pytest.approx(np.mean(wrong))
    shuffled = calibration.risk_coverage(predictions.sample(frac=1, random_state=seed))
    pd.testing.assert_frame_equal(curve, shuffled)


def test_risk_coverage_at_its_limits():
    label = np.repeat(range(5), 4)
    perfect = calibration.risk_coverage(table(label, np.eye(5)[label]))
    assert len(perfect) == 1 and calibration.area(perfect) == 0
    p = np.full((10, 5), 0.1)
    p[:, 0] = np.linspace(0.5, 0.95, 10)
    p[:, 1:] = (1 - p[:, :1]) / 4
    late, early = np.arange(10) < 3, np.arange(10) >= 7  # errors among the least and among the most sure
    curve = calibration.risk_coverage(table(late.astype(int), p))
    assert calibration.area(curve) == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 10)
    assert calibration.area(calibration.risk_coverage(table(early.astype(int), p))) > 0.6
    same = table([0, 0, 1, 1], np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (4, 1)))
    assert calibration.area(calibration.risk_coverage(same)) == 0.5


def test_a_score_is_sure_where_it_is_near_a_grade_and_unsure_beyond_the_scale():
    found = calibration.confidence(table([0] * 5, score=[1.0, 1.4, 3.25, 7.0, -1.0]))
    np.testing.assert_allclose(found, [0, -0.4, -0.25, -2, -2])


@pytest.mark.parametrize(
    ("sharpen", "words"), [(1, ["no sign of", "neither over-", "within the"]), (3, ["signs of", ": overconfident", "more than"])]
)  # fmt: skip
def test_sentences_say_no_more_than_the_numbers(sharpen, words):
    key, predictions = ("herlev", "combined", "paper"), forecast(3, 400, sharpen)
    states = {"before": predictions, "after": calibration.scaled(predictions, sharpen)}
    tables = {(*key, state): calibration.calibration(each, 200).set_index("metric") for state, each in states.items()}
    (sentence,) = calibration.are_they_calibrated(pd.concat(tables), pd.Series({key: float(sharpen)}))
    assert sentence.startswith("**herlev, combined, paper protocol: ") and all(word in sentence for word in words)
    assert f"A temperature of {sharpen:.2f}" in sentence
    assert f"{tables[*key, 'after'].loc['ece', 'value']:.3f}, and the log-loss from" in sentence
