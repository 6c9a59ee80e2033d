"""Can probabilities be believed? Temperature, calibration errors, risk-coverage, prediction sets.

Intervals come from weights (n_resamples, n) of whole groups, as in ``metrics``.

Prediction sets hold the reference standard with a nominal probability (split-conformal). Images of
one group are not exchangeable, groups are: one image a group held out in training calibrates, the
promise is about one image a group ("subsampling once", Dunn, Wasserman and Ramdas 2023,
"Distribution-free prediction sets for two-layer hierarchical models").
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import beta

from cervix_utils.evaluation import metrics
from cervix_utils.evaluation.metrics import FLOOR, Array, Frame, Values, written

TEMPERATURES = (0.05, 20.0)
EVERY, BY_GROUP = "all images", "one image a group"


def probabilities(predictions: Frame, floor: float = 0.0) -> Array:
    """Class probabilities (n, k), none under ``floor``, rows summing to 1. Raises without any."""
    if predictions.empty or not metrics.has_probabilities(predictions):
        raise ValueError("there are no probabilities: give rows of a network that is no regression")
    p = np.clip(metrics.probabilities(predictions), floor, None)
    return p / p.sum(axis=1, keepdims=True)


def held_out(predictions: Frame) -> Frame:
    """The rows that calibrate: the validation part or, where there is none, the training images as
    networks of inner folds saw them that were not trained on them. ValueError without any."""
    for part in ("valid", "inner"):
        rows = predictions[predictions["part"] == part]
        if len(rows):
            return rows
    raise ValueError("predictions have no valid or inner part: nothing to calibrate on")


def temperature(predictions: Frame) -> float:
    """Temperature T in 0.05..20 that minimises the log-loss of the held-out rows of one fold.

    Over 1: the network is overconfident. Guo, Pleiss, Sun, Weinberger 2017, "On calibration of
    modern neural networks", section 4.2; log p are the logits. ValueError without any.
    """
    valid = held_out(predictions)
    logits, true = np.log(probabilities(valid, FLOOR)), metrics.true_class(valid)

    def log_loss(log_t: float) -> float:
        log_p = log_softmax(logits / np.exp(log_t), axis=1)
        return -log_p[np.arange(len(valid)), true].mean()

    best = minimize_scalar(log_loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(best.x))


def scaled(predictions: Frame, temperature: float) -> Frame:
    """The same rows with probabilities p^(1/T), renormalised, and the score they give (1..k)."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} will not do: it must be above 0")
    p = softmax(np.log(probabilities(predictions, FLOOR)) / temperature, axis=1)
    return metrics.as_predictions(predictions, p)


def rescaled(predictions: Frame) -> Frame:
    """The test rows of networks, each fold with the temperature of its own held-out rows."""
    folds = [rows for _, rows in predictions.groupby([*metrics.KEYS, "fold"])]
    tests = [scaled(rows[rows["part"] == "test"], temperature(rows)) for rows in folds]
    return pd.concat(tests, ignore_index=True)


def in_bins(confidence: Array, bins: int) -> Array:
    """Bin 0..bins - 1 of values (n,) in 0..1; one on an edge lies above it, 1 in the last bin."""
    return np.searchsorted(np.arange(1, bins) / bins, confidence, side="right")


def measure(p: Array, true: Array, weights: Array | None = None, bins: int = 10) -> Values:
    """Metric name -> values (b,) for p (n, k), class indices (n,) or (b, n), weights (b, n).

    ``ece``: mean gap between confidence and accuracy over bins of the largest probability (Guo et
    al. 2017). ``ece_classwise``: the same for the probability of each class, mean over classes
    (Kull et al. 2019). ``overconfidence``: mean largest probability minus accuracy, -1..1, the only
    one with a sign and without a bias.
    """
    true, weights = np.atleast_2d(true), np.ones((1, len(p))) if weights is None else weights
    top, hit = p.max(axis=1), p.argmax(axis=1) == true
    gaps = _gaps(top, hit, weights, bins)
    of_classes = [_gaps(column, true == k, weights, bins) for k, column in enumerate(p.T)]
    return {
        "ece": np.abs(gaps).sum(axis=1),
        "ece_classwise": np.abs(of_classes).sum(axis=2).mean(axis=0),
        "overconfidence": gaps.sum(axis=1),
    }


def _gaps(confidence: Array, hit: Array, weights: Array, bins: int) -> Array:
    """Confidence (n,) minus outcomes 0 or 1 (b, n), summed in each bin (b, bins), of weight 1."""
    gaps = (weights * (confidence - hit)) @ np.eye(bins)[in_bins(confidence, bins)]
    return gaps / weights.sum(axis=1, keepdims=True)


