"""Tables of predictions -> numbers with intervals. Nothing here knows a network or an image.

A table of predictions is about one task (data set); a row is one image predicted by one pipeline.
Columns: task, pipeline, protocol, fold, run (folder name; empty where there is no network), id,
group, part, label, p_<class> (0..1) for each class and, where classes are grades of severity, score
(1..k). A regression pipeline has empty p_ columns.

Metrics are computed over weights (n_resamples, n): how often each image counts in each resample.
Weights of one give the value itself; counts drawn with whole groups give its bootstrap distribution
in a few matrix products.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cervix_utils import paths
from cervix_utils.data import datasets, tables
from cervix_utils.data.tables import KEYS, PredictionsError

PLACE = [*KEYS, "fold", "run"]  # columns before those of ``tables``
COLUMNS = [*KEYS, "fold", "n_test", "metric", "value", "low", "high", "paper"]
FLOOR = np.finfo(np.float32).eps  # under a logarithm: files round small probabilities to 0
LSIL = "light_dysplastic"  # Bethesda groups are those of scales with this as the second grade
# the papers' numbers: task, pipeline, metric, paper (value), source (section or table)
PUBLISHED = pd.read_csv(Path(__file__).with_name("published.csv"))
Array, Frame = np.ndarray, pd.DataFrame
Values = dict[str, Array]  # name -> values (n_resamples,)


@dataclass(frozen=True)
class Metric:
    """A metric: words for people, and how its values (n_resamples,) follow from ``Answers``.

    ``needs``: what predictions must have for it: ``p`` (probabilities), ``grades`` (ordered
    classes), ``bethesda`` (Herlev's grades). Those of one class have no formula of their own.
    """

    label: str
    formula: Callable[["Answers"], Array] | None = None
    needs: str = ""
    lower_is_better: bool = False


METRICS = {
    "accuracy": Metric("accuracy", lambda a: accuracy(a.matrices)),
    "f1_macro": Metric("F1, macro", lambda a: f1(a.matrices).mean(axis=1)),
    "log_loss": Metric("log-loss", lambda a: a.mean(-np.log(a.share)), "p", True),
    "brier": Metric("Brier score", lambda a: a.mean(a.squares), "p", True),
    "rps": Metric("ranked probability score", lambda a: a.mean(a.rps), "p grades", True),
    "auc_mean": Metric("mean AUC", lambda a: a.aucs.mean(axis=0)),
    "mse": Metric("MSE of the score", lambda a: a.mean(a.error**2), "grades", True),
    "mae": Metric("MAE of the score", lambda a: a.mean(a.error), "grades", True),
    "adjacent_accuracy": Metric("at most one grade off", lambda a: a.mean(a.off <= 1), "grades"),
    "severe_miss": Metric("three grades off or more", lambda a: a.mean(a.off >= 3), "grades", True),
    "cis_called_normal": Metric("top grade called normal", lambda a: a.cell(-1, 0), "grades", True),
    "normal_called_cis": Metric("normal called top grade", lambda a: a.cell(0, -1), "grades", True),
    "kappa_quadratic": Metric("quadratic kappa", lambda a: quadratic_kappa(a.matrices), "grades"),
    "bethesda_accuracy": Metric("Bethesda accuracy", lambda a: accuracy(a.bethesda), "bethesda"),
    "bethesda_f1_macro": Metric("Bethesda F1", lambda a: f1(a.bethesda).mean(axis=1), "bethesda"),
    "hsil_sensitivity": Metric("HSIL sensitivity", lambda a: recall(a.bethesda, 2), "bethesda"),
    "sensitivity_at_specificity_90": Metric(
        "sensitivity at specificity 0.90", lambda a: sensitivity_at(0.9, *a.call), "grades"
    ),
    "specificity_at_sensitivity_95": Metric(
        "specificity at sensitivity 0.95", lambda a: sensitivity_at(0.95, *a.clear), "grades"
    ),
    "binary_accuracy": Metric("binary accuracy", lambda a: accuracy(a.binary), "grades"),
    "binary_f1": Metric("binary F1", lambda a: f1(a.binary)[:, 1], "grades"),
    "sensitivity": Metric("sensitivity", lambda a: recall(a.binary, 1), "grades"),
    "specificity": Metric("specificity", lambda a: recall(a.binary, 0), "grades"),
}


def describe(metric: str) -> Metric:
    """The entry of METRICS, or one made for ``auc_<class>`` and ``f1_<class>``."""
    kind, _, name = metric.partition("_")
    return METRICS.get(metric) or Metric(f"{kind.upper()}, {name.replace('_', ' ')}")


def label_of(metric: str) -> str:
    """'AUC, light dysplastic' of ``auc_light_dysplastic``."""
    return describe(metric).label


def written(row: Mapping | None) -> str:
    """'0.745 (0.701 to 0.790)' of a row with value, low, high; a dash where there is nothing."""
    if row is None or np.isnan(row["value"]):
        return "–"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


# Tables of predictions


def class_columns(predictions: Frame) -> list[str]:
    """The classes, in the order of their p_ columns."""
    return [column.removeprefix("p_") for column in predictions if column.startswith("p_")]


def probabilities(predictions: Frame) -> Array:
    """Class probabilities (n, k) as they stand in the table; NaN for a regression pipeline."""
    return predictions[[f"p_{name}" for name in class_columns(predictions)]].to_numpy(float)


def has_probabilities(predictions: Frame) -> bool:
    """False for a regression pipeline, whose p_ columns are empty."""
    return not np.isnan(probabilities(predictions)).any()


def true_class(predictions: Frame) -> Array:
    """Class index (n,) of the reference standard."""
    return pd.Categorical(predictions["label"], class_columns(predictions)).codes.astype(int)


def predicted_class(predictions: Frame) -> Array:
    """Class index (n,): argmax of the probabilities, or the score rounded and clipped.

    Of grades, 0 is normal: a score from 1.5 on is abnormal, as halves are rounded to even.
    """
    p = probabilities(predictions)
    if has_probabilities(predictions):
        return p.argmax(axis=1)
    return np.clip(np.rint(predictions["score"].to_numpy()), 1, p.shape[1]).astype(int) - 1


def as_predictions(rows: Frame, values: Array) -> Frame:
    """Predictions from rows (PLACE, id, group, part, label) and values, see ``tables``."""
    rows = rows.reset_index(drop=True)
    values = tables.as_predictions(rows, values, rows["task"].iloc[0])
    return pd.concat([rows[PLACE], values], axis=1)


def check_predictions(predictions: Frame, where: str | Path = "predictions") -> Frame:
    """``predictions`` with columns in order. Raises PredictionsError where they are not of one
    task, lack a column, hold what cannot be (see ``tables.check``), or an image twice in a fold."""
    if missing := sorted(set(PLACE) - set(predictions)):
        raise PredictionsError(f"{where}: column '{missing[0]}' is missing; make the file again")
    tasks = list(predictions["task"].unique())
    if len(tasks) != 1:
        raise PredictionsError(f"{where}: one task is needed in column 'task', not {tasks}")
    for (pipeline, _), rows in predictions.groupby(["pipeline", "protocol"]):
        tables.check(rows, tasks[0], f"{where}, {pipeline}")
        _refuse_repeated_and_mixed(rows, f"{where}, {pipeline}")
    return predictions[[*PLACE, *tables.columns(tasks[0])]]


def _refuse_repeated_and_mixed(rows: Frame, where: str) -> None:
    """Raise PredictionsError where an image stands twice in one fold of one pipeline and protocol
    (once more in part ``inner`` is right), or its folds come from different recipes or data."""
    places = rows[["fold", "id"]].assign(inner=rows["part"] == "inner")
    for row in rows[places.duplicated()].head(1).itertuples():
        place = f"fold {row.fold} of {row.pipeline}, {row.protocol} protocol"
        raise PredictionsError(f"{where}: image '{row.id}' stands twice in {place}")
    trained = rows.loc[rows["run"] != "", "run"].drop_duplicates()
    studies = trained.str.replace(r"^.*-\d+-([0-9a-f]{6})[0-9a-f]{6}", r"\1", regex=True)
    if studies.nunique() > 1:
        raise PredictionsError(
            f"{where}: {', '.join(trained)} were trained with different recipes or data, so they "
            "make no mean: delete the tables of those not wanted, or run their notebooks again"
        )


def read_file(file: str | Path) -> Frame:
    """One table of predictions, .csv or compressed. Raises PredictionsError that names the file."""
    if not Path(file).is_file():
        raise PredictionsError(f"{file} is missing: run the notebook that writes it (2 or 3)")
    return check_predictions(tables.read(file, [*KEYS, "run", *tables.NAMES]), file)


def read(report_dir: str | Path, stems: Iterable[str] | None = None) -> dict[str, Frame]:
    """Task -> all predictions of a report, or of its pages ``stems`` ('herlev-paper-0') alone.

    Raises PredictionsError where a file is missing or unusable, or there is none.
    """
    folder, frames = Path(report_dir) / "predictions", {}
    for stem in [file.stem for file in folder.glob("[!.]*.csv")] if stems is None else stems:
        frame = read_file(folder / f"{stem}.csv")
        frames.setdefault(frame["task"].iloc[0], []).append(frame)
    if not frames:
        raise PredictionsError(f"{folder} holds no predictions: run notebooks 2 and 3 first")
    joined = {task: pd.concat(frames[task], ignore_index=True) for task in sorted(frames)}
    return {task: check_predictions(frame, folder) for task, frame in joined.items()}


def write(predictions: Frame, file: Path) -> None:
    """Keep predictions (6 decimals) whole or not at all. Raises as ``check_predictions``."""
    checked = check_predictions(predictions)
    with paths.whole(file) as draft:
        checked.round(6).to_csv(draft, index=False)


# Resampling


def group_weights(groups: pd.Series, n_boot: int, seed: int) -> Array:
    """Bootstrap weights (n_boot, n): whole groups drawn with replacement, as many as there are."""
    codes, names = pd.factorize(groups)
    if not len(names):
        return np.ones((n_boot, 0))
    chances = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(seed).multinomial(len(names), chances, size=n_boot)
    return draws[:, codes].astype(float)


def with_resamples(groups: pd.Series, n_boot: int, seed: int) -> Array:
    """Weights (1 + n_boot, n): the data themselves, then ``group_weights``."""
    return np.vstack([np.ones(len(groups)), group_weights(groups, n_boot, seed)])


def interval(drawn: Array) -> dict[str, float]:
    """value, low, high, dropped of values (1 + n_boot,) over ``with_resamples``.

    ``dropped``: resamples left out, as the metric does not exist in them (a class is missing).
    """
    numbers = drawn[1:][~np.isnan(drawn[1:])]
    low, high = np.percentile(numbers, [2.5, 97.5]) if len(numbers) else (np.nan, np.nan)
    return {"value": drawn[0], "low": low, "high": high, "dropped": np.isnan(drawn[1:]).sum()}


def tabulated(drawn: Values) -> Frame:
    """metric, value, low, high, dropped: ``interval`` of each."""
    return pd.DataFrame([{"metric": name} | interval(drawn[name]) for name in drawn])


# Metrics over weights (n_resamples, n); they return (n_resamples,) where nothing else is said


def ratio(part: Array, whole: Array) -> Array:
    """``part / whole``, NaN where ``whole`` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, part / whole)


