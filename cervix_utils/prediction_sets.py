"""Sets of classes that hold the reference standard with a nominal probability: split-conformal, calibrated by group.

Images of one slide are not exchangeable, groups are: one image a group of the valid part calibrates ("subsampling
once", Dunn, Wasserman and Ramdas 2023, "Distribution-free prediction sets for two-layer hierarchical models").
"""

import warnings

import numpy as np
import pandas as pd
from mapie.classification import SplitConformalClassifier
from scipy.stats import beta
from sklearn.base import BaseEstimator, ClassifierMixin

from cervix_utils import calibration, metrics

EVERY, BY_GROUP = "all images", "one image a group"


class Given(ClassifierMixin, BaseEstimator):
    """A classifier, already fitted, whose input are its class probabilities (n, k)."""

    def __init__(self, k: int):
        self.k = k
        self.classes_ = np.arange(k)

    def predict_proba(self, p: np.ndarray) -> np.ndarray:
        """What was given."""
        return p

    def predict(self, p: np.ndarray) -> np.ndarray:
        """Index (n,) of the most probable class."""
        return p.argmax(axis=1)


def one_a_group(predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One image of each group of the valid part, by lot. Raises ValueError where there is no valid part."""
    valid = predictions[predictions["part"] == "valid"]
    if valid.empty:
        raise ValueError("predictions have no valid part: prediction sets are calibrated on that part alone")
    return valid.sample(frac=1, random_state=seed).drop_duplicates("group").sort_index()


def _rank(n: int, level: float) -> int:
    """Which of n sorted calibration scores is the limit: ceil((n + 1) level), whatever float arithmetic makes of it."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} will not do: a nominal coverage lies between 0 and 1, e.g. 0.9")
    return int(np.ceil(round((n + 1) * level, 9)))


def reachable(n: int, level: float) -> bool:
    """Whether n groups can promise ``level``; with fewer the set of all classes is the only valid answer."""
    return _rank(n, level) <= n


def by_chance(n: int, level: float) -> tuple[float, float]:
    """Where 95 % of the true coverages of valid sets lie, depending on which n groups calibrate (Vovk 2012)."""
    rank = _rank(n, level)
    return tuple(map(float, beta.interval(0.95, rank, n + 1 - rank))) if rank <= n else (1.0, 1.0)


def conformal_sets(predictions: pd.DataFrame, level: float, seed: int, score: str = "lac") -> np.ndarray:
    """Sets bool (n_test, k) for the test part, in its order; ``score``: ``lac`` or ``aps``, as MAPIE has them.

    lac: Sadinle, Lei and Wasserman 2019, smallest on average, may be empty. aps: Romano, Sesia and Candès 2020, the last
    class kept, so never empty and larger than need be. All classes where the level cannot be reached (MAPIE refuses,
    already with one group more). Raises ValueError without probabilities or with under 3 classes to calibrate aps.
    """
    test, drawn = predictions[predictions["part"] == "test"], one_a_group(predictions, seed)
    p, known = (calibration.probabilities(part, calibration.FLOOR) for part in (test, drawn))  # MAPIE drops zeros
    true = metrics.true_class(drawn)
    if not reachable(len(drawn), level) or len(drawn) < round(1 / (1 - level), 9):
        return np.ones(p.shape, dtype=bool)
    if score == "aps" and len(set(true)) < 3:
        raise ValueError(f"the calibration images show {len(set(true))} classes, aps needs 3: use lac or more images")
    mapie = SplitConformalClassifier(
        Given(p.shape[1]), confidence_level=level, conformity_score=score, prefit=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "WARNING: your conformalization dataset has less labels")  # that is allowed
        mapie.conformalize(known, true)
    return mapie.predict_set(p)[1][:, :, 0]


def distance(predictions: pd.DataFrame) -> np.ndarray:
    """How far each class lies from the prediction (n, k): probability passed before reaching it, or |grade - score|.

    The interval grows from the most probable class to the more probable of its two neighbours, as in ordinal APS (Lu,
    Angelopoulos and Pomerantz, MICCAI 2022); a regressed score has |grade - score| in grades.
    """
    if not metrics.has_probabilities(predictions):
        grades = np.arange(1, len(metrics.class_columns(predictions)) + 1)
        return np.abs(grades - predictions["score"].to_numpy()[:, None])
    p = calibration.probabilities(predictions)
    row, k = np.arange(len(p)), p.shape[1]
    walled = np.pad(p, ((0, 0), (1, 1)), constant_values=-1)
    low = high = p.argmax(axis=1) + 1
    found, mass = np.zeros((len(p), k)), p.max(axis=1)
    for _ in range(k - 1):
        up = walled[row, high + 1] > walled[row, low - 1]
        low, high = np.where(up, low, low - 1), np.where(up, high + 1, high)
        new = np.where(up, high, low)
        found[row, new - 1] = mass
        mass = mass + walled[row, new]
    return found


