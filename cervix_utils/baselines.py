"""What can be known without a network: hand-made features of each image, and plain classifiers on them."""

import hashlib
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import __version__ as pillow
from skimage import __version__ as skimage
from skimage.feature import local_binary_pattern
from skimage.measure import label, regionprops
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cervix_utils import images, paths, references
from cervix_utils.datasets import CLASSES

SETS = {"herlev": ["size", "background", "masks", "all"], "colposcopy": ["size", "background", "all"]}
TREES = 500
MODELS = ["forest", "logistic"]
SHAPE = [
    "area",
    "perimeter",
    "eccentricity",
    "solidity",
    "extent",
    "axis_major_length",
    "axis_minor_length",
]
SIDE = 256  # pixels, longer side at which photographs are described: their originals differ in magnification


def features(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Hand-made features (n, k), float64, of the images of ``table`` (id, path, width, height, sha256, mask), by id.

    The prefix of a column names its set (``size_``, ``background_``, ``masks_``, see ``SETS``; ``all``: every column).
    Pixels, colours in 0..255; NaN where a cell has no mask, or its mask lacks the region. Kept in the cache: made anew
    when an image, a mask or the code that describes them changes.
    """
    code = [Path(__file__).read_text(), Path(images.__file__).read_text(), pillow, skimage]
    states = [
        (file.stat().st_size, file.stat().st_mtime_ns) if mask else ()
        for mask in table["mask"]
        for file in [Path(mask)]
    ]
    made_of = repr([task, code, list(table["sha256"]), states])
    file = paths.cache_dir() / f"features-{task}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.parquet"
    if not file.exists():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map({"herlev": of_cell, "colposcopy": of_photograph}[task], table["path"], table["mask"]))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        pd.DataFrame(rows, dtype=float).to_parquet(part)
        part.replace(file)
    return pd.read_parquet(file).set_index(pd.Index(table["id"], name="id"))


def of_cell(path: str, mask: str) -> dict[str, float]:
    """Features of one Herlev cell: size, border colour, pixels of each mask index, colours and shapes of its regions.

    Shapes are scikit-image's ``regionprops``: of the largest piece of nucleus, and of nucleus and cytoplasm as one.
    """
    image = images.open_image(path)
    pixels, nowhere = np.asarray(image), np.zeros(image.size[::-1], dtype=bool)
    indices = np.asarray(images.open_mask(mask)) if mask else None
    counts = np.bincount(indices.ravel(), minlength=256)[:5] if mask else np.full(5, np.nan)
    nucleus, cytoplasm = (indices == k if mask else nowhere for k in (images.NUCLEUS, images.CYTOPLASM))
    pieces = label(nucleus)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1 if nucleus.any() else nowhere
    return {
        **_size_and_background(image),
        **{f"masks_{index}": count for index, count in enumerate(counts)},
        "area_ratio": nucleus.sum() / cytoplasm.sum() if cytoplasm.any() else np.nan,
        **_colours("nucleus", pixels[nucleus]),
        **_colours("cytoplasm", pixels[cytoplasm]),
        **_shape("nucleus", largest),
        **_shape("cell", nucleus | cytoplasm),
    }


def of_photograph(path: str, mask: str = "") -> dict[str, float]:
    """Features of one photograph at ``SIDE`` pixels: colours whole, in the middle and at the border, simple texture.

    Texture: share of each uniform local binary pattern (8 neighbours), and size of the grey-level gradient. Hue is
    turned by half a circle, so that reds do not stand at both ends.
    """
    image = images.open_image(path)
    found = _size_and_background(image)
    image.thumbnail((SIDE, SIDE))
    rgb, hsv, grey = np.asarray(image), np.array(image.convert("HSV")), np.asarray(image.convert("L"))
    hsv[..., 0] += 128  # uint8: wraps
    for space, pixels in (("rgb", rgb), ("hsv", hsv)):
        found |= _colours(space, flat := pixels.reshape(-1, 3))
        for q in (10, 50, 90):
            found |= {f"{space}_q{q}_{k}": value for k, value in enumerate(np.percentile(flat, q, axis=0))}
    height, width = grey.shape
    middle, inner = (np.s_[height // k : height - height // k, width // k : width - width // k] for k in (4, 8))
    ring = np.ones_like(grey, dtype=bool)
    ring[inner] = False
    found |= _colours("middle", rgb[middle].reshape(-1, 3)) | _colours("border", rgb[ring])
    patterns = np.bincount(local_binary_pattern(grey, 8, 1, "uniform").astype(int).ravel(), minlength=10)
    found |= {f"pattern_{k}": share for k, share in enumerate(patterns / grey.size)}
    steepness = np.hypot(*np.gradient(grey.astype(float)))
    return found | {"gradient_mean": steepness.mean(), "gradient_std": steepness.std()}


def _size_and_background(image) -> dict[str, float]:
    border = dict(zip(("red", "green", "blue"), images.border_colour(image)))
    return {"size_width": image.width, "size_height": image.height} | {f"background_{k}": v for k, v in border.items()}


def _colours(name: str, pixels: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation of each channel of ``pixels`` (n, 3); NaN where there are none."""
    mean, std = (pixels.mean(axis=0), pixels.std(axis=0)) if len(pixels) else np.full((2, 3), np.nan)
    return {f"{name}_mean_{k}": mean[k] for k in range(3)} | {f"{name}_std_{k}": std[k] for k in range(3)}


def _shape(name: str, region: np.ndarray) -> dict[str, float]:
    """``SHAPE`` of a boolean region (h, w) as a whole; NaN where it is empty."""
    found = regionprops(region.astype(np.uint8))
    return {f"{name}_{key}": float(found[0][key]) if found else np.nan for key in SHAPE}


def classifier(model: str, seed: int) -> Any:
    """``forest`` (``TREES`` trees), ``logistic`` (standardised), or ``priors``, which answers the class shares."""
    known = {
        "forest": [RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)],
        "logistic": [StandardScaler(), LogisticRegression(max_iter=5000)],
        "priors": [DummyClassifier(strategy="prior")],
    }
    if model not in known:
        raise ValueError(f"unknown baseline model '{model}': known are {', '.join(known)}")
    return make_pipeline(SimpleImputer(keep_empty_features=True), *known[model])


