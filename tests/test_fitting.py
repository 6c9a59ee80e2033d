"""Training as the recipe says, and predictions from several views of an image."""

import re
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from fastai.callback.mixup import MixUp
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn

from cervix_utils.data import images, tables
from cervix_utils.training import fitting, learners, losses, networks

pytestmark = pytest.mark.usefixtures("one_thread")


def fitted(data_root, recipe) -> SimpleNamespace:
    """A training: its Learner, history and predictions of every image."""
    split = toys.split_of(data_root, recipe)
    learn = learners.build(split, recipe, "cpu")
    fitting.fit(learn, recipe)
    table = fitting.predict(learn.model, split, recipe)
    return SimpleNamespace(learn=learn, split=split, history=fitting.history(learn), table=table)


def values_of(table: pd.DataFrame) -> np.ndarray:
    """Probabilities and scores of a table of predictions."""
    return table.drop(columns=tables.NAMES).to_numpy(float)


def random_network(outputs: int = 5, gain: float = 30.0) -> nn.Module:
    """A ResNet-18 whose every branch does something and whose answers differ."""
    torch.manual_seed(0)
    model = networks.network("resnet18", "linear", outputs)
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):
            nn.init.ones_(parameter)
    model.train()(torch.rand(8, 3, 32, 32))
    model.fc[0].weight.data *= gain
    return model.eval()


# Training


@pytest.mark.parametrize("pipeline", ["combined", "sgd"])
def test_one_seed_gives_one_result_and_another_seed_another(tiny_demo, pipeline):
    recipe = toys.recipe_of(pipeline)
    first, second = fitted(tiny_demo, recipe), fitted(tiny_demo, recipe)
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    split = first.split
    learn = learners.build(split, replace(recipe, seed=1), "cpu")
    fitting.fit(learn, replace(recipe, seed=1))
    other = fitting.predict(learn.model, split, recipe)
    assert np.abs(values_of(first.table) - values_of(other)).max() > 1e-3


def test_one_line_an_epoch_says_how_far_it_is(tiny_demo, capsys):
    recipe = toys.recipe_of("regression", epochs=2)
    training = fitted(tiny_demo, recipe)
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    numbers = r"train \d+\.\d+  valid \d+\.\d+  accuracy \d\.\d+  \d+ s, \d+ s to go"
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        assert re.fullmatch(rf"herlev regression paper-0  epoch {epoch}/2  {numbers}", line)
    assert lines[-1].endswith("0 s to go") and training.learn.seconds > 0


