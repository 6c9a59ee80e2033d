"""The run folder of a finished training: written whole or not at all, named after what was
trained."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cervix_utils import paths
from cervix_utils.data import datasets, tables
from cervix_utils.training import fitting, learners, networks
from cervix_utils.training.recipes import Recipe

RECIPE_VERSION = 3  # raised by hand when the same recipe begins to mean another training
FILES = ["model.safetensors", "recipe.json", "history.csv", "predictions.csv"]
PACKAGES = ["torch", "torchvision", "fastai", "pillow", "numpy"]
FRAME = ["task", "pipeline", "protocol", "fold", "run"]  # before the columns of predictions


class RunError(ValueError):
    """A run folder is missing, not whole or damaged; the message says which and how to mend it."""


@dataclass(frozen=True)
class Run:
    """A finished training, read back. ``recipe``: the Recipe's fields and the facts of the run."""

    folder: Path
    recipe: dict
    history: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def name(self) -> str:
        return "{task} {pipeline} {protocol}-{fold}".format_map(self.recipe)

    @property
    def test(self) -> pd.DataFrame:
        return self.predictions[self.predictions["part"] == "test"].reset_index(drop=True)


def facts(recipe: Recipe, split: pd.DataFrame) -> dict:
    """What decides a training: the recipe with its initial weights in words, the data by
    fingerprint.

    Raises RunError where the split is of another protocol, fold or task than the recipe.
    """
    for name in ("task", "protocol", "fold"):
        if (split[name] != getattr(recipe, name)).any():
            given, wanted = split[name].iloc[0], getattr(recipe, name)
            raise RunError(f"the split has {name} '{given}', the recipe '{wanted}': choose one")
    words = networks.describe_weights(recipe.weights, recipe.architecture)
    parts = split[["id", "group", "part", "label", "sha256"]].sort_values("id").to_csv(index=False)
    record = asdict(recipe) | {"weights": words, "recipe_version": RECIPE_VERSION}
    return record | {"data_fingerprint": datasets.fingerprint(split), "split": paths.digest(parts)}


def folder_of(runs_dir: Path, recipe: Recipe, split: pd.DataFrame) -> Path:
    """``<runs_dir>/<task>/<pipeline>/<protocol>-<fold>-<identity>``: other settings, other folder.

    The identity is a digest of ``facts``: six digits that all folds of one study share, six of the
    split. Device, versions and code are recorded, not compared.
    """
    study = facts(recipe, split)
    parts = study.pop("fold"), study.pop("split")
    identity = paths.digest(json.dumps(study, sort_keys=True))[:6] + paths.digest(*parts)[:6]
    return runs_dir / recipe.task / recipe.pipeline / f"{recipe.protocol}-{recipe.fold}-{identity}"


def checkpoint_file(runs_dir: Path, recipe: Recipe, split: pd.DataFrame) -> Path:
    """Where a training that may be killed keeps its state, until its folder is written."""
    folder = folder_of(runs_dir, recipe, split)
    return folder.with_name(f".{folder.name}.safetensors")


def find(runs_dir: Path, recipe: Recipe, split: pd.DataFrame) -> Run | None:
    """The finished run of this recipe on these data, None where it was never trained.

    A folder without its weights serves all that needs predictions alone. RunError if it is damaged.
    """
    folder = folder_of(runs_dir, recipe, split)
    if not folder.is_dir():
        return None
    print(f"{recipe.name}  read from the finished run {folder.name}", flush=True)
    return read(folder)