def predict(
    split: pd.DataFrame, table_features: pd.DataFrame, task: str, features: str, model: str, seed: int
) -> pd.DataFrame:
    """The contract's predictions of a ``classifier`` on one set of ``features``, for every row of ``split``.

    Fitted on the train and valid parts together, as nothing is selected: their predictions are in-sample, and only
    those of the test part count. A class without training images has probability 0.
    """
    if features not in SETS[task]:
        raise ValueError(f"unknown feature set '{features}' of {task}: known are {', '.join(SETS[task])}")
    columns = [name for name in table_features if features == "all" or name.startswith(f"{features}_")]
    x, fitted_on = table_features.loc[split["id"], columns].to_numpy(), (split["part"] != "test").to_numpy()
    fitted = classifier(model, seed).fit(x[fitted_on], split["label"][fitted_on])
    values = pd.DataFrame(fitted.predict_proba(x), columns=fitted.classes_).reindex(
        columns=CLASSES[task], fill_value=0.0
    )
    return references.as_predictions(split, values.to_numpy(), task)


def all_of(split: pd.DataFrame, task: str, seed: int) -> dict[str, pd.DataFrame]:
    """Every baseline of a split: ``baseline_priors``, then ``baseline_<set>_<model>`` for each set and model."""
    known = features(split, task)
    found = {f"{references.BASELINE}priors": predict(split, known, task, "size", "priors", seed)}
    for name in SETS[task]:
        found |= {f"{references.BASELINE}{name}_{m}": predict(split, known, task, name, m, seed) for m in MODELS}
    return found
