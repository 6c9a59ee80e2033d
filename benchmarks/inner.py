"""Which recipe for the ResNet-101? Cross-validation inside the training part of Herlev's fold 0, never on its test part.

    .venv/bin/python -m benchmarks.inner JOBS DATA WEIGHTS NAME [key=value ...] [, NAME [key=value ...]] ...

Each NAME is config/cpu.yaml with some keys changed; WEIGHTS is the ResNet-50 that the ResNet-101 is grown from. The
combined pipeline is trained on three quarters of the images that are not in the test part of fold 0 and scored on the
fourth, four times over and under both protocols (`grouped`: whole groups apart), JOBS trainings at a time: every image is
predicted once by a network that did not see it. The last epoch counts. Two lines a NAME are added to
reports/published/inner.csv.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, repeat
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from snakemake.cli import parse_config

from cervix_utils import config, datasets, decoded, devices, learners, metrics, paths, recipes, splits, training
from cervix_utils.references import as_predictions

SHOWN = ["accuracy", "binary_accuracy", "binary_f1", "mse", "kappa_quadratic", "auc_mean", "log_loss"]
FOLDS = 4


def inner_splits(cells: pd.DataFrame, recipe: recipes.Recipe) -> list[pd.DataFrame]:
    """The images outside the test part, FOLDS times: a fourth of them is the validation part, the rest trains."""
    split = splits.assign_parts(
        cells, "herlev", recipe.protocol, recipe.fold, recipe.n_folds, recipe.valid_fraction, recipe.seed
    )
    table = split[split["part"] != "test"].reset_index(drop=True)
    group = table["group"] if recipe.protocol == "grouped" else table.index  # paper: every image its own group
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=recipe.seed).split(table, table["label"], group)
    return [table.assign(part=np.where(table.index.isin(held), "valid", "train")) for _, held in folds]


def predicted(split: pd.DataFrame, recipe: recipes.Recipe) -> pd.DataFrame:
    """Train on the train part; predictions of the valid part, with the recipe's flips."""
    torch.set_num_threads(1)
    device, precision = devices.pick_device()
    learn = learners.build(split, recipe, device)
    training.fit(learn, recipe, device, precision)
    rows = np.flatnonzero(split["part"] == "valid")
    pictures = decoded.open_squares(split, recipe.image_size, recipe.window)
    values = training.outputs(learn.model, pictures, rows, recipe, precision, recipe.test_flips)
    return as_predictions(split.iloc[rows].reset_index(drop=True), values, "herlev")


def main(n_jobs: str, data: str, weights: str, *given: str) -> None:
    cells = splits.with_groups(datasets.load(data, "herlev")[0], 8)
    file = paths.reports_dir("published") / "inner.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    tries = [list(words) for comma, words in groupby(given, ",".__eq__) if not comma]
    with ProcessPoolExecutor(int(n_jobs), mp_context=get_context("spawn")) as pool:
        for name, *changes in tries:
            start, lines = time.perf_counter(), []
            settings = config.load(paths.CONFIG / "cpu.yaml", {"weights_resnet50": weights, **parse_config(changes)})
            todo = []
            for protocol in ("paper", "grouped"):
                recipe = recipes.herlev(settings | {"protocol": protocol, "fold": 0, "selection": "last"}, "combined")
                todo += zip(inner_splits(cells, recipe), repeat(recipe))
            tables = list(pool.map(predicted, *zip(*todo)))
            for protocol, some in (("paper", tables[:FOLDS]), ("grouped", tables[FOLDS:])):
                found = metrics.measure(pd.concat(some, ignore_index=True), "herlev")
                lines.append(
                    {"try": name, "changes": " ".join(changes), "protocol": protocol, "n": sum(map(len, some))}
                    | {key: f"{found[key][0]:.3f}" for key in SHOWN}
                    | {"seconds": round(time.perf_counter() - start), "device": devices.name(devices.pick_device()[0])}
                )
            pd.DataFrame(lines).to_csv(file, mode="a", index=False, header=not file.exists())
            print(pd.DataFrame(lines).to_string(index=False), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
