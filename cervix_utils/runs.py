"""The run folder: model.safetensors, recipe.json, history.csv, predictions.csv; written whole or not at all."""

import hashlib
import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cervix_utils import paths

FILES = ["model.safetensors", "recipe.json", "history.csv", "predictions.csv"]
# code that decides what a run holds
MODULES = ["images", "decoded", "datasets", "splits", "recipes", "losses", "devices", "learners", "training"]
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


def folder_of(runs_dir: Path, recipe) -> Path:
    """``<runs_dir>/<task>/<pipeline>/<protocol>-<fold>``."""
    return paths.run_dir(runs_dir, recipe.task, recipe.pipeline, recipe.protocol, recipe.fold)


def key(facts: dict, split: pd.DataFrame) -> str:
    """Digest of all that decides a run: recipe, device, parts of the data, versions and the code that trains."""
    code = [Path(__file__).with_name(f"{name}.py").read_text() for name in MODULES]
    versions = [version(package) for package in PACKAGES]
    parts = split[["id", "group", "part", "label"]].to_csv(index=False)
    everything = json.dumps([facts, torch.get_num_threads(), versions, code, parts], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def write(folder: Path, model: torch.nn.Module, recipe: dict, history: pd.DataFrame, predictions: pd.DataFrame) -> Run:
    """Write a run beside its place and move it there in one step; an older run there is replaced."""
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


def read(folder: Path) -> Run:
    """A finished run. Raises RunError naming what is missing."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise RunError(f"run folder {folder} lacks {', '.join(missing)}: run the notebook that trains it")
    recipe = json.loads((folder / "recipe.json").read_text())
    history, predictions = (_table(folder / name) for name in FILES[2:])
    return Run(folder, recipe, history, predictions)


def _table(file: Path) -> pd.DataFrame:
    """A CSV whose names stay text (a group may be called NA); every other column is a number, empty ones are NaN."""
    text = pd.read_csv(file, dtype=str, keep_default_na=False)
    return text.apply(lambda column: column if column.name in NAMES else pd.to_numeric(column))


def find(folder: Path, key: str) -> Run | None:
    """The finished run in ``folder`` when it has this ``key``, else None."""
    try:
        found = read(folder)
    except RunError:
        return None
    return found if found.recipe.get("key") == key else None


def all_runs(runs_dir: Path, task: str) -> Iterator[Run]:
    """Every finished run of a task, sorted by pipeline, protocol and fold."""
    for file in sorted((runs_dir / task).glob("*/*/recipe.json")):
        if not file.parent.name.startswith("."):
            yield read(file.parent)


def load_model(run: Run, device: str = "cpu") -> torch.nn.Module:
    """The trained network of a run, in evaluation mode: architecture from its recipe, weights from safetensors."""
    from cervix_utils.learners import network  # here, so that reading predictions does not import torchvision

    state = load_file(run.folder / "model.safetensors", device="cpu")
    outputs = 1 if run.recipe["pipeline"] == "regression" else sum(c.startswith("p_") for c in run.predictions)
    model = network(run.recipe["architecture"], run.recipe["head"], outputs)
    model.load_state_dict(state)
    return model.eval().to(device)
