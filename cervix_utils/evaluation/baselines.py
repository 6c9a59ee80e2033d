"""What is known without a network: plain classifiers on hand-made features; and averages."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL.Image import Image
from skimage.feature import local_binary_pattern
from skimage.measure import label, regionprops
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cervix_utils import paths
from cervix_utils.data import datasets, images
from cervix_utils.evaluation import metrics
from cervix_utils.evaluation.metrics import Array, Frame

FEATURES_VERSION = 1  # raise it when a feature changes its meaning: kept ones are then made anew
BASELINE = "baseline_"  # how the names of predictions made without a network begin
MODELS = {"forest": "random forest", "logistic": "logistic regression"}
# Sets of features: the prefix of their columns (all: every column), and words for people
SETS = {"size": "image size", "background": "border colour", "masks": "mask areas"}
SETS["all"] = "all features"
# Members of averages, from one or several seeds: fixed beforehand, nothing is chosen on a test part
NETWORKS = {"classification", "combined"}
AVERAGES = {
    "average_of_networks": NETWORKS,
    "average_with_baseline": NETWORKS | {f"{BASELINE}all_logistic"},
}
SHAPE = ["area", "perimeter", "eccentricity", "solidity", "extent"]
SHAPE += ["axis_major_length", "axis_minor_length"]
SIDE = 256  # pixels, longer side at which photographs are described: they differ in magnification
TREES = 500


def label_of(pipeline: str) -> str:
    """Words for the name of a baseline or an average ('random forest on image size'); a network's
    name stays, ``words.label`` has its words."""
    name, _, model = pipeline.removeprefix(BASELINE).partition("_")
    if model in MODELS and name in SETS:
        return f"{MODELS[model]} on {SETS[name]}"
    told = pipeline.replace("_", " ") if pipeline.startswith("average_") else pipeline
    return told.replace(f"{BASELINE}priors", "class shares alone")


def features(table: Frame) -> Frame:
    """Hand-made features (n, k), float64, of the images of ``table`` (id, path, mask, sha256).

    Indexed by id. Those of cells where any image has a mask, else those of photographs. Pixels,
    colours in 0..255; NaN where a cell has no mask, or its mask lacks the region. Kept in the cache
    until an image or a mask changes.
    """
    describe = of_cell if (table["mask"] != "").any() else of_photograph
    stats = [Path(mask).stat() if mask else None for mask in table["mask"]]
    states = [(stat.st_size, stat.st_mtime_ns) if stat else "no mask" for stat in stats]

    def make(folder: Path) -> None:
        with ThreadPoolExecutor() as pool:
            rows = list(pool.map(describe, table["path"], table["mask"]))
        pd.DataFrame(rows, dtype=float).to_parquet(folder / "features.parquet")

    content = (FEATURES_VERSION, describe.__name__, list(table["sha256"]), states)
    file = paths.cached("features", content, make) / "features.parquet"
    return pd.read_parquet(file).set_index(pd.Index(table["id"], name="id"))


def of_cell(path: str, mask: str) -> dict[str, float]:
    """Features of one cell: size, border colour, pixels of each mask index, colours and shapes.

    Shapes are scikit-image's ``regionprops``: of the largest piece of nucleus, and of nucleus and
    cytoplasm as one.
    """
    image = images.open_image(path)
    pixels = np.asarray(image)
    indices = np.asarray(images.open_mask(mask)) if mask else np.full(pixels.shape[:2], 255)
    counts = np.bincount(indices.ravel(), minlength=5)[:5] if mask else np.full(5, np.nan)
    nucleus, cytoplasm = indices == images.NUCLEUS, indices == images.CYTOPLASM
    return {
        **_size_and_background(image),
        **_numbered("masks", counts),
        "area_ratio": nucleus.sum() / cytoplasm.sum() if cytoplasm.any() else np.nan,
        **_colours("nucleus", pixels[nucleus]),
        **_colours("cytoplasm", pixels[cytoplasm]),
        **_shape("nucleus", label(nucleus)),
        **_shape("cell", nucleus | cytoplasm),
    }


def of_photograph(path: str, mask: str = "") -> dict[str, float]:
    """Features of one photograph at SIDE pixels: colours (all, middle, border) and texture.

    Texture: share of each uniform local binary pattern (8 neighbours), and size of the grey-level
    gradient. Hue is turned by half a circle, so that reds do not stand at both ends.
    """
    image = images.open_image(path)
    values = _size_and_background(image)
    image.thumbnail((SIDE, SIDE))
    rgb, hsv = np.asarray(image), np.array(image.convert("HSV"))
    grey = np.asarray(image.convert("L"))
    hsv[..., 0] += 128  # uint8: wraps
    for space, pixels in (("rgb", rgb.reshape(-1, 3)), ("hsv", hsv.reshape(-1, 3))):
        values |= _colours(space, pixels)
        for q in (10, 50, 90):
            values |= _numbered(f"{space}_q{q}", np.percentile(pixels, q, axis=0))
    border = np.ones_like(grey, dtype=bool)
    border[_without_border(grey, 8)] = False
    values |= _colours("middle", rgb[_without_border(grey, 4)].reshape(-1, 3))
    values |= _colours("border", rgb[border])
    patterns = local_binary_pattern(grey, 8, 1, "uniform").astype(int)
    values |= _numbered("pattern", np.bincount(patterns.ravel(), minlength=10) / grey.size)
    steepness = np.hypot(*np.gradient(grey.astype(float)))
    return values | {"gradient_mean": steepness.mean(), "gradient_std": steepness.std()}


def _numbered(name: str, values: Array) -> dict[str, float]:
    return {f"{name}_{index}": value for index, value in enumerate(values)}


def _without_border(picture: Array, k: int) -> tuple[slice, slice]:
    """What is left of a picture (h, w) without the k-th part of it on each side."""
    height, width = picture.shape
    return np.s_[height // k : height - height // k, width // k : width - width // k]


def _size_and_background(image: Image) -> dict[str, float]:
    colours = [f"background_{name}" for name in ("red", "green", "blue")]
    size = {"size_width": image.width, "size_height": image.height}
    return size | dict(zip(colours, images.border_colour(image)))


def _colours(name: str, pixels: Array) -> dict[str, float]:
    """Mean and standard deviation of each channel of ``pixels`` (n, 3); NaN without any."""
    pixels = pixels if len(pixels) else np.full((1, 3), np.nan)
    means = _numbered(f"{name}_mean", pixels.mean(axis=0))
    return means | _numbered(f"{name}_std", pixels.std(axis=0))


def _shape(name: str, pieces: Array) -> dict[str, float]:
    """SHAPE of the largest of the numbered ``pieces`` (h, w), 0 is outside; NaN without any."""
    unknown = dict.fromkeys(SHAPE, np.nan)
    largest = max(regionprops(pieces.astype(int)), key=lambda piece: piece.area, default=unknown)
    return {f"{name}_{key}": float(largest[key]) for key in SHAPE}


def classifier(model: str, seed: int) -> Pipeline:
    """``forest``, ``logistic`` (standardised), or ``priors``, which answers the class shares."""
    steps = {
        "forest": [RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)],
        "logistic": [StandardScaler(), LogisticRegression(max_iter=5000)],
        "priors": [DummyClassifier(strategy="prior")],
    }
    return make_pipeline(SimpleImputer(keep_empty_features=True), *steps[model])


def predict(split: Frame, known: Frame, name: str, model: str, seed: int) -> Frame:
    """Predictions of the test rows of ``split`` by a ``classifier`` on a set of features, ``name``.

    Fitted on the train and valid parts together, as nothing is selected. A class without training
    images has probability 0.
    """
    columns = [column for column in known if name == "all" or column.startswith(f"{name}_")]
    if not columns:
        raise ValueError(f"no features '{name}' of these images: sets are {', '.join(SETS)}")
    x, test = known.loc[split["id"], columns].to_numpy(), (split["part"] == "test").to_numpy()
    fitted = classifier(model, seed).fit(x[~test], split["label"][~test])
    p = pd.DataFrame(fitted.predict_proba(x[test]), columns=fitted.classes_)
    classes = list(datasets.get(split["task"].iloc[0]).classes)
    rows = split[test].assign(pipeline=BASELINE + f"{name}_{model}", run="")
    return metrics.as_predictions(rows, p.reindex(columns=classes, fill_value=0.0).to_numpy())


def all_of(split: Frame, seed: int) -> Frame:
    """Predictions of the test rows by ``baseline_priors`` and every ``baseline_<set>_<model>``."""
    known = features(split)
    priors = predict(split, known, "size", "priors", seed).assign(pipeline=f"{BASELINE}priors")
    prefixes = {column.partition("_")[0] for column in known} | {"all"}
    sets = [name for name in SETS if name in prefixes]
    others = [predict(split, known, name, model, seed) for name in sets for model in MODELS]
    return pd.concat([priors, *others], ignore_index=True)


def average(members: Frame, pipeline: str) -> Frame:
    """Predictions that are the mean of the members' probabilities, on the same images of one fold.

    ``members``: predictions of several pipelines. Raises ValueError where the images differ or a
    member has no probabilities.
    """
    images = members.groupby("id")
    alike = (images.size() == members["pipeline"].nunique()).all()
    if not (alike and metrics.has_probabilities(members)):
        raise ValueError("only probabilities of the same images of one fold can be averaged")
    rows = members.drop_duplicates("id").assign(pipeline=pipeline, run="")
    p = images[list(members.filter(regex="^p_"))].mean()
    return metrics.as_predictions(rows, p.loc[rows["id"]].to_numpy())


def averages(predictions: Frame) -> Frame:
    """Test rows of the AVERAGES, by protocol and fold, of which all members are there."""
    tests = predictions[predictions["part"] == "test"]
    tests = tests.assign(member=tests["pipeline"].str.replace(r"_seed\d+$", "", regex=True))
    made = [predictions[:0]]
    for _, rows in tests.groupby(["protocol", "fold"]):
        for name, members in AVERAGES.items():
            if members <= set(rows["pipeline"]):
                made.append(average(rows[rows["member"].isin(members)], name))
    return pd.concat(made, ignore_index=True)