def confusion(true: Array, predicted: Array, k: int, weights: Array) -> Array:
    """Confusion matrices (n_resamples, k, k); rows are the reference standard."""
    cells = np.eye(k * k)[true * k + predicted]
    return (weights @ cells).reshape(-1, k, k)


def accuracy(matrices: Array) -> Array:
    """Share of confusion ``matrices`` (n_resamples, k, k) that is on the diagonal."""
    return np.trace(matrices, axis1=1, axis2=2) / matrices.sum(axis=(1, 2))


def recall(matrices: Array, k: int) -> Array:
    """Share of class ``k`` that is named rightly; NaN where it is not there."""
    return ratio(matrices[:, k, k], matrices[:, k].sum(axis=1))


def f1(matrices: Array) -> Array:
    """F1 (n_resamples, k); 0 where a class is neither there nor predicted, as in scikit-learn."""
    hit = np.diagonal(matrices, axis1=1, axis2=2)
    size = matrices.sum(axis=1) + matrices.sum(axis=2)
    return 2 * hit / np.where(size > 0, size, 1)


def quadratic_kappa(matrices: Array) -> Array:
    """Quadratically weighted Cohen's kappa of matrices (n_resamples, k, k)."""
    k = matrices.shape[1]
    penalty = (np.arange(k)[:, None] - np.arange(k)) ** 2
    rows, columns = matrices.sum(axis=2)[:, :, None], matrices.sum(axis=1)[:, None, :]
    chance = rows * columns / matrices.sum(axis=(1, 2), keepdims=True)
    return 1 - ratio((penalty * matrices).sum(axis=(1, 2)), (penalty * chance).sum(axis=(1, 2)))