def ordinal_sets(predictions: pd.DataFrame, level: float, seed: int) -> np.ndarray:
    """Contiguous sets bool (n_test, k) for the test part, in its order; the predicted class is always in.

    Classes within the split-conformal quantile of ``distance``. All classes where the level cannot be reached.
    """
    test, drawn = predictions[predictions["part"] == "test"], one_a_group(predictions, seed)
    found = distance(test)
    if not reachable(len(drawn), level):
        return np.ones(found.shape, dtype=bool)
    scores = distance(drawn)[np.arange(len(drawn)), metrics.true_class(drawn)]
    limit = np.sort(scores)[_rank(len(drawn), level) - 1]
    return (found <= limit) | np.eye(found.shape[1], dtype=bool)[metrics.predicted_class(test)]


def coverage(
    sets: np.ndarray, predictions: pd.DataFrame, level: float, n_boot: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """of, images, measure (coverage 0..1, size in classes), value, low, high, nominal; ``predictions``: rows of ``sets``.

    ``of``: all images; one image a group (groups count the same, as the promise has it); each class of the reference
    standard. 95 % percentile intervals over resampled groups; resamples without the class are left out.
    """
    true, classes = metrics.true_class(predictions), metrics.class_columns(predictions)
    values = {"coverage": sets[np.arange(len(true)), true].astype(float), "size": sets.sum(axis=1).astype(float)}
    weights = np.vstack([np.ones(len(true)), metrics.group_weights(predictions["group"], n_boot, seed)])
    share = 1 / predictions.groupby("group")["group"].transform("size").to_numpy()
    of = {EVERY: np.ones(len(true)), BY_GROUP: share} | {name: true == index for index, name in enumerate(classes)}
    rows = []
    for name, which in of.items():
        for measure, value in values.items():
            with np.errstate(invalid="ignore"):
                drawn = (weights * which) @ value / (weights @ which)
            low, high = np.nanpercentile(drawn[1:], [2.5, 97.5]) if which.any() else (np.nan, np.nan)
            rows.append((name, int((which > 0).sum()), measure, drawn[0], low, high, level))
    return pd.DataFrame(rows, columns=["of", "images", "measure", "value", "low", "high", "nominal"])


def do_they_hold(table: pd.DataFrame, unreached: list[str]) -> list[str]:
    """Sentences from ``coverage`` tables with columns task, pipeline, protocol, sets; ``unreached``: runs too small.

    Kinds of sets are counted over pipelines; the class named is the one that they cover worst.
    """
    sentences = []
    for (task, protocol), rows in table.groupby(["task", "protocol"], sort=False):
        found, size = (rows[(rows["of"] == EVERY) & (rows["measure"] == name)] for name in ("coverage", "size"))
        level, size = found["nominal"].iloc[0], size.sort_values("value")
        below, above = found["high"] < level, found["low"] > level
        names = ", ".join(f"{row.sets} of {row.pipeline} at {row.value:.3f}" for row in found[below].itertuples())
        small, large = (f"{row.value:.2f} ({row.sets}, {row.pipeline})" for row in size.iloc[[0, -1]].itertuples())
        classes = rows[~rows["of"].isin([EVERY, BY_GROUP]) & (rows["measure"] == "coverage")]
        worst = classes.sort_values("value").iloc[0]
        sentences.append(
            f"**{task}, {protocol} protocol:** of {len(found)} kinds of sets the interval of the coverage contains {level:g} "
            f"for {(~below & ~above).sum()}, lies above it for {above.sum()} and below it for {below.sum()}"
            f"{f' ({names}: not held here)' if names else ''}. Mean size from {small} to {large} classes. Least covered: "
            f"{worst['of'].replace('_', ' ')}, {worst['value']:.3f} ({worst['low']:.3f} to {worst['high']:.3f}; "
            f"{worst['sets']}, {worst['pipeline']}); the level is promised for all classes together, not for each."
        )
    if unreached:
        sentences.append(f"Too few groups to promise the level, every set holds all classes: {', '.join(unreached)}.")
    return sentences
