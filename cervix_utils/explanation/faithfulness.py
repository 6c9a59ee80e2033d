"""Does a map tell what the network does? Deletion, insertion, infidelity and sensitivity."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from captum import metrics
from torch import Tensor, nn

from cervix_utils.explanation.attribution import BASELINES, Function, full_float32
from cervix_utils.explanation.maps import Explained, Explainer, Images

RANDOM = "random order"  # the control of deletion and insertion
POINTS = 16  # of a curve, after its start


@full_float32()
@torch.no_grad()
def curve(function: Function, pixels: Tensor, start: Tensor, maps: np.ndarray) -> np.ndarray:
    """``function`` (n, POINTS + 1) while ``pixels`` turn into ``start``, an equal number at a time.

    Pixels with the largest value of ``maps`` (n, s, s) go first, of equal ones the first in reading
    order. From image to baseline this is deletion, the other way round insertion (Petsiuk et al.
    2018).
    """
    n, side = len(pixels), pixels.shape[-1]
    order = np.argsort(-maps.reshape(n, -1), axis=1, kind="stable")
    rank = torch.from_numpy(np.argsort(order, axis=1).reshape(n, 1, side, side)).to(pixels.device)
    edges = np.linspace(0, side**2, POINTS + 1).round().astype(int)
    values = [function(torch.where(rank < int(edge), start, pixels)) for edge in edges]
    return torch.stack(values, dim=1).float().cpu().numpy()


@full_float32()
@torch.no_grad()
def infidelity(function, pixels: Tensor, start: Tensor, maps: np.ndarray, samples=10, seed=0):
    """Infidelity (n,) of Yeh et al. (2019), by captum, 0 is best, in squared units of the function.

    What is compared: the sum of a map over a random square (an eighth to a half of the side), and
    the fall of the function when ``start`` is shown there; each map is first scaled so that this
    fits best (captum's ``normalize``), so that methods of different units can be compared. The same
    squares for every method.
    """
    draw, side = np.random.default_rng(seed), pixels.shape[-1]

    def squares(inputs: Tensor, baselines: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.zeros(inputs.shape, device=inputs.device)
        for square in inside:
            width = int(draw.integers(max(side // 8, 1), side // 2 + 1))
            y, x = draw.integers(0, side - width + 1, 2)
            square[:, y : y + width, x : x + width] = 1
        return inside, torch.where(inside > 0, baselines, inputs)

    spread = torch.from_numpy(maps).to(pixels)[:, None].expand_as(pixels) / 3  # summed over colours
    most = min(max(32, len(pixels)), samples * len(pixels))  # captum warns of other sizes
    how = {"n_perturb_samples": samples, "max_examples_per_batch": most, "normalize": True}
    values = metrics.infidelity(function, squares, pixels, spread, start, **how)
    return values.cpu().numpy()


def max_sensitivity(explain: Callable[[Tensor], np.ndarray], pixels: Tensor, samples=4, seed=0):
    """Largest relative change (n,) of ``explain(pixels)`` (n, s, s) under noise of at most 0.02 a
    colour value, by captum (Yeh et al. 2019): 0 is a map that does not change."""
    torch.manual_seed(seed)

    def tensors(inputs: Tensor | tuple[Tensor]) -> tuple[Tensor]:
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs  # a tuple first, a tensor then
        return (torch.from_numpy(np.ascontiguousarray(explain(inputs))),)

    how = {"perturb_radius": 0.02, "n_perturb_samples": samples}
    values = metrics.sensitivity_max(tensors, pixels, **how)
    return values.detach().cpu().numpy()


def _sensitivity(explain: Explainer, model: nn.Module, chosen: Images, item: Explained):
    """``max_sensitivity`` (n,) of a method from its own baseline, with a fixed number of steps.

    NaN for occlusion, which takes hundreds of passes an image, and the average over baselines.
    """
    method, kind = item.table[["method", "baseline"]].iloc[0]
    if method == "occlusion" or kind not in ("", *BASELINES):
        return np.nan
    plain = Explainer(explain.run, explain.steps)
    network, starts = plain.network(model), chosen.baseline(kind or "white")
    values = []
    for row, (image, start) in enumerate(zip(chosen.pixels.split(1), starts.split(1))):

        def again(pixels: Tensor, start=start) -> np.ndarray:
            return plain.make(network, pixels, start.expand_as(pixels), method).maps

        values.append(max_sensitivity(again, image, seed=row))
    return np.concatenate(values)


def measure(explain: Explainer, model, chosen, explained: Sequence[Explained], baseline, seed=0):
    """(curves, measures) of every map on ``chosen``, pixels being replaced by their ``baseline``.

    curves: title, way (deletion or insertion), share (of pixels), score (mean of images); the title
    ``random order`` is the control. measures: id, group, title; deletion and insertion (mean
    distance of an image's curve from the control's, positive is better); infidelity;
    max_sensitivity (NaN where not measured).
    """
    network, pixels, start = explain.network(model), chosen.pixels, chosen.baseline(baseline)
    maps = {item.title: item.on(chosen).maps for item in explained}
    maps[RANDOM] = np.random.default_rng(seed).random(chosen.masks.shape)
    moved = {item.title: _sensitivity(explain, model, chosen, item) for item in explained}
    falls = {title: curve(network, pixels, start, values) for title, values in maps.items()}
    gains = {title: curve(network, start, pixels, values) for title, values in maps.items()}
    lines, measures, share = {}, [], pd.Index(np.linspace(0, 1, POINTS + 1), name="share")
    for title, values in maps.items():
        lines[title, "deletion"] = pd.Series(falls[title].mean(axis=0), share)
        lines[title, "insertion"] = pd.Series(gains[title].mean(axis=0), share)
        rows = chosen.table[["id", "group"]].assign(title=title)
        rows["deletion"] = (falls[RANDOM] - falls[title]).mean(axis=1)
        rows["insertion"] = (gains[title] - gains[RANDOM]).mean(axis=1)
        rows["infidelity"] = infidelity(network, pixels, start, values, seed=seed)
        rows["max_sensitivity"] = moved.get(title, np.nan)
        measures.append(rows)
    curves = pd.concat(lines, names=["title", "way"]).rename("score").reset_index()
    return curves, pd.concat(measures, ignore_index=True)
