"""The benchmark suite itself: ratios are taken pair by pair, and every side that is asked for exists and runs."""

import inspect
import os
import re
import time

import numpy as np
import pandas as pd
import pytest

from benchmarks import __main__ as suite
from benchmarks import inner, sides
from cervix_utils import config, datasets, recipes, splits


def test_ratios_are_medians_of_pairs_and_not_ratios_of_medians():
    found = suite.row("x", "y", "s", [2.0, 30.0, 4.0], [1.0, 10.0, 8.0])
    assert (found["ours"], found["other"]) == (4.0, 8.0)
    assert (found["ratio"], found["low"], found["high"], found["rounds"]) == (2.0, 0.5, 3.0, 3)


def test_every_side_that_the_suite_asks_for_exists():
    asked = set(re.findall(r'\(?"([a-z]+_[a-z_]+)", (?:both|dict|\[)', inspect.getsource(suite)))
    asked |= set(re.findall(r'run\("([a-z_]+)"', inspect.getsource(suite)))
    assert len(asked) >= 12 and all(callable(getattr(sides, name)) for name in asked)


def test_both_ways_to_find_near_duplicates_find_the_same():
    assert sides.groups_ours(600)["pairs"] == sides.groups_pairs(600)["pairs"] >= 60


def test_the_explained_network_is_not_saturated():
    """Its gradients would be zero, and any two ways to integrate them the same."""
    found = sides.ig_ours(2, 64, steps=4)
    assert found["work"] == 2 and found["delta"] > 1e-5


def test_the_makefile_settings_reach_our_sides():
    assert set(suite.MAKEFILE) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    assert all(int(value) > 0 for value in suite.MAKEFILE.values())


def test_pictures_for_timing_are_smooth_and_full_of_range():
    pixels = sides._pixels(2, 64)
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == np.uint8 and 30 < pixels.std() < 90


def test_the_use_of_a_gpu_is_read_from_nvidia_smi_while_something_runs(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi that goes on until it is stopped, as the real one does."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '90\\n96\\n'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    start = time.perf_counter()
    with sides.gpu_use("cuda") as use:
        time.sleep(0.5)
    assert use == [90, 96] and time.perf_counter() - start < 30
    with sides.gpu_use("cpu") as use:
        pass
    assert use == []


def test_the_suite_for_gpus_says_that_it_was_left_out(monkeypatch, capsys):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    assert suite.gpu(1) == [] and "left out" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["paper", "grouped"])
def test_inner_folds_hold_each_image_once_no_test_image_and_whole_groups_where_grouped(protocol):
    cells = splits.with_groups(datasets.load("demo", "herlev")[0], 8)
    recipe = recipes.herlev(config.validate({}, "defaults") | {"protocol": protocol, "fold": 0}, "combined")
    whole = splits.assign_parts(cells, "herlev", protocol, 0, recipe.n_folds, recipe.valid_fraction, recipe.seed)
    folds = inner.inner_splits(cells, recipe)
    held = pd.concat([fold[fold["part"] == "valid"] for fold in folds])
    assert len(folds) == inner.FOLDS and sorted(held["id"]) == sorted(whole.loc[whole["part"] != "test", "id"])
    for fold in folds:
        train, valid = (set(fold.loc[fold["part"] == part, "group"]) for part in ("train", "valid"))
        assert set(fold["part"]) == {"train", "valid"} and (protocol == "paper" or not train & valid)
