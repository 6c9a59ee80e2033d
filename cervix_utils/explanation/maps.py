"""Explanations of a trained network: which images, maps made once and kept, a table of them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cervix_utils import paths
from cervix_utils.data import datasets, images
from cervix_utils.evaluation import metrics
from cervix_utils.explanation import attribution, regions
from cervix_utils.explanation.attribution import AttributionError, FromPixels, Gradients
from cervix_utils.training import runs

MAPS_VERSION = 1  # raised by hand when the same settings shall give other maps
ABOUT = ["id", "group", "label", "original", "severity", "predicted"]
NUMBERS = ["score", "start_score", "delta", "steps"]


@dataclass(frozen=True)
class Images:
    """Images to explain, one row of ``table`` each."""

    table: pd.DataFrame  # ABOUT, the run's predictions, path and mask
    pictures: np.ndarray  # uint8 (n, 3, s, s)
    masks: np.ndarray  # palette indices (n, s, s); 0, unknown, where an image has no mask
    mean: Tensor | None  # the mean training picture (3, s, s) in 0..1
    device: str

    @cached_property
    def pixels(self) -> Tensor:
        return attribution.to_float(self.pictures, self.device)

    def first(self, n: int) -> "Images":
        """At most ``n`` of them (at least one), the first of each class, as many of each."""
        rows = np.sort(_balanced(self.table["label"], max(n, 1), self.table["label"].nunique()))
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, table=table, pictures=self.pictures[rows], masks=self.masks[rows])

    def baseline(self, kind: str) -> Tensor:
        return attribution.baseline(kind, self.pixels, self.masks, self.mean)


def _balanced(labels: pd.Series, n: int, n_classes: int) -> np.ndarray:
    """Rows of at most ``n`` images: the first of each class, then the second of each, ..."""
    place = labels.groupby(labels).cumcount().to_numpy()
    order = np.argsort(place, kind="stable")
    return order[place[order] < -(-n // n_classes)][:n]


def _tested(run: runs.Run, table: pd.DataFrame) -> pd.DataFrame:
    """The run's test images with the class that it named (``predicted``)."""
    test = run.test.merge(table[["id", "path", "mask", "severity", "original"]], on="id")
    if test.empty:
        words = "none of its test images is in this data: give the data it saw"
        raise AttributionError(f"{run.name}: {words}")
    classes = np.array(runs.recipe_of(run).classes)
    return test.assign(predicted=classes[metrics.predicted_class(test)])


def read(run: runs.Run, table: pd.DataFrame, device: str, mean: Tensor | None = None) -> Images:
    """The pictures and masks of ``table`` as the network sees them."""
    recipe = runs.recipe_of(run)
    shape = recipe.image_size, recipe.window
    pictures = images.squares(table["path"], *shape)
    masks, has_mask = np.zeros_like(pictures[:, 0]), (table["mask"] != "").to_numpy()
    if has_mask.any():
        masks[has_mask] = images.square_masks(table.loc[has_mask, "mask"], *shape)
    return Images(table, pictures, masks, mean, device)


def choose(run: runs.Run, table: pd.DataFrame, n: int, seed: int, device: str = "cpu") -> Images:
    """At most ``n`` test images of ``run`` drawn at random, as many of each class, by severity.

    Images with a mask where there are any; without one shares cannot be measured. Raises
    AttributionError where ``n`` is 0 or ``table`` holds no test image of the run.
    """
    if not n:
        raise AttributionError("attribution_images is 0, so nothing is explained: give 1 or more")
    test, recipe = _tested(run, table).sample(frac=1, random_state=seed), runs.recipe_of(run)
    with_mask = test[test["mask"] != ""] if (test["mask"] != "").any() else test
    chosen = with_mask.iloc[_balanced(with_mask["label"], n, len(recipe.classes))]
    trained = run.predictions.loc[run.predictions["part"] == "train", "id"]
    files = table.loc[table["id"].isin(trained), "path"]
    squares = images.squares(files, recipe.image_size, recipe.window)
    mean = torch.from_numpy(squares.mean(axis=0, dtype=np.float64)).float() / 255
    chosen = chosen.sort_values("severity", kind="stable", ignore_index=True)
    return read(run, chosen, device, mean)


def rightly_named(run: runs.Run, table: pd.DataFrame, most=8, device: str = "cpu") -> Images:
    """The first ``most`` test images of each class that ``run`` named rightly, by class.

    Raises AttributionError where it named none rightly or ``table`` lacks its test images.
    """
    test = _tested(run, table)
    right = test[test["label"] == test["predicted"]].groupby("label").head(most)
    if right.empty:
        raise AttributionError(f"{run.name}: no test image is named rightly")
    return read(run, right.sort_values("label", kind="stable", ignore_index=True), device)


