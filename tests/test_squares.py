"""The cache of decoded pictures: right, whole, shared."""

import shutil
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from cervix_utils import paths
from cervix_utils.data import images, squares


@pytest.fixture
def table(tmp_path, monkeypatch, write_image) -> pd.DataFrame:
    """Seven pictures of several shapes; the cache is a folder of this test."""
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    shapes = [(12, 9), (9, 12), (30, 30), (7, 40), (16, 16), (5, 5), (64, 20)]
    files = [write_image(tmp_path / f"{k}.png", k, shape) for k, shape in enumerate(shapes)]
    sums = [images.inspect(file)["sha256"] for file in files]
    return pd.DataFrame({"path": map(str, files), "sha256": sums})


def folders(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")


def test_the_cache_holds_what_decoding_gives(table):
    kept = squares.open_squares(table, 16)
    assert len(kept) == 7
    np.testing.assert_array_equal(kept[np.arange(7)], images.squares(table["path"], 16))
    some = table["path"].iloc[[5, 0]]
    np.testing.assert_array_equal(kept[[5, 0]], images.squares(some, 16))
    batch = torch.from_numpy(kept[np.arange(7)])
    assert batch.shape == (7, 3, 16, 16)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_second_opening_decodes_nothing_and_says_nothing(table, capsys):
    first = squares.open_squares(table, 16)[np.arange(7)]
    said = capsys.readouterr().out  # names no folder of this machine
    assert said == "decoding 7 pictures to 16 x 16: 0 MB in cache\n"
    for file in table["path"]:
        open(file, "w").close()  # noqa: PTH123 (the originals are gone)
    np.testing.assert_array_equal(squares.open_squares(table, 16)[np.arange(7)], first)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", ["size", "window", "content", "order", "pillow", "version"])
def test_another_size_content_order_or_version_is_another_folder(
    table, tmp_path, monkeypatch, change
):
    squares.open_squares(table, 16)
    other, size, window = table, 16, 0
    if change == "size":
        size = 17
    elif change == "window":
        window = 16
    elif change == "content":
        other = table.assign(sha256=["new", *table["sha256"][1:]])
    elif change == "order":
        other = table.iloc[::-1]
    else:
        name = "pillow" if change == "pillow" else "SQUARES_VERSION"
        monkeypatch.setattr(squares, name, "0.0")
    squares.open_squares(other, size, window)
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["half", "no file", "text"])
def test_a_folder_that_is_not_whole_is_named_with_the_remedy(table, damage, tmp_path):
    squares.open_squares(table, 16)
    (folder,) = (tmp_path / "cache").glob("squares-*/")
    pixels = folder / "pixels.npy"
    if damage == "half":
        data = pixels.read_bytes()
        pixels.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        pixels.write_text("?")
    else:
        pixels.unlink()
    with pytest.raises(paths.CacheError, match=f"{folder.name} is damaged.*delete"):
        squares.open_squares(table, 16)
    shutil.rmtree(folder)
    again = squares.open_squares(table, 16)[np.arange(7)]
    np.testing.assert_array_equal(again, images.squares(table["path"], 16))


def open_and_read(table: pd.DataFrame) -> np.ndarray:
    return squares.open_squares(table, 24)[np.arange(len(table))]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_of_several_at_once_one_writes_and_all_read_the_same(table, tmp_path, pool):
    with pool(4) as executor:
        results = list(executor.map(open_and_read, [table] * 8))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert len(folders(tmp_path)) == 1


def test_a_full_disk_is_said_before_anything_is_written(table, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(paths.CacheError, match=r"has 0.0 GB free.*CERVIX_CACHE"):
        squares.open_squares(table, 16)
    assert folders(tmp_path) == []


def test_a_file_that_vanished_leaves_no_half_made_folder(table, tmp_path):
    (tmp_path / "3.png").unlink()
    with pytest.raises(paths.CacheError, match=r"3\.png"):
        squares.open_squares(table, 16)
    assert folders(tmp_path) == []