def auc(positive: Array, score: Array, weights: Array) -> Array:
    """Area under the ROC curve: share of (positive, negative) pairs in order, ties half."""
    up, down, order = weights[:, positive], weights[:, ~positive], np.argsort(score[~positive])
    below, ranked = down[:, order].cumsum(axis=1), score[~positive][order]
    below = np.pad(below, ((0, 0), (1, 0)))  # weight of the lowest k negatives
    places = [np.searchsorted(ranked, score[positive], side) for side in ("left", "right")]
    pairs = sum(np.einsum("bi,bi->b", up, below[:, place]) for place in places) / 2
    return ratio(pairs, up.sum(axis=1) * down.sum(axis=1))


def sensitivity_at(specificity: float, positive: Array, score: Array, weights: Array) -> Array:
    """Highest sensitivity of any threshold on ``score`` with at least this specificity (0..1).

    The reverse, specificity at a sensitivity: the same of ``~positive`` and ``-score``.
    """
    distinct, place = np.unique(-score, return_inverse=True)
    at = np.eye(len(distinct))[place]
    reached = []  # shares of positives and of negatives at or above each threshold, 0 first
    for side in (positive, ~positive):
        counted = (weights[:, side] @ at[side]).cumsum(axis=1)
        reached.append(ratio(np.pad(counted, ((0, 0), (1, 0))), counted[:, -1:]))
    hit, false = reached
    best = np.where(false <= 1 - specificity + 1e-12, hit, 0).max(axis=1)
    return np.where(np.isnan(hit[:, -1]) | np.isnan(false[:, -1]), np.nan, best)


