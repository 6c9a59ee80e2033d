"""What an explanation must differ from: maps, networks and images with nothing to explain."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import nn

from cervix_utils.data import images, splits, tables
from cervix_utils.explanation import maps, regions
from cervix_utils.explanation.attribution import AttributionError
from cervix_utils.explanation.maps import Explained, Explainer, Images
from cervix_utils.training import fitting, networks, runs

GREY = (159, 151, 172)  # RGB, the usual background of Herlev's slides
REGIONS = {  # what is blanked, from palette indices; cell and background make up the image
    "nucleus": lambda mask: mask == images.NUCLEUS,
    "cell": lambda mask: mask != images.BACKGROUND,  # with the rim: thin cytoplasm is part of it
    "background": lambda mask: mask == images.BACKGROUND,
}
WITHOUT = "_without_"  # between the names of pipeline and region


def null(chosen: Images) -> list[Explained]:
    """Maps (n, s, s) >= 0 that no network made, called a ``null map``.

    ``uniform``; ``darkness`` against white; ``edges``: the length of the Sobel gradient in grey.
    """
    grey = chosen.pictures.astype(np.float32).mean(axis=1) / 255
    edges = [np.hypot(ndimage.sobel(x, 0), ndimage.sobel(x, 1)) for x in grey]  # picture by picture
    made = {"uniform": np.ones_like(grey), "darkness": 1 - grey, "edges": np.stack(edges)}
    return [Explained.of(chosen, values, name, "null map") for name, values in made.items()]


def layers_from_top(model: nn.Module) -> list[str]:
    """Names of the layers with weights, the last first: fc, layer4, ..., conv1 of a ResNet."""
    kinds, children = (nn.Conv2d, nn.Linear), list(model.named_children())[::-1]
    return [name for name, part in children if any(isinstance(m, kinds) for m in part.modules())]


def randomised(model: nn.Module, layers: Sequence[str] = (), seed: int = 0) -> nn.Module:
    """A copy of ``model`` in which the weights of ``layers`` (all if none is named) know nothing.

    Every convolution and linear weight there is drawn anew from a normal distribution with its mean
    and spread, so that signals keep their size; biases and batch norms stay.
    """
    changed, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name in layers or layers_from_top(model):
        for module in changed.get_submodule(name).modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight.data
                fresh = torch.randn(weight.shape, generator=draw) * weight.std().cpu()
                weight.copy_(fresh + weight.mean().cpu())
    return changed


def permuted(run, table: pd.DataFrame, weights: str, runs_dir: Path, seed: int, device="cpu"):
    """The Run of ``run``'s recipe on its images with their labels permuted in training.

    ``weights``: the initial weights of ``run`` as a recipe names them. Raises AttributionError
    where they are others, or images are missing in ``table``.
    """
    recipe = runs.recipe_of(run)
    given = networks.describe_weights(weights, recipe.architecture)
    if given != run.recipe["weights"]:
        started = f"{run.name} started from {run.recipe['weights']}, not from {given}"
        raise AttributionError(f"{started}: give its weights, or attribution_permuted false")
    if missing := sorted(set(run.predictions["id"]) - set(table["id"])):
        raise AttributionError(f"{run.name}: {missing[0]} is not in this data: give what it saw")
    table = table.drop(columns="group", errors="ignore")
    split = run.predictions[["id", "group", "part"]].merge(table, on="id")
    split = split.assign(task=recipe.task, protocol=recipe.protocol, fold=recipe.fold)
    recipe = replace(recipe, pipeline=f"{recipe.pipeline}_permuted", weights=weights, seed=seed)
    return runs.obtain(splits.permute_labels(split, seed), recipe, runs_dir, device)


def similarity(maps: np.ndarray, others: np.ndarray) -> pd.DataFrame:
    """Spearman's rank correlation of each map (n, s, s) with its other, -1..1, NaN if constant.

    Columns: ``signed`` and ``absolute``.
    """
    a, b = (pd.DataFrame(values.reshape(len(values), -1)) for values in (maps, others))
    signed = a.rank(axis=1).corrwith(b.rank(axis=1), axis=1)
    absolute = a.abs().rank(axis=1).corrwith(b.abs().rank(axis=1), axis=1)
    return pd.DataFrame({"signed": signed, "absolute": absolute})


def down_the_cascade(explain: Explainer, model, chosen, baseline, n_boot=1000, seed=0):
    """Mean similarity with a network's Integrated Gradients while its layers are randomised.

    One row a layer, from the top, and form (signed or absolute): layer, form, value, low, high (95
    %, whole groups resampled), dropped. A map that explains a network falls to 0; one that stays
    high shows the picture, not the network (Adebayo et al. 2018, section 3.1).
    """
    trained = explain(model, chosen, "integrated_gradients", baseline)
    layers, parts = layers_from_top(model), []
    for depth, layer in enumerate(layers, 1):
        network, name = randomised(model, layers[:depth], seed), f"random down to {layer}"
        item = explain(network, chosen, "integrated_gradients", baseline, name)
        alike = similarity(trained.maps, item.maps).fillna(0)  # a constant map resembles nothing
        parts.append(alike.assign(title=layer, group=chosen.table["group"]))
    means = regions.means(pd.concat(parts), ["signed", "absolute"], n_boot, seed)
    return means.drop(columns="n").reset_index(names=["layer", "form"])


def blank(pixels: np.ndarray, masks: np.ndarray, region: str) -> np.ndarray:
    """A copy of uint8 ``pixels`` (n, 3, h, w) with one of REGIONS of ``masks`` (n, h, w) filled.

    Nucleus and cell take the image's own median background colour, so that no new colour marks the
    place; the background takes one GREY for all images, which keeps the cell's outline and says
    nothing of the slide (GREY also serves where an image has no background). The outline of a
    filled region can still be seen.
    """
    blanked = pixels.copy()
    for picture, mask in zip(blanked, masks, strict=True):
        ground, colour = mask == images.BACKGROUND, np.array(GREY)
        if ground.any() and region != "background":
            colour = np.median(picture[:, ground], axis=1)
        picture[:, REGIONS[region](mask)] = colour.astype(np.uint8)[:, None]
    return blanked


def predict_blanked(run: runs.Run, split: pd.DataFrame, device: str = "cpu") -> pd.DataFrame:
    """Predictions of the test images of ``split`` that have a mask with each of REGIONS blanked.

    One tidy frame, pipelines ``<pipeline>_without_<region>``; the network sees the images as in
    prediction. Raises ValueError where no test image has a mask.
    """
    rows, recipe = split[(split["part"] == "test") & (split["mask"] != "")], runs.recipe_of(run)
    if rows.empty:
        raise ValueError("no test image has a mask: use a copy of the data with its masks")
    seen, model, parts = maps.read(run, rows, device), runs.load_model(run, device), []
    for region in REGIONS:
        blanked = blank(seen.pictures, seen.masks, region)
        values = fitting.probabilities(model, blanked, recipe, recipe.test_flips)
        table = tables.as_predictions(rows, values, recipe.task)
        name = f"{recipe.pipeline}{WITHOUT}{region}"
        parts.append(runs.table([replace(run, predictions=table)]).assign(pipeline=name, run=""))
    return pd.concat(parts, ignore_index=True)