def keep(
    learn: learners.StudyLearner, recipe: Recipe, split: pd.DataFrame, runs_dir: Path, weights=True
) -> Run:
    """Predict all images of ``split``, write the run folder (without ``weights`` if so) and read it
    back.

    A Learner that was fitted by hand is kept beside those of the recipe: its folder is named after
    its predictions, and recipe.json says ``by_hand``. Nothing finished is ever overwritten.
    """
    by_hand = learn.fitted_as != recipe
    predictions = fitting.predict(learn.model, split, recipe)
    history = fitting.history(learn)
    device = next(learn.model.parameters()).device.type
    record = facts(recipe, split) | {
        "by_hand": by_hand,
        "seconds": round(0.0 if by_hand else learn.seconds, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "computed_in": learners.pick_precision(recipe.precision, device),
        "parts": split["part"].value_counts().to_dict(),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
    }
    folder = folder_of(runs_dir, recipe, split)
    if by_hand:
        answers = paths.digest(predictions.to_csv(index=False))
        folder = folder.with_name(f"{folder.name}-by-hand-{answers[:6]}")
    run = _write(Run(folder, record, history, predictions), learn.model if weights else None)
    checkpoint_file(runs_dir, recipe, split).unlink(missing_ok=True)
    return run


def _write(run: Run, model: torch.nn.Module | None) -> Run:
    state = model.state_dict() if model else {}
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    record = json.dumps(run.recipe, indent=2, sort_keys=True) + "\n"
    try:
        with paths.whole(run.folder) as draft:
            draft.mkdir()
            if state:
                save_file(state, draft / "model.safetensors")
            (draft / "recipe.json").write_text(record)
            run.history.round(6).to_csv(draft / "history.csv", index=False)
            run.predictions.round(6).to_csv(draft / "predictions.csv", index=False)
    except (OSError, SafetensorError) as error:
        words = f"{run.folder} could not be written ({error}): free some room on the disk"
        raise RunError(words) from error
    return read(run.folder)


def obtain(
    split: pd.DataFrame, recipe: Recipe, runs_dir: Path, device: str = "auto", weights: bool = True
) -> Run:
    """The finished run of this recipe on these data, trained now where there is none; it is then
    kept with its ``weights`` or without."""
    run = find(runs_dir, recipe, split)
    if run is None:
        learn = learners.build(split, recipe, device)
        fitting.fit(learn, recipe, checkpoint_file(runs_dir, recipe, split))
        run = keep(learn, recipe, split, runs_dir, weights)
    return run


def read(folder: Path) -> Run:
    """A finished run, checked; its weights may be missing. RunError names what is wrong with it."""
    remedy = "delete that folder and run the notebook that trains it"
    if missing := [name for name in FILES[1:] if not (folder / name).is_file()]:
        raise RunError(f"run folder {folder} lacks {', '.join(missing)}: {remedy}")
    try:
        recipe = json.loads((folder / "recipe.json").read_text())
        if absent := ({entry.name for entry in fields(Recipe)} | {"parts"}) - set(recipe):
            raise ValueError(f"recipe.json lacks '{sorted(absent)[0]}'")
        predictions = tables.check(tables.read(folder / "predictions.csv"), recipe["task"])
        history = tables.read(folder / "history.csv")
    except (ValueError, TypeError) as error:
        raise RunError(f"run folder {folder} is damaged ({error}): {remedy}") from None
    counts = predictions["part"].value_counts().to_dict()
    if counts != recipe["parts"] or predictions["id"].duplicated().any():
        told = f"predictions.csv has {counts} images, recipe.json {recipe['parts']}"
        raise RunError(f"run folder {folder} is damaged ({told}): {remedy}")
    return Run(folder, recipe, history, predictions)


def recipe_of(run: Run) -> Recipe:
    """The Recipe of a run; its initial weights are not at hand any more, so they are 'none'."""
    values = {entry.name: run.recipe[entry.name] for entry in fields(Recipe)}
    pairs = {name: tuple(values[name]) for name in ("mean", "std")}
    return Recipe(**values | pairs | {"weights": "none"})


def load_model(run: Run, device: str = "cpu") -> torch.nn.Module:
    """The trained network of a run, in evaluation mode. RunError where the weights are not
    there."""
    file, recipe = run.folder / "model.safetensors", recipe_of(run)
    if not file.is_file():
        raise RunError(f"{run.folder} has no weights: delete that folder, run its notebook again")
    model = networks.network(recipe.architecture, recipe.head, recipe.n_outputs)
    try:
        model.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError, OSError) as error:
        words = f"{file} does not fit its recipe.json ({str(error)[:200]}): train it again"
        raise RunError(words) from None
    return model.eval().to(device)


def learner(run: Run, split: pd.DataFrame, device: str = "auto") -> learners.StudyLearner:
    """The trained Learner of a run on the split it was trained on (see ``learners.build``)."""
    learn = learners.build(split, recipe_of(run), device)
    learn.model.load_state_dict(load_model(run).state_dict())
    learn.create_opt()  # so that a further fit is not taken for that of a recipe
    return learn


def table(finished: Iterable[Run]) -> pd.DataFrame:
    """The tidy frame of predictions of some runs of one task: FRAME, then the columns of
    predictions."""
    parts = []
    for run in finished:
        keys = {name: run.recipe[name] for name in FRAME[:-1]} | {"run": run.folder.name}
        parts.append(run.predictions.assign(**keys)[[*FRAME, *run.predictions.columns]])
    return pd.concat(parts, ignore_index=True)


def of_page(report_dir: Path, page: str) -> dict[str, Run]:
    """Pipeline -> run of the networks behind a table of predictions such as ``herlev-paper-0``."""
    file = report_dir / "predictions" / f"{page}.csv"
    if not file.is_file():
        raise RunError(f"{file} is not there: run notebook 2 (photographs) or 3 (cells) first")
    used = pd.read_csv(file, usecols=["task", "pipeline", "run"], dtype=str, keep_default_na=False)
    used = used[used["run"] != ""].drop_duplicates()
    places = [report_dir / "runs" / Path(*row) for row in used.itertuples(index=False)]
    return dict(zip(used["pipeline"], map(read, places)))