# All metrics of a table


class Answers:
    """What METRICS follow from: arrays over images (n, ...), and weights (n_resamples, n)."""

    def __init__(self, predictions: Frame, weights: Array):
        p, k = probabilities(predictions), len(class_columns(predictions))
        true, called, grades = true_class(predictions), predicted_class(predictions), np.arange(k)
        self.weights, self.true = weights, true
        self.score = np.asarray(predictions.get("score", p @ grades + 1))
        rank, sick, abnormal = -np.abs(self.score[:, None] - grades - 1), self.score, true > 0
        if has_probabilities(predictions):
            rank, sick = p, 1 - p[:, 0]
        self.call, self.clear = (abnormal, sick, weights), (~abnormal, -sick, weights)
        self.error, self.off = np.abs(self.score - true - 1), np.abs(called - true)
        self.members = np.eye(k)[true]
        self.share = np.clip((p * self.members).sum(axis=1) / p.sum(axis=1), FLOOR, 1)
        self.squares = ((p - self.members) ** 2).sum(axis=1)
        self.rps = ((p - self.members).cumsum(axis=1) ** 2).sum(axis=1)
        self.matrices = confusion(true, called, k, weights)
        self.bethesda = confusion(np.minimum(true, 2), np.minimum(called, 2), 3, weights)
        self.binary = confusion(abnormal * 1, (called > 0) * 1, 2, weights)
        self.aucs = np.array([auc(true == c, rank[:, c], weights) for c in range(k)])

    def mean(self, values: Array) -> Array:
        """Weighted mean (n_resamples,) of ``values`` (n,)."""
        return self.weights @ values / self.weights.sum(axis=1)

    def cell(self, true: int, called: int) -> Array:
        """Share of the images of class ``true`` that are called ``called`` (-1: the last)."""
        return ratio(self.matrices[:, true, called], self.matrices[:, true].sum(axis=1))


