"""predictions.csv -> numbers with intervals. Nothing here knows a network, an image or a training part."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cervix_utils import clinical, runs
from cervix_utils.datasets import CLASSES
from cervix_utils.weighted import auc, confusion, f1_per_class, group_weights, limits

NORMAL = "normal"
ABNORMAL_FROM = 1.5  # a regressed severity from here on is abnormal (between normal, 1, and light dysplasia, 2)
LOWER_IS_BETTER = {
    "mse",
    "mae",
    "mae_macro",
    "log_loss",
    "brier",
    "rps",
    "severe_miss",
    "cis_called_normal",
    "normal_called_cis",
}  # of all other metrics more is better
KEYS = ["task", "pipeline", "protocol"]
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


def measure(predictions: pd.DataFrame, task: str, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Metric name -> values (n_resamples,) on the rows given (usually the test part).

    Ratios are in 0..1, ``mse`` in squared severity grades, ``mae`` in grades, ``log_loss`` in nats, ``brier`` in 0..2,
    ``rps`` (ranked probability score, Epstein 1969; a sum over the thresholds) in 0..n_classes-1. The regression
    pipeline has no probabilities, so none of these three; its AUC of class k ranks by -|score - k|.
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
        wrong = probabilities - np.eye(len(classes))[true]
        found["brier"] = weights @ (wrong**2).sum(axis=1) / total
        if task == "herlev":
            found["rps"] = weights @ (wrong.cumsum(axis=1) ** 2).sum(axis=1) / total
        rank = probabilities
    else:
        rank = -np.abs(predictions["score"].to_numpy()[:, None] - np.arange(1, len(classes) + 1))
    each = np.array([auc(true == index, rank[:, index], weights) for index in range(len(classes))])
    found |= {f"auc_{name}": each[index] for index, name in enumerate(classes)}
    found["auc_mean"] = each.mean(axis=0)
    if task == "herlev":
        found |= clinical.ordinal(true, predicted, predictions["score"].to_numpy(), len(classes), weights)
        found |= clinical.bethesda(true, predicted, weights)
        sick = 1 - probabilities[:, 0] if has_probabilities(predictions) else predictions["score"].to_numpy()
        found |= clinical.operating_points(true > 0, sick, weights)
        binary = confusion((true > 0).astype(int), predicted_abnormal(predictions).astype(int), 2, weights)
        found["binary_accuracy"] = np.trace(binary, axis1=1, axis2=2) / total
        both = f1_per_class(binary)
        found["binary_f1"], found["binary_f1_macro"] = both[:, 1], both.mean(axis=1)
        with np.errstate(invalid="ignore"):
            found["sensitivity"] = binary[:, 1, 1] / binary[:, 1].sum(axis=1)
            found["specificity"] = binary[:, 0, 0] / binary[:, 0].sum(axis=1)
    return found


def over_folds(tables: Mapping[str, pd.DataFrame], task: str, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """fold, n_test, metric, value, low, high for test tables by fold; with several folds also ``mean`` and ``pooled``.

    Limits are 95 % percentile limits over resampled groups; folds that share groups share their draws. Resamples in
    which a metric does not exist (a class is missing) are left out of its interval.
    """
    both = pd.concat(tables.values(), ignore_index=True)
    weights = np.vstack([np.ones(len(both)), group_weights(both["group"], n_boot, seed)])  # first the data themselves
    edges = np.cumsum([len(table) for table in tables.values()])[:-1]
    drawn = {
        fold: measure(table, task, own) for (fold, table), own in zip(tables.items(), np.split(weights, edges, axis=1))
    }
    if len(tables) > 1:
        folds = list(drawn.values())
        drawn["mean"] = {name: np.mean([fold[name] for fold in folds], axis=0) for name in folds[0]}
        drawn["pooled"] = measure(both, task, weights)
    rows = [
        {"fold": fold, "n_test": len(tables.get(fold, both)), "metric": name, "value": values[0]}
        | dict(zip(("low", "high"), limits(values[1:])))
        for fold, found in drawn.items()
        for name, values in found.items()
    ]
    return pd.DataFrame(rows)


def intervals(predictions: pd.DataFrame, task: str, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """metric, value, low, high of one test part, see ``over_folds``."""
    return over_folds({"0": predictions}, task, n_boot, seed).drop(columns=["fold", "n_test"])


def class_priors_log_loss(predictions: pd.DataFrame) -> float:
    """Log-loss on the test part of always answering with the class shares of the training part."""
    train, test = (predictions.loc[predictions["part"] == part, "label"] for part in ("train", "test"))
    return float(-np.log(test.map(train.value_counts(normalize=True))).mean())


def published() -> pd.DataFrame:
    """The papers' numbers: task, pipeline, metric, paper (value), source (section or table)."""
    return pd.read_csv(PUBLISHED)


def results(found: Iterable["runs.Run"], n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """results.csv of the contract: one row a number, with its 95 % interval and the published value, sorted.

    ``fold`` is text: a number, or ``mean`` and ``pooled`` where several folds were run.
    """
    together = defaultdict(dict)
    for run in found:
        check_predictions(run.predictions, run.recipe["task"])
        together[tuple(run.recipe[key] for key in KEYS)][str(run.recipe["fold"])] = run.test
    tables = [over_folds(folds, key[0], n_boot, seed).assign(**dict(zip(KEYS, key))) for key, folds in together.items()]
    table = pd.concat(tables).merge(published()[["task", "pipeline", "metric", "paper"]], how="left")
    return table[COLUMNS].sort_values([*KEYS, "fold", "metric"], ignore_index=True)


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
