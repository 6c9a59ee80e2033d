"""The explanations of one trained network: which cells, maps made once and kept, one table of all of them."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cervix_utils import attribution, images, integration, regions, runs

CODE = [
    f"{name}.py" for name in ("attribution", "controls", "images", "integration", "losses", "networks")
]  # decide a map
ABOUT = ["id", "group", "label", "original", "severity", "predicted"]


@dataclass(frozen=True)
class Cells:
    """Images to explain: their ``table`` (one row an image), uint8 ``pictures`` (n, 3, s, s) and ``masks`` (n, s, s) of
    palette indices (0, unknown, where an image has no mask), the ``mean`` training picture (3, s, s) in 0..1."""

    table: pd.DataFrame
    pictures: np.ndarray
    masks: np.ndarray
    mean: Tensor
    device: str

    @cached_property
    def pixels(self) -> Tensor:
        return attribution.to_float(self.pictures, self.device)

    def first(self, n: int) -> "Cells":
        """At most ``n`` of them, as many of each class as can be: the first of each class."""
        place = self.table.groupby("label").cumcount().to_numpy()
        keep = np.argsort(place, kind="stable")[:n]
        keep = np.sort(keep[place[keep] < -(-n // self.table["label"].nunique())])
        table = self.table.iloc[keep].reset_index(drop=True)
        return replace(self, table=table, pictures=self.pictures[keep], masks=self.masks[keep])

    def baseline(self, kind: str) -> Tensor:
        return attribution.baseline(kind, self.pixels, self.masks, self.mean)


def choose(run: runs.Run, cells: pd.DataFrame, n: int, seed: int, device: str = "cpu") -> Cells:
    """A seeded choice of at most ``n`` test cells of ``run``, as many of each class as can be, sorted by severity.

    Cells with a usable mask where there are any; without one the pictures can still be explained, the shares cannot.
    Raises AttributionError where ``n`` is 0 or the table holds no test image of the run.
    """
    if not n:
        raise attribution.AttributionError("attribution_images is 0, so there is nothing to explain: give 1 or more")
    test = run.test.merge(cells[["id", "path", "mask", "severity", "original"]], on="id")
    if test.empty:
        raise attribution.AttributionError(f"{run.name}: none of its test images is in this data: give the data it saw")
    names = [name.removeprefix("p_") for name in test if name.startswith("p_")]
    known = test[[f"p_{name}" for name in names]]
    best = known.to_numpy().argmax(axis=1) if known.notna().all(axis=None) else test["score"].round().clip(1, 5) - 1
    test = test.assign(predicted=np.array(names)[np.asarray(best, dtype=int)]).sample(frac=1, random_state=seed)
    chosen = test[test["mask"] != ""] if (test["mask"] != "").any() else test
    place = chosen.groupby("label").cumcount().sort_values(kind="stable")
    chosen = chosen.loc[place[place < -(-n // len(names))].index[:n]]
    chosen = chosen.sort_values("severity", kind="stable", ignore_index=True)
    shape = run.recipe["image_size"], run.recipe.get("window", 0)
    files = cells.loc[cells["id"].isin(run.predictions.query("part == 'train'")["id"]), "path"]
    masks = np.zeros((len(chosen), shape[0], shape[0]), dtype=np.uint8)
    if len(has := np.flatnonzero(chosen["mask"] != "")):
        masks[has] = images.square_masks(chosen["mask"].iloc[has], *shape)
    mean = torch.from_numpy(images.squares(files, *shape).mean(axis=0, dtype=np.float64)).float() / 255
    return Cells(chosen, images.squares(chosen["path"], *shape), masks, mean, device)


@dataclass(frozen=True)
class Explained:
    """Maps (n, s, s) of ``table``'s images. ``network``: trained, random weights, permuted labels or none; ``deltas`` and
    ``steps`` (n,) NaN where the method has none; ``scores`` and ``start_scores``: severity of image and baseline."""

    network: str
    method: str
    baseline: str
    table: pd.DataFrame
    masks: np.ndarray
    maps: np.ndarray
    deltas: np.ndarray
    steps: np.ndarray
    scores: np.ndarray
    start_scores: np.ndarray

    @property
    def name(self) -> str:
        return ", ".join(
            filter(None, [self.method.replace("_", " "), self.baseline, self.network.replace("trained", "")])
        )

    def on(self, cells: Cells) -> "Explained":
        """The part of it on some ``cells``, in their order. Raises AttributionError where one of them is not explained."""
        rows = pd.Index(self.table["id"]).get_indexer(cells.table["id"])
        if (rows < 0).any():
            missing = cells.table["id"][rows < 0].iloc[0]
            raise attribution.AttributionError(f"{self.name}: image {missing} is not among those explained")
        arrays = {name: getattr(self, name)[rows] for name in ARRAYS}
        return replace(self, table=cells.table, masks=cells.masks, **arrays)

    @cached_property
    def shares(self) -> pd.DataFrame:
        """``table`` and ``regions.shares``, one row an image."""
        return pd.concat([self.table[ABOUT], regions.shares(self.maps, self.masks)], axis=1)


ARRAYS = ["maps", "deltas", "steps", "scores", "start_scores"]


@dataclass(frozen=True)
class Explainer:
    """Makes maps of one run's cells and keeps each in ``folder`` as a compressed .npz (arrays and ids, never a pickle).

    ``key``: digest of the network that is explained. A kept file is read again when network, images, method and code
    are the same, so an interrupted notebook goes on where it stopped.
    """

    folder: Path
    key: str
    steps: int = 16
    rule: str = "gausslegendre"
    bound: float = np.inf
    grid: bool = False
    seed: int = 0  # of what is random in a control

    def __call__(
        self, network: attribution.FromPixels, cells: Cells, method: str, baseline: str = "", name: str = "trained"
    ) -> Explained:
        """``method``: integrated_gradients or occlusion (with a ``baseline``), grad_cam, guided_grad_cam, of the severity."""
        code = [Path(__file__).with_name(module).read_text() for module in CODE]
        made = [self.key, self.steps, self.rule, self.bound, self.grid, self.seed, method, baseline, name]
        facts = [*made, list(cells.table["id"]), code]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        slug = "-".join(filter(None, [name, method, baseline, digest[:8]])).replace(" ", "_")
        file = self.folder / f"{slug}.npz"
        if file.is_file():
            with np.load(file, allow_pickle=False) as kept:
                found = {key: kept[key] for key in ARRAYS}
        else:
            found = self._make(network, cells, method, baseline)
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".{uuid.uuid4().hex}.npz")
            try:
                np.savez_compressed(part, id=cells.table["id"].to_numpy(dtype=str), **found)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        return Explained(name, method, baseline, cells.table, cells.masks, **found)

    def _make(self, network: attribution.FromPixels, cells: Cells, method: str, baseline: str) -> dict[str, np.ndarray]:
        pixels, score = cells.pixels, attribution.Severity(network)
        start = cells.baseline(baseline) if baseline else None
        none = np.full(len(pixels), np.nan)
        deltas, steps = none, none
        if method == "integrated_gradients":
            maps, deltas, steps = integration.integrated_gradients(
                score, pixels, start, self.steps, self.rule, self.bound
            )
        elif method == "occlusion":
            maps = attribution.occlusion(score, pixels, start)
        elif method == "grad_cam":
            maps = attribution.grad_cam(network, pixels, enlarge="nearest" if self.grid else "bilinear")
        elif method == "guided_grad_cam":
            maps = attribution.guided_grad_cam(network, pixels)
        else:
            raise attribution.AttributionError(f"unknown method '{method}' of explanation")
        scores = [none if images is None else scored(score, images) for images in (pixels, start)]
        return dict(zip(ARRAYS, [maps.astype(np.float32), deltas, steps, *scores]))


@torch.no_grad()
def scored(function, pixels: Tensor) -> np.ndarray:
    """``function`` (n,) of many images, 32 at a time."""
    return torch.cat([function(some) for some in pixels.split(32)]).float().cpu().numpy()


def average(several: Sequence[Explained]) -> Explained:
    """The mean of Integrated Gradients from several baselines on the same images: complete towards their mean score."""
    mean = {name: np.mean([getattr(one, name) for one in several], axis=0) for name in ARRAYS}
    return replace(several[0], baseline="average", **mean)


def convergence(explained: Iterable[Explained], bound: float) -> pd.DataFrame:
    """One row a baseline: images, scores of the baseline, size of the delta, steps taken, images over the ``bound``."""
    rows = {}
    for one in explained:
        low, middle, high = np.quantile(one.start_scores, [0, 0.5, 1])
        rows[one.baseline] = {
            "images": len(one.table),
            "score of baseline, median": middle,
            "lowest": low,
            "highest": high,
            "delta, median size": np.median(np.abs(one.deltas)),
            "largest": np.abs(one.deltas).max(),
            "steps, mean": one.steps.mean(),
            "most": one.steps.max(),
            "over the bound": int((np.abs(one.deltas) > bound).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def right_and_wrong(table: pd.DataFrame) -> list[int]:
    """Rows of the first rightly and the first wrongly named image of every class, where there is one, in order."""
    right = table["predicted"] == table["label"]
    first = (
        table.assign(right=right)
        .reset_index(drop=True)
        .reset_index()
        .groupby(["severity", "right"], sort=False)
        .first()
    )
    return first.sort_values(["severity", "right"], ascending=[True, False])["index"].tolist()


def table(explained: Iterable[Explained]) -> pd.DataFrame:
    """One row an image, method and baseline (attribution.csv): what it is, deltas, steps, scores, all shares. Sorted; what
    is given twice is there once."""
    parts = [
        one.shares.assign(
            network=one.network,
            method=one.method,
            baseline=one.baseline,
            **{name: getattr(one, name) for name in ARRAYS[1:]},
        )
        for one in explained
    ]
    found = pd.concat(parts, ignore_index=True)
    first = [*ABOUT, "network", "method", "baseline", *ARRAYS[1:]]
    found = found[[*first, *found.columns.difference(first, sort=False)]]
    key = ["network", "method", "baseline", "id"]
    return found.drop_duplicates(key).sort_values(key)
