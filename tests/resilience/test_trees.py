"""200 broken trees: every file is used or listed, or one clear message; no hang, bounded memory."""

import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trees

from cervix_utils import paths
from cervix_utils.data import datasets, images, splits, squares

SEED = int(os.environ.get("SEED", 0))
QUICK, ALL = range(SEED, SEED + 24), range(SEED + 24, SEED + 224)
MEMORY = 700  # megabytes that a tree may add to the peak
SECONDS = 60
CLEAR = (datasets.DataError, splits.SplitError, paths.CacheError)


def entries(folder: Path) -> set[str]:
    """Every entry below a folder that is no folder itself; links to folders are not entered."""
    found = set()
    for entry in os.scandir(folder) if os.access(folder, os.R_OK | os.X_OK) else []:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            found |= entries(path)
        else:
            found.add(str(path))
    return found


def accounted(root: Path, table: pd.DataFrame, left: pd.DataFrame) -> None:
    """Each entry is a picture, a mask or listed with a reason, itself or a folder above it."""
    used = {*table["path"], *table.loc[table["mask"] != "", "mask"]}
    listed = {os.path.normpath(os.fsencode(root / file)) for file in left["file"]}
    readable = {datasets._readable(Path(os.fsdecode(file))) for file in listed}
    for entry in entries(root) - used:
        above = {datasets._readable(path) for path in (Path(entry), *Path(entry).parents)}
        linked = Path(entry).is_symlink() and Path(entry).is_dir()
        assert above & readable or linked, entry
    assert left["file"].is_unique and (left["reason"].str.len() > 5).all()
    assert not used & {str(root / file) for file in left["file"]}


def use(root: Path, task: str) -> int:
    """What notebooks 1 to 3 do with a data set before they train; the number of pictures."""
    table, left = datasets.load(str(root), task)
    again = datasets.load(str(root), task)
    pd.testing.assert_frame_equal(table, again[0])
    folder = datasets.find(str(root), task)
    accounted(folder, table, left)
    masked = table.loc[table["mask"] != ""]
    assert not {*masked["mask"]} & {*table["path"]}
    assert not any(images.has_codes(Path(file)) for file in table["path"] if task == "herlev")
    pixels = squares.open_squares(table, 16)
    assert pixels[np.arange(len(table))].shape == (len(table), 3, 16, 16)
    if len(masked):
        assert (images.square_masks(masked["mask"], 16) == images.NUCLEUS).any()
    grouped = splits.with_groups(table, 8)
    for column in ("id", "group", "name_group"):
        assert not grouped[column].str.match(r"[=+\-@\t\r]").any()
    for protocol in ("paper", "grouped"):
        splits.assign_parts(grouped, task, protocol, 0)
    return len(table)


def alarmed(*_):
    raise TimeoutError("the tree hangs")


@pytest.fixture
def limits():
    """TimeoutError after a minute; what the block added to the peak of memory is bounded."""
    before = signal.signal(signal.SIGALRM, alarmed)
    signal.alarm(SECONDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1000
    assert added / (1000 if sys.platform == "darwin" else 1) < MEMORY


def check(seed: int, place: Path, somebody) -> None:
    root, task, done = trees.spoilt(place, seed)
    start, outcome = time.monotonic(), ""
    with somebody(), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, for pictures above 89 megapixels
        patch.setenv("CERVIX_CACHE", str(place / "cache"))
        try:
            outcome = f"{use(root, task)} pictures"
        except CLEAR as error:
            outcome = f"{type(error).__name__}: {error}"
            assert 20 < len(outcome) < 1500 and "Errno" not in outcome
    print(f"tree {seed} {task} {'+'.join(done)}: {outcome} {time.monotonic() - start:.1f} s")


@pytest.mark.parametrize("seed", QUICK)
def test_a_broken_tree_is_used_or_explained(seed, place, somebody, limits):
    check(seed, place, somebody)


@pytest.mark.resilience
@pytest.mark.parametrize("seed", ALL)
def test_two_hundred_more(seed, place, somebody, limits):
    check(seed, place, somebody)