def calibration(predictions: Frame, n_boot: int = 1000, seed: int = 0) -> Frame:
    """metric, value, low, high, dropped, by_chance of ``measure`` on the rows given.

    ``by_chance``: 97.5 % quantile of the metric where the classes of these images are drawn from
    these very probabilities, image by image (consistency resampling, Bröcker and Smith 2007). A
    calibration error is never 0 on finitely many images: this is what to hold it against.
    """
    p, true = probabilities(predictions), metrics.true_class(predictions)
    drawn = measure(p, true, metrics.with_resamples(predictions["group"], n_boot, seed))
    uniform = np.random.default_rng(seed).random((n_boot, len(p), 1))
    chance = measure(p, (uniform > p.cumsum(axis=1)[:, :-1]).sum(axis=2))
    by_chance = [np.percentile(chance[name], 97.5) for name in drawn]
    return metrics.tabulated(drawn).assign(by_chance=by_chance)


def reliability(predictions: Frame, bins: int = 10) -> Frame:
    """confidence, accuracy, count: one row a bin of the largest probability that has images."""
    top = probabilities(predictions).max(axis=1)
    hit = metrics.predicted_class(predictions) == metrics.true_class(predictions)
    means = pd.DataFrame({"confidence": top, "accuracy": hit}).groupby(in_bins(top, bins))
    return means.mean().assign(count=means.size())


def confidence(predictions: Frame) -> Array:
    """How sure a prediction is (n,): its largest probability, or minus |score - nearest grade|."""
    if metrics.has_probabilities(predictions):
        return metrics.probabilities(predictions).max(axis=1)
    return -np.abs(predictions["score"].to_numpy() - (metrics.predicted_class(predictions) + 1))


def risk_coverage(predictions: Frame) -> Frame:
    """confidence, coverage (share of images at least that sure), error (share of these wrong).

    Geifman and El-Yaniv 2017, "Selective classification for deep neural networks". Images equally
    sure are kept or left together, so the order of the rows does not matter.
    """
    wrong = metrics.predicted_class(predictions) != metrics.true_class(predictions)
    by_confidence = pd.Series(wrong).groupby(confidence(predictions))
    kept = by_confidence.agg(["size", "sum"])[::-1].cumsum().rename_axis("confidence")
    curve = {"coverage": kept["size"] / len(wrong), "error": kept["sum"] / kept["size"]}
    return pd.DataFrame(curve).reset_index()


def is_it_calibrated(before: Frame, after: Frame, temperature: float) -> str:
    """One sentence on a network from ``calibration`` of its test rows as they are and ``rescaled``.

    ``temperature``: the mean over folds. Intervals are over resampled groups of the test images.
    """
    before, after = (table.set_index("metric") for table in (before, after))
    gap, error = before.loc["overconfidence"], before.loc["ece"]
    sure = "overconfident" if gap["low"] > 0 else "neither over- nor underconfident"
    sure = "underconfident" if gap["high"] < 0 else sure
    return (
        f"**{sure}**: confidence minus accuracy {written(gap)}; calibration error "
        f"{error['value']:.3f} ({error['by_chance']:.3f} may be chance), "
        f"{after.at['ece', 'value']:.3f} after a temperature of {temperature:.2f}."
    )


# Prediction sets


def one_a_group(predictions: Frame, seed: int) -> Frame:
    """One image of each group of the held-out rows, drawn at random. Raises without any."""
    shuffled = held_out(predictions).sample(frac=1, random_state=seed)
    return shuffled.drop_duplicates("group").sort_index()


def _rank(n: int, level: float) -> int:
    """Which of n sorted calibration scores is the limit: ceil((n + 1) level), rounding apart."""
    return int(np.ceil(round((n + 1) * level, 9)))


def limit(scores: Array, level: float) -> float:
    """The largest score in a set, from ``scores`` (n,) of right answers, one a group; infinite
    where n groups are too few to promise ``level``: then only the set of all classes is valid."""
    return float(np.sort([*scores, np.inf])[_rank(len(scores), level) - 1])


def by_chance(n: int, level: float) -> tuple[float, float]:
    """Where the coverage of 95 % of valid sets lies, by the draw of n groups (Vovk 2012); 1 and 1
    where they are too few."""
    rank = _rank(n, level)
    return (1.0, 1.0) if rank > n else beta.interval(0.95, rank, n + 1 - rank)


