"""What a map must differ from before it says anything of a trained network: maps and networks that know nothing."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import spearmanr
from torch import nn

from cervix_utils import attribution, networks, runs, splits, weighted
from cervix_utils.explanations import Cells, Explained, Explainer
from cervix_utils.recipes import Recipe


def null_maps(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (n, s, s) >= 0 that know no network, from uint8 pictures (n, 3, s, s).

    ``uniform``; ``darkness`` against white; ``edges``: the length of the grey picture's Sobel gradient.
    """
    grey = pixels.astype(np.float32).mean(axis=1) / 255
    edges = [np.hypot(*(ndimage.sobel(one, axis) for axis in (0, 1))) for one in grey]  # never across pictures
    return {"uniform": np.ones_like(grey), "darkness": 1 - grey, "edges": np.stack(edges)}


def randomised(model: nn.Module, layers: list[str], seed: int = 0) -> nn.Module:
    """A copy of ``model`` in which the weights of the named ``layers`` know nothing, for a control.

    Every convolution and linear weight there is drawn anew from a normal distribution with the mean and spread that
    it had, so that signals keep their size; biases and batch norms stay. Raises ValueError for an unknown layer.
    """
    known = dict(model.named_children())
    if missing := [name for name in layers if name not in known]:
        raise ValueError(f"the network has no layer '{missing[0]}': it has {', '.join(known)}")
    found, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (part for name in layers for part in getattr(found, name).modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight
                fresh = torch.randn(weight.shape, generator=draw) * weight.std().cpu() + weight.mean().cpu()
                weight.copy_(fresh)
    return found


def layers_from_top(model: nn.Module) -> list[str]:
    """Names of the layers with weights, the last first: fc, layer4, ..., conv1 of a torchvision ResNet."""
    kinds = (nn.Conv2d, nn.Linear)
    children = list(model.named_children())[::-1]
    return [name for name, part in children if any(isinstance(m, kinds) for m in part.modules())]


def cascade(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """(layer, network): ``model`` randomised from the top down to that layer, one layer more at a time (cascading
    randomisation, Adebayo et al. 2018, section 3.1)."""
    layers = layers_from_top(model)
    for depth, name in enumerate(layers, 1):
        yield name, randomised(model, layers[:depth], seed)


def similarity(maps: np.ndarray, others: np.ndarray) -> pd.DataFrame:
    """Spearman's rank correlation of each map (n, s, s) with its other: columns ``signed`` and ``absolute``, -1..1."""
    pairs = [(one.ravel(), other.ravel()) for one, other in zip(maps, others)]
    rows = [[spearmanr(f(one), f(other)).statistic for f in (np.asarray, np.abs)] for one, other in pairs]
    return pd.DataFrame(rows, columns=["signed", "absolute"])


def null(cells: Cells) -> list[Explained]:
    """``null_maps`` as explanations by no network."""
    none = np.full(len(cells.table), np.nan)
    found = null_maps(cells.pictures).items()
    return [Explained("none", name, "", cells.table, cells.masks, maps, *[none] * 4) for name, maps in found]


def permuted(
    run: runs.Run, cells: pd.DataFrame, settings: Mapping[str, Any], folder: Path, device: str, precision: str
) -> runs.Run:
    """The network of ``run``'s recipe trained on its images with their labels permuted, in ``folder`` (trained once).

    Raises AttributionError where the initial weights of ``settings`` are not those of ``run``, or images are missing.
    """
    grown = settings["weights_resnet101"] == "grown"
    weights = f"grown:{settings['weights_resnet50']}" if grown else settings["weights_resnet101"]
    given = networks.describe_weights(weights, run.recipe["architecture"])
    if given != run.recipe["initialisation"]:
        raise attribution.AttributionError(
            f"{run.name} started from {run.recipe['initialisation']}, not from {given}: give weights_resnet50 and "
            "weights_resnet101 as in its training, or attribution_permuted false"
        )
    own = {field.name: run.recipe[field.name] for field in fields(Recipe)}
    recipe = Recipe(
        **own | {"weights": weights, "pipeline": f"{run.recipe['pipeline']}_permuted", "seed": settings["seed"]}
    )
    order = run.predictions[["id", "group", "part"]]
    if missing := sorted(set(order["id"]) - set(cells["id"])):
        raise attribution.AttributionError(
            f"{len(missing)} images of {run.name} are not in this data, the first is {missing[0]}: give the data it saw"
        )
    split = order.merge(cells.drop(columns="group", errors="ignore"), on="id", how="left")
    return runs.obtain(splits.permute_labels(split, settings["seed"]), recipe, folder, device, precision)


def agreement(explained: Sequence[Explained]) -> pd.DataFrame:
    """Mean rank correlation of the signed maps of every two methods on the same images, -1..1."""
    names = [one.name for one in explained]
    values = [[similarity(a.maps, b.maps)["signed"].mean() for b in explained] for a in explained]
    return pd.DataFrame(values, names, names)


def down_the_cascade(
    explain: Explainer, run: runs.Run, model: torch.nn.Module, cells: Cells, baseline: str, n_boot: int, seed: int
) -> pd.DataFrame:
    """Mean similarity with the trained network's Integrated Gradients as its layers are randomised from the top.

    One row a layer and form: layer, form (signed or absolute), value, low, high (95 %, whole groups resampled). A map
    that explains a network falls to 0; one that stays high shows the picture, not the network (Adebayo et al. 2018).
    """
    networks_ = [("trained", model), *cascade(model, seed)]
    each = [
        explain(
            attribution.FromPixels(network, run.recipe["mean"], run.recipe["std"]),
            cells,
            "integrated_gradients",
            baseline,
            layer if layer == "trained" else f"random down to {layer}",
        ).maps
        for layer, network in networks_
    ]
    weights, rows = weighted.group_weights(cells.table["group"], n_boot, seed), []
    for (layer, _), maps in zip(networks_[1:], each[1:]):
        for form, values in similarity(each[0], maps).fillna(0).items():  # a constant map resembles nothing
            low, high = weighted.limits(weights @ values.to_numpy() / weights.sum(axis=1))
            rows.append({"layer": layer, "form": form, "value": values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)
