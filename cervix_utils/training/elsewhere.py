"""Trained networks on another hospital's cells: as they are, and made like those of training."""

from collections.abc import Sequence
from functools import cache, partial
from itertools import repeat

import numpy as np
import pandas as pd
from scipy.special import expit

from cervix_utils.data import datasets, images, splits, tables
from cervix_utils.training import fitting, learners, runs
from cervix_utils.training.runs import Run

Frame = pd.DataFrame
# ends of a pipeline's name: what of the pictures is made like those of training
CONTROLS = "", "_colours_matched", "_size_matched", "_colours_and_size_matched"


def pictures(cells: Frame, home: Frame, control: str, size: int, window: int) -> np.ndarray:
    """Squares of ``cells`` as a network of ``home`` is shown them, uint8 (n, 3, s, s).

    Sizes: where it sees whole images, the middle of each, so large that the median image of
    both has the same magnification. Colours: each channel gets the mean and spread over all
    ``cells`` that it has over all of ``home`` (Reinhard et al. 2001, here in RGB).
    """
    windows = repeat(window)
    if "size" in control and not window:
        there, here = (table[["width", "height"]].max(axis=1) for table in (cells, home))
        windows = (there * here.median() / there.median()).round().astype(int)
    seen = np.stack([*map(images.square, cells["path"], repeat(size), windows)])
    if "colours" in control:
        known = images.squares(home["path"], size, window)
        for old, new in zip(np.moveaxis(seen, 3, 0), known.swapaxes(0, 1)):  # channel by channel
            values = (np.arange(256) - old.mean()) * new.std() / old.std() + new.mean()
            old[:] = values.round().clip(0, 255).astype(np.uint8)[old]
    return seen.transpose(0, 3, 1, 2)


def predict(
    finished: Sequence[Run], there: str, data_root: str, seed=0, device="auto", controls=CONTROLS
) -> Frame:
    """Normal or abnormal: what networks of one data set say of every image of another, ``there``.

    ``finished``: runs of one task. ``data_root``, ``seed``: see ``datasets.load``. Returns
    ``runs.FRAME`` (``task``: ``<there>_abnormal``; ``pipeline``: with the name of the control) and
    the columns of ``tables``; all rows are of the part ``test``. A pipeline with probabilities
    of grades stands there twice: by the sum of those of the abnormal classes, and, its name ending
    in ``_by_score``, by its score, as every regression does (then 1.5 + a stands as 1 + expit(a)).
    """
    home, task, made = finished[0].recipe["task"], f"{there}_abnormal", []
    home, cells = (datasets.load(data_root, name, seed)[0] for name in (home, task))
    rows = splits.with_groups(cells, finished[0].recipe["phash_distance"])
    rows = rows.assign(part="test", task=task)
    for control in controls:
        shown = cache(partial(pictures, cells, home, control))  # by the image size of a network
        for run in finished:
            recipe, device = runs.recipe_of(run), learners.pick_device(device)
            seen = shown(recipe.image_size, recipe.window)
            place = {"protocol": recipe.protocol, "fold": recipe.fold, "run": run.folder.name}
            for kind, values in answers(run, seen, device).items():
                place |= {"task": task, "pipeline": recipe.pipeline + kind + control}
                made.append(tables.as_predictions(rows, values, task).assign(**place))
        print(f"{len(finished)} networks have seen {there}{control.replace('_', ' ')}", flush=True)
    return pd.concat(made, ignore_index=True)[[*runs.FRAME, *tables.columns(task)]]


def answers(run: Run, seen: np.ndarray, device: str) -> dict[str, np.ndarray]:
    """End of a pipeline's name -> probabilities (n, 2) of normal and abnormal, or scores (n, 1)."""
    recipe, dataset = runs.recipe_of(run), datasets.get(run.recipe["task"])
    p = fitting.probabilities(runs.load_model(run, device), seen, recipe, recipe.test_flips)
    told, k = {}, p.shape[1]
    if k > 1:
        sick = p[:, np.isin(dataset.classes, dataset.abnormal)].sum(axis=1).clip(0, 1)
        told[""] = np.column_stack([1 - sick, sick])
    if dataset.ordered:
        told["_by_score" if k > 1 else ""] = 1 + expit(p @ np.arange(1, k + 1) - 1.5)[:, None]
    return told
