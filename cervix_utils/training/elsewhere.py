"""Trained networks on another hospital's cells: as they are, and made like those of training."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cervix_utils.data import datasets, splits, squares, tables
from cervix_utils.training import fitting, learners, runs

AS_THEY_ARE = "as they are"
# name -> whether colours, and whether sizes, are made like those of the cells of training
CONTROLS = {AS_THEY_ARE: (False, False), "colours matched": (True, False)}
CONTROLS |= {"size matched": (False, True), "both matched": (True, True)}
BLOCK, SAMPLE = 256, 500  # pictures changed at a time; pictures that typical colours are taken from
KEYS = [*runs.FRAME, "elsewhere", "control"]  # of the table of ``predict``, before ``tables.NAMES``


def colours(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread (n, 3, 1, 1) of the channels of each picture (n, 3, s, s)."""
    spread, mean = torch.std_mean(pictures, dim=(2, 3), keepdim=True)
    return mean, spread


def matched(pictures, like: tuple[Tensor, Tensor] | None, zoom: float) -> np.ndarray:
    """``pictures``, uint8 (n, 3, s, s), ``zoom`` times as large about their middle, and with the
    mean and spread ``like`` (3, 1, 1) in each channel (Reinhard et al. 2001, here in RGB)."""
    seen, frame = [], torch.eye(2, 3) / zoom
    for rows in np.split(np.arange(len(pictures)), range(BLOCK, len(pictures), BLOCK)):
        block = torch.from_numpy(pictures[rows]).float()
        if zoom != 1:  # what lies beyond a picture has the colour of its border
            grid = F.affine_grid(frame.expand(len(rows), 2, 3), list(block.shape), False)
            block = F.grid_sample(block, grid, padding_mode="border", align_corners=False)
        if like is not None:
            mean, spread = colours(block)
            block = (block - mean) / spread.clamp(min=1) * like[1] + like[0]
        seen.append(block.round().clamp(0, 255).byte().numpy())
    return np.concatenate(seen)


def pictures(
    cells: pd.DataFrame, home: pd.DataFrame, size: int, window: int, control: str
) -> np.ndarray:
    """Squares of ``cells`` (see ``squares``) under one of CONTROLS, uint8 (n, 3, s, s).

    Colours: every picture gets the mean and spread that a picture of ``home`` has on average.
    Sizes: where a network sees whole images, the median cell of both gets the same magnification.
    """
    like, zoom, (by_colour, by_size) = None, 1.0, CONTROLS[control]
    if by_colour:
        some = home.sample(min(SAMPLE, len(home)), random_state=0)
        known = squares.open_squares(some, size, window)[np.arange(len(some))]
        like = [values.mean(dim=0) for values in colours(torch.from_numpy(known).float())]
    if by_size and not window:
        there, here = (table[["width", "height"]].max(axis=1).median() for table in (cells, home))
        zoom = there / here
    return matched(squares.open_squares(cells, size, window), like, zoom)


def predict(
    finished: Iterable[runs.Run],
    there: str,
    data_root: str = "",
    seed: int = 0,
    device: str = "auto",
    controls: Iterable[str] = CONTROLS,
) -> pd.DataFrame:
    """What networks of one data set say of every image of another one, ``there``.

    ``data_root``, ``seed``: see ``datasets.load``. Returns KEYS (``task``: of training;
    ``elsewhere``: of the images), id, group, part (test), label (a class of ``there``), p_<class of
    training>..., score (where those are grades). Test images are averaged over as many views as a
    run's recipe says.
    """
    finished, told = list(finished), []
    device, recipe = learners.pick_device(device), runs.recipe_of(finished[0])
    home, cells = (datasets.load(data_root, task, seed)[0] for task in (recipe.task, there))
    cells = splits.with_groups(cells, recipe.phash_distance).assign(part="test", elsewhere=there)
    frames = [(run.recipe["image_size"], run.recipe["window"]) for run in finished]
    for frame in sorted(set(frames)):
        for control in controls:
            seen = pictures(cells, home, *frame, control)
            rows = cells.assign(control=control)
            told += [
                _answers(r, rows, seen, device) for r, f in zip(finished, frames) if f == frame
            ]
    return pd.concat(told, ignore_index=True)


def _answers(run: runs.Run, cells: pd.DataFrame, seen: np.ndarray, device: str) -> pd.DataFrame:
    """KEYS and the table of predictions of one run."""
    recipe, model = runs.recipe_of(run), runs.load_model(run, device)
    values = fitting.probabilities(model, seen, recipe, recipe.test_flips)
    keys = {name: run.recipe[name] for name in runs.FRAME[:-1]} | {"run": run.folder.name}
    print(f"{run.name}  has seen {len(cells)} images from elsewhere", flush=True)
    rows = cells.reset_index(drop=True).assign(**keys)
    return pd.concat([rows[KEYS], tables.as_predictions(rows, values, recipe.task)], axis=1)
