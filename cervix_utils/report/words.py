"""The one table of words: a raw name of a column, metric, pipeline or split -> what people read."""

from functools import cache
from pathlib import Path

import pandas as pd

from cervix_utils.data import splits


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name(name), index_col="name", keep_default_na=False)


@cache
def others() -> dict[str, str]:
    """Names that no other table has (columns, parts, kinds of sets) -> words: words.csv."""
    return _read("words.csv")["words"].to_dict()


@cache
def looks() -> dict[str, dict[str, str]]:
    """The one table of colours and markers, in order: name -> color, marker: looks.csv."""
    return _read("looks.csv").to_dict("index")


def known(name: str) -> str:
    """The words of a name, empty where no table has it."""
    from cervix_utils.evaluation import baselines, metrics
    from cervix_utils.training import recipes

    if name in metrics.METRICS or name.startswith(("auc_", "f1_")):
        return metrics.label_of(name)
    words = {**recipes.PIPELINES, **splits.PROTOCOLS}
    if name in words:
        return words[name].label
    of_predictor = name.startswith((baselines.BASELINE, "average"))
    return baselines.label_of(name) if of_predictor else others().get(name, "")


def label(name: str) -> str:
    """What people read for any name; one that no table has loses its underscores."""
    return known(name) or name.replace("_", " ")
