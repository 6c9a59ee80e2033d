"""What a trained network still knows when the nucleus, the cell or the background of a Herlev image is blanked."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cervix_utils import images, metrics, paths, references, runs
from cervix_utils.recipes import Recipe

if TYPE_CHECKING:
    import torch

GREY = (159, 151, 172)  # RGB, the usual background of Herlev's slides
REGIONS = {  # what is blanked, from a mask of palette indices; cell and background make up the image
    "nucleus": lambda mask: mask == images.NUCLEUS,
    "cell": lambda mask: mask != images.BACKGROUND,  # with the rim: cytoplasm too thin to outline is part of it
    "background": lambda mask: mask == images.BACKGROUND,
}


def blank(pixels: np.ndarray, masks: np.ndarray, region: str) -> np.ndarray:
    """A copy of uint8 ``pixels`` (n, 3, h, w) with one of ``REGIONS`` of ``masks`` (n, h, w; palette indices) filled.

    Nucleus and cell take the image's own median background colour, so that no new colour marks the place; the
    background takes one ``GREY`` for all images, which keeps the cell's outline and says nothing of the slide (``GREY``
    also serves where an image has no background). The outline of a filled region can still be seen.
    """
    if region not in REGIONS:
        raise ValueError(f"unknown region '{region}': known are {', '.join(REGIONS)}")
    if pixels.shape != (len(masks), 3, *masks.shape[1:]):
        raise ValueError(f"pixels {pixels.shape} and masks {masks.shape} do not fit: (n, 3, h, w) and (n, h, w) needed")
    blanked = pixels.copy()
    for picture, mask in zip(blanked, masks):
        ground = mask == images.BACKGROUND
        own = ground.any() and region != "background"
        colour = np.median(picture[:, ground], axis=1) if own else GREY
        picture[:, REGIONS[region](mask)] = np.asarray(colour, dtype=np.uint8)[:, None]
    return blanked


def predict_blanked(
    model: "torch.nn.Module", split: pd.DataFrame, recipe: Recipe, precision: str, region: str
) -> pd.DataFrame:
    """The contract's predictions for the test images of ``split`` that have a mask, with ``region`` blanked.

    As ``training.predict`` sees them: the recipe's size, window and flips. Images without a mask are left out (count
    them with ``without_mask``). Raises ValueError where no test image has one.
    """
    from cervix_utils import training  # here: fastai takes seconds to import, and the start of a notebook waits for it

    rows = split[(split["part"] == "test") & (split["mask"] != "")]
    if rows.empty:
        raise ValueError("no test image has a mask, so nothing can be blanked: use a copy of Herlev with its masks")
    pixels = images.squares(rows["path"], recipe.image_size, recipe.window)
    pictures = blank(pixels, images.square_masks(rows["mask"], recipe.image_size, recipe.window), region)
    values = training.outputs(model, pictures, np.arange(len(rows)), recipe, precision, recipe.test_flips)
    return references.as_predictions(rows, values, recipe.task)


def without_mask(split: pd.DataFrame) -> pd.Series:
    """Number of images without a mask in each part of ``split``."""
    return (split["mask"] == "").groupby(split["part"]).sum()


def predict_all(
    run: runs.Run, split: pd.DataFrame, recipe: Recipe, device: str, precision: str, report_dir: Path
) -> dict[str, pd.DataFrame]:
    """Predictions of a finished run with ``nothing`` blanked (its own) and each of ``REGIONS``, on the same images.

    Each region's are kept as a reference of ``report_dir``; those of an adopted run, which has no weights, are read there.
    """
    place = (recipe.protocol, recipe.fold)
    names = {region: f"{recipe.pipeline}_without_{region}" for region in REGIONS}
    files = {region: paths.reference_file(report_dir, recipe.task, name, *place) for region, name in names.items()}
    if (run.folder / runs.FILES[0]).is_file() or not all(file.is_file() for file in files.values()):
        model = runs.load_model(run, device)
        for region, name in names.items():
            table = predict_blanked(model, split, recipe, precision, region)
            references.write(report_dir, recipe.task, name, *place, table)
    found = {region: references.read(file).test for region, file in files.items()}
    seen = run.test["id"].isin(found["nucleus"]["id"])
    return {"nothing": run.test[seen].reset_index(drop=True), **found}


def numbers(blanked: dict[str, dict[str, pd.DataFrame]], n_boot: int, seed: int) -> pd.DataFrame:
    """``metrics.intervals`` of pipeline -> region -> predictions: pipeline, blanked, metric, value, low, high."""
    tables = [
        metrics.intervals(table, "herlev", n_boot, seed).assign(pipeline=name, blanked=region)
        for name, regions in blanked.items()
        for region, table in regions.items()
    ]
    columns = ["pipeline", "blanked", "metric", "value", "low", "high"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def chance(split: pd.DataFrame) -> dict[str, float]:
    """What constant answers, the best on the train and valid parts, get on test images with a mask: by metric.

    ``accuracy``: the commonest class; ``binary_accuracy``: the commoner of normal and abnormal; ``mse``: mean severity.
    """
    fitted_on, test = split[split["part"] != "test"], split[(split["part"] == "test") & (split["mask"] != "")]
    abnormal = (fitted_on["severity"] > 1).mean() >= 0.5
    return {
        "accuracy": float((test["label"] == fitted_on["label"].mode()[0]).mean()),
        "binary_accuracy": float(((test["severity"] > 1) == abnormal).mean()),
        "mse": float(((test["severity"] - fitted_on["severity"].mean()) ** 2).mean()),
    }


def what_is_left(table: pd.DataFrame, chance: float) -> list[str]:
    """``numbers`` as one sentence a pipeline: accuracy with and without each region, and whether it is above chance."""
    sentences = []
    for name, rows in table[table["metric"] == "accuracy"].groupby("pipeline", sort=False):
        rows = rows.set_index("blanked")
        parts = [f"{rows.at[region, 'value']:.3f} without the {region}" for region in REGIONS]
        above = [region for region in REGIONS if rows.at[region, "low"] > chance]
        left = (
            f"clearly above it without the {', without the '.join(above)}"
            if above
            else "not clearly above it in any case"
        )
        sentences.append(
            f"**{name}**: accuracy {rows.at['nothing', 'value']:.3f} as it is, {', '.join(parts)}. Always answering the "
            f"commonest class gives {chance:.3f}; the network is {left}."
        )
    return sentences
