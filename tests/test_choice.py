"""Recipes chosen inside the training part, and networks that see the whole of it."""

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from sklearn.metrics import log_loss, mean_squared_error

from cervix_utils.data import splits, tables
from cervix_utils.evaluation import calibration, metrics
from cervix_utils.training import choice, fitting, learners, recipes, runs

pytestmark = pytest.mark.usefixtures("one_thread")
WHOLE = {"valid_fraction": 0.0, "test_flips": 1}


@pytest.fixture(scope="module")
def tried(tiny_demo, tmp_path_factory, one_thread):
    """Two candidates of a grouped recipe on two inner folds."""
    recipe = toys.recipe_of("combined", protocol="grouped", **WHOLE)
    split, folder = toys.split_of(tiny_demo, recipe), tmp_path_factory.mktemp("runs")
    candidates = ["image_size=32", "image_size=48 lr=0.001"]
    found = choice.trials(split, recipe, candidates, 2, folder, "cpu")
    return recipe, split, folder, found


def test_no_image_is_spent_on_validation(tiny_demo):
    recipe = toys.recipe_of("combined", **WHOLE)
    split = toys.split_of(tiny_demo, recipe)
    assert set(split["part"]) == {"train", "test"}
    learn = learners.build(split, recipe, "cpu")
    fitting.fit(learn, recipe)
    history = fitting.history(learn)
    assert history["train_loss"].notna().all() and history["valid_loss"].isna().all()


def test_inner_folds_hold_out_every_training_image_once_and_no_test_image(tried):
    _, split, _, found = tried
    inside = set(split.loc[split["part"] == "train", "id"])
    for trial in found:
        assert sorted(trial.held_out["id"]) == sorted(inside)
        assert (trial.held_out["part"] == "inner").all()


@pytest.mark.parametrize("protocol", ["grouped", "paper"])
def test_groups_stay_on_one_side_of_inner_folds_where_the_protocol_says_so(tiny_demo, protocol):
    recipe = toys.recipe_of("combined", protocol=protocol, **WHOLE)
    split = toys.split_of(tiny_demo, recipe)
    straddling = [toys.straddling(fold) for fold in splits.inner(split, 2)]
    assert any(straddling) == (protocol == "paper")


def test_the_lowest_loss_is_chosen_and_is_that_of_scikit_learn(tried):
    recipe, _, _, found = tried
    assert [trial.loss for trial in found] == sorted(trial.loss for trial in found)
    for trial in found:
        rows = trial.held_out
        p = rows[[f"p_{name}" for name in recipe.classes]].to_numpy(dtype=float)
        true = rows["label"].map(recipe.classes.index)
        expected = log_loss(true, p / p.sum(axis=1, keepdims=True), labels=range(5))
        expected += mean_squared_error(true + 1, rows["score"])
        assert np.isclose(trial.loss, expected)


def test_inner_runs_keep_no_weights_and_are_read_again(tried, capsys):
    recipe, split, folder, found = tried
    kept = list(folder.glob("*/*/*"))
    assert len(kept) == 4 and not list(folder.rglob("model.safetensors"))
    again = choice.trials(split, recipe, [found[0].candidate], 2, folder, "cpu")
    assert "read from the finished run" in capsys.readouterr().out
    assert again[0].held_out.equals(found[0].held_out)


def test_held_out_predictions_calibrate_the_final_network(tried):
    recipe, split, folder, found = tried
    run = runs.obtain(split, recipes.changed(recipe, found[0].candidate), folder, "cpu")
    frame = pd.concat([runs.table([run]), found[0].beside(run)], ignore_index=True)
    metrics.check_predictions(frame)  # an image in parts train and inner is no repetition
    assert len(calibration.held_out(frame)) == len(found[0].held_out)
    assert 0.05 <= calibration.temperature(frame) <= 20
    assert len(calibration.rescaled(frame)) == len(run.test)


def test_a_validation_part_calibrates_where_there_is_one(tried):
    _, _, _, found = tried
    valid = found[0].held_out.assign(part="valid")
    both = pd.concat([valid, found[1].held_out])
    assert calibration.held_out(both).equals(valid)
    with pytest.raises(ValueError, match="nothing to calibrate"):
        calibration.held_out(valid.assign(part="train"))


def test_no_candidates_no_trials(tried):
    recipe, split, folder, _ = tried
    assert choice.trials(split, recipe, [], 2, folder, "cpu") == []


@pytest.mark.parametrize(
    ("candidate", "message"),
    [("fold=2", "changes 'fold'"), ("epochs=many", "epochs=many"), ("image_size", "image_size")],
)
def test_a_candidate_that_cannot_be_is_named(candidate, message):
    with pytest.raises(recipes.RecipeError, match=message):
        recipes.changed(toys.recipe_of("combined"), candidate)


def test_another_seed_trains_anew_on_the_same_split(tiny_demo, tmp_path):
    recipe = toys.recipe_of("combined", **WHOLE)
    other = toys.recipe_of("combined_seed7", **WHOLE)
    assert other.seed == 7 and recipe.seed == 0 and other.lr == recipe.lr
    split = toys.split_of(tiny_demo, recipe)
    places = [runs.folder_of(tmp_path, each, split) for each in (recipe, other)]
    assert places[0].parent != places[1].parent


def test_what_lies_beyond_a_picture_takes_the_colour_of_its_border():
    picture = torch.full((2, 3, 40, 40), 0.25)
    picture[1] = 0.75
    picture[:, :, 12:28, 12:28] = 0.0
    turn = learners.OnBorderColour([lambda x: learners.augment.rotate_mat(x, 45, p=1.0)])
    turned = turn(learners.TensorImage(picture), split_idx=0)
    corners = turned[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners[0], torch.tensor(0.25)) and (corners[1] == 0.75).all()
    assert not torch.equal(turned, picture)
    assert torch.equal(turn(learners.TensorImage(picture), split_idx=1), picture)


def test_flips_are_the_four_of_a_picture():
    recipe = toys.recipe_of("combined", flip="both", rotate=0.0, zoom=1.0, lighting=0.0)
    (flip,) = learners.augmentations(recipe)
    picture = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    wanted = [picture, picture.flip(3), picture.flip(2), picture.flip((2, 3))]
    found = set()
    for _ in range(60):
        (turned,) = flip(learners.TensorImage(picture[:1]), split_idx=0)
        found |= {k for k, each in enumerate(wanted) if torch.allclose(each[0], turned, atol=1e-3)}
    assert found == {0, 1, 2, 3}


def test_inner_is_a_part_that_tables_know():
    assert "inner" in tables.PARTS and "inner" not in splits.PARTS
