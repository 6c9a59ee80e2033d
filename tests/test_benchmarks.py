"""The benchmark suite: ratios are taken pair by pair, and every side that is asked for exists and
runs."""

import inspect
import os
import subprocess
import time

import numpy as np
import pandas as pd
import pytest

from benchmarks import __main__ as suite
from benchmarks import sides
from cervix_utils.data import datasets

ANSWER = {"seconds": 2.0, "work": 4, "tflops": 0.3, "precision": "bf16", "busy": 90, "second": 1.0}
ANSWER |= {"delta": 0.1, "largest": 0.2, "steps": 16, "peak_mb": 100.0, "data_mb": 10.0}
ANSWER["numbers"] = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A suite that runs nothing: every side gets ANSWER, and is listed here with its arguments."""
    calls = []

    def answer(side, **arguments):
        calls.append((side, arguments))
        if arguments.get("keep"):
            np.save(arguments["keep"], np.ones(3))
        return ANSWER

    monkeypatch.setattr(suite, "run", answer)
    for name in ("SCRATCH", "RESULTS"):
        monkeypatch.setattr(suite, name, tmp_path)
    for name in ("many_photographs", "large_photographs", "machine_name"):
        monkeypatch.setattr(suite, name, lambda: "some")
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: True)
    for name in ("CERVIX_RUN", "CERVIX_DATA"):
        monkeypatch.setenv(name, "folder")
    return calls


def test_ratios_are_medians_of_pairs_and_not_ratios_of_medians():
    row = suite.row("x", "y", "s", [2.0, 30.0, 4.0], [1.0, 10.0, 8.0])
    assert (row["ours"], row["other"]) == (4.0, 8.0)
    assert (row["ratio"], row["low"], row["high"], row["rounds"]) == (2.0, 0.5, 3.0, 3)


def test_rates_are_ours_over_the_others():
    fast, slow = {"seconds": 1.0, "work": 8}, {"seconds": 4.0, "work": 8}
    row = suite.rate_row("x", "y", "img/s", {"ours": [fast], "other": [slow]})
    assert (row["ours"], row["other"], row["ratio"]) == (8.0, 2.0, 4.0)


@pytest.mark.parametrize("name", [name for name in suite.SUITE if name not in ("imports", "demo")])
def test_every_side_that_is_asked_for_exists_and_takes_the_arguments(asked, name):
    rows = suite.SUITE[name](2)
    assert asked
    for side, arguments in asked:
        inspect.signature(getattr(sides, side)).bind(**arguments)
    for row in rows:
        assert set(suite.SHOWN) < set(row) and row["ratio"] == 1.0


def test_rows_of_a_comparison_replace_its_old_ones_and_leave_the_others(asked, tmp_path):
    suite.main(["predict", "groups"], 1)
    first = pd.read_csv(tmp_path / "some.csv")
    suite.main(["predict"], 3)
    table = pd.read_csv(tmp_path / "some.csv")
    assert list(first["suite"]) == list(table["suite"]) == ["groups", "predict"]
    assert list(table["rounds"]) == [1, 3] and (tmp_path / "some.svg").stat().st_size > 1000


def test_results_of_the_repository_can_be_read_and_name_suites_that_exist():
    files = list((suite.Path(suite.__file__).parent / "results").glob("*-cores.csv"))
    for table in map(suite.read, files):
        assert set(table["suite"]) <= set(suite.SUITE)
    assert len(files) >= 2


def test_a_side_that_fails_stops_the_suite_with_its_message(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback ...\nKeyError: 'nothing'")
    monkeypatch.setattr(suite.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SystemExit, match=r"side nothing \{'n': 1\} failed[^$]*KeyError: 'nothing'"):
        suite.run("nothing", n=1)


def test_the_makefile_settings_reach_our_sides_alone():
    names = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    given = set(names - set(os.environ))  # make test exports them to everything
    for side in ("train_ours", "train_bare", "memory_of_training"):
        values = suite.environment(side)
        assert all(int(values[name]) > 0 for name in names)
    for side in ("train_stock", "ig_captum", "predict_plain", "groups_pairs"):
        assert not given & set(suite.environment(side))


def test_the_suite_for_gpus_says_that_it_was_left_out(monkeypatch, capsys):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    assert suite.gpu(1) == [] and "left out" in capsys.readouterr().out


def test_both_ways_to_find_near_duplicates_find_the_same():
    assert sides.groups_ours(600)["pairs"] == sides.groups_pairs(600)["pairs"] >= 60


def test_the_explained_network_is_not_saturated_and_captum_gets_the_same_one(one_thread):
    """Its gradients would be zero, and any two ways to integrate them the same."""
    ours, captum = sides.ig_ours(2, 32, steps=4), sides.ig_captum(2, 32, steps=4)
    assert ours["work"] == captum["work"] == 2 and 1e-5 < ours["delta"] < 1
    assert 1e-5 < captum["delta"] < 1 and ours["steps"] == captum["steps"] == 4


def test_pictures_for_timing_are_smooth_and_full_of_range():
    pixels = sides.smooth_pictures(2, 64)
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == np.uint8 and 30 < pixels.std() < 90


def test_photographs_are_read_split_and_trained_on(write_image, tmp_path):
    for k in range(6):
        write_image(tmp_path / f"train/Type_{1 + k % 3}/{k}.jpg", k, (64, 48))
    read = sides.read_folder(str(tmp_path), 1)
    split = sides.photographs(str(tmp_path), 5)
    assert read["work"] == 6 and list(split["part"]) == ["train"] * 3 + ["valid"] * 2
    assert split["path"].is_unique and not set(split["sha256"]) & set(
        sides.photographs(str(tmp_path))["sha256"]
    )
    fit = sides.memory_of_training(str(tmp_path), 6, 32)
    assert fit["work"] == 6 and fit["peak_mb"] > 10 and fit["seconds"] > 0
    epochs = sides.epoch_ours(str(tmp_path), 32, False)
    assert epochs["work"] == 6 and epochs["second"] > 0


def test_photographs_are_drawn_once(monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "SCRATCH", tmp_path)
    files = suite.drawn()
    assert len(files) > 5 and files == suite.drawn()
    times = [file.stat().st_mtime_ns for file in files]
    assert times == [file.stat().st_mtime_ns for file in suite.drawn()]


def test_classes_are_dealt_out_in_turn_for_the_cost_of_classes(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "colposcopy", datasets.get("colposcopy"))
    split = pd.DataFrame({"label": ["Type_1"] * 5})
    labels = sides.of_many_classes(split, "colposcopy", 3)["label"]
    assert list(labels) == ["class 0", "class 1", "class 2", "class 0", "class 1"]
    assert datasets.get("colposcopy").classes == ("class 0", "class 1", "class 2")


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


def test_what_a_way_takes_away_is_really_not_taken():
    shipped = sides.images.open_image, sides.networks.fold_batch_norms
    for way, changed in (("JPEG decoded whole", 0), ("norms not folded", 1)):
        with sides.taken_away(way):
            now = sides.images.open_image, sides.networks.fold_batch_norms
        assert now[changed] is not shipped[changed] and now[1 - changed] is shipped[1 - changed]
    with sides.taken_away("as shipped"):
        assert (sides.images.open_image, sides.networks.fold_batch_norms) == shipped
