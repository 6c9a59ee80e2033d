"""Anyone's predictions on the published splits, measured like ours: ``make score PREDICTIONS=...``.

A CSV with the columns id and p_<class> (or score), one row a test image; protocol and fold too
where there is a model for each. ``id`` and the splits are those of reports/published.
"""

import sys
from pathlib import Path

import pandas as pd

from cervix_utils import paths
from cervix_utils.data import datasets, tables
from cervix_utils.evaluation import comparison, metrics, paired
from cervix_utils.report.words import label

WHERE = ["protocol", "fold"]


def task_of(names: pd.Index, file: Path) -> str:
    """The data set whose classes the p_ columns name; grades where there is only a score."""
    given = {name.removeprefix("p_") for name in names if name.startswith("p_")}
    for dataset in datasets.DATASETS.values():
        if given == set(dataset.classes) or ("score" in names and not given):
            return dataset.name
    known = "; ".join(", ".join(f"p_{c}" for c in d.classes) for d in datasets.DATASETS.values())
    raise tables.PredictionsError(f"{file}: give the columns id and p_<class>, of one of: {known}")


def read(file: Path) -> tuple[str, pd.DataFrame]:
    """(task, id, protocol and fold if given, values) of a CSV."""
    if not file.is_file():
        raise tables.PredictionsError(f"there is no file {file}: give PREDICTIONS=mine.csv")
    names = pd.read_csv(file, nrows=0).columns
    if "id" not in names:
        raise tables.PredictionsError(f"{file}: column 'id' is missing: see reports/published")
    mine = tables.read(file, [n for n in names if n not in ("fold", "score") and n[:2] != "p_"])
    return task_of(names, file), mine.drop(columns=["group", "part", "label"], errors="ignore")


def on_published(task: str, mine: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """``mine`` as rows of the published test parts (a frame as ``metrics`` has it); prints what is
    missing or unknown. PredictionsError where nothing can be measured."""
    wanted = [*WHERE, "id", "group", "part", "label"]
    splits = published.query("part == 'test' and run != ''")[wanted].drop_duplicates()
    if keys := [name for name in WHERE if name in mine]:
        splits = splits.merge(mine[keys].drop_duplicates())
    rows = splits.merge(mine, how="outer", on=["id", *keys], indicator="found")
    for word, side in (("missing", "left_only"), ("unknown", "right_only")):
        ids = rows.loc[rows["found"] == side, "id"].unique()
        print(f"{len(ids)} images are {word}: {', '.join(ids[:5]) or 'none'}")
    rows = rows[rows["found"] == "both"].astype({"fold": int})
    if rows.empty:
        raise tables.PredictionsError("no image is one of the published test parts: see ids there")
    given = [name for name in tables.columns(task) if name[:2] == "p_" and name in rows]
    rows = rows.assign(task=task, pipeline="yours", run="")
    frame = metrics.as_predictions(rows, rows[given or ["score"]].to_numpy(dtype=float))
    return metrics.check_predictions(frame, "your predictions")


def score(mine: pd.DataFrame, published: pd.DataFrame, n_boot: int = 1000) -> pd.DataFrame:
    """One row a protocol and metric: yours, and yours minus that of each published pipeline on the
    same images; 95 % intervals over resampled groups, drawn alike for both."""
    yours = comparison.summary(metrics.results(mine, n_boot))
    columns = [yours.assign(name="yours")]
    for (protocol, pipeline), theirs in published.groupby(["protocol", "pipeline"]):
        rows = mine[mine["protocol"] == protocol]
        if same := len(both := theirs.merge(rows[["id", "fold"]])):
            apart = paired.difference(both, rows, n_boot).rename(columns={"difference": "value"})
            name = f"minus {label(pipeline)}"
            columns.append(apart.assign(protocol=protocol, name=name, n_test=same))
    table = pd.concat(columns).query("metric in @comparison.HEADLINE")
    table["text"] = [metrics.written(row) for _, row in table.iterrows()]
    wide = table.pivot(index=["protocol", "metric"], columns="name", values="text").fillna("–")
    return wide[list(dict.fromkeys(table["name"]))].rename(index=label)


def main(file: str) -> None:
    """Print the table and write it beside the predictions; SystemExit with what is wrong."""
    try:
        place = Path(file)
        task, mine = read(place)
        published = metrics.read_file(paths.ROOT / "reports/published" / f"{task}.csv.xz")
        published = published[~published["pipeline"].str.contains("_without_")]
        table = score(on_published(task, mine, published), published)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(table.T.to_string())
    table.to_csv(place.with_name(f"{place.stem}_scores.csv"))


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
