"""The cache of decoded pictures: right, whole, shared, checked."""

import shutil
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cervix_utils import decoded, images


@pytest.fixture
def table(tmp_path, monkeypatch, write_image) -> pd.DataFrame:
    """Seven pictures of several shapes; the cache is a folder of this test."""
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    shapes = [(12, 9), (9, 12), (30, 30), (7, 40), (16, 16), (5, 5), (64, 20)]
    files = [write_image(tmp_path / f"{k}.png", k, shape) for k, shape in enumerate(shapes)]
    return pd.DataFrame({"path": map(str, files), "sha256": [images.inspect(file)["sha256"] for file in files]})


def folders(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")


def test_the_cache_holds_what_decoding_gives(table):
    kept = decoded.open_squares(table, 16)
    np.testing.assert_array_equal(kept[np.arange(7)], images.squares(table["path"], 16))
    np.testing.assert_array_equal(kept[np.array([5, 0])], images.squares(table["path"].iloc[[5, 0]], 16))
    batch = torch.from_numpy(kept[np.arange(7)])
    assert batch.shape == (7, 3, 16, 16) and batch.is_contiguous(memory_format=torch.channels_last)


def test_a_second_opening_decodes_nothing_and_says_nothing(table, capsys):
    first = decoded.open_squares(table, 16)[np.arange(7)]
    assert capsys.readouterr().out == "decoding 7 pictures to 16 x 16: 0 MB in cache\n"  # no folder of this machine
    for file in table["path"]:
        open(file, "w").close()  # noqa: PTH123 (the originals are gone)
    np.testing.assert_array_equal(decoded.open_squares(table, 16)[np.arange(7)], first)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", ["size", "content", "order", "code"])
def test_another_size_content_order_or_code_is_another_folder(table, tmp_path, monkeypatch, change):
    decoded.open_squares(table, 16)
    other, size = table, 16
    if change == "size":
        size = 17
    elif change == "content":
        other = table.assign(sha256=["new", *table["sha256"][1:]])
    elif change == "order":
        other = table.iloc[::-1]
    else:
        monkeypatch.setattr(decoded, "pillow", "0.0")
    decoded.open_squares(other, size)
    assert len(folders(tmp_path)) == 2


def test_a_changed_byte_is_noticed_when_the_picture_is_read(table):
    kept = decoded.open_squares(table, 16)
    pixels = np.load(kept.folder / "pixels.npy", mmap_mode="r+")
    pixels[3, 4, 5, 1] ^= 1
    pixels.flush()
    kept = decoded.open_squares(table, 16)
    assert len(kept[np.array([0, 1, 2, 4, 5, 6])]) == 6
    with pytest.raises(decoded.CacheError, match=rf"{kept.folder.name} is damaged \(picture 3\): delete that folder"):
        kept[np.arange(7)]


@pytest.mark.parametrize("damage", ["half", "no sums", "other shape", "empty folder"])
def test_a_folder_that_is_not_whole_is_made_again(table, damage):
    kept = decoded.open_squares(table, 16)
    expected, pixels = kept[np.arange(7)].copy(), kept.folder / "pixels.npy"
    if damage == "half":
        data = pixels.read_bytes()
        pixels.write_bytes(data[: len(data) // 2])
    elif damage == "no sums":
        (kept.folder / "sums.npy").unlink()
    elif damage == "other shape":
        np.save(pixels, np.zeros((6, 16, 16, 3), np.uint8))
    else:
        shutil.rmtree(kept.folder)
        kept.folder.mkdir()
    np.testing.assert_array_equal(decoded.open_squares(table, 16)[np.arange(7)], expected)


def open_and_read(table: pd.DataFrame) -> np.ndarray:
    return decoded.open_squares(table, 24)[np.arange(len(table))]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_of_several_at_once_one_writes_and_all_read_the_same(table, tmp_path, pool):
    with pool(4) as executor:
        found = list(executor.map(open_and_read, [table] * 8))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert len(folders(tmp_path)) == 1


def test_a_full_disk_is_said_before_anything_is_written(table, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(decoded.CacheError, match=r"has 0.0 GB free.*CERVIX_CACHE"):
        decoded.open_squares(table, 16)
    assert folders(tmp_path) == []


def test_a_file_that_vanished_leaves_no_half_made_folder(table, tmp_path):
    (tmp_path / "3.png").unlink()
    with pytest.raises(decoded.CacheError, match=r"3\.png"):
        decoded.open_squares(table, 16)
    assert folders(tmp_path) == []


@pytest.mark.parametrize(("shape", "size", "smaller"), [((1600, 1200), 64, (200, 150)), ((900, 1200), 200, (450, 600))])
def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path, shape, size, smaller):
    y, x = np.mgrid[: shape[1], : shape[0]] / 150
    pixels = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(x * y / 4)], axis=-1)
    Image.fromarray((127 + 100 * pixels).astype(np.uint8)).save(tmp_path / "x.jpg", quality=92)
    assert images.open_image(tmp_path / "x.jpg", size).size == smaller
    assert images.open_image(tmp_path / "x.jpg").size == shape
    whole = images.ImageOps.pad(images.open_image(tmp_path / "x.jpg"), (size, size), 2, (0, 0, 0))
    inside = np.s_[size // 6 : -size // 6, size // 6 : -size // 6]  # without the padding
    difference = np.asarray(whole)[inside].astype(int) - images.square(tmp_path / "x.jpg", size)[inside]
    assert np.abs(difference).mean() < 1.5
