"""Everything that decides a training, in one flat record, each choice tagged with where it comes
from."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pandas as pd

from cervix_utils.data import datasets, splits


class RecipeError(ValueError):
    """No such pipeline or choice; the message names the known ones."""


@dataclass(frozen=True)
class Recipe:
    """One training. Colours are RGB in 0..1 before normalisation with ``mean`` and ``std``."""

    task: str  # name of a data set
    pipeline: str  # one of PIPELINES, or one with a suffix such as combined_seed1
    protocol: str = "paper"
    fold: int = 0
    seed: int = 0
    n_folds: int = 4
    valid_fraction: float = 0.15
    phash_distance: int = 8
    architecture: str = "resnet101"  # any of torchvision's
    head: str = "linear"  # linear: features-n; paper: features-100-ReLU-n
    weights: str = "none"  # imagenet, none, a path, or grown:<one of these, of a ResNet-50>
    image_size: int = 224  # pixels, side of the square the network sees
    window: int = 0  # original pixels across that square, about the middle; 0: the whole image
    batch_size: int = 32
    epochs: int = 36
    optimiser: str = "adamw"  # sgd or adamw
    lr: float = 4e-4
    head_factor: float = 10.0  # the head's learning rate over that of the body
    momentum: float = 0.9
    weight_decay: float = 0.05
    schedule: str = "one-cycle"  # constant or one-cycle
    regression_weight: float = 1.0
    flip: str = "both"  # none, horizontal, or both
    rotate: float = 180.0  # degrees either way
    zoom: float = 1.15  # largest magnification
    lighting: float = 0.2  # brightness and contrast, fastai's max_lighting
    test_flips: int = 4  # views of a test image that are averaged: 1, 2, 4 or 8
    threads: int = 1  # of PyTorch on a CPU: sums, and so results, depend on it
    precision: str = "auto"  # auto (bf16 where the hardware has it), float32 or bf16
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def classes(self) -> list[str]:
        return list(datasets.get(self.task).classes)

    @property
    def n_outputs(self) -> int:
        """Outputs of its network: a score, or one a class."""
        is_score = pipeline_of(self.pipeline).loss == "squared_error"
        return 1 if is_score else len(self.classes)

    @property
    def name(self) -> str:
        return f"{self.task} {self.pipeline} {self.protocol}-{self.fold}"


PAPER_C = {  # what the papers state, and where
    "architecture": ("resnet50", "paper C, section 3.2"),
    "head": ("paper", "paper C, section 3.2"),
    "weights": ("imagenet", "paper C, section 4.1"),
    "batch_size": (60, "paper C, section 4.1"),
    "optimiser": ("sgd", "paper C, section 4.1"),
    "lr": (0.001, "paper C, section 4.1"),
    "head_factor": (1.0, "paper C, section 4.1"),
}
PAPER_H = {
    "architecture": ("resnet101", "paper H, section 3.2.1"),
    "weights": ("imagenet", "paper H, section 3.2.1"),
    "regression_weight": (1.0, "paper H, section 3.2.3"),
    "n_folds": (4, "paper H, section 3.2.4"),
}
STILL = {"flip": "none", "rotate": 0.0, "zoom": 1.0, "lighting": 0.0}
SGD = STILL | {"batch_size": 60, "optimiser": "sgd", "lr": 0.001, "head_factor": 1.0}
SGD |= {"weight_decay": 1e-4, "schedule": "constant", "test_flips": 1}
MODERN = {"rotate": 20.0, "zoom": 1.25, "lighting": 0.3}


@dataclass(frozen=True)
class Pipeline:
    """A way to train. ``loss``: see ``losses.loss_of``; ``changes``: fields that it fixes."""

    label: str
    loss: str
    stated: Mapping[str, tuple] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    graded: bool = False  # needs classes that are grades


PIPELINES = {  # the one table of names, labels for people, and order
    "classification": Pipeline("classification", "cross_entropy", PAPER_H),
    "regression": Pipeline("regression", "squared_error", PAPER_H, graded=True),
    "combined": Pipeline("classification + regression", "combined", PAPER_H, graded=True),
    "sgd": Pipeline("paper C as written", "cross_entropy", PAPER_C, SGD),
    "modern": Pipeline("modern recipe", "cross_entropy", PAPER_C, MODERN),
}
SEEDED = r"(.+)_seed(\d+)"  # the same training from another seed, on the same split
# what a candidate may change
FREE = dict(image_size=int, epochs=int, lr=float, zoom=float, rotate=float, weight_decay=float)
OURS = {"task", "pipeline", "protocol", "fold", "valid_fraction", "phash_distance", "threads"}


def pipeline_of(name: str) -> Pipeline:
    """The pipeline of a name, also of ``combined_seed1`` and of a control such as
    ``combined_permuted``. RecipeError if unknown."""
    base = re.sub(r"_seed\d+$", "", name.removesuffix("_permuted"))
    if base not in PIPELINES:
        raise RecipeError(f"unknown pipeline '{name}': known are {', '.join(PIPELINES)}")
    return PIPELINES[base]


def make(settings: Mapping[str, Any], notebook: str, pipeline: str) -> Recipe:
    """The recipe of one pipeline from checked parameters; ``notebook``: ``herlev`` or
    ``colposcopy``.

    A field takes, in rising order: its default, the parameter of its name, the parameter
    ``<notebook>_<name>``, what the pipeline fixes. Nothing but the loss and the size of the output
    differs between the pipelines of paper H. Raises RecipeError for an unknown pipeline, or one
    that needs grades where the data set has none.
    """
    chosen = pipeline_of(pipeline)
    names = [entry.name for entry in fields(Recipe)]
    values = {name: settings[name] for name in names if name in settings}
    prefixed = {name: f"{notebook}_{name}" for name in names}
    values |= {name: settings[key] for name, key in prefixed.items() if key in settings}
    values["weights"] = initial_weights(settings, values["architecture"])
    values.setdefault("n_folds", 3)  # paper H has a parameter for it; paper C's split is repeated
    if pipeline == "sgd":
        values["epochs"] = settings.get("colposcopy_sgd_epochs", values["epochs"])
    if seed := re.fullmatch(SEEDED, pipeline):
        values["seed"] = int(seed[2])
    values |= {"pipeline": pipeline} | dict(chosen.changes)
    numbers = [entry.name for entry in fields(Recipe) if entry.type is float]
    values |= {name: float(values[name]) for name in numbers if name in values}  # 1 is 1.0
    recipe = Recipe(**values)
    if pipeline.endswith("_permuted"):
        raise RecipeError(f"pipeline '{pipeline}' is a control that notebook 4 trains")
    if chosen.graded and not datasets.get(recipe.task).ordered:
        raise RecipeError(f"pipeline '{pipeline}' needs grades, which {recipe.task} has not")
    return recipe


def initial_weights(settings: Mapping[str, Any], architecture: str) -> str:
    """Initial weights of an architecture, by the key for it: ``weights_resnet50``,
    ``weights_resnet101`` or ``weights_other``."""
    resnet50, resnet101 = settings["weights_resnet50"], settings.get("weights_resnet101")
    known = {"resnet50": resnet50, "resnet101": resnet101}
    weights = known.get(architecture, settings["weights_other"])
    return f"grown:{resnet50}" if weights == "grown" else weights


def changed(recipe: Recipe, candidate: str) -> Recipe:
    """``recipe`` with the fields of a candidate such as ``image_size=192 lr=0.001``; an empty one
    changes nothing. RecipeError for a field that is none of FREE, or a value that is no number."""
    values = dict(item.partition("=")[::2] for item in candidate.split())
    if wrong := sorted(set(values) - set(FREE)):
        known = ", ".join(FREE)
        raise RecipeError(f"candidate '{candidate}' changes '{wrong[0]}': it may change {known}")
    try:
        return replace(recipe, **{name: FREE[name](text) for name, text in values.items()})
    except ValueError as error:
        raise RecipeError(f"candidate '{candidate}': {error}") from None


def choices(recipe: Recipe) -> pd.DataFrame:
    """One row a choice: choice, value, source (as stated, departs from, not stated, this
    project)."""
    rows = []
    stated = pipeline_of(recipe.pipeline).stated
    for key, value in asdict(recipe).items():
        source = "this project" if key in OURS else "not stated"
        if key in stated:
            said, where = stated[key]
            source = f"as stated ({where})" if value == said else f"departs from {said} ({where})"
        shown = f"{value:g}" if isinstance(value, float) else re.sub(r"[^:]*[/\\]", "", str(value))
        rows.append({"choice": key, "value": shown, "source": source})
    return pd.DataFrame(rows)


def parts(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The split that a recipe asks for, of a table of ``datasets.load`` (groups are added)."""
    grouped = splits.with_groups(table, recipe.phash_distance)
    place = (recipe.task, recipe.protocol, recipe.fold, recipe.n_folds)
    return splits.assign_parts(grouped, *place, recipe.valid_fraction, recipe.seed)