@dataclass(frozen=True)
class Explained:
    """Maps of one method and network.

    ``table``: one row an image: ABOUT, network (``trained``, a control's name, or that of a null
    map), method, baseline, title, and NUMBERS: the network's answer for image and baseline, delta
    and steps of ``attribution.Gradients``; NaN where there is none.
    """

    table: pd.DataFrame
    masks: np.ndarray  # (n, s, s)
    maps: np.ndarray  # (n, s, s)

    @classmethod
    def of(cls, chosen: Images, maps: np.ndarray, network, method, baseline="", **numbers):
        words = [method.replace("_", " "), baseline, "" if network == "trained" else network]
        about = {"network": network, "method": method, "baseline": baseline}
        about |= {"title": ", ".join(filter(None, words))} | dict.fromkeys(NUMBERS, np.nan)
        return cls(chosen.table[ABOUT].assign(**about | numbers), chosen.masks, maps)

    @property
    def title(self) -> str:
        return self.table["title"].iloc[0]

    def on(self, chosen: Images) -> "Explained":
        """The part on ``chosen``, in its order; AttributionError if one is not explained."""
        rows = pd.Index(self.table["id"]).get_indexer(chosen.table["id"])
        if (rows < 0).any():
            image = chosen.table["id"][rows < 0].iloc[0]
            raise AttributionError(f"{self.title}: image {image} is not among those explained")
        table = self.table.iloc[rows].reset_index(drop=True)
        return Explained(table, self.masks[rows], self.maps[rows])


@dataclass(frozen=True)
class Explainer:
    """Makes maps of networks of a run's architecture; each is made once and kept in the cache.

    They explain the severity score; where classes are no grades, the output of the class that the
    run named.
    """

    run: runs.Run
    steps: int = 16
    bound: float = np.inf

    def network(self, model: nn.Module) -> FromPixels:
        """``model`` as it is explained: it answers with a score or with outputs."""
        recipe = runs.recipe_of(self.run)
        grades = len(recipe.classes) if datasets.get(recipe.task).ordered else 0
        return FromPixels(model, recipe.mean, recipe.std, grades)

    def __call__(self, model, chosen: Images, method, baseline="", network="trained") -> Explained:
        """Maps of ``model``, which is called ``network``, by ``method``: integrated_gradients,
        smoothed_gradients or occlusion (with a ``baseline``), grad_cam or guided_grad_cam."""
        function, target = self.network(model), None
        start = chosen.baseline(baseline) if baseline else None
        if not function.grades:
            classes = runs.recipe_of(self.run).classes
            places = [classes.index(name) for name in chosen.table["predicted"]]
            target = torch.tensor(places, device=chosen.device)

        def keep(folder: Path) -> None:
            gradients = self.make(function, chosen.pixels, start, method, target)
            numbers = {"delta": gradients.deltas, "steps": gradients.steps}
            numbers["score"] = attribution.answers(function, chosen.pixels, target)
            if baseline:
                numbers["start_score"] = attribution.answers(function, start, target)
            maps = gradients.maps.astype(np.float32)
            np.savez_compressed(folder / "maps.npz", maps=maps, **numbers)

        about = [method, baseline, replace(self, run=None), list(chosen.table["id"])]
        weights = _fingerprint(function, chosen.pixels, start, target)
        content = [MAPS_VERSION, *about, function, function.grades, *weights]
        with np.load(paths.cached("maps", content, keep) / "maps.npz", allow_pickle=False) as kept:
            return Explained.of(chosen, network=network, method=method, baseline=baseline, **kept)

    def make(self, network, pixels, start, method, target=None) -> Gradients:
        """Maps of a ``FromPixels``, kept nowhere: pixels and start (n, 3, s, s) in 0..1, ``target``
        int64 (n,) where it answers with outputs. AttributionError for an unknown method."""
        if method == "integrated_gradients" and network.grades:
            return attribution.integrated_gradients(network, pixels, start, self.steps, self.bound)
        settings = {"grad_cam": [target], "guided_grad_cam": [target]}
        settings |= {name: [start, target] for name in ("occlusion", "smoothed_gradients")}
        if method not in settings:
            answer = "severity score" if network.grades else "named class"
            raise AttributionError(f"no method '{method}' explains a {answer}")
        maps = getattr(attribution, method)(network, pixels, *settings[method])
        return Gradients(maps, *np.full((2, len(pixels)), np.nan))


def _fingerprint(network: nn.Module, *tensors: Tensor | None) -> list[str]:
    """Digest of a network's weights and of tensors, and what computes with them."""
    digest, given = hashlib.sha256(), [tensor for tensor in tensors if tensor is not None]
    for tensor in [*network.state_dict().values(), *given]:
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()))
    device = given[0].device.type
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return [digest.hexdigest(), name, version("torch"), version("captum")]


def average(several: Sequence[Explained]) -> Explained:
    """The mean of Integrated Gradients of the same images from several baselines: complete towards
    the mean of the baselines' scores."""
    table = several[0].table.assign(baseline="average", title="integrated gradients, average")
    table[NUMBERS] = np.mean([item.table[NUMBERS] for item in several], axis=0)
    return replace(several[0], table=table, maps=np.mean([item.maps for item in several], axis=0))


def table(explained: Iterable[Explained]) -> pd.DataFrame:
    """One row an image, network, method and baseline: ``Explained.table`` and ``regions.shares``.

    In the order given; what is given twice is there once.
    """
    parts = [pd.concat([x.table, regions.shares(x.maps, x.masks)], axis=1) for x in explained]
    rows = pd.concat(parts, ignore_index=True)
    return rows.drop_duplicates(["network", "method", "baseline", "id"], ignore_index=True)
