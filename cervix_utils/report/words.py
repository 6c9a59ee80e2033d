"""The one table of words and looks: a raw name -> what people read, and how it is drawn."""

import re
from functools import cache
from pathlib import Path

import pandas as pd

from cervix_utils.data import splits
from cervix_utils.training import recipes


@cache
def table() -> dict[str, dict[str, str]]:
    """words.csv: name -> words (empty where another table has them), color, marker."""
    file = Path(__file__).with_suffix(".csv")
    return pd.read_csv(file, index_col="name", keep_default_na=False).to_dict("index")


def known(name: str) -> str:
    """The words of a name, empty where no table has it."""
    from cervix_utils.evaluation import baselines, metrics

    if stated := table().get(name, {"words": ""})["words"]:
        return stated
    if name in metrics.METRICS or name.startswith(("auc_", "f1_")):
        return metrics.label_of(name)
    words = {**recipes.PIPELINES, **splits.PROTOCOLS}
    if name in words:
        return words[name].label
    # another seed or weight of it, or other images: combined_seed1
    if varied := re.fullmatch(rf"({'|'.join(recipes.PIPELINES)})_(.+)", name):
        return f"{known(varied[1])}, {re.sub('_|(?<=seed)', ' ', varied[2])}"
    plain = name.startswith((baselines.BASELINE, "average_"))
    return baselines.label_of(name) if plain else ""


def label(name: str) -> str:
    """What people read for any name; one that no table has loses its underscores."""
    return known(name) or name.replace("_", " ")


def spelled(text: str) -> str:
    """A printed sentence with words for the raw names of pipelines in it."""
    names = "|".join(recipes.PIPELINES)
    return re.sub(rf"\b(?:{names})(?:_[\w.]*\w)?\b", lambda found: label(found[0]), text)
