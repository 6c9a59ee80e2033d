"""Prediction sets: what they promise they hold, on data where the promise is meant; contiguous, never empty."""

import itertools

import numpy as np
import pandas as pd
import pytest
from test_calibration import forecast, table

from cervix_utils import metrics, prediction_sets
from cervix_utils.prediction_sets import BY_GROUP, EVERY, conformal_sets, ordinal_sets


def parts(seed, n_valid=60, n_test=200, sharpen=1.5, classes=5, size=1) -> pd.DataFrame:
    """A valid and a test part of independent groups of ``size`` images each."""
    groups = np.arange(n_valid * size) // size
    valid = forecast(seed, n_valid * size, sharpen, classes, "valid", groups)
    return pd.concat([valid, forecast(seed + 10_000, n_test, sharpen, classes)], ignore_index=True)


def regressed(seed, n_valid=60, n_test=200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, n_valid + n_test)
    found = table(label, score=rng.normal(label + 1, 0.8))
    found["part"] = ["valid"] * n_valid + ["test"] * n_test
    return found


def every_kind(predictions, level, seed=0, kinds=("contiguous", "lac", "aps")) -> dict[str, np.ndarray]:
    return {
        kind: ordinal_sets(predictions, level, seed) if kind == "contiguous" else conformal_sets(predictions, level, seed, kind)
        for kind in kinds
    }  # fmt: skip


def test(predictions) -> pd.DataFrame:
    return predictions[predictions["part"] == "test"].reset_index(drop=True)


test.__test__ = False


def test_one_image_of_each_valid_group_by_lot():
    predictions = parts(0, 30, 50, size=4)
    drawn = [prediction_sets.one_a_group(predictions, seed) for seed in range(40)]
    for each in drawn:
        assert (each["part"] == "valid").all() and sorted(each["group"]) == sorted({f"g{i}" for i in range(30)})
    assert set(pd.concat(drawn)["id"]) == set(
        predictions.loc[predictions["part"] == "valid", "id"]
    )  # each has a chance
    pd.testing.assert_frame_equal(drawn[3], prediction_sets.one_a_group(predictions, 3))
    with pytest.raises(ValueError, match="no valid part"):
        prediction_sets.one_a_group(test(predictions), 0)


@pytest.mark.parametrize(
    ("kind", "level"), [("lac", 0.9), ("lac", 0.8), ("aps", 0.9), ("contiguous", 0.9), ("regression", 0.9), ("regression", 0.8)]
)  # fmt: skip
def test_coverage_reaches_its_level_on_exchangeable_groups(kind, level):
    hits = []
    for seed in range(80):
        predictions = regressed(seed, 39, 100) if kind == "regression" else parts(seed, 39, 100, size=2)
        chosen = every_kind(predictions, level, seed, [kind] if kind in ("lac", "aps") else ["contiguous"])
        (sets,) = chosen.values()
        hits.append(sets[np.arange(100), metrics.true_class(test(predictions))].mean())
    error = np.std(hits) / np.sqrt(len(hits))
    assert np.mean(hits) > level - 3 * error
    if kind in ("lac", "regression"):  # the others are larger than need be: a last class, a predicted class
        assert np.mean(hits) < level + 1 / 40 + 3 * error


def test_relatives_in_calibration_would_promise_too_much_without_the_lot():
    """39 groups of 6 copies count as 39 images, not as 234."""
    predictions = parts(3, 39, 100)
    valid = predictions[predictions["part"] == "valid"]
    copied = pd.concat(
        [*[valid.assign(id=valid["id"] + f"-{i}") for i in range(6)], test(predictions)], ignore_index=True
    )
    for kind, chosen in every_kind(predictions, 0.9).items():
        again = every_kind(copied, 0.9)[kind]
        if kind != "aps":  # whose calibration scores are drawn in the order of the images
            assert (chosen == again).all(), kind


