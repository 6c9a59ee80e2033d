"""predictions.csv -> numbers with intervals. Nothing here knows a network, an image or a training part.

Every metric takes weights of shape (n_resamples, n): how often each image counts. Weights of one give the value
itself; counts drawn with whole groups give its bootstrap distribution, for all resamples in a few matrix products.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cervix_utils import runs
from cervix_utils.datasets import CLASSES

NORMAL = "normal"
ABNORMAL_FROM = 1.5  # a regressed severity from here on is abnormal (between normal, 1, and light dysplasia, 2)
PUBLISHED = Path(__file__).with_name("published.csv")
COLUMNS = ["task", "pipeline", "protocol", "fold", "n_test", "metric", "value", "low", "high", "paper"]


def class_columns(predictions: pd.DataFrame) -> list[str]:
    """The classes, in the order of their p_ columns."""
    return [column.removeprefix("p_") for column in predictions if column.startswith("p_")]


def has_probabilities(predictions: pd.DataFrame) -> bool:
    """False for the regression pipeline, whose p_ columns are empty."""
    return bool(predictions.filter(like="p_").notna().all(axis=None))


def true_class(predictions: pd.DataFrame) -> np.ndarray:
    """Class index (n,) of the reference standard."""
    return pd.Categorical(predictions["label"], categories=class_columns(predictions)).codes.astype(int)


def predicted_class(predictions: pd.DataFrame) -> np.ndarray:
    """Class index (n,): argmax of the probabilities, or the score rounded and clipped (regression)."""
    if has_probabilities(predictions):
        return predictions.filter(like="p_").to_numpy().argmax(axis=1)
    score = predictions["score"].to_numpy()
    return np.clip(np.rint(score), 1, len(class_columns(predictions))).astype(int) - 1


def predicted_abnormal(predictions: pd.DataFrame) -> np.ndarray:
    """Boolean (n,), Herlev: argmax is not normal, or the regressed score is at least 1.5."""
    if has_probabilities(predictions):
        return predicted_class(predictions) != 0
    return predictions["score"].to_numpy() >= ABNORMAL_FROM


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


def measure(predictions: pd.DataFrame, task: str, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Metric name -> values (n_resamples,) on the rows given (usually the test part).

    Ratios are in 0..1, ``mse`` in squared severity grades, ``mae`` in grades, ``log_loss`` in nats. The regression
    pipeline has no log-loss, and its AUC of class k ranks by -|score - k| (DOMAIN of paper H: no probabilities).
    """
    weights = np.ones((1, len(predictions))) if weights is None else weights
    classes, total = class_columns(predictions), weights.sum(axis=1)
    true, predicted = true_class(predictions), predicted_class(predictions)
    matrices = confusion(true, predicted, len(classes), weights)
    f1, support = f1_per_class(matrices), matrices.sum(axis=2)
    found = {
        "accuracy": np.trace(matrices, axis1=1, axis2=2) / total,
        "f1_macro": f1.mean(axis=1),
        "f1_weighted": (f1 * support).sum(axis=1) / total,
        "f1_micro": np.trace(matrices, axis1=1, axis2=2) / total,
    }
    found |= {f"f1_{name}": f1[:, index] for index, name in enumerate(classes)}
    probabilities = predictions.filter(like="p_").to_numpy()
    if has_probabilities(predictions):
        floor = np.finfo(np.float32).eps
        own = np.clip(probabilities[np.arange(len(true)), true] / probabilities.sum(axis=1), floor, 1)
        found["log_loss"] = weights @ -np.log(own) / total
        rank = probabilities
    else:
        rank = -np.abs(predictions["score"].to_numpy()[:, None] - np.arange(1, len(classes) + 1))
    each = np.array([auc(true == index, rank[:, index], weights) for index in range(len(classes))])
    found |= {f"auc_{name}": each[index] for index, name in enumerate(classes)}
    found["auc_mean"] = each.mean(axis=0)
    if task == "herlev":
        error = predictions["score"].to_numpy() - (true + 1)
        found["mse"], found["mae"] = weights @ error**2 / total, weights @ np.abs(error) / total
        found["kappa_quadratic"] = quadratic_kappa(matrices)
        binary = confusion((true > 0).astype(int), predicted_abnormal(predictions).astype(int), 2, weights)
        found["binary_accuracy"] = np.trace(binary, axis1=1, axis2=2) / total
        both = f1_per_class(binary)
        found["binary_f1"], found["binary_f1_macro"] = both[:, 1], both.mean(axis=1)
        with np.errstate(invalid="ignore"):
            found["sensitivity"] = binary[:, 1, 1] / binary[:, 1].sum(axis=1)
            found["specificity"] = binary[:, 0, 0] / binary[:, 0].sum(axis=1)
    return found


