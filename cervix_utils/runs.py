"""The run folder: model.safetensors, recipe.json, history.csv, predictions.csv; written whole or not at all."""

import hashlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from safetensors import SafetensorError

from cervix_utils import datasets, paths
from cervix_utils.recipes import Recipe

if TYPE_CHECKING:
    import torch  # PyTorch and fastai are imported where they are needed: a notebook that reads runs starts without

FILES = ["model.safetensors", "recipe.json", "history.csv", "predictions.csv"]
# code that decides what a run holds
MODULES = [
    "images",
    "decoded",
    "datasets",
    "splits",
    "recipes",
    "losses",
    "devices",
    "networks",
    "learners",
    "training",
]
NAMES = ["id", "group", "part", "label"]  # text columns of predictions.csv
PACKAGES = ["torch", "torchvision", "fastai", "pillow", "numpy"]


class RunError(ValueError):
    """A run folder is missing or not whole; the message says which and how to make it."""


@dataclass(frozen=True)
class Run:
    """One finished training, read back. ``recipe`` holds the Recipe's fields and the facts of the run."""

    folder: Path
    recipe: dict
    history: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def name(self) -> str:
        return f"{self.recipe['task']} {self.recipe['pipeline']} {self.recipe['protocol']}-{self.recipe['fold']}"

    @property
    def test(self) -> pd.DataFrame:
        return self.predictions[self.predictions["part"] == "test"].reset_index(drop=True)


def folder_of(runs_dir: Path, recipe: Recipe) -> Path:
    """``<runs_dir>/<task>/<pipeline>/<protocol>-<fold>``."""
    return paths.run_dir(runs_dir, recipe.task, recipe.pipeline, recipe.protocol, recipe.fold)