def test_in_jupyterlab_fastais_bars_are_left_on(tiny_demo, capsys, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    recipe = toys.recipe_of()
    learn = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu")
    seen = []
    monkeypatch.setattr(type(learn.progress), "before_fit", lambda self: seen.append(self))
    with learn.no_logging(), suppress(AttributeError):  # of the bar that was never made
        fitting.fit(learn, recipe)
    assert seen and "epoch 1/1" not in capsys.readouterr().out


def test_threads_are_those_of_the_recipe_and_put_back(tiny_demo):
    recipe, seen, before = toys.recipe_of(threads=1), set(), torch.get_num_threads()
    split = toys.split_of(tiny_demo, recipe)
    learn = learners.build(split, recipe, "cpu")
    learn.model.register_forward_hook(lambda *parts: seen.add(torch.get_num_threads()))
    with fitting.on_threads(2):
        fitting.fit(learn, recipe)
        fitting.predict(learn.model, split, recipe)
        assert seen == {1} and torch.get_num_threads() == 2
    with pytest.raises(KeyboardInterrupt), fitting.on_threads(2):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("pipeline", ["combined", "regression"])
def test_the_same_recipe_gives_equal_bits_on_one_thread_and_on_two(tiny_demo, pipeline):
    tables_made, before = [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            tables_made.append(fitted(tiny_demo, toys.recipe_of(pipeline, image_size=64)).table)
    finally:
        torch.set_num_threads(before)
    pd.testing.assert_frame_equal(*tables_made, check_exact=True)


def test_the_network_kept_is_that_of_the_last_epoch(tiny_demo):
    changes = {"epochs": 4, "lr": 3e-3, "test_flips": 1, "precision": "float32"}
    recipe = toys.recipe_of("combined", **changes, **toys.STILL)
    training = fitted(tiny_demo, recipe)
    assert list(training.history["epoch"]) == [1, 2, 3, 4]
    assert list(training.history) == ["epoch", "train_loss", "valid_loss", "accuracy"]
    assert training.learn.fitted_as == recipe
    losses_now = []
    for _, row in training.table[training.table["part"] == "valid"].iterrows():
        severity = recipe.classes.index(row["label"]) + 1
        losses_now.append(-np.log(row[f"p_{row['label']}"]) + (severity - row["score"]) ** 2)
    wanted = training.history["valid_loss"].iloc[-1]
    assert np.mean(losses_now) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("schedule", "wanted"), [("one-cycle", 3), ("constant", 1)])
def test_schedules(tiny_demo, schedule, wanted):
    recipe = toys.recipe_of(schedule=schedule)
    rates = fitted(tiny_demo, recipe).learn.recorder.lrs
    assert len(rates) == 4 and max(rates) == pytest.approx(recipe.lr * recipe.head_factor)
    assert (len(set(rates)) >= wanted) and (schedule == "one-cycle") == (len(set(rates)) > 1)


def test_a_loss_that_explodes_stops_with_a_remedy(tiny_demo):
    recipe = toys.recipe_of("regression", lr=1e20, schedule="constant", epochs=2)
    with pytest.raises(FloatingPointError, match=r"herlev regression.*lower the rate"):
        fitted(tiny_demo, recipe)


def test_what_was_looked_at_before_does_not_change_a_training(tiny_demo):
    recipe = toys.recipe_of()
    training = fitted(tiny_demo, recipe)
    learn = learners.build(training.split, recipe, "cpu")
    learn.dls.show_batch()
    list(learn.dls.train)
    learners.build(training.split, replace(recipe, seed=3), "cpu")  # another Learner in between
    with learn.no_bar():
        learn.validate()
        learn.show_results()
    plt.close("all")
    fitting.fit(learn, recipe)
    again = fitting.predict(learn.model, training.split, recipe)
    pd.testing.assert_frame_equal(training.table, again, check_exact=True)
    assert learn.fitted_as == recipe


def touch_by_fit(learn):
    learn.fit(1)


def touch_by_lr_find(learn):
    learn.lr_find(num_it=2, suggest_funcs=(), show_plot=False)


def touch_by_freezing(learn):
    learn.freeze()


@pytest.mark.parametrize("touch", [touch_by_fit, touch_by_lr_find, touch_by_freezing])
@pytest.mark.parametrize("before", [True, False])
def test_a_learner_touched_by_hand_is_not_taken_for_the_recipes(tiny_demo, touch, before):
    recipe = toys.recipe_of("sgd")
    learn = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu")
    with learn.no_bar(), learn.no_logging():
        if before:
            touch(learn)
            fitting.fit(learn, recipe)
        else:
            fitting.fit(learn, recipe)
            assert learn.fitted_as == recipe
            touch(learn)
    by_freezing_after = touch is touch_by_freezing and not before  # weights are the recipe's still
    assert (learn.fitted_as is None) != by_freezing_after


OTHERWISE = {
    "callback": lambda learn: learn.add_cb(MixUp()),
    "loss": lambda learn: setattr(learn, "loss_func", CrossEntropyLossFlat()),
    "optimiser": lambda learn: setattr(learn, "opt_func", Adam),
    "precision": lambda learn: learn.to_bf16(),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_learner_with_another_callback_loss_or_optimiser_is_not_the_recipes(tiny_demo, what):
    recipe = toys.recipe_of("sgd")
    learn = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu")
    OTHERWISE[what](learn)
    fitting.fit(learn, recipe)
    assert learn.fitted_as is None and learn.seconds > 0


def test_bars_that_come_and_go_leave_a_learner_the_recipes(tiny_demo):
    recipe = toys.recipe_of("sgd")
    learn = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu")
    with learn.no_bar():
        fitting.fit(learn, recipe)
    assert learn.fitted_as == recipe


def test_a_second_fit_goes_on_from_the_first_and_is_not_the_recipes(tiny_demo):
    training = fitted(tiny_demo, toys.recipe_of("sgd"))
    fitting.fit(training.learn, toys.recipe_of("sgd"))
    assert training.learn.fitted_as is None


@pytest.mark.parametrize(
    ("pipeline", "architecture"), [("combined", "resnet101"), ("sgd", "resnet50")]
)
def test_the_papers_networks_train_one_step_on_every_parameter(tiny_demo, pipeline, architecture):
    changes = {"batch_size": 22, "schedule": "constant"}
    recipe = toys.recipe_of(pipeline, architecture=architecture, **changes)
    learn = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu")
    before = [parameter.detach().clone() for parameter in learn.model.parameters()]
    fitting.fit(learn, recipe)
    moved = [not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())]
    assert np.mean(moved) > 0.3 and moved[-1]  # zero-initialised branches wait for their batch norm
    assert all(torch.isfinite(parameter).all() for parameter in learn.model.parameters())


# Predictions


@pytest.mark.parametrize("pipeline", ["classification", "regression", "combined", "modern"])
def test_predictions_are_those_of_each_picture_in_order(tiny_demo, pipeline):
    recipe = toys.recipe_of(pipeline, test_flips=1, precision="float32")
    split = toys.split_of(tiny_demo, recipe).sample(frac=1, random_state=0)  # in any order
    model = random_network(recipe.n_outputs, gain=3.0)
    table = tables.check(fitting.predict(model, split, recipe), recipe.task)
    assert list(table.columns) == tables.columns(recipe.task)
    assert table[tables.NAMES].equals(split[tables.NAMES].reset_index(drop=True))
    pictures = images.squares(split["path"], 32)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (recipe.mean, recipe.std))
    with torch.inference_mode():
        output = model.eval()((torch.from_numpy(pictures) / 255 - mean) / std)
    p = table.filter(like="p_").to_numpy(float)
    if pipeline == "regression":
        assert np.isnan(p).all()
    else:
        np.testing.assert_allclose(p, output.softmax(dim=1), atol=1e-4)
    if "score" in table:
        np.testing.assert_allclose(table["score"], losses.score(output), rtol=0, atol=1e-3)
        assert table["score"].std() > 0.01


