"""Recipes, splits and networks at sizes that a test can afford."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from cervix_utils import config
from cervix_utils.data import datasets
from cervix_utils.training import recipes

SMALL = {"architecture": "resnet18", "image_size": 32, "batch_size": 5, "epochs": 1}
STILL = {"flip": "none", "rotate": 0.0, "zoom": 1.0, "lighting": 0.0}  # no augmentation


def recipe_of(pipeline: str = "combined", **changes) -> recipes.Recipe:
    """The demo's recipe of a pipeline: ResNet-18, 32 px, one epoch, parts for a few images."""
    settings = config.validate({}, "defaults")
    notebook = "colposcopy" if pipeline in ("sgd", "modern") else "herlev"
    share = {"valid_fraction": 0.5 if notebook == "colposcopy" else 0.3}
    return replace(recipes.make(settings, notebook, pipeline), **(SMALL | share | changes))


def split_of(data_root: Path, recipe: recipes.Recipe) -> pd.DataFrame:
    """The split of a recipe: 22 + 10 + 11 cells or 7 + 6 + 5 photographs of ``tiny_demo``."""
    table, _ = datasets.load(str(data_root), recipe.task)
    return recipes.parts(table, recipe)


def files_of(split: pd.DataFrame, part: str) -> list[Path]:
    """The files of one part, in order."""
    return [Path(file) for file in split.loc[split["part"] == part, "path"]]


def straddling(split: pd.DataFrame) -> list[str]:
    """Groups with images in more than one part of a split; empty where nothing can leak."""
    parts = split.groupby("group")["part"].nunique()
    return sorted(parts[parts > 1].index)