def key(facts: dict, split: pd.DataFrame) -> str:
    """Digest of all that decides a run: recipe, device, parts of the data, versions and the code that trains."""
    code = [Path(__file__).with_name(f"{name}.py").read_text() for name in MODULES]
    versions = [version(package) for package in PACKAGES]
    parts = split[["id", "group", "part", "label"]].to_csv(index=False)
    everything = json.dumps([facts, versions, code, parts], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def write(
    folder: Path, model: "torch.nn.Module", recipe: dict, history: pd.DataFrame, predictions: pd.DataFrame
) -> Run:
    """Write a run beside its place and move it there in one step; an older run there is replaced."""
    from safetensors.torch import save_file

    recipe = {
        **recipe,
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
    }
    part, old = (folder.with_name(f".{folder.name}.{kind}.{uuid.uuid4().hex}") for kind in ("new", "old"))
    try:
        part.mkdir(parents=True)
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(state, part / "model.safetensors")
        (part / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
        history.round(6).to_csv(part / "history.csv", index=False)
        predictions.round(6).to_csv(part / "predictions.csv", index=False)
        if folder.exists():
            folder.rename(old)
        try:
            part.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder} could not be written ({error}): free some room or choose another place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return read(folder)


def read(folder: Path, files: Sequence[str] = FILES[1:]) -> Run:
    """A finished run that has these ``files``; published ones lack the model. Raises RunError naming what is missing."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        remedy = "delete the folder and run" if missing == FILES[:1] else "run"  # adopted, or thinned out
        raise RunError(f"run folder {folder} lacks {', '.join(missing)}: {remedy} the notebook that trains it")
    recipe = json.loads((folder / "recipe.json").read_text())
    history, predictions = (read_table(folder / name) for name in FILES[2:])
    return Run(folder, recipe, history, predictions)


def read_table(file: Path) -> pd.DataFrame:
    """A CSV whose names stay text (a group may be called NA); every other column is a number, empty ones are NaN."""
    text = pd.read_csv(file, dtype=str, keep_default_na=False)
    return text.apply(lambda column: column if column.name in NAMES else pd.to_numeric(column))


def find(folder: Path, facts: dict, split: pd.DataFrame) -> Run | None:
    """The finished run in ``folder`` that has the key of ``facts``, or an adopted one without `difference`; else None.

    An adopted run (see ``adopting``) is whole but for its weights; its key is of another machine.
    """
    try:
        found = read(folder)
    except RunError:
        return None
    adopted = not (folder / FILES[0]).is_file()
    same = not difference(found, facts, split) if adopted else found.recipe.get("key") == facts["key"]
    return found if same else None


def difference(run: Run, facts: dict, split: pd.DataFrame) -> str:
    """What sets a run apart from the one that ``facts`` would train on ``split``; empty where nothing does.

    Compared: every field of the recipe (one that the run does not know counts as off: False or 0), the initial weights by
    their description, the data by fingerprint, group, part and label of every image. Not compared: device, arithmetic,
    thread count, versions and code, which recipe.json records in part.
    """
    names = [one.name for one in fields(Recipe) if one.name != "weights"]
    today = json.loads(json.dumps({name: facts[name] for name in (*names, "initialisation")}))  # tuples become lists
    if other := [name for name, value in today.items() if run.recipe.get(name, 0) != value]:
        return "; ".join(
            f"{name}: published {run.recipe.get(name, 'without it')}, today {today[name]}" for name in other
        )
    old, data = run.recipe.get("data_fingerprint"), facts["data_fingerprint"]
    if old != data:
        return f"data_fingerprint: published {old}, today {data}"
    changed = max(len(split), len(run.predictions)) - len(split.merge(run.predictions, on=NAMES))
    return f"split: {changed} of {len(split)} images have another group, part or label today" if changed else ""


def described(recipe: Recipe, split: pd.DataFrame) -> dict:
    """The recipe's fields with the initial weights in words (``initialisation``) and the fingerprint of the data."""
    from cervix_utils import networks  # here: the reader of runs and the publisher start without PyTorch

    words = networks.describe_weights(recipe.weights, recipe.architecture)
    data = {"initialisation": words, "data_fingerprint": datasets.fingerprint(split)}
    return {**asdict(recipe), "weights": recipe.weights if recipe.weights in ("imagenet", "none") else words, **data}


def obtain(split: pd.DataFrame, recipe: Recipe, runs_dir: Path, device: str = "auto", precision: str = "auto") -> Run:
    """Train, predict and keep one run folder; a finished one of the same recipe, data and code, or adopted, is read."""
    from cervix_utils import devices

    device, precision = devices.pick_device(device, precision)
    folder = folder_of(runs_dir, recipe)
    facts = described(recipe, split) | {
        "device": devices.name(device),
        "threads": devices.threads(),
        "precision": precision,
        "parts": split["part"].value_counts().to_dict(),
    }
    facts["key"] = key(facts, split)
    if found := find(folder, facts, split):
        own = found.recipe["key"] == facts["key"]
        kind = "read from a finished run of the same recipe, data and code"
        print(f"{recipe.name}  {kind if own else 'adopted: trained elsewhere, read without its weights'}", flush=True)
        return found
    from cervix_utils import learners, training  # here: where finished runs are read fastai is not needed

    start = time.perf_counter()
    learn = learners.build(split, recipe, device)
    history, facts["epoch_kept"] = training.fit(learn, recipe, device, precision)
    facts["seconds_training"] = round(time.perf_counter() - start, 1)
    predictions = training.predict(learn.model, split, recipe, precision)
    facts["seconds"] = round(time.perf_counter() - start, 1)
    return write(folder, learn.model, facts, history, predictions)


def all_runs(runs_dir: Path, task: str) -> Iterator[Run]:
    """Every finished run of a task, sorted by pipeline, protocol and fold."""
    for file in sorted((runs_dir / task).glob("*/*/recipe.json")):
        if not file.parent.name.startswith("."):
            yield read(file.parent)


def load_model(run: Run, device: str = "cpu") -> "torch.nn.Module":
    """The trained network of a run, in evaluation mode: architecture from its recipe, weights from safetensors."""
    from safetensors.torch import load_file

    from cervix_utils import losses  # here, so that reading predictions does not import PyTorch
    from cervix_utils.networks import network

    read(run.folder, FILES)  # says what is missing
    state = load_file(run.folder / "model.safetensors", device="cpu")
    classes = sum(name.startswith("p_") for name in run.predictions)
    outputs = losses.n_outputs(run.recipe["pipeline"], classes)
    model = network(run.recipe["architecture"], run.recipe["head"], outputs)
    model.load_state_dict(state)
    return model.eval().to(device)
