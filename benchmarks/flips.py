"""What do flips at test time give? Finished networks for cells see their own test images once, twice and four times.

    .venv/bin/python -m benchmarks.flips REPORT DATA [PIPELINE]     # REPORT: a folder under reports/ with trained runs

Nothing is trained and nothing chosen: the recipe's ``test_flips`` stays what it was. For each protocol, over the folds
that were trained, one line a number of views and metric goes to reports/published/flips.csv: value with one view (``first``),
with more (``second``), the difference and its interval from resampled groups (`paired.compare`).
"""

import sys
from dataclasses import fields

import numpy as np
import pandas as pd

from cervix_utils import comparison, datasets, images, paired, paths, recipes, references, runs, training

VIEWS = (1, 2, 4)  # as it is, left-right, upside down too


def predictions(run: runs.Run, cells: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Number of views -> predictions for the run's test images."""
    recipe = recipes.Recipe(**{one.name: run.recipe[one.name] for one in fields(recipes.Recipe)})
    rows = run.test[runs.NAMES].merge(cells[["id", "path"]], how="left", on="id", validate="one_to_one")
    pixels, model = images.squares(rows["path"], recipe.image_size, recipe.window), runs.load_model(run)
    seen = (pixels, np.arange(len(rows)), recipe, run.recipe["precision"])
    found = {n: references.as_predictions(rows, training.outputs(model, *seen, n), "herlev") for n in VIEWS}
    gap = (found[recipe.test_flips]["score"] - run.test["score"]).abs().max()
    if not gap < 1e-3:  # grades; other threads sum in another order
        raise SystemExit(
            f"{run.name}: its own predictions differ by {gap:.4f} grades: other pictures, or another machine"
        )
    return found


def main(report: str, data: str, pipeline: str = "combined") -> None:
    cells = datasets.load(data, "herlev")[0]
    trained = [
        run
        for run in runs.all_runs(paths.reports_dir(report) / "runs", "herlev")
        if run.recipe["pipeline"] == pipeline and (run.folder / "model.safetensors").is_file()
    ]
    tables = []
    for protocol in dict.fromkeys(run.recipe["protocol"] for run in trained):
        folds = [run for run in trained if run.recipe["protocol"] == protocol]
        share = np.mean([len(run.test) / (run.predictions["part"] != "valid").sum() for run in folds])
        seen = {str(run.recipe["fold"]): predictions(run, cells) for run in folds}
        once, *more = ({fold: by_views[n] for fold, by_views in seen.items()} for n in VIEWS)
        for n, several in zip(VIEWS[1:], more):
            table = paired.compare(once, several, "herlev", comparison.HEADLINE, share, 2000, 0).reset_index()
            tables.append(table.assign(pipeline=pipeline, protocol=protocol, views=n))
    columns = ["pipeline", "protocol", "folds", "views", "metric", "first", "second", "difference", "low", "high"]
    found = pd.concat(tables)[columns].round(4)
    found.to_csv(paths.reports_dir("published") / "flips.csv", index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