@pytest.mark.parametrize("seed", range(6))
def test_ordinal_sets_are_contiguous_never_empty_and_grow_with_the_level(seed):
    for predictions in (parts(seed), parts(seed, classes=3), regressed(seed)):
        last = None
        for level in (0.51, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
            found = ordinal_sets(predictions, level, seed)
            edges = np.abs(np.diff(np.pad(found, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1)
            assert found.dtype == bool and (edges == 2).all()  # one way in, one way out
            assert found[np.arange(len(found)), metrics.predicted_class(test(predictions))].all()
            assert last is None or (found >= last).all()
            last = found
        assert last.all()  # 60 groups cannot promise 0.99


def slow_distance(row) -> list[float]:
    """One image at a time: probability of the classes taken before each, walking to the more probable neighbour."""
    taken, found, mass = [row.index(max(row))], {row.index(max(row)): 0.0}, max(row)
    while len(taken) < len(row):
        sides = [k for k in (min(taken) - 1, max(taken) + 1) if 0 <= k < len(row)]
        new = max(sides, key=lambda k: row[k])
        found[new] = mass
        mass += row[new]
        taken.append(new)
    return [found[k] for k in range(len(row))]


@pytest.mark.parametrize(("seed", "classes"), itertools.product(range(3), (3, 5)))
def test_distance_equals_its_slow_twin(seed, classes):
    predictions = forecast(seed, 60, 2, classes)
    slow = [slow_distance(row) for row in predictions.filter(like="p_").to_numpy().tolist()]
    np.testing.assert_allclose(prediction_sets.distance(predictions), slow, atol=1e-12)


def test_distance_of_a_score_is_in_grades():
    found = prediction_sets.distance(table([0, 0], score=[2.2, 6.0]))
    np.testing.assert_allclose(found, [[1.2, 0.2, 0.8, 1.8, 2.8], [5, 4, 3, 2, 1]])


def test_lac_is_the_split_conformal_quantile_by_hand():
    predictions = parts(8, 49, 80)
    valid, rest = predictions[predictions["part"] == "valid"], test(predictions)
    own = [row[f"p_{row['label']}"] for _, row in valid.iterrows()]
    limit = sorted(1 - p for p in own)[int(np.ceil(50 * 0.9)) - 1]
    expected = 1 - rest.filter(like="p_").to_numpy() <= limit + 1e-6
    assert (conformal_sets(predictions, 0.9, 0, "lac") == expected).all()


def test_aps_is_never_empty_and_the_seed_decides():
    predictions = parts(9)
    found = [conformal_sets(predictions, 0.7, seed, "aps") for seed in (0, 0, 1)]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any() and found[0].any(axis=1).all()


@pytest.mark.parametrize(("n", "level", "reached"), [(8, 0.9, False), (9, 0.9, True), (3, 0.8, False), (4, 0.8, True), (18, 0.95, False), (19, 0.95, True), (1, 0.9, False)])  # fmt: skip
def test_too_few_groups_get_all_classes_and_are_told_apart(n, level, reached):
    assert prediction_sets.reachable(n, level) is reached
    predictions = parts(1, n, 30, sharpen=4)
    for kind, found in every_kind(predictions, level).items():
        assert found.shape == (30, 5) and found.dtype == bool
        if not reached:
            assert found.all(), kind
    assert ordinal_sets(predictions, level, 0).all() != reached
    low, high = prediction_sets.by_chance(n, level)
    assert (low < level < high) if reached else low == high == 1


def test_mapie_refuses_what_is_answered_here_with_all_classes():
    """Below 1 / (1 - level) groups MAPIE raises: the last group that could promise the level included."""
    from mapie.classification import SplitConformalClassifier

    p = np.random.default_rng(0).dirichlet(np.ones(5), 10)
    for n, refused in ((8, True), (9, True), (10, False)):
        mapie = SplitConformalClassifier(prediction_sets.Given(5), confidence_level=0.9, prefit=True)
        mapie.conformalize(p[:n], np.arange(n) % 5)
        if refused:
            with pytest.raises(ValueError, match="too low"):
                mapie.predict_set(p)
        else:
            mapie.predict_set(p)
        assert conformal_sets(parts(2, n, 20, sharpen=4), 0.9, 0).all() == refused


def test_by_chance_is_where_true_coverages_lie():
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):  # scores uniform in 0..1: the coverage is the quantile itself
        found.append(np.sort(rng.random(35))[int(np.ceil(36 * 0.9)) - 1])
    np.testing.assert_allclose(prediction_sets.by_chance(35, 0.9), np.percentile(found, [2.5, 97.5]), atol=0.01)


def test_one_answer_for_all_still_covers():
    """Certain and mostly wrong: a probability of 0 rules no class out."""
    label = np.arange(80) % 5
    predictions = table(label, np.tile(np.eye(5)[2], (80, 1)))
    predictions["part"] = ["valid"] * 40 + ["test"] * 40
    for kind, found in every_kind(predictions, 0.9).items():
        assert found.all(), kind
    perfect = table(label, np.eye(5)[label]).assign(part=predictions["part"])
    for kind, found in every_kind(perfect, 0.9).items():
        assert found.sum(axis=1).max() == 1 or kind == "aps", kind


def test_a_class_missing_from_calibration_is_allowed_and_two_classes_are_refused_by_aps():
    valid = table(np.repeat([0, 1, 2], 10), np.random.default_rng(0).dirichlet(np.ones(5), 30), part="valid")
    predictions = pd.concat([valid.assign(group=valid["id"]), forecast(1, 20)], ignore_index=True)
    assert conformal_sets(predictions, 0.9, 0, "aps").shape == (20, 5)
    two = predictions[~((predictions["part"] == "valid") & (predictions["label"] == "normal"))]
    assert conformal_sets(two, 0.9, 0, "lac").shape == (20, 5)
    with pytest.raises(ValueError, match="aps needs 3"):
        conformal_sets(two, 0.9, 0, "aps")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no probabilities"):
        conformal_sets(regressed(0), 0.9, 0)
    for level in (0, 1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            ordinal_sets(parts(0), level, 0)


def test_coverage_counts_images_groups_and_classes():
    predictions = table([0, 0, 0, 1], np.full((4, 5), 0.2), groups=[0, 0, 0, 1])
    sets = np.zeros((4, 5), dtype=bool)
    sets[:3, 0], sets[3, 2:] = True, True
    found = prediction_sets.coverage(sets, predictions, 0.9, 200).set_index(["of", "measure"])
    values = {name: found.loc[(name, "coverage"), "value"] for name in (EVERY, BY_GROUP, "normal", "light_dysplastic")}
    assert values == {EVERY: 0.75, BY_GROUP: 0.5, "normal": 1.0, "light_dysplastic": 0.0}
    assert found.loc[(EVERY, "size"), "value"] == 1.5 and found.loc[(BY_GROUP, "size"), "value"] == 2
    assert found.loc[("normal", "coverage"), "images"] == 3 and (found["nominal"] == 0.9).all()
    assert found.loc["carcinoma_in_situ", ["value", "low", "high"]].isna().all(axis=None)
    assert found.loc[(EVERY, "coverage"), ["low", "high"]].tolist() == [0, 1]  # two groups: both may be the same


def test_coverage_intervals_are_binomial_for_lone_images_and_wider_for_groups():
    hit = np.random.default_rng(2).random(400) < 0.9
    alone = table(np.zeros(400, dtype=int), np.full((400, 5), 0.2))
    sets = np.eye(5, dtype=bool)[np.where(hit, 0, 1)]
    row = prediction_sets.coverage(sets, alone, 0.9).iloc[0]
    p = hit.mean()
    assert row["value"] == p
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.12)
    copied = pd.concat([alone] * 4)
    again = prediction_sets.coverage(np.concatenate([sets] * 4), copied, 0.9).iloc[0]
    assert again["high"] - again["low"] == pytest.approx(row["high"] - row["low"], rel=0.1)


def test_sentences_name_what_does_not_hold_and_the_worst_class():
    predictions = table(np.repeat([0, 1], 50), np.full((100, 5), 0.2))
    good, bad = np.ones((100, 5), dtype=bool), np.eye(5, dtype=bool)[np.repeat([0, 0], 50)]
    kinds = {"lac": good, "contiguous": bad}
    tables = [
        prediction_sets.coverage(sets, predictions, 0.9, 100).assign(
            task="herlev", pipeline="combined", protocol="grouped", sets=kind
        )
        for kind, sets in kinds.items()
    ]
    found, few = prediction_sets.do_they_hold(pd.concat(tables), ["herlev paper-0 (groups: 3)"])
    assert found.startswith(
        "**herlev, grouped protocol:** of 2 kinds of sets the interval of the coverage contains 0.9 for 0"
    )
    assert "above it for 1 and below it for 1 (contiguous of combined at 0.500: not held here)" in found
    assert "from 1.00 (contiguous, combined) to 5.00 (lac, combined)" in found
    assert "Least covered: light dysplastic, 0.000 (0.000 to 0.000; contiguous, combined)" in found
    assert few.endswith("herlev paper-0 (groups: 3).")
