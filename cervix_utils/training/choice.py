"""Recipes chosen inside the training part, by cross-validation: no test image is seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from sklearn.metrics import log_loss, mean_squared_error

from cervix_utils.data import datasets, splits
from cervix_utils.training import recipes, runs
from cervix_utils.training.recipes import Recipe


@dataclass(frozen=True)
class Trial:
    """A candidate recipe and what networks of the inner folds said of the images they left out."""

    candidate: str
    held_out: pd.DataFrame  # a table of predictions, part ``inner``
    loss: float

    def beside(self, run: runs.Run) -> pd.DataFrame:
        """``held_out`` as rows of the tidy frame that belong to the final network ``run``."""
        keys = {name: run.recipe[name] for name in runs.FRAME[:-1]} | {"run": run.folder.name}
        return self.held_out.assign(**keys)[[*runs.FRAME, *self.held_out.columns]]


def loss_of(held_out: pd.DataFrame, task: str) -> float:
    """What recipes are chosen by: the log-loss, plus the mean squared error of the grades if any.

    The loss of paper H, section 3.2.3, on images that were left out.
    """
    dataset = datasets.get(task)
    classes = list(dataset.classes)
    probabilities, total = held_out[[f"p_{name}" for name in classes]], 0.0
    probabilities = probabilities.div(probabilities.sum(axis=1), axis=0)  # they are rounded
    true = held_out["label"].map(classes.index)
    if probabilities.notna().all(axis=None):
        total += log_loss(true, probabilities, labels=range(len(classes)))
    if dataset.ordered:
        total += mean_squared_error(true + 1, held_out["score"])
    return total


def trials(
    split: pd.DataFrame,
    recipe: Recipe,
    candidates: Sequence[str],
    n_folds: int,
    runs_dir: Path,
    device: str = "auto",
) -> list[Trial]:
    """Each candidate (see ``recipes.changed``) trained on the inner folds of a split.

    The lowest loss is first; of equals, the first named. No candidates: no trials. The inner runs
    are kept without weights. RecipeError for a candidate that cannot be.
    """
    plain = replace(recipe, valid_fraction=0.0)
    made = {candidate: recipes.changed(plain, candidate) for candidate in candidates}
    inner = splits.inner(split, n_folds, recipe.seed) if made else []
    tried = []
    for candidate, changed in made.items():
        finished = [runs.obtain(fold, changed, runs_dir, device, weights=False) for fold in inner]
        held_out = pd.concat([run.test for run in finished], ignore_index=True)
        loss = loss_of(held_out, recipe.task)
        tried.append(Trial(candidate, held_out.assign(part="inner"), loss))
    return sorted(tried, key=lambda trial: trial.loss)