def group_weights(groups: pd.Series, n_boot: int, seed: int) -> np.ndarray:
    """Bootstrap weights (n_boot, n): whole groups drawn with replacement, as many as there are."""
    codes, names = pd.factorize(groups)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_boot)
    return draws[:, codes].astype(float)


def intervals(predictions: pd.DataFrame, task: str, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """metric, value, low, high: value on all rows, 95 % percentile interval over resampled groups.

    Resamples in which a metric does not exist (a class is missing) are left out of its interval.
    """
    value = measure(predictions, task)
    drawn = measure(predictions, task, group_weights(predictions["group"], n_boot, seed))
    rows = [
        {
            "metric": name,
            "value": value[name][0],
            **dict(zip(("low", "high"), np.nanpercentile(drawn[name], [2.5, 97.5]))),
        }
        for name in value
    ]
    return pd.DataFrame(rows)


def class_priors_log_loss(predictions: pd.DataFrame) -> float:
    """Log-loss on the test part of always answering with the class shares of the training part."""
    train, test = (predictions.loc[predictions["part"] == part, "label"] for part in ("train", "test"))
    return float(-np.log(test.map(train.value_counts(normalize=True))).mean())


def published() -> pd.DataFrame:
    """The papers' numbers: task, pipeline, metric, paper (value), source (section or table)."""
    return pd.read_csv(PUBLISHED)


def results(found: Iterator["runs.Run"], n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """results.csv of the contract: one row a number, with its 95 % interval and the published value, sorted."""
    found = list(found)
    for run in found:
        check_predictions(run.predictions, run.recipe["task"])
    tables = [
        intervals(run.test, run.recipe["task"], n_boot, seed).assign(
            n_test=len(run.test),
            **{name: run.recipe[name] for name in ("task", "pipeline", "protocol", "fold")},
        )
        for run in found
    ]
    table = pd.concat(tables).merge(published()[["task", "pipeline", "metric", "paper"]], how="left")
    return table[COLUMNS].sort_values(["task", "pipeline", "protocol", "fold", "metric"], ignore_index=True)


def check_predictions(predictions: pd.DataFrame, task: str) -> None:
    """Raise ValueError where a predictions table breaks the contract (columns, parts, classes, sums)."""
    expected = ["id", "group", "part", "label", *(f"p_{name}" for name in CLASSES[task])]
    expected += ["score"] if task == "herlev" else []
    if list(predictions.columns) != expected:
        raise ValueError(f"predictions have columns {list(predictions.columns)}, the contract says {expected}")
    for column, known in (("part", ["train", "valid", "test"]), ("label", CLASSES[task])):
        if wrong := sorted(set(predictions[column].astype(str)) - set(known)):
            raise ValueError(f"predictions have {column} '{wrong[0]}': known are {', '.join(known)}")
    if 0 < predictions.filter(like="p_").isna().to_numpy().mean() < 1:
        raise ValueError("predictions lack some probabilities: a table has all of them or none (regression)")
    if has_probabilities(predictions) and not np.allclose(predictions.filter(like="p_").sum(axis=1), 1, atol=1e-4):
        raise ValueError("predicted probabilities do not sum to 1")
