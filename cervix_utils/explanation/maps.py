"""Explanations of a trained network: which images, maps made once and kept, a table of them."""

import hashlib
from collections.abc import Iterable
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
    device: str

    @cached_property
    def pixels(self) -> Tensor:
        return attribution.to_float(self.pictures, self.device)

    def first(self, n: int) -> "Images":
        """At most ``n`` of them (at least one), the first of each class, as many of each."""
        rows = np.sort(_balanced(self.table["label"])[: max(n, 1)])
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, table=table, pictures=self.pictures[rows], masks=self.masks[rows])

    def baseline(self, kind: str) -> Tensor:
        return attribution.baseline(kind, self.pixels, self.masks)


def _balanced(labels: pd.Series) -> np.ndarray:
    """Rows in the order: the first of each class, then the second of each, ..."""
    return np.argsort(labels.groupby(labels).cumcount(), kind="stable").to_numpy()


def read(run: runs.Run, table: pd.DataFrame, device: str) -> Images:
    """The pictures and masks of ``table`` as the network sees them."""
    shape = run.recipe["image_size"], run.recipe["window"]
    masks = images.square_masks(table["mask"], *shape)
    return Images(table, images.squares(table["path"], *shape), masks, device)


def choose(run: runs.Run, table, n: int, seed: int, device="cpu", right=False) -> Images:
    """At most ``n`` test images of ``run`` drawn at random, as many of each class, by class.

    Images with a mask where there are any; without one shares cannot be measured. ``right``: those
    alone that the run named rightly. Raises AttributionError where there are none.
    """
    test = run.test.merge(table[["id", "path", "mask", "severity", "original"]], on="id")
    classes = np.array(runs.recipe_of(run).classes)
    test = test.assign(predicted=classes[metrics.predicted_class(test)])
    test = test.sample(frac=1, random_state=seed)
    test = test[test["label"] == test["predicted"]] if right else test
    test = test[test["mask"] != ""] if (test["mask"] != "").any() else test
    chosen = test.iloc[_balanced(test["label"])[:n]]
    if chosen.empty:
        words = f"none of its test images{' that it named rightly' * right} is in this data"
        remedy = "give the data it saw, and 1 or more as attribution_images"
        raise AttributionError(f"{run.name}: {words}, or none is asked for: {remedy}")
    by_class = chosen.sort_values(["severity", "label"], ignore_index=True)
    return read(run, by_class, device)


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
        """The part on ``chosen``, in its order; KeyError if one is not explained."""
        rows = pd.Series(range(len(self.table)), self.table["id"])[chosen.table["id"]].to_numpy()
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
        smoothed_gradients or occlusion (with a ``baseline``), or grad_cam."""
        function, classes = self.network(model), list(runs.recipe_of(self.run).classes)
        start = chosen.baseline(baseline) if baseline else None
        named = torch.tensor(chosen.table["predicted"].map(classes.index).to_numpy())
        target = None if function.grades else named.to(chosen.device)

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
        settings = {"occlusion": [start, target], "grad_cam": [target]}
        if network.grades:
            settings["smoothed_gradients"] = [start]
        if method not in settings:
            answer = "severity score" if network.grades else "named class"
            raise AttributionError(f"no method '{method}' explains a {answer}")
        maps = getattr(attribution, method)(network, pixels, *settings[method])
        return Gradients(maps, *np.full((2, len(pixels)), np.nan))


def _fingerprint(network: FromPixels, *tensors: Tensor | None) -> list[str]:
    """Digest of a network's weights and of tensors, and what computes with them."""
    digest = hashlib.sha256()
    for tensor in filter(torch.is_tensor, [*network.state_dict().values(), *tensors]):
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()))
    device = torch.cuda.get_device_name() if tensor.is_cuda else "cpu"
    return [digest.hexdigest(), device, version("torch"), version("captum")]


def table(explained: Iterable[Explained]) -> pd.DataFrame:
    """One row an image, network, method and baseline: ``Explained.table`` and ``regions.shares``.

    In the order given; what is given twice is there once.
    """
    parts = [pd.concat([x.table, regions.shares(x.maps, x.masks)], axis=1) for x in explained]
    rows = pd.concat(parts, ignore_index=True)
    return rows.drop_duplicates(["network", "method", "baseline", "id"], ignore_index=True)
