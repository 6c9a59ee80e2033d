"""One's own images: what a trained network answers, how sure it is, whether it has seen the like.

``model.json`` beside the weights says all that another program needs to use them; what is promised
for an image holds for images like the training images alone, so each answer says whether it is one.
"""

import glob
import json

import numpy as np
import pandas as pd

from cervix_utils import paths
from cervix_utils.data import datasets, images
from cervix_utils.evaluation import calibration, metrics
from cervix_utils.training import recipes, runs

CONTRACT, LEVEL = "model.json", 0.9  # file; share of groups whose set holds the right class
READING = {  # how a picture becomes the input; size and window (0: the whole) are pixels
    "square": "padded with the median colour of its edge, bilinear",
    "input": "RGB in 0..1, then (x - mean) / std",
    "answer": "mean of the probabilities of the views, then p^(1/temperature), renormalised",
}
ABOUT = ["task", "pipeline", "protocol", "fold", "architecture", "head", "image_size", "window"]
ABOUT += ["mean", "std", "test_flips"]


class OwnImageError(ValueError):
    """No image can be used; the message says what was asked for and what to give."""


def describe(run: runs.Run) -> dict:
    """What another program needs to use the weights of a run, as JSON has it.

    ABOUT, READING, what the last layer gives, classes in order, temperature (None: a score, or no
    image was held out), data and their terms. ``limit``: the largest ``calibration.distance`` of a
    class in a prediction set; ``half_width``: grades around the score; both hold for LEVEL of the
    groups, None where too few or none calibrate.
    """
    dataset = datasets.get(run.recipe["task"])
    loss = recipes.pipeline_of(run.recipe["pipeline"]).loss
    rows, temperature = runs.table([run]), None
    limits = {"limit": np.inf, "half_width": np.inf}
    if rows["part"].isin(["valid", "inner"]).any():
        drawn = calibration.one_a_group(rows, run.recipe["seed"])
        if metrics.has_probabilities(drawn):
            temperature = calibration.temperature(rows)
            drawn = calibration.scaled(drawn, temperature)
        true = metrics.true_class(drawn)
        scores = {"limit": calibration.distance(drawn)[np.arange(len(true)), true]}
        if dataset.ordered:
            scores["half_width"] = np.abs(drawn["score"].to_numpy() - true - 1)
        limits = {name: calibration.limit(values, LEVEL) for name, values in scores.items()}
    said = {name: run.recipe[name] for name in ABOUT} | READING | {"level": LEVEL}
    said |= {"output": "score" if loss == "squared_error" else "logits", "temperature": temperature}
    said |= {name: value if np.isfinite(value) else None for name, value in limits.items()}
    said |= {"classes": dataset.classes, "ordered": dataset.ordered, "weights": runs.FILES[0]}
    return said | {"data": dataset.title, "source": dataset.citation, "terms": dataset.terms}


def contract(run: runs.Run) -> dict:
    """``describe`` as ``model.json`` beside the weights has it; written where it is not there."""
    file = run.folder / CONTRACT
    if not file.is_file():
        with paths.whole(file) as draft:
            draft.write_text(json.dumps(describe(run), indent=2) + "\n")
    return json.loads(file.read_text())


def read(asked: str) -> pd.DataFrame:
    """The images that a file, a folder or a pattern names, one row each.

    id (file name; of a folder the place in it), path, mask (a file NAME-d beside it; empty: none),
    width, height (pixels), reason (why it cannot be used; empty: it can). OwnImageError where none
    can be used.
    """
    place, rows = paths.resolve(asked), []
    folder, pattern = (place, "**/*") if place.is_dir() else (place.parent, place.name)
    found = [place] if place.is_file() else folder.glob(pattern)
    for file in sorted(file for file in found if file.is_file() and file.stem[-2:] != "-d"):
        row = {"id": str(file.relative_to(folder)), "path": str(file), "mask": "", "reason": ""}
        row |= images.inspect(file)
        size = row.get("width"), row.get("height")
        for mask in file.parent.glob(f"{glob.escape(file.stem)}-d.*"):
            row["mask"] = "" if images.mask_problem(mask, size) else str(mask)
        rows.append(row)
    table = pd.DataFrame(rows, columns=["id", "path", "mask", "width", "height", "reason"])
    if (table["reason"] != "").all():
        why = "; ".join(table["id"] + ": " + table["reason"]) or "no file there"
        raise OwnImageError(f"IMAGES={asked}: {why}. Give a picture, a folder or a 'pattern'")
    return table
