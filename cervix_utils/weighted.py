"""Metrics over weights of shape (n_resamples, n): how often each image counts in each resample.

Weights of one give the value itself; counts drawn with whole groups give its bootstrap distribution, for all
resamples in a few matrix products.
"""

import numpy as np
import pandas as pd


def confusion(true: np.ndarray, predicted: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
    """Weighted confusion matrices (n_resamples, k, k); rows are the reference standard."""
    cells = np.eye(k * k)[true * k + predicted]
    return (weights @ cells).reshape(-1, k, k)


def f1_per_class(matrices: np.ndarray) -> np.ndarray:
    """F1 (n_resamples, k) of each class; 0 where a class is neither there nor predicted, as scikit-learn has it."""
    hit = np.diagonal(matrices, axis1=1, axis2=2)
    size = matrices.sum(axis=1) + matrices.sum(axis=2)
    return 2 * hit / np.where(size > 0, size, 1)


def quadratic_kappa(matrices: np.ndarray) -> np.ndarray:
    """Quadratically weighted Cohen's kappa (n_resamples,)."""
    k = matrices.shape[1]
    penalty = (np.arange(k)[:, None] - np.arange(k)) ** 2
    chance = (
        matrices.sum(axis=2)[:, :, None] * matrices.sum(axis=1)[:, None, :] / matrices.sum(axis=(1, 2), keepdims=True)
    )
    return 1 - (penalty * matrices).sum(axis=(1, 2)) / (penalty * chance).sum(axis=(1, 2))


def auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (n_resamples,): weighted share of (positive, negative) pairs in order, ties half."""
    high, low = score[positive], score[~positive]
    order = (high[:, None] > low).astype(float) + 0.5 * (high[:, None] == low)
    up, down = weights[:, positive], weights[:, ~positive]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("bi,bi->b", up @ order, down) / (up.sum(axis=1) * down.sum(axis=1))


def kendall_tau(true: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kendall's tau-b (n_resamples,) of class index and score, -1..1: agreement of order over pairs, ties allowed for."""
    order = [np.sign(values[:, None] - values) for values in (true, score)]
    both, one, other = (
        ((weights @ product) * weights).sum(axis=1) for product in (order[0] * order[1], *map(np.abs, order))
    )
    with np.errstate(invalid="ignore"):
        return both / np.sqrt(one * other)


def median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median (n_resamples,) of ``values`` (n,): the lowest that half of the weight does not exceed, halfway to the next
    where it is exactly half; NaN where nothing has weight."""
    order = np.argsort(values)
    values, heavy = values[order], weights[:, order].cumsum(axis=1)
    half = heavy[:, -1:] / 2
    low, high = (np.argmax(side, axis=1) for side in (heavy >= half - 1e-9, heavy > half + 1e-9))
    return np.where(half[:, 0] > 0, (values[low] + values[high]) / 2, np.nan)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation (n_resamples,) of ``x`` and ``y`` (n,), ties sharing their mean rank."""
    total, ranks = weights.sum(axis=1, keepdims=True), []
    with np.errstate(invalid="ignore", divide="ignore"):
        for values in (x, y):
            below = (values[:, None] > values) + 0.5 * (values[:, None] == values)
            rank = weights @ below.T
            ranks.append(rank - (weights * rank).sum(axis=1, keepdims=True) / total)
        one, other = ranks
        squares = (weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1)
        return (weights * one * other).sum(axis=1) / np.sqrt(squares)


def partial_spearman(x: np.ndarray, y: np.ndarray, held: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation (n_resamples,) of ``x`` and ``y`` with ``held`` (n,) held constant (first-order partial)."""
    xy, xz, yz = spearman(x, y, weights), spearman(x, held, weights), spearman(y, held, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def group_weights(groups: pd.Series, n_boot: int, seed: int) -> np.ndarray:
    """Bootstrap weights (n_boot, n): whole groups drawn with replacement, as many as there are."""
    codes, names = pd.factorize(groups)
    if not len(names):
        return np.ones((n_boot, 0))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_boot)
    return draws[:, codes].astype(float)


def roc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of positives and of negatives at or above each threshold: two arrays (n_resamples, n_thresholds + 1).

    Thresholds are the distinct scores from the highest down, before them one that no image reaches.
    """
    distinct, place = np.unique(-score, return_inverse=True)
    at = np.eye(len(distinct))[place]
    shares = []
    for side in (positive, ~positive):
        counted = (weights[:, side] @ at[side]).cumsum(axis=1)
        with np.errstate(invalid="ignore"):
            shares.append(np.pad(counted, ((0, 0), (1, 0))) / counted[:, -1:])
    return shares[0], shares[1]


def sensitivity_at(specificity: float, positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Highest sensitivity (n_resamples,) of any threshold on ``score`` with at least this specificity (0..1).

    The reverse, specificity at a sensitivity: ``sensitivity_at(sensitivity, ~positive, -score, weights)``.
    """
    found, false = roc(positive, score, weights)
    best = np.where(false <= 1 - specificity + 1e-12, found, 0).max(axis=1)
    return np.where(np.isnan(found[:, -1]) | np.isnan(false[:, -1]), np.nan, best)


def limits(drawn: np.ndarray) -> np.ndarray:
    """The 95 % percentile limits (2,) of resampled values (n_resamples,), NaN left out; NaN where nothing is left."""
    known = drawn[~np.isnan(drawn)]
    return np.percentile(known, [2.5, 97.5]) if len(known) else np.full(2, np.nan)
