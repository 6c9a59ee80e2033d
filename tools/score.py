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


class ScoreError(ValueError):
    """A table of predictions cannot be measured; the message names the file and what to give."""


def task_of(mine: pd.DataFrame, file: Path) -> str:
    """The data set whose classes the p_ columns name; grades where there is only a score."""
    given = {name for name in mine if name.startswith("p_")}
    for dataset in datasets.DATASETS.values():
        if given == {f"p_{name}" for name in dataset.classes} or ("score" in mine and not given):
            return dataset.name
    known = "; ".join(", ".join(f"p_{c}" for c in d.classes) for d in datasets.DATASETS.values())
    raise ScoreError(f"{file}: give the columns id and p_<class>, of one of: {known}")


def read(file: Path) -> tuple[str, pd.DataFrame]:
    """(task, predictions) of a CSV, checked as ours are but for part, group and label."""
    if not file.is_file():
        raise ScoreError(f"there is no file {file}: give PREDICTIONS=mine.csv")
    names = pd.read_csv(file, nrows=0).columns
    mine = tables.read(file, [n for n in names if n not in ("fold", "score") and n[:2] != "p_"])
    if "id" not in mine:
        raise ScoreError(f"{file}: column 'id' is missing; ids are those of reports/published")
    task = task_of(mine, file)
    keys = ["id", *(name for name in WHERE if name in mine)]
    if (again := mine[mine.duplicated(keys)]).size:
        raise ScoreError(f"{file}: image {again['id'].iloc[0]} stands twice; give one row for each")
    return task, mine


def on_published(task: str, mine: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """``mine`` as rows of the published test parts (a frame as ``metrics`` has it); prints what is
    missing or unknown."""
    wanted = ["protocol", "fold", "id", "group", "part", "label"]
    splits = published.query("part == 'test' and run != ''")[wanted].drop_duplicates()
    keys = [name for name in WHERE if name in mine]
    rows = splits.merge(
        mine.drop(columns=["group", "part", "label"], errors="ignore"), on=["id", *keys]
    )
    asked = splits.merge(mine[keys].drop_duplicates(), on=keys) if keys else splits
    for word, ids in (
        ("missing", set(asked["id"]) - set(rows["id"])),
        ("unknown", set(mine["id"]) - set(rows["id"])),
    ):
        print(f"{len(ids)} images are {word}: {', '.join(sorted(ids)[:5]) or 'none'}")
    if rows.empty:
        raise ScoreError("no image is one of the published test parts: see ids there")
    columns = [name for name in tables.columns(task) if name.startswith("p_")]
    has_p = set(columns) <= set(rows)
    values = rows[columns if has_p else ["score"]].to_numpy(dtype=float)
    frame = tables.as_predictions(rows, values, task)
    places = rows[WHERE].assign(task=task, pipeline="yours", run="")
    return metrics.check_predictions(pd.concat([places, frame], axis=1), "your predictions")


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
