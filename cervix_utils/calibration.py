"""predictions.csv -> can its probabilities be believed? Temperature, calibration errors, reliability, risk-coverage.

As in ``metrics`` an interval comes from weights (n_resamples, n) of whole groups; torchmetrics is the tests' oracle.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from cervix_utils import metrics

FLOOR = np.finfo(np.float32).eps  # under a logarithm, as in metrics.measure: the file rounds small ones to 0
TEMPERATURES = (0.05, 20.0)


def probabilities(predictions: pd.DataFrame, floor: float = 0.0) -> np.ndarray:
    """Class probabilities (n, k), none under ``floor``, rows summing to 1. ValueError where there are none."""
    if predictions.empty:
        raise ValueError("predictions have no rows: give the valid or test part of a finished run")
    if not metrics.has_probabilities(predictions):
        raise ValueError("predictions have no probabilities (regression pipeline): only its score can be judged")
    p = np.clip(predictions.filter(like="p_").to_numpy(), floor, None)
    return p / p.sum(axis=1, keepdims=True)


def temperature(predictions: pd.DataFrame) -> float:
    """Temperature T in 0.05..20 that minimises the log-loss of the valid part; over 1: the network is overconfident.

    Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", section 4.2; log p are the logits.
    Raises ValueError where there are no valid rows or no probabilities.
    """
    valid = predictions[predictions["part"] == "valid"]
    if valid.empty:
        raise ValueError("predictions have no valid part: a temperature is fitted on that part alone")
    logits, true = np.log(probabilities(valid, FLOOR)), metrics.true_class(valid)
    own = np.arange(len(valid)), true
    found = minimize_scalar(
        lambda log_t: -log_softmax(logits / np.exp(log_t), axis=1)[own].mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(found.x))


def scaled(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The same table with probabilities p^(1/T), renormalised; ``score`` (Herlev) is their expected severity, 1..k."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} will not do: it must be above 0")
    p = softmax(np.log(probabilities(predictions, FLOOR)) / temperature, axis=1)
    columns = [f"p_{name}" for name in metrics.class_columns(predictions)]
    found = predictions.assign(**dict(zip(columns, p.T)))
    return found.assign(score=p @ np.arange(1, p.shape[1] + 1)) if "score" in predictions else found


def in_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """One-hot bin (n, bins) of values in 0..1; equal widths, a value on an edge lies above it, 1 in the last bin."""
    edges = np.arange(1, bins) / bins
    return np.eye(bins)[np.searchsorted(edges, confidence, side="right")]


def measure(
    p: np.ndarray, true: np.ndarray, weights: np.ndarray | None = None, bins: int = 10
) -> dict[str, np.ndarray]:
    """Metric name -> values (b,) for probabilities (n, k), class indices (n,) or (b, n), weights (b, n) of the images.

    ``ece``: mean gap between confidence and accuracy over bins of the largest probability (Guo et al. 2017).
    ``ece_classwise``: the same for the probability of each class, mean over classes (Kull et al. 2019).
    ``brier``: squared differences summed over classes, 0..2. ``log_loss``: nats, as in ``metrics.measure``.
    ``overconfidence``: mean largest probability minus accuracy, -1..1, the only one with a sign and without a bias.
    """
    true = np.atleast_2d(true)
    weights = np.ones((1, len(p))) if weights is None else weights
    mean = lambda values: (weights * values).sum(axis=1) / weights.sum(axis=1)  # noqa: E731
    own = np.take_along_axis(p[None], true[:, :, None], axis=2)[:, :, 0]
    top, hit = p.max(axis=1), p.argmax(axis=1) == true
    classes = [_gap(column, true == index, weights, bins) for index, column in enumerate(p.T)]
    return {
        "ece": _gap(top, hit, weights, bins),
        "ece_classwise": np.mean(classes, axis=0),
        "brier": mean((p**2).sum(axis=1) + 1 - 2 * own),
        "log_loss": mean(-np.log(np.clip(own, FLOOR, 1))),
        "overconfidence": mean(top - hit),
    }


def _gap(confidence: np.ndarray, hit: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """Expected calibration error (b,) of values (n,) against outcomes 0 or 1 (b, n)."""
    return np.abs((weights * (confidence - hit)) @ in_bins(confidence, bins)).sum(axis=1) / weights.sum(axis=1)


def calibration(predictions: pd.DataFrame, n_boot: int = 1000, seed: int = 0, bins: int = 10) -> pd.DataFrame:
    """metric, value, low, high of ``measure``: 95 % percentile interval over resampled groups; and ``by_chance``.

    ``by_chance``: 97.5 % quantile of the metric where the classes of these images are drawn from these very
    probabilities, image by image (consistency resampling, Bröcker and Smith 2007). An expected calibration error is
    never 0 on finitely many images, and larger still on resampled ones: this is what to hold it against.
    """
    p, true = probabilities(predictions), metrics.true_class(predictions)
    value = measure(p, true, bins=bins)
    drawn = measure(p, true, metrics.group_weights(predictions["group"], n_boot, seed), bins)
    lots = np.random.default_rng(seed).random((n_boot, len(p), 1))
    chance = measure(p, (lots > p.cumsum(axis=1)[:, :-1]).sum(axis=2), bins=bins)
    rows = [
        {
            "metric": name,
            "value": value[name][0],
            **dict(zip(("low", "high"), np.percentile(drawn[name], [2.5, 97.5]))),
            "by_chance": np.percentile(chance[name], 97.5),
        }
        for name in value
    ]
    return pd.DataFrame(rows)


def reliability(predictions: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """One row a bin of the largest probability: low, high (edges), confidence, accuracy (NaN where empty), count."""
    p = probabilities(predictions)
    hit, places = p.argmax(axis=1) == metrics.true_class(predictions), in_bins(p.max(axis=1), bins)
    count = places.sum(axis=0)
    size = np.where(count > 0, count, np.nan)
    edges = np.arange(bins + 1) / bins
    means = {"confidence": p.max(axis=1) @ places / size, "accuracy": hit @ places / size}
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **means, "count": count.astype(int)})


def confidence(predictions: pd.DataFrame) -> np.ndarray:
    """How sure a prediction is (n,): its largest probability, or minus the grades between score and nearest grade."""
    if metrics.has_probabilities(predictions):
        return predictions.filter(like="p_").max(axis=1).to_numpy()
    return -np.abs(predictions["score"].to_numpy() - (metrics.predicted_class(predictions) + 1))


def risk_coverage(predictions: pd.DataFrame) -> pd.DataFrame:
    """confidence, coverage, error: share of images at least that sure (0..1), and the share of wrong ones among them.

    Geifman and El-Yaniv 2017, "Selective classification for deep neural networks". Images equally sure are kept or
    left together, so the order of the rows does not matter.
    """
    wrong = metrics.predicted_class(predictions) != metrics.true_class(predictions)
    table = pd.DataFrame({"confidence": confidence(predictions), "wrong": wrong})
    kept = table.groupby("confidence")["wrong"].agg(["size", "sum"]).sort_index(ascending=False).cumsum()
    return pd.DataFrame({"coverage": kept["size"] / len(table), "error": kept["sum"] / kept["size"]}).reset_index()


def area(curve: pd.DataFrame) -> float:
    """Area under ``risk_coverage``: mean error over the coverages, 0..1; without any order it is the error of all."""
    return float((np.diff(curve["coverage"], prepend=0) * curve["error"]).sum())


def are_they_calibrated(table: pd.DataFrame, temperatures: pd.Series) -> list[str]:
    """One sentence a task, pipeline and protocol from ``calibration`` tables.

    ``table``: rows (task, pipeline, protocol, state before or after, metric); ``temperatures``: mean T of each.
    """
    table, sentences = table.sort_index(), []
    for key, mean in temperatures.items():
        before, after = (table.xs((*key, state)) for state in ("before", "after"))
        gap, low, high = before.loc["overconfidence", ["value", "low", "high"]]
        sure = "overconfident" if low > 0 else "underconfident" if high < 0 else "neither over- nor underconfident"
        errors = [before.loc[name] for name in ("ece", "ece_classwise")]
        more = [error["value"] > error["by_chance"] for error in errors]
        ece, each = (
            f"{error['value']:.3f}, {'more than' if over else 'within'} the {error['by_chance']:.3f} that chance explains"
            for error, over in zip(errors, more)
        )
        signs = "signs" if any(more) or low > 0 or high < 0 else "no sign"
        sentences.append(
            f"**{', '.join(key)} protocol: {signs} of miscalibration.** Confidence minus accuracy is {gap:+.3f} "
            f"({low:+.3f} to {high:+.3f}): {sure}. Expected calibration error: {ece}; class by class: {each}. A temperature "
            f"of {mean:.2f} takes the error to {after.loc['ece', 'value']:.3f}, and the log-loss from "
            f"{before.loc['log_loss', 'value']:.3f} to {after.loc['log_loss', 'value']:.3f}."
        )
    return sentences