def answers(model, pictures: torch.Tensor, recipe, number: int) -> np.ndarray:
    return fitting.probabilities(model, pictures.numpy(), recipe, number)


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_views_make_the_answer_the_same_for_the_flipped_or_turned_picture(number):
    recipe, model = toys.recipe_of(precision="float32"), random_network()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    plain = answers(model, x, recipe, number)
    changed = {1: x.flip(3), 2: x.flip(2), 3: x.flip(2, 3), 4: x.transpose(2, 3)}
    least = {1: 2, 2: 4, 3: 4, 4: 8}  # views needed for each
    for kind, picture in changed.items():
        same = np.allclose(answers(model, picture, recipe, number), plain, rtol=0, atol=1e-5)
        assert same == (number >= least[kind])


def test_views_are_the_symmetries_of_a_square_each_once():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    seen = fitting.views(x, 8)
    wanted = [torch.rot90(y, k, (2, 3)) for y in (x, x.flip(3)) for k in range(4)]
    as_set = lambda pictures: {tuple(p.flatten().tolist()) for p in pictures}  # noqa: E731
    assert as_set(seen) == as_set(wanted) and len(as_set(seen)) == 8
    assert torch.equal(fitting.views(x, 1)[0], x)


def test_test_and_validation_images_are_averaged_and_training_images_are_not(tiny_demo):
    recipe = toys.recipe_of("combined", precision="float32", test_flips=4)
    split, model = toys.split_of(tiny_demo, recipe), random_network()
    four = values_of(fitting.predict(model, split, recipe))
    once = values_of(fitting.predict(model, split, replace(recipe, test_flips=1)))
    same = np.isclose(four, once, atol=1e-6).all(axis=1)
    assert (same == (split["part"] == "train")).all()


def test_predictions_do_not_depend_on_the_batches(tiny_demo):
    recipe, model = toys.recipe_of(precision="float32"), random_network()
    x = np.random.default_rng(0).integers(0, 256, (70, 3, 32, 32), dtype=np.uint8)  # 64 + 6
    together = fitting.probabilities(model, x, recipe, 1)
    single = [fitting.probabilities(model, x, recipe, 1, np.array([row]))[0] for row in (0, 63, 69)]
    np.testing.assert_allclose(together[[0, 63, 69]], single, rtol=0, atol=1e-5)
    assert together.shape == (70, 5)


def test_a_prediction_leaves_the_network_as_it_was(tiny_demo):
    recipe = toys.recipe_of(precision="bf16")
    model = networks.network("resnet18", "linear", 5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fitting.predict(model, toys.split_of(tiny_demo, recipe), recipe)
    assert model.training and not torch.is_autocast_enabled("cpu")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_window_is_that_of_the_recipe(tiny_demo, tmp_path):
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[12:28, 12:28] = 255
    Image.fromarray(pixels).save(tmp_path / "middle.png")
    Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / "white.png")
    recipe = toys.recipe_of(precision="float32", test_flips=1, window=16)
    model, split = random_network(), toys.split_of(tiny_demo, recipe)[:2]
    files = [str(tmp_path / name) for name in ("middle.png", "white.png")]
    split = split.assign(path=files, sha256=files)
    seen = values_of(fitting.predict(model, split, recipe))
    np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=1e-6)
    whole = values_of(fitting.predict(model, split, replace(recipe, window=0)))
    assert not np.allclose(whole[0], whole[1], rtol=0, atol=1e-6)
