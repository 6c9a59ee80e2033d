"""Train a Learner as its recipe says, with progress; predict with views of a test image
averaged."""

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from torch import nn

from cervix_utils import paths
from cervix_utils.data import squares, tables
from cervix_utils.training import learners, networks
from cervix_utils.training.checkpoints import Checkpoint
from cervix_utils.training.learners import StudyLearner
from cervix_utils.training.recipes import Recipe


class EpochLine(Callback):
    """One line an epoch, for logs and reports: losses, accuracy, seconds so far and to come."""

    order = 65

    def __init__(self, name: str):
        self.title = name

    def before_fit(self):
        self.start = time.perf_counter()

    def after_epoch(self):
        named = zip(("train", "valid", "accuracy"), self.recorder.values[-1])
        values = "  ".join(f"{name} {value:.3f}" for name, value in named if value is not None)
        done, spent = self.epoch + 1, time.perf_counter() - self.start
        to_go = spent * (self.n_epoch - done) / (done - self.first_epoch)
        print(
            f"{self.title}  epoch {done}/{self.n_epoch}  {values}  "
            f"{spent:.0f} s, {to_go:.0f} s to go",
            flush=True,
        )


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """PyTorch on this many threads: sums, and so results, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(learn: StudyLearner, recipe: Recipe, checkpoint: Path | None = None) -> None:
    """Train as the recipe says: fastai's bars in JupyterLab, one line an epoch elsewhere.

    Deterministic on a CPU, however many trainings run side by side and whatever was shown before.
    ``checkpoint``: the file of a training that was killed, to go on from, and for this one.
    Leaves ``learn.fitted_as`` (None where the Learner was fitted or frozen before, or has another
    loss, optimiser, batches or callback) and ``learn.seconds``. FloatingPointError where the loss
    diverges.
    """
    gc.collect()  # a Learner holds itself: the one before keeps its memory until then
    untouched = learn.opt is None  # fastai makes the optimiser when a Learner is first fitted
    as_built = learn.ingredients() == learn.built_with
    kept = [Checkpoint(checkpoint)] if checkpoint else []
    start, rates = time.perf_counter(), slice(recipe.lr, recipe.lr * recipe.head_factor)
    with ExitStack() as stack:
        stack.enter_context(on_threads(recipe.threads))
        if not paths.in_jupyterlab():
            stack.enter_context(learn.added_cbs(EpochLine(recipe.name)))
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
        set_seed(recipe.seed, reproducible=True)
        learn.dls.train.rng.seed(recipe.seed)  # each batch that was looked at has moved it
        if recipe.schedule == "one-cycle":
            learn.fit_one_cycle(recipe.epochs, lr_max=rates, cbs=kept)
        else:
            learn.fit(recipe.epochs, lr=rates, cbs=kept)
    if not np.isfinite(learn.recorder.losses).all():
        raise FloatingPointError(f"{recipe.name}: the loss became infinite or NaN: lower the rate")
    the_recipes = as_built and (untouched or any(one.resumed for one in kept))
    learn.fitted_as = recipe if the_recipes else None
    learn.seconds = time.perf_counter() - start


def history(learn: StudyLearner) -> pd.DataFrame:
    """epoch, train_loss, valid_loss, accuracy of the last fit; no rows before the first.

    Where no image was set aside for validation, the last two are NaN.
    """
    values = list(getattr(learn.recorder, "values", []))
    table = pd.DataFrame(values, columns=["train_loss", "valid_loss", "accuracy"]).astype(float)
    table.insert(0, "epoch", range(1, len(table) + 1))
    return table


def views(pictures: torch.Tensor, number: int) -> list[torch.Tensor]:
    """``number`` (1, 2, 4, 8) of the flips and quarter turns of ``pictures`` (n, 3, s, s), itself
    first."""
    flips = [(), (3,), (2,), (2, 3)]
    turned = [pictures, pictures.transpose(2, 3)]
    return [side.flip(axes) if axes else side for side in turned for axes in flips][:number]


@torch.inference_mode()
def probabilities(
    model: nn.Module, pictures, recipe: Recipe, number: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """Class probabilities (n, n_classes) or scores (n, 1), averaged over ``number`` views.

    ``pictures``: uint8 (n, 3, s, s), all or some ``rows``. In the recipe's precision and threads.
    """
    rows = np.arange(len(pictures)) if rows is None else rows
    model, batches = networks.fold_batch_norms(model), []
    device = next(model.parameters()).device
    precision = learners.pick_precision(recipe.precision, device.type)
    mean, std = torch.tensor([recipe.mean, recipe.std], device=device).view(2, 1, 3, 1, 1)
    with on_threads(recipe.threads):
        for some in np.split(rows, range(64, len(rows), 64)):
            batch = (torch.from_numpy(pictures[some]).to(device) / 255 - mean) / std
            batch = batch.contiguous(memory_format=torch.channels_last)
            with learners.autocast(device.type, precision):
                raw = [model(view).float() for view in views(batch, number)]
            answers = raw if recipe.n_outputs == 1 else [view.softmax(dim=1) for view in raw]
            batches.append(torch.stack(answers).mean(dim=0).cpu())
    return torch.cat(batches).numpy()


def predict(model: nn.Module, split: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """id, group, part, label, p_<class>..., score (graded tasks, 1..k), one row an image of
    ``split``.

    Test and validation images are averaged over the recipe's views, training images are seen once.
    Regression has no probabilities: its p_ columns are empty.
    """
    table = split.reset_index(drop=True)
    values = np.zeros((len(table), recipe.n_outputs), dtype=np.float32)
    pictures = squares.open_squares(table, recipe.image_size, recipe.window)
    for part, rows in table.groupby("part").indices.items():
        number = 1 if part == "train" else recipe.test_flips
        values[rows] = probabilities(model, pictures, recipe, number, rows)
    return tables.as_predictions(table, values, recipe.task)
