"""A training that is killed goes on from its last kept epoch, and ends where it would have."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import toys
from fastai.callback.core import Callback
from safetensors import safe_open
from safetensors.torch import save_file

from cervix_utils import paths
from cervix_utils.training import checkpoints, fitting, learners, runs

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 4


class Stop(Callback):
    """Pulls the plug in the middle of an epoch."""

    order = 90

    def __init__(self, epoch: int):
        self.when = epoch

    def after_batch(self):
        if self.training and self.epoch == self.when and self.iter == 0:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def each_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))


def trained(data_root, recipe, file=None, stop=None) -> SimpleNamespace:
    split = toys.split_of(data_root, recipe)
    learn = learners.build(split, recipe, "cpu")
    if stop is not None:
        with pytest.raises(KeyboardInterrupt), learn.added_cbs([Stop(stop)]):
            fitting.fit(learn, recipe, file)
    else:
        fitting.fit(learn, recipe, file)
    return SimpleNamespace(learn=learn, split=split)


@cache
def uninterrupted(data_root, recipe) -> SimpleNamespace:
    """The training that others are compared with; several tests ask for the same one."""
    return trained(data_root, recipe)


def assert_same(one, other):
    states = [side.learn.model.state_dict() for side in (one, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    histories = [fitting.history(side.learn) for side in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


@pytest.mark.parametrize(
    ("pipeline", "changes"),
    [
        ("combined", {}),
        ("classification", {"valid_fraction": 0.0, "optimiser": "sgd"}),
        ("sgd", {}),
    ],
)
@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_ends_like_one_without_interruption(
    tiny_demo, tmp_path, pipeline, changes, stop, capsys
):
    file = tmp_path / "state.safetensors"
    recipe = toys.recipe_of(pipeline, epochs=EPOCHS, **changes)
    whole = uninterrupted(tiny_demo, recipe)
    trained(tiny_demo, recipe, file, stop)
    again = trained(tiny_demo, recipe, file)
    assert f"goes on after epoch {stop}" in capsys.readouterr().out
    assert_same(whole, again)
    assert again.learn.fitted_as == recipe


def test_a_frozen_learner_goes_on_too(tiny_demo, tmp_path):
    recipe, file, ended = toys.recipe_of(epochs=3), tmp_path / "state.safetensors", []
    for stop in (None, 1, None):
        learn = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu")
        learn.freeze()
        kept = file if ended else None
        with suppress(KeyboardInterrupt), learn.added_cbs([] if stop is None else [Stop(stop)]):
            fitting.fit(learn, recipe, kept)
        ended.append(SimpleNamespace(learn=learn))
    assert_same(ended[0], ended[2])


def test_two_interruptions_are_no_worse_than_one(tiny_demo, tmp_path):
    recipe, file = toys.recipe_of(epochs=EPOCHS), tmp_path / "state.safetensors"
    trained(tiny_demo, recipe, file, 1)
    trained(tiny_demo, recipe, file, 2)
    assert_same(uninterrupted(tiny_demo, recipe), trained(tiny_demo, recipe, file))


def test_the_same_learner_goes_on_after_ctrl_c_in_a_notebook(tiny_demo, tmp_path):
    recipe, file = toys.recipe_of(epochs=EPOCHS), tmp_path / "state.safetensors"
    stopped = trained(tiny_demo, recipe, file, 2)
    fitting.fit(stopped.learn, recipe, file)
    assert stopped.learn.fitted_as == recipe
    assert_same(uninterrupted(tiny_demo, recipe), stopped)


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_damaged_state_is_named_and_the_training_begins_anew(tiny_demo, tmp_path, damage, capsys):
    recipe, file = toys.recipe_of(epochs=2), tmp_path / "state.safetensors"
    trained(tiny_demo, recipe, file, 1)
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, file)
    assert_same(uninterrupted(tiny_demo, recipe), trained(tiny_demo, recipe, file))
    assert "state.safetensors is damaged" in capsys.readouterr().out


def test_a_full_disk_costs_no_training(tiny_demo, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    recipe, file = toys.recipe_of(epochs=2), tmp_path / "state.safetensors"
    monkeypatch.setattr(checkpoints, "save_file", full)
    assert_same(uninterrupted(tiny_demo, recipe), trained(tiny_demo, recipe, file))
    assert "could not be kept" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_nothing_is_kept_of_a_short_training_and_the_cost_is_bounded(
    tiny_demo, tmp_path, monkeypatch
):
    recipe, file = toys.recipe_of(epochs=2), tmp_path / "state.safetensors"
    monkeypatch.setattr(checkpoints, "EVERY", 60.0)
    trained(tiny_demo, recipe, file)
    assert not file.exists()
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e-9)  # the first shows what one costs
    trained(tiny_demo, recipe, file)
    with safe_open(file, "pt") as opened:
        assert '"epoch": 1' in opened.metadata()["facts"]


KILLED = """
import sys
from pathlib import Path
import toys, torch
from cervix_utils.training import checkpoints, runs
torch.set_num_threads(1)
checkpoints.EVERY, checkpoints.SHARE = 0.0, float("inf")
recipe = toys.recipe_of(epochs=200)
runs.obtain(toys.split_of(Path(sys.argv[1]), recipe), recipe, Path(sys.argv[2]), "cpu")
"""


def test_a_killed_process_leaves_a_state_and_the_finished_run_removes_it(tiny_demo, tmp_path):
    recipe = toys.recipe_of(epochs=200)
    split = toys.split_of(tiny_demo, recipe)
    file = runs.checkpoint_file(tmp_path, recipe, split)
    environment = os.environ | {"PYTHONPATH": f"{paths.ROOT}:{paths.ROOT / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(tiny_demo), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not file.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and file.is_file()
    assert not runs.folder_of(tmp_path, recipe, split).exists()
    short = toys.recipe_of(epochs=2)  # its own state, nobody else's
    trained(tiny_demo, short, runs.checkpoint_file(tmp_path, short, split), 1)
    run = runs.obtain(split, short, tmp_path, "cpu")
    assert run.folder.is_dir() and not runs.checkpoint_file(tmp_path, short, split).exists()
    assert file.is_file()
