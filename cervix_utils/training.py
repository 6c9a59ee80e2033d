"""Fitting a Learner: device, precision, progress, selection by the validation part, predictions with test-time flips."""

import os
import time
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from fastai.callback import progress, schedule  # noqa: F401 (give Learner no_bar and fit_one_cycle)
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import set_seed
from torch.nn.functional import interpolate

from cervix_utils import decoded, devices, losses, networks
from cervix_utils.recipes import Recipe


class Precision(Callback):
    """bf16 autocast and channels_last, on CPU as on GPU: fastai's own ``to_bf16`` leaves a CPU almost as slow as before."""

    order = 10  # after fastai's own set-up of the batch

    def __init__(self, device: str, precision: str):
        self.device, self.precision = device, precision

    def before_fit(self):
        self.model.to(memory_format=torch.channels_last)

    def before_batch(self):
        self.learn.xb = tuple(
            x.as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last) for x in self.xb
        )
        self.context = devices.autocast(self.device, self.precision)
        self.context.__enter__()

    def after_pred(self):
        self.context.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


class Progressive(Callback):
    """Small pictures first: training batches at half the side for half of the steps, at three quarters for a quarter of
    them, then whole, in some 0.55 of the time (progressive resizing, Howard 2018; Tan and Le 2021, section 4). Validation
    is at the whole side always."""

    order = 9  # before Precision puts the batch into its memory format

    def before_batch(self):
        if self.training and self.pct_train < 0.75:
            share = 0.5 if self.pct_train < 0.5 else 0.75
            self.learn.xb = tuple(
                interpolate(x.as_subclass(torch.Tensor), scale_factor=share, mode="bilinear", antialias=True)
                for x in self.xb
            )


class KeepBest(Callback):
    """Keeps the weights of the epoch with the lowest validation loss, in memory, and puts them back after the fit."""

    order = 60  # after the Recorder

    def before_fit(self):
        self.lowest, self.state, self.best_epoch = np.inf, None, -1

    def after_epoch(self):
        loss = self.recorder.values[-1][1]
        if loss < self.lowest:
            self.lowest, self.best_epoch = loss, self.epoch
            self.state = {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def after_fit(self):
        if self.state:
            self.model.load_state_dict(self.state)


class EpochLine(Callback):
    """One line an epoch, for logs and reports: losses, accuracy, seconds so far and to come."""

    order = 65

    def __init__(self, name: str):
        self.title = name

    def before_fit(self):
        self.start = time.perf_counter()

    def after_epoch(self):
        train, valid, accuracy = self.recorder.values[-1]
        spent, done = time.perf_counter() - self.start, (self.epoch + 1) / self.n_epoch
        print(
            f"{self.title}  epoch {self.epoch + 1}/{self.n_epoch}  train {train:.3f}  valid {valid:.3f}  "
            f"accuracy {accuracy:.3f}  {spent:.0f} s, {spent * (1 - done) / done:.0f} s to go",
            flush=True,
        )


def fit(learn: Learner, recipe: Recipe, device: str, precision: str) -> tuple[pd.DataFrame, int]:
    """Train as the recipe says. Returns the history (epoch, train_loss, valid_loss, accuracy) and the epoch kept.

    fastai's bars in JupyterLab, one line an epoch elsewhere. Deterministic on a CPU for a seed and a thread count.
    """
    set_seed(recipe.seed, reproducible=True)
    keep = KeepBest() if recipe.selection == "best" else None
    in_jupyterlab = "JPY_SESSION_NAME" in os.environ
    callbacks = [
        Precision(device, precision),
        *filter(
            None,
            [Progressive() if recipe.progressive else None, keep, None if in_jupyterlab else EpochLine(recipe.name)],
        ),
    ]
    rates = slice(recipe.lr, recipe.lr_head)
    with (
        nullcontext() if in_jupyterlab else learn.no_bar(),
        nullcontext() if in_jupyterlab else learn.no_logging(),
    ):
        if recipe.schedule == "one-cycle":
            learn.fit_one_cycle(recipe.epochs, lr_max=rates, cbs=callbacks)
        else:
            learn.fit(recipe.epochs, lr=rates, cbs=callbacks)
    if not np.isfinite(learn.recorder.losses).all():
        raise FloatingPointError(f"{recipe.name}: the training loss became infinite or NaN; lower the learning rate")
    history = pd.DataFrame(learn.recorder.values, columns=["train_loss", "valid_loss", "accuracy"])
    history.insert(0, "epoch", range(1, len(history) + 1))
    return history, (keep.best_epoch if keep else recipe.epochs - 1) + 1


@torch.inference_mode()
def outputs(
    model: torch.nn.Module, pictures: decoded.Decoded, rows: np.ndarray, recipe: Recipe, precision: str, flips: int
) -> np.ndarray:
    """Class probabilities (n, n_classes) or scores (n, 1) of some ``rows``, averaged over ``flips`` views."""
    model = networks.fold_batch_norms(model)
    device, k = next(model.parameters()).device, len(recipe.classes)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    views = [(), (3,), (2,), (2, 3)][:flips]
    found = []
    for start in range(0, len(rows), 64):
        batch = torch.from_numpy(pictures[rows[start : start + 64]]).to(device)
        x = ((batch / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with devices.autocast(device.type, precision):
            raw = [model(x.flip(view) if view else x).float() for view in views]
        found.append(torch.stack([r if r.shape[1] == 1 else losses.probabilities(r, k) for r in raw]).mean(dim=0).cpu())
    return torch.cat(found).numpy()


def predict(model: torch.nn.Module, split: pd.DataFrame, recipe: Recipe, precision: str) -> pd.DataFrame:
    """The contract's table: id, group, part, label, p_<class>..., score (Herlev, 1..5), one row an image.

    Test and validation images are averaged over the recipe's flips, training images are seen once, as they are.
    Regression has no probabilities: its p_ columns are empty.
    """
    table = split[["id", "group", "part", "label"]].copy()
    values = np.zeros((len(split), 1 if recipe.pipeline == "regression" else len(recipe.classes)), dtype=np.float32)
    pictures = decoded.open_squares(split, recipe.image_size, recipe.window)
    for part, rows in split.groupby("part").indices.items():
        values[rows] = outputs(model, pictures, rows, recipe, precision, 1 if part == "train" else recipe.test_flips)
    for index, name in enumerate(recipe.classes):
        table[f"p_{name}"] = values[:, index] if values.shape[1] > 1 else np.nan
    if recipe.task == "herlev":
        severity = np.arange(1, len(recipe.classes) + 1)
        table["score"] = values @ severity if values.shape[1] > 1 else values[:, 0]
    return table