def prediction_sets(predictions: Frame, level: float, seed: int) -> Array:
    """Sets bool (n_test, k) for the test rows of one fold, in their order.

    Classes whose ``distance`` is within the quantile, the predicted one always in. All classes
    where the level cannot be reached.
    """
    test, drawn = predictions[predictions["part"] == "test"], one_a_group(predictions, seed)
    scores = distance(drawn)[np.arange(len(drawn)), metrics.true_class(drawn)]
    sets = distance(test) <= limit(scores, level)
    return sets | np.eye(sets.shape[1], dtype=bool)[metrics.predicted_class(test)]


def distance(predictions: Frame) -> Array:
    """How far each class lies from the prediction (n, k): probability passed before reaching it, or
    |grade - score| where there are no probabilities.

    The interval grows from the most probable class to the more probable of its two neighbours, as
    in ordinal APS (Lu, Angelopoulos and Pomerantz, MICCAI 2022).
    """
    k = len(metrics.class_columns(predictions))
    if not metrics.has_probabilities(predictions):
        return np.abs(np.arange(1, k + 1) - predictions["score"].to_numpy()[:, None])
    p, rows = probabilities(predictions), np.arange(len(predictions))
    walled = np.pad(p, ((0, 0), (1, 1)), constant_values=-1)
    low = high = p.argmax(axis=1) + 1
    passed, mass = np.zeros(p.shape), p.max(axis=1)
    for _ in range(k - 1):
        up = walled[rows, high + 1] > walled[rows, low - 1]
        low, high = np.where(up, low, low - 1), np.where(up, high + 1, high)
        new = np.where(up, high, low)
        passed[rows, new - 1] = mass
        mass = mass + walled[rows, new]
    return passed


def coverage(sets: Array, predictions: Frame, n_boot: int, seed: int) -> Frame:
    """of, images, measure (coverage 0..1, size in classes), value, low, high, dropped.

    ``predictions``: the rows of ``sets``. ``of``: all images; one image a group (groups count the
    same, which is what is promised); each class. 95 % percentile intervals over resampled groups.
    """
    true = metrics.true_class(predictions)
    sizes = predictions.groupby("group")["id"].transform("size")
    measured = {"coverage": sets[np.arange(len(true)), true], "size": sets.sum(axis=1)}
    weights = metrics.with_resamples(predictions["group"], n_boot, seed)
    counted = {EVERY: np.ones(len(true)), BY_GROUP: 1 / sizes.to_numpy()}
    counted |= {name: true == k for k, name in enumerate(metrics.class_columns(predictions))}
    tables = []
    for name, which in counted.items():
        whole = weights @ which
        drawn = {key: metrics.ratio((weights * which) @ measured[key], whole) for key in measured}
        tables.append(metrics.tabulated(drawn).assign(of=name, images=np.count_nonzero(which)))
    return pd.concat(tables, ignore_index=True).rename(columns={"metric": "measure"})


def covered(predictions: Frame, level: float, n_boot: int = 1000, seed: int = 0) -> Frame:
    """``coverage`` of every network in ``predictions``, folds together.

    Further columns: task, pipeline, protocol, groups (that calibrate a fold, the fewest of any).
    """
    tables = []
    for key, rows in predictions.groupby(metrics.KEYS):
        folds = [fold for _, fold in rows.groupby("fold")]
        sets = np.concatenate([prediction_sets(fold, level, seed) for fold in folds])
        tests = pd.concat(metrics.by_fold(rows).values(), ignore_index=True)
        groups = min(held_out(fold)["group"].nunique() for fold in folds)
        place = dict(zip(metrics.KEYS, key), groups=groups)
        tables.append(coverage(sets, tests, n_boot, seed).assign(**place))
    return pd.concat(tables, ignore_index=True)


def do_they_hold(table: Frame, level: float) -> str:
    """One sentence on ``covered`` of one task and protocol: is the promised coverage held?"""
    if by_chance(n := table["groups"].min(), level) == (1, 1):
        return f"{n} calibration groups are too few to promise {level:g}: sets hold all classes."
    rows = table.query("measure == 'coverage' and of == @BY_GROUP").sort_values("value")
    texts = rows["pipeline"] + " " + [written(row) for _, row in rows.iterrows()]
    short = texts[rows["high"] < level]
    verdict = f"not held by {', '.join(short)}" if len(short) else "held"
    return (
        f"{level:g} coverage of one image a group, which is what is promised, is **{verdict}**: "
        f"the 95 % interval over resampled groups lies below it for {len(short)} of {len(rows)} "
        f"networks (lowest: {texts.iloc[0]})."
    )
