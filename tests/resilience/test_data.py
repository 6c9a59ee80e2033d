"""Trees of files as they come: masks that look like pictures, links, permissions, odd names."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cervix_utils import paths
from cervix_utils.data import datasets, images, squares

HERLEV = datasets.get("herlev")
CLASSES = HERLEV.originals


def read(root: Path, task: str = "herlev") -> tuple[pd.DataFrame, dict[str, str]]:
    """Table by id, and reasons by file."""
    table, left = datasets.read(root, datasets.get(task))
    assert left["file"].is_unique and not set(left["file"]) & set(table["path"])
    return table.set_index("id"), dict(zip(left["file"], left["reason"]))


@pytest.fixture
def cells(place, write_image):
    """One cell of each class, without masks."""
    for k, name in enumerate(CLASSES):
        write_image(place / "herlev" / name / f"{k}.BMP", k)
    return place / "herlev"


# Masks


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/{}.BMP", "Masks/{}/{}.bmp"),
        ("{}/{}.BMP", "annotations/{}/{}.bmp"),
        ("{}/{}.BMP", "{}/{}_mask.bmp"),
        ("{}/{}.BMP", "{}/{}_seg.png"),
        ("{}/{}.bmp", "Ground truth/{}/{}.png"),
        ("NORMALES/{}/{}.BMP", "REFERENCIA/{}/{}.bmp"),
        ("new/{}/{}.BMP", "a name of no meaning/{}/{}.png"),  # by its content
    ],
)
def test_masks_are_never_cells(tmp_path, write_image, write_mask, image, mask):
    for k, name in enumerate(CLASSES):
        write_image(tmp_path / image.format(name, k), k, (20, 14), form="BMP")
        write_mask(tmp_path / mask.format(name, k), (20, 14))
    table, reasons = read(tmp_path)
    assert list(table["original"]) == sorted(CLASSES) and reasons == {}
    assert {Path(path).suffix.lower() for path in table["path"]} == {Path(image).suffix.lower()}
    assert all(Path(file).is_file() for file in table["mask"])
    assert all(images.has_codes(Path(file)) for file in table["mask"])


def test_a_dark_cell_of_a_palette_is_a_cell_and_a_mask_without_nucleus_is_listed(
    tmp_path, write_image, write_mask
):
    for k, name in enumerate(CLASSES):
        write_image(tmp_path / name / f"{k}.BMP", k)
    rng = np.random.default_rng(0)
    cell = Image.fromarray(rng.integers(0, 200, (9, 12), dtype=np.uint8), "P")
    cell.putpalette(bytes(range(256)) * 3)
    cell.save(tmp_path / CLASSES[0] / "palette.png")
    write_mask(tmp_path / CLASSES[0] / "0-d.bmp", indices=np.full((9, 12), 3))
    table, reasons = read(tmp_path)
    assert f"{CLASSES[0]}/palette" in table.index
    assert reasons == {f"{CLASSES[0]}/0-d.bmp": "mask has no nucleus (code 2)"}


# Links, permissions, kinds of files


def test_linked_class_folders_are_read_and_loops_are_listed(cells):
    elsewhere = cells.parent / "elsewhere"
    shutil.move(cells / CLASSES[0], elsewhere)
    (cells / CLASSES[0]).symlink_to(elsewhere)
    (cells / CLASSES[1] / "loop").symlink_to(cells)
    (cells / CLASSES[1] / "up").symlink_to(cells.parent.parent)
    (cells / "again").symlink_to(cells / CLASSES[2])
    (cells / "itself").symlink_to(cells / "itself")
    table, reasons = read(cells)
    assert list(table["original"]) == sorted(CLASSES)
    assert set(reasons) == {f"{CLASSES[1]}/loop", f"{CLASSES[1]}/up", "again", "itself"}
    assert "holds this" in reasons["again"] and "cannot be read" in reasons["itself"]
    datasets.load(str(cells.parent), "herlev")


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_cannot_be_read_is_listed(cells, somebody, write_image, mode):
    write_image(cells / "more" / CLASSES[0] / "9.BMP", 9)
    (cells / "more" / CLASSES[0]).chmod(mode)
    with somebody():
        table, reasons = read(cells)
        datasets.state(str(cells.parent), "herlev")
    assert sorted(table["original"]) == sorted(CLASSES)
    (name, reason), *more = reasons.items()
    assert not more and name.startswith(f"more/{CLASSES[0]}") and "cannot be read" in reason


def test_files_that_are_none_are_listed(cells, somebody):
    folder = cells / CLASSES[0]
    os.mkfifo(folder / "pipe.BMP")
    (folder / "gone.BMP").symlink_to(folder / "nowhere.BMP")
    shutil.copy(folder / "0.BMP", folder / "secret.BMP")
    (folder / "secret.BMP").chmod(0)
    with somebody():
        table, reasons = read(cells)
    assert len(table) == 7
    assert {Path(name).name for name in reasons} == {"pipe.BMP", "gone.BMP", "secret.BMP"}
    assert all("cannot be read" in reason for reason in reasons.values())


def test_a_data_root_that_cannot_be_read_is_named(place, somebody):
    (place / "private").mkdir(mode=0o700)
    with somebody():
        for root in (place / "private", place / "private" / "below"):
            words = f"{root}.*cannot be read.*Permission denied"
            with pytest.raises(datasets.DataError, match=words):
                datasets.find(str(root), "herlev")
    with pytest.raises(datasets.DataError, match=r"cannot be read.*too long"):
        datasets.find("/" + "a" * 5000, "herlev")


def test_a_name_that_is_not_utf8_is_named_and_stops_nothing(cells):
    bad = os.fsencode(cells / CLASSES[0]) + b"/caf\xe9.BMP"
    shutil.copy(cells / CLASSES[0] / "0.BMP", bad)
    table, left = datasets.load(str(cells.parent), "herlev")
    assert len(table) == 7
    assert left["file"].to_list() == [rf"{CLASSES[0]}/caf\xe9.BMP"]
    assert "not UTF-8" in left["reason"][0]


def test_of_two_folders_of_one_data_set_none_is_dropped_in_silence(cells):
    (cells.parent / "Herlev").mkdir()
    with pytest.raises(datasets.DataError, match=r"holds two folders.*Herlev, herlev"):
        datasets.find(str(cells.parent), "herlev")


@pytest.mark.parametrize("suffix", [".avif", ".dds", ".BMP"])
@pytest.mark.parametrize("form", ["AVIF", "DDS"])
def test_a_damaged_avif_or_dds_is_listed(cells, form, suffix):
    good = cells.parent / "good"
    Image.new("RGB", (32, 32), (9, 99, 200)).save(good, form)
    content = good.read_bytes()
    (cells / CLASSES[0] / f"bad{suffix}").write_bytes(content[: len(content) // 2])
    assert read(cells)[1] == {f"{CLASSES[0]}/bad{suffix}": "not an image"}


def test_whatever_a_decoder_raises_is_a_reason(cells, monkeypatch):
    def fails(*_arguments):
        raise RuntimeError("codec")

    monkeypatch.setattr(images, "open_image", fails)
    assert images.inspect(cells / CLASSES[0] / "0.BMP") == {
        "reason": "truncated, damaged or too large (codec)"
    }


def test_equal_pixels_in_two_classes_are_called_a_contradiction(cells):
    shutil.copy(cells / CLASSES[0] / "0.BMP", cells / CLASSES[0] / "twin.BMP")
    shutil.copy(cells / CLASSES[0] / "0.BMP", cells / CLASSES[5] / "other.BMP")
    reasons = read(cells)[1]
    assert "class" not in reasons[f"{CLASSES[0]}/twin.BMP"]
    assert "of another class: one is wrong" in reasons[f"{CLASSES[5]}/other.BMP"]


FORMULAS = ["=cmd|'|' /C calc'!A0", "+1+2-3-4", "-1-2-3", "@SUM(A1)-2-3", "\t=1-2-3"]


@pytest.mark.parametrize("stem", FORMULAS)
def test_no_text_of_a_table_is_a_formula(cells, write_image, stem):
    stem = f"{stem.replace('/', '∕')}-1-2"
    write_image(cells / CLASSES[0] / f"{stem}.BMP", 9)
    table, _ = read(cells)
    for column in ("name_group", "label", "source"):
        assert not table[column].str.match(r"[=+\-@\t\r]").any()
    name, plain = table.loc[f"{CLASSES[0]}/{stem}", "name_group"], re.match(HERLEV.group, stem)[1]
    assert name == (f"'{plain}" if plain else "")


# Memory


@pytest.mark.parametrize("limit", [10**6, 1000])
@pytest.mark.parametrize("step", ["table", "squares"])
def test_of_large_pictures_one_is_in_memory_at_a_time(
    tmp_path, monkeypatch, write_image, step, limit
):
    files = [write_image(tmp_path / "train/Type_1" / f"{k}.png", k, (40, 30)) for k in range(6)]
    inside, most, opened = [], [], images.open_image

    def slow(*arguments):
        inside.append(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return opened(*arguments)

    monkeypatch.setattr(images, "open_image", slow)
    monkeypatch.setattr(images, "LARGE", limit)
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    if step == "table":
        assert len(read(tmp_path, "colposcopy")[0]) == 6
    else:
        squares.open_squares(pd.DataFrame({"path": files, "sha256": map(str, range(6))}), 16)
    assert len(most) == 6 and (max(most) == 1) == (limit == 1000)


PEAK = """
import re, sys; from pathlib import Path; from cervix_utils.data import images
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1000
before, files = peak(), [Path(sys.argv[1])] * 4
images.each(lambda k: images.inspect(files[k]), files); print(peak() - before)
"""


@pytest.mark.resilience
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_four_pictures_of_169_megapixels_take_less_than_a_gigabyte(tmp_path):
    Image.new("RGB", (13000, 13000), (90, 80, 70)).save(tmp_path / "x.jpg")
    command = [sys.executable, "-W", "ignore", "-c", PEAK, str(tmp_path / "x.jpg")]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    megabytes = int(subprocess.check_output(command, env=environment, text=True))
    print(f"four pictures of 169 megapixels: {megabytes} MB")
    assert 300 < megabytes < 1000


# The cache


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(cells, place, somebody):
    (place / "theirs").mkdir(mode=0o755)
    with somebody(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CERVIX_CACHE", str(place / "theirs"))
        words = f"{place}/theirs/table-.* could not be made .*Permission.*set CERVIX_CACHE"
        with pytest.raises(paths.CacheError, match=words):
            datasets.load(str(cells.parent), "herlev")


def test_a_cache_of_two_users_serves_both(cells, place, somebody, monkeypatch):
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("CERVIX_CACHE", str(shared))
    with somebody(1001):
        first, _ = datasets.load(str(cells.parent), "herlev")
        squares.open_squares(first, 16)
    with somebody(1002):
        again, _ = datasets.load(str(cells.parent), "herlev")
        squares.open_squares(again, 16)
        squares.open_squares(again, 17)
    pd.testing.assert_frame_equal(first, again)
    for lock in shared.glob("*.lock"):
        assert lock.stat().st_mode & 0o666 == 0o666


def test_what_a_killed_process_left_does_not_stand_in_the_way(cells, monkeypatch, tmp_path):
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path))
    first, _ = datasets.load(str(cells.parent), "herlev")
    (kept,) = tmp_path.glob("table-*/")
    kept.rename(tmp_path / f".{'0a' * 16}.{kept.name}")
    (tmp_path / f"{kept.name}.1234").mkdir()  # an older version's
    again, _ = datasets.load(str(cells.parent), "herlev")
    pd.testing.assert_frame_equal(first, again)
