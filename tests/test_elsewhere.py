"""Networks on another hospital's cells: what they are shown, and what they are taken to say."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from cervix_utils.data import datasets, images, tables
from cervix_utils.evaluation import metrics
from cervix_utils.training import elsewhere, fitting, recipes, runs

SMALL = {"architecture": "resnet18", "image_size": 32, "precision": "float32", "test_flips": 1}


@pytest.fixture(scope="module")
def collections(tiny_demo):
    return [datasets.load(str(tiny_demo), task)[0] for task in ("sipakmed", "herlev")]


@pytest.fixture(scope="module")
def kept(tiny_demo, tmp_path_factory, one_thread):
    """Untrained networks, kept as runs: two pipelines of Herlev (of two image sizes), one of
    SIPaKMeD."""
    from cervix_utils.training import learners

    made, folder = {}, tmp_path_factory.mktemp("runs")
    for task, pipeline, size in (
        ("herlev", "combined", 32),
        ("herlev", "regression", 40),
        ("sipakmed", "classification", 32),
    ):
        options = SMALL | {"image_size": size, "n_folds": 2, "valid_fraction": 0.4}
        recipe = recipes.Recipe(task, pipeline, **options)
        split = recipes.parts(datasets.load(str(tiny_demo), task)[0], recipe)
        learn = learners.build(split, recipe, "cpu")
        made[task, pipeline] = runs.keep(learn, recipe, split, folder)
    return made


@pytest.fixture(scope="module")
def told(kept, tiny_demo):
    both = [kept["herlev", name] for name in ("combined", "regression")]
    return elsewhere.predict(both, "sipakmed", str(tiny_demo), device="cpu")


# What is shown


def test_as_they_are_they_are_the_squares_of_training(collections):
    cells, home = collections
    for window in (0, 80):
        shown = elsewhere.pictures(cells, home, "", 32, window)
        assert shown.dtype == np.uint8
        assert (shown == images.squares(cells["path"], 32, window)).all()


@pytest.mark.parametrize("control", ["_colours_matched", "_colours_and_size_matched"])
def test_matched_colours_have_the_mean_and_spread_of_home(collections, control):
    cells, home = collections
    before = images.squares(cells["path"], 32)
    aim = images.squares(home["path"], 32)
    shown = elsewhere.pictures(cells, home, control, 32, 0)
    for channel in range(3):
        old, new, given = (values[:, channel] for values in (before, aim, shown))
        assert abs(old.mean() - new.mean()) > 5  # the two hospitals do differ
        assert abs(given.mean() - new.mean()) < 2 and abs(given.std() - new.std()) < 3


def test_matched_sizes_show_the_middle_at_the_magnification_of_home(write_image, tmp_path):
    """Home's median side is 20 px, there it is 40: the middle 20 of 40 px are shown."""
    here = [write_image(tmp_path / f"{k}.png", k, (20, 12)) for k in range(3)]
    for k, side in enumerate((30, 40, 60)):
        pixels = np.zeros((side, side, 3), dtype=np.uint8)
        pixels[side // 4 : side - side // 4, side // 4 : side - side // 4] = 255
        Image.fromarray(pixels).save(tmp_path / f"there{k}.png")
    home = pd.DataFrame({"path": map(str, here), "width": 20, "height": 12})
    cells = pd.DataFrame({"path": [str(tmp_path / f"there{k}.png") for k in range(3)]})
    cells = cells.assign(width=[30, 40, 60], height=[30, 40, 60])
    whole = elsewhere.pictures(cells, home, "", 40, 0)
    middle = elsewhere.pictures(cells, home, "_size_matched", 40, 0)
    assert (whole[1] == 255).mean() == pytest.approx(0.25)
    assert (middle[1] == 255).all() and (middle[:, :, 10:30, 10:30] == 255).all()
    smaller = elsewhere.pictures(home, cells, "_size_matched", 40, 0)  # and the other way round
    edge = np.asarray(images.border_colour(images.open_image(here[0])))
    assert (smaller[0][:, 0, 0] == edge).all() and (smaller[0][:, -1, -1] == edge).all()


def test_a_network_that_sees_one_magnification_anyway_is_shown_the_same(collections):
    shown = [elsewhere.pictures(*collections, control, 32, 80) for control in ("", "_size_matched")]
    assert (shown[0] == shown[1]).all()


# What is said


def test_a_table_of_predictions_of_normal_and_abnormal(told, collections):
    cells, _ = collections
    names = ["combined", "combined_by_score", "regression"]
    assert set(told["pipeline"]) == {a + b for a in names for b in elsewhere.CONTROLS}
    assert (told["task"] == "sipakmed_abnormal").all() and (told["part"] == "test").all()
    for _, rows in told.groupby("pipeline"):
        assert list(rows["id"]) == list(cells["id"])
        tables.check(rows, "sipakmed_abnormal")
    metrics.check_predictions(told)
    sick = told["id"].str.startswith(("koilocytotic/", "dyskeratotic/"))
    assert ((told["label"] == "abnormal") == sick).all()


def test_probabilities_are_sums_and_scores_are_those_of_the_network(told, kept, collections):
    cells, _ = collections
    run = kept["herlev", "combined"]
    recipe, model = runs.recipe_of(run), runs.load_model(run)
    p = fitting.probabilities(model, images.squares(cells["path"], 32), recipe, 1)
    by_name = {name: rows.reset_index(drop=True) for name, rows in told.groupby("pipeline")}
    assert np.allclose(by_name["combined"]["p_abnormal"], p[:, 1:].sum(axis=1), atol=1e-5)
    assert np.allclose(by_name["combined"]["score"], 2 - p[:, 0], atol=1e-5)
    grades = 1.5 + logit(by_name["combined_by_score"]["score"] - 1)
    assert np.allclose(grades, p @ [1, 2, 3, 4, 5], atol=1e-4)
    run = kept["herlev", "regression"]
    pictures = images.squares(cells["path"], 40)
    score = fitting.probabilities(runs.load_model(run), pictures, runs.recipe_of(run), 1)[:, 0]
    rows = by_name["regression"]
    assert np.allclose(1.5 + logit(rows["score"] - 1), score, atol=1e-4)
    assert ((metrics.predicted_class(rows) == 1) == (score > 1.5)).all()
    auc = metrics.measure(rows, names=["sensitivity"])["auc_abnormal"][0]
    assert auc == pytest.approx(roc_auc_score(rows["label"] == "abnormal", score))


def test_kinds_that_are_no_grades_have_no_score(kept, tiny_demo):
    run = kept["sipakmed", "classification"]
    back = elsewhere.predict([run], "herlev", str(tiny_demo), device="cpu", controls=[""])
    assert set(back["pipeline"]) == {"classification"}
    home = datasets.load(str(tiny_demo), "herlev")[0]
    p = fitting.probabilities(
        runs.load_model(run), images.squares(home["path"], 32), runs.recipe_of(run), 1
    )
    assert np.allclose(back["p_abnormal"], p[:, 3:].sum(axis=1), atol=1e-5)
    normal = home["original"].str.startswith("normal_")
    assert ((back["label"] == "normal") == normal).all()


def test_weights_of_a_run_start_another_one(kept, tmp_path):
    """The head is left out: pre-training needs no code of its own."""
    from cervix_utils.training import networks

    file = kept["sipakmed", "classification"].folder / "model.safetensors"
    state = networks.initial_state(str(file), "resnet18")
    model = networks.network("resnet18", "linear", 1, state)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    assert model.fc[0].out_features == 1 and state["fc.0.weight"].shape[0] == 5
