"""Does a map tell what the network does? Deletion and insertion."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from cervix_utils.explanation.attribution import Function, full_float32
from cervix_utils.explanation.maps import Explained, Explainer

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
    rank = stats.rankdata(-maps.reshape(n, -1), "ordinal", axis=1).reshape(n, 1, side, side)
    rank = torch.from_numpy(rank).to(pixels.device)
    edges = np.linspace(0, side**2, POINTS + 1).round().astype(int)
    values = [function(torch.where(rank <= int(edge), start, pixels)) for edge in edges]
    return torch.stack(values, dim=1).float().cpu().numpy()


def measure(explain: Explainer, model, chosen, explained: Sequence[Explained], baseline, seed=0):
    """(curves, measures) of every map on ``chosen``, pixels being replaced by their ``baseline``.

    curves: title, way (deletion or insertion), share (of pixels), score (mean of images); the title
    ``random order`` is the control. measures: id, group, title; deletion and insertion (mean
    distance of an image's curve from the control's, positive is better).
    """
    network, pixels, start = explain.network(model), chosen.pixels, chosen.baseline(baseline)
    maps = {item.title: item.on(chosen).maps for item in explained}
    maps[RANDOM] = np.random.default_rng(seed).random(chosen.masks.shape)
    falls = {title: curve(network, pixels, start, values) for title, values in maps.items()}
    gains = {title: curve(network, start, pixels, values) for title, values in maps.items()}
    lines, measures, share = {}, [], pd.Index(np.linspace(0, 1, POINTS + 1), name="share")
    for title in maps:
        lines[title, "deletion"] = pd.Series(falls[title].mean(axis=0), share)
        lines[title, "insertion"] = pd.Series(gains[title].mean(axis=0), share)
        rows = chosen.table[["id", "group"]].assign(title=title)
        rows["deletion"] = (falls[RANDOM] - falls[title]).mean(axis=1)
        rows["insertion"] = (gains[title] - gains[RANDOM]).mean(axis=1)
        measures.append(rows)
    curves = pd.concat(lines, names=["title", "way"]).rename("score").reset_index()
    return curves, pd.concat(measures, ignore_index=True)
