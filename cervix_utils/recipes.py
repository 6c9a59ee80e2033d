"""Everything that decides a training, in one flat record, each choice tagged with where it comes from."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from cervix_utils.datasets import CLASSES


@dataclass(frozen=True)
class Recipe:
    """One training. Colours are RGB in 0..1 before normalisation with ``mean`` and ``std``."""

    task: str  # herlev or colposcopy
    pipeline: str  # herlev: classification, regression, combined; colposcopy: sgd, modern
    protocol: str
    fold: int
    seed: int
    architecture: str
    head: str  # paper: 2048-100-ReLU-n; linear: 2048-n
    weights: str  # imagenet, none, a path, or grown:<one of these, of a ResNet-50>
    image_size: int  # pixels, side of the square the network sees
    window: int  # original pixels across that square, about the middle of the image; 0: the whole image
    batch_size: int
    balanced: bool  # classes drawn equally often
    epochs: int
    progressive: bool  # half of the steps at half the side, a quarter at three quarters of it, the rest at the whole
    optimiser: str  # sgd or adamw
    lr: float
    lr_head: float
    momentum: float
    weight_decay: float
    schedule: str  # constant or one-cycle
    regression_weight: float
    flip: str  # none, horizontal, or both
    rotate: float  # degrees either way
    zoom: float  # largest magnification
    lighting: float  # brightness and contrast, fastai's max_lighting
    stain: float  # spread of the log gain of each colour's optical density
    selection: str  # best (validation loss) or last epoch
    test_flips: int
    phash_distance: int
    valid_fraction: float
    n_folds: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def classes(self) -> list[str]:
        return CLASSES[self.task]

    @property
    def name(self) -> str:
        return f"{self.task} {self.pipeline} {self.protocol}-{self.fold}"


STATED = {  # what the papers do state, and where
    "colposcopy": {
        "architecture": ("resnet50", "paper C, section 3.2"),
        "head": ("paper", "paper C, section 3.2"),
        "weights": ("imagenet", "paper C, section 4.1"),
        "batch_size": (60, "paper C, section 4.1"),
        "optimiser": ("sgd", "paper C, section 4.1"),
        "lr": (0.001, "paper C, section 4.1"),
        "lr_head": (0.001, "paper C, section 4.1"),
    },
    "herlev": {
        "architecture": ("resnet101", "paper H, section 3.2.1"),
        "weights": ("imagenet", "paper H, section 3.2.1"),
        "regression_weight": (1.0, "paper H, section 3.2.3"),
        "n_folds": (4, "paper H, section 3.2.4"),
    },
}
OURS = {
    "task",
    "pipeline",
    "protocol",
    "fold",
    "valid_fraction",
    "phash_distance",
}  # of this project, not of a paper


def choices(recipe: Recipe) -> pd.DataFrame:
    """One row a choice: choice, value, source ('as stated', 'departs from', 'not stated' or 'this project')."""
    rows = []
    for key, value in asdict(recipe).items():
        stated, where = STATED[recipe.task].get(key, (None, ""))
        source = "this project" if key in OURS else "not stated"
        if where:
            source = f"as stated ({where})" if value == stated else f"departs from {stated} ({where})"
        shown = f"{value:g}" if isinstance(value, float) else re.sub(r"[^:]*[/\\\\]", "", str(value))  # no folders
        rows.append({"choice": key, "value": shown, "source": source})
    return pd.DataFrame(rows)


def colposcopy(settings: Mapping[str, Any], pipeline: str) -> Recipe:
    """Paper C's recipe as written (``sgd``) or a ``modern`` one, from a notebook's checked parameters."""
    sgd = Recipe(
        task="colposcopy",
        pipeline="sgd",
        protocol=settings["protocol"],
        fold=settings["fold"],
        seed=settings["seed"],
        architecture="resnet50",
        head=settings["colposcopy_head"],
        weights=settings["weights_resnet50"],
        image_size=settings["colposcopy_image_size"],
        window=0,
        batch_size=60,
        balanced=False,
        epochs=settings["colposcopy_sgd_epochs"],
        progressive=False,
        optimiser="sgd",
        lr=0.001,
        lr_head=0.001,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="constant",
        regression_weight=0.0,
        flip="none",
        rotate=0.0,
        zoom=1.0,
        lighting=0.0,
        stain=0.0,
        selection="last",
        test_flips=1,
        phash_distance=settings["phash_distance"],
        valid_fraction=settings["valid_fraction"],
        n_folds=3,
    )
    modern = replace(
        sgd,
        pipeline="modern",
        batch_size=settings["colposcopy_batch_size"],
        balanced=settings["balanced_sampling"],
        epochs=settings["colposcopy_epochs"],
        optimiser="adamw",
        lr=settings["colposcopy_lr"],
        lr_head=10 * settings["colposcopy_lr"],
        weight_decay=0.05,
        schedule="one-cycle",
        flip="both",
        rotate=20.0,
        zoom=1.25,
        lighting=0.3,
        selection=settings["selection"],
        test_flips=settings["test_flips"],
    )
    return {"sgd": sgd, "modern": modern}[pipeline]


def herlev(settings: Mapping[str, Any], pipeline: str) -> Recipe:
    """One of paper H's three pipelines, the third with another weight (``combined_w0.3``), or an ordinal rival.

    Nothing but the loss and the size of the output differs between them.
    """
    weights = settings["weights_resnet101"]
    _, _, weight = pipeline.partition("_w")
    return Recipe(
        task="herlev",
        pipeline=pipeline,
        protocol=settings["protocol"],
        fold=settings["fold"],
        seed=settings["seed"],
        architecture="resnet101",
        head="linear",
        weights=f"grown:{settings['weights_resnet50']}" if weights == "grown" else weights,
        image_size=settings["herlev_image_size"],
        window=settings["herlev_window"],
        batch_size=settings["herlev_batch_size"],
        balanced=settings["balanced_sampling"],
        epochs=settings["herlev_epochs"],
        progressive=settings["herlev_progressive"],
        optimiser="adamw",
        lr=settings["herlev_lr"],
        lr_head=10 * settings["herlev_lr"],
        momentum=0.9,
        weight_decay=0.05,
        schedule="one-cycle",
        regression_weight=float(weight) if weight else settings["herlev_regression_weight"],
        flip="both",
        rotate=180.0,
        zoom=1.15,
        lighting=0.2,
        stain=settings["herlev_stain"],
        selection=settings["selection"],
        test_flips=settings["test_flips"],
        phash_distance=settings["phash_distance"],
        valid_fraction=settings["valid_fraction"],
        n_folds=settings["herlev_n_folds"],
    )