@np.errstate(invalid="ignore", divide="ignore")  # NaN: a resample without the class, or empty
def measure(predictions: Frame, weights: Array | None = None, names=METRICS) -> Values:
    """Metric name -> values (n_resamples,) on the rows given (usually a test part): ``names``, some
    of METRICS, and AUC and F1 of each class.

    Ratios are in 0..1, ``mse`` in squared grades, ``mae`` in grades, ``log_loss`` in nats,
    ``brier`` in 0..2, ``rps`` (ranked probability score, Epstein 1969; a sum over the thresholds)
    in 0..k-1. A regression pipeline has no probabilities, so none of these three; its AUC of class
    k ranks by -|score - k|. Metrics of grades exist for ordered classes alone, also those of
    normal against abnormal: the first class is the normal one.
    """
    answers = Answers(predictions, np.ones((1, len(predictions))) if weights is None else weights)
    dataset = datasets.get(predictions["task"].iloc[0])
    has = {"p": has_probabilities(predictions), "grades": dataset.ordered}
    has["bethesda"] = LSIL in dataset.classes[1:2]
    values = {}
    for name in names:
        if all(has[need] for need in METRICS[name].needs.split()):
            values[name] = METRICS[name].formula(answers)
    of_classes = f1(answers.matrices)
    for index, name in enumerate(class_columns(predictions)):
        values[f"f1_{name}"], values[f"auc_{name}"] = of_classes[:, index], answers.aucs[index]
    return values


def by_fold(predictions: Frame) -> dict[int, Frame]:
    """Fold -> test rows of one pipeline and protocol. Raises where an image stands twice in it."""
    tests = predictions[predictions["part"] == "test"]
    _refuse_repeated_and_mixed(tests, "predictions")
    return {fold: rows.reset_index(drop=True) for fold, rows in tests.groupby("fold")}


def measure_together(parts: Sequence[Frame], n_boot: int, seed: int, names=METRICS) -> list[Values]:
    """``measure`` of each of several tables, over the data themselves and ``n_boot`` resamples.

    Groups that several tables share are drawn alike for all of them.
    """
    weights = with_resamples(pd.concat(parts)["group"], n_boot, seed)
    ends = np.cumsum([len(part) for part in parts])
    shares = np.split(weights, ends[:-1], axis=1)
    return [measure(part, share, names) for part, share in zip(parts, shares)]


def over_folds(predictions: Frame, n_boot: int = 1000, seed: int = 0, names=METRICS) -> Frame:
    """metric, value, low, high, dropped, fold, n_test of one pipeline and protocol's test rows.

    With several folds also ``mean`` and ``pooled``. Limits are 95 % percentile limits over
    resampled groups; ``dropped``: see ``interval``.
    """
    folds = by_fold(predictions)
    single, pooled = list(folds.values()), pd.concat(folds.values())
    drawn = dict(zip(folds, measure_together(single, n_boot, seed, names)))
    if len(folds) > 1:
        values = list(drawn.values())
        drawn["mean"] = {name: np.mean([v[name] for v in values], axis=0) for name in values[0]}
        drawn["pooled"] = measure_together([pooled], n_boot, seed, names)[0]
    tables = [
        tabulated(values).assign(fold=str(fold), n_test=len(folds.get(fold, pooled)))
        for fold, values in drawn.items()
    ]
    return pd.concat(tables, ignore_index=True)


def intervals(predictions: Frame, n_boot: int = 1000, seed: int = 0, names=METRICS) -> Frame:
    """metric, value, low, high, dropped of the rows given, see ``over_folds``."""
    return tabulated(*measure_together([predictions], n_boot, seed, names))


def results(frames: Frame | Mapping[str, Frame], n_boot=1000, seed=0, names=METRICS) -> Frame:
    """results.csv of one or more tasks' test rows: one row a number, sorted, with its 95 % interval
    and the published value. ``fold`` is text: a number, or ``mean`` and ``pooled`` of several."""
    tables = []
    for frame in [frames] if isinstance(frames, Frame) else frames.values():
        for key, rows in frame[frame["part"] == "test"].groupby(KEYS):
            tables.append(over_folds(rows, n_boot, seed, names).assign(**dict(zip(KEYS, key))))
    table = pd.concat(tables).merge(PUBLISHED.drop(columns="source"), how="left")
    return table[COLUMNS].sort_values([*KEYS, "fold", "metric"], ignore_index=True)
