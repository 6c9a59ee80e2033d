"""The table of predictions: id, group, part, label, p_<class>..., score. Every metric follows from
it."""

from pathlib import Path

import numpy as np
import pandas as pd

from cervix_utils.data import datasets

PARTS = ["train", "valid", "test", "inner"]  # inner: seen by networks of an inner fold, held out
NAMES = ["id", "group", "part", "label"]  # text columns: a group may be called NA or 007
KEYS = ["task", "pipeline", "protocol"]  # with fold and run: what predicted, in tidy frames


class PredictionsError(ValueError):
    """A table of predictions cannot be used; the message names the file, what is wrong, the
    remedy."""


def columns(task: str) -> list[str]:
    """The columns of a table of predictions; ``score`` where the classes are grades."""
    dataset = datasets.get(task)
    score = ["score"] if dataset.ordered else []
    return [*NAMES, *(f"p_{name}" for name in dataset.classes), *score]


def as_predictions(rows: pd.DataFrame, values: np.ndarray, task: str) -> pd.DataFrame:
    """The table from ``rows`` (id, group, part, label) and probabilities (n, k) or scores (n, 1).

    ``score`` is the expected grade 1..k, or the score itself; scores leave the p_ columns empty.
    """
    dataset = datasets.get(task)
    table, scores = rows[NAMES].reset_index(drop=True), np.asarray(values, dtype=float)
    names = [f"p_{name}" for name in dataset.classes]
    table[names] = scores if scores.shape[1] > 1 else np.nan
    if scores.shape[1] > 1:
        scores = scores @ np.arange(1, len(names) + 1)
    return table.assign(score=scores) if dataset.ordered else table


def check(table: pd.DataFrame, task: str, where: str | Path = "predictions") -> pd.DataFrame:
    """``table`` itself, or PredictionsError for columns, parts, labels or values that cannot be."""
    problems, classes = [], datasets.get(task).classes
    absent = [f"column '{name}' is missing" for name in columns(task) if name not in table]
    if absent or table.empty:
        what = absent[0] if absent else "there are no rows"
        raise PredictionsError(f"{where}: {what}; make the file again")
    for column, allowed in (("part", PARTS), ("label", classes)):
        if wrong := sorted(set(table[column].astype(str)) - set(allowed)):
            problems.append(f"{column} '{wrong[0]}' is unknown, known are {', '.join(allowed)}")
    p = table[[f"p_{name}" for name in classes]].to_numpy(dtype=float)
    graded, missing = "score" in columns(task), np.isnan(p).mean()
    if 0 < missing < 1 or (missing and not graded):
        problems.append("probabilities are missing (only a regression of grades has none at all)")
    elif (p < 0).any() or (p > 1).any():
        problems.append("a probability lies outside 0..1")
    elif not missing and not np.allclose(p.sum(axis=1), 1, atol=1e-4):
        problems.append("the probabilities of a row do not sum to 1")
    if graded and not np.isfinite(table["score"].to_numpy(dtype=float)).all():
        problems.append("a score is missing")
    if problems:
        text = "; ".join(problems)
        raise PredictionsError(f"{where}: {text}. Delete it and run what made it again")
    return table


def read(file: Path, names: list[str] = NAMES) -> pd.DataFrame:
    """A CSV whose ``names`` stay text; every other column is a number, empty ones are NaN."""
    try:
        text = pd.read_csv(file, dtype=str, keep_default_na=False)
        numbers = {name: pd.to_numeric(text[name]) for name in text if name not in names}
    except (ValueError, UnicodeDecodeError) as error:
        raise PredictionsError(f"{file} is no table of numbers ({error}): make it again") from None
    return text.assign(**numbers)
