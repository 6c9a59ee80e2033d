"""Readers and pictures: every layout reads the same, nothing is dropped in silence, nothing is squashed."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cervix_utils import datasets, images

CELLS = list(datasets.SEVERITY)
NAMES = {name: f"10-{k}-00{k}" for k, name in enumerate(CELLS)}
FRENCH = "normal_superficiel"


def everything_accounted_for(root: Path, table: pd.DataFrame, exclusions: pd.DataFrame) -> None:
    """Each file is an image, a mask or excluded with a reason: exactly one of the three."""
    used = [*table["path"], *table.loc[table["mask"] != "", "mask"], *(str(root / f) for f in exclusions["file"])]
    assert sorted(used) == sorted(str(file) for file in root.rglob("*") if file.is_file())
    assert (exclusions["reason"].str.len() > 5).all()


def read(root: Path, task: str = "herlev") -> tuple[pd.DataFrame, dict[str, str]]:
    """Table by id, and reasons by file; every call checks that nothing was dropped."""
    table, exclusions = (datasets.read_herlev if task == "herlev" else datasets.read_colposcopy)(root)
    everything_accounted_for(root, table, exclusions)
    assert table["id"].is_monotonic_increasing and table["id"].is_unique
    return table.set_index("id"), dict(zip(exclusions["file"], exclusions["reason"]))


@pytest.fixture
def herlev(tmp_path, write_image, write_mask):
    """Function that writes one cell a class in a layout: folder pattern, image suffix, mask folder and suffix."""

    def write(folder="{}", suffix=".BMP", form="BMP", masks="{}", mask_suffix="-d.bmp") -> Path:
        for number, (name, stem) in enumerate(NAMES.items()):
            write_image(tmp_path / folder.format(name, number) / f"{stem}{suffix}", number, form=form)
            if masks is not None:
                write_mask(tmp_path / masks.format(name, number) / f"{stem}{mask_suffix}")
        return tmp_path

    return write


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"folder": "New database pictures/{}", "masks": "New database pictures/{}"},
        {"folder": "{1}_{0}", "masks": "{1}_{0}"},
        {"folder": "{1}. {0}", "masks": None},
        {"suffix": ".bmp", "mask_suffix": "-D.BMP"},
        {"suffix": ".jpg", "form": "BMP", "mask_suffix": "-d.jpg"},
        {"suffix": ".png", "form": "PNG"},
        {"folder": "images/{}", "masks": "masks/{}"},
        {"folder": "images/{}", "masks": "masks"},
        {"masks": None},
    ],
    ids=lambda layout: str(sorted(layout.items())) if layout else "as the archive unpacks",
)
def test_every_layout_of_herlev_reads_the_same(herlev, layout):
    table, reasons = read(herlev(**layout))
    assert reasons == {}
    assert list(table.index) == sorted(f"{name}/{stem}" for name, stem in NAMES.items())
    by_class = table.set_index("original")
    assert by_class["severity"].to_dict() == datasets.SEVERITY
    assert [by_class.loc[name, "label"] for name in CELLS] == ["normal"] * 3 + datasets.HERLEV_CLASSES[1:]
    assert set(table["name_group"]) == {"10"}
    assert (table["width"] == 12).all() and (table["height"] == 9).all()
    assert table["sha256"].is_unique
    masked = [Path(mask).stem[:-2] == Path(path).stem for path, mask in zip(table["path"], table["mask"])]
    assert all(masked) if layout.get("masks", "") is not None else (table["mask"] == "").all()


@pytest.mark.parametrize(
    "folder", ["normal_superficial", "Normal Superficiel", "1_NORMAL-SUPERFICIEL", " 01. normal_superficiel "]
)
def test_spellings_of_a_class(folder):
    assert datasets.herlev_class(folder) == FRENCH


@pytest.mark.parametrize("folder", ["normal", "abnormal_superficiel", "normal_superficiel_old", ""])
def test_what_is_no_class_of_herlev(folder):
    assert datasets.herlev_class(folder) is None


def test_system_files_are_excluded_and_named(herlev):
    root = herlev()
    for place in (f"{FRENCH}/Thumbs.db", f"{FRENCH}/._10-0-000.BMP", f"__MACOSX/{FRENCH}/10-0-000.BMP", ".DS_Store"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"x")
    table, reasons = read(root)
    assert len(table) == 7
    assert set(reasons.values()) == {"system file, not an image"} and len(reasons) == 4


def test_two_slides_are_two_name_groups_and_free_names_say_nothing(herlev, write_image):
    root = herlev()
    for seed, stem in ((90, "11-0-000"), (91, "cell"), (92, "11-5")):
        write_image(root / FRENCH / f"{stem}.BMP", seed)
    table, _ = read(root)
    names = table.loc[table["original"] == FRENCH, "name_group"]
    assert names.to_dict() == {
        f"{FRENCH}/10-0-000": "10",
        f"{FRENCH}/11-0-000": "11",
        f"{FRENCH}/11-5": "",
        f"{FRENCH}/cell": "",
    }


PATTERNS = {
    "train": ["train/Type_{}", "train/train/Type_{}", "Train/type_{}"],
    "additional": [
        "additional_Type_{0}_v2/Type_{0}",
        "additional/Type_{}",
        "additional/additional_Type_{0}_v2/Type_{0}",
    ],
}


@pytest.mark.parametrize(("train", "additional"), zip(PATTERNS["train"], PATTERNS["additional"]))
@pytest.mark.parametrize("test", ["test", "test/test", "test_stg1"])
def test_every_layout_of_the_cervix_photographs_and_numbers_that_collide(
    tmp_path, write_image, train, additional, test
):
    seed = iter(range(100))
    for folder in (train, additional):
        for kind in (1, 2, 3):
            for number in (3, 4):
                write_image(tmp_path / folder.format(kind) / f"{number}.jpg", next(seed))
    write_image(tmp_path / test / "3.jpg", next(seed))
    table, reasons = read(tmp_path, "colposcopy")
    assert reasons == {}
    expected = {f"{s}/Type_{k}/{n}": (s, f"Type_{k}") for s in PATTERNS for k in (1, 2, 3) for n in (3, 4)}
    expected["test/3"] = ("test", "")
    assert {name: (row.source, row.label) for name, row in table.iterrows()} == expected
    assert set(table["severity"]) == {0} and set(table["name_group"]) == {""} and set(table["mask"]) == {""}


def flawed(root: Path, flaw: str, write_image, write_mask) -> tuple[str, str]:
    """Add one flaw to a folder of good cells: the file that must be excluded, and words of its reason."""
    folder = root / FRENCH
    image, mask = folder / "77-0-001.BMP", folder / "77-0-001-d.bmp"
    if flaw == "empty":
        image.touch()
        return image.name, "empty file (0 bytes)"
    if flaw == "truncated":
        write_image(image.with_suffix(".jpg"), 50, (64, 64))
        image.with_suffix(".jpg").write_bytes(image.with_suffix(".jpg").read_bytes()[:900])
        return "77-0-001.jpg", "truncated"
    if flaw == "text":
        image.write_text("<html>404 not found</html>" * 9)
        return image.name, "not an image"
    if flaw == "mask alone":
        return write_mask(mask).name, "mask without image"
    if flaw == "twin":
        shutil.copy(folder / f"{NAMES[FRENCH]}.BMP", image)
        return image.name, f"same pixels as {FRENCH}/{NAMES[FRENCH]}.BMP"
    if flaw == "same id":
        write_image(folder / f"{NAMES[FRENCH]}.png", 51)
        return f"{NAMES[FRENCH]}.png", "same id"
    if flaw == "absurd size":
        write_image(image, 54)
        data = bytearray(image.read_bytes())
        data[18:26] = (2**20).to_bytes(4, "little") * 2  # width and height in the header of a BMP
        image.write_bytes(data)
        return image.name, "damaged"
    write_image(image, 52)
    if flaw == "other size":
        return write_mask(mask, (13, 9)).name, "mask is 13x9, its image 12x9"
    if flaw == "RGB mask":
        return write_image(mask, 53).name, "not an 8-bit palette image"
    if flaw == "empty mask":
        mask.touch()
        return mask.name, "empty, truncated or not an image"
    image.unlink()
    write_mask(mask)
    image.write_bytes(b"")
    return mask.name, "mask of an image that is not used"


FLAWS = [
    "empty",
    "truncated",
    "text",
    "mask alone",
    "twin",
    "same id",
    "other size",
    "RGB mask",
    "empty mask",
    "orphan",
]
FLAWS += [pytest.param("absurd size")]


@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw_is_excluded_with_its_reason_and_harms_nothing_else(herlev, flaw, write_image, write_mask):
    root = herlev()
    before = read(root)[0]
    name, words = flawed(root, flaw, write_image, write_mask)
    table, reasons = read(root)
    assert words in reasons.pop(f"{FRENCH}/{name}")
    assert set(reasons.values()) <= {"empty file (0 bytes)"}
    pd.testing.assert_frame_equal(table.drop(f"{FRENCH}/77-0-001", errors="ignore"), before)
    kept = f"{FRENCH}/77-0-001" in table.index
    assert kept == (flaw in ("other size", "RGB mask", "empty mask"))
    assert not kept or table.loc[f"{FRENCH}/77-0-001", "mask"] == ""


def test_unknown_class_folder_names_the_known_ones(herlev, write_image):
    root = herlev()
    write_image(root / "koilocytotic" / "1.BMP", 70)
    (root / "readme.txt").write_text("?")
    table, reasons = read(root)
    assert len(table) == 7
    assert all("unknown class" in reasons[name] for name in ("koilocytotic/1.BMP", "readme.txt"))
    assert "carcinoma_in_situ" in reasons["koilocytotic/1.BMP"]


def test_of_two_equal_photographs_the_one_in_train_is_kept(tmp_path, write_image):
    write_image(tmp_path / "additional/Type_1/1.png", 1)
    write_image(tmp_path / "additional/Type_1/7.png", 2)
    write_image(tmp_path / "train/Type_2/9.png", 1)
    table, reasons = read(tmp_path, "colposcopy")
    assert list(table.index) == ["additional/Type_1/7", "train/Type_2/9"]
    assert "train/Type_2/9.png" in reasons["additional/Type_1/1.png"]


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param(
            "masks/{}",
        ),
        "masks",
    ],
)
def test_masks_in_two_places_are_not_dropped_in_silence(herlev, masks, write_mask):
    root = herlev()
    for name, stem in NAMES.items():
        write_mask(root / masks.format(name) / f"{stem}-d.bmp")
    table, _ = read(root)
    assert (table["mask"] != "").all()


def test_one_stem_in_two_classes_keeps_each_its_own_mask(herlev, write_image, write_mask):
    root = herlev()
    stem = NAMES[FRENCH]
    write_image(root / CELLS[1] / f"{stem}.BMP", 60)
    write_mask(root / CELLS[1] / f"{stem}-d.bmp")
    table, reasons = read(root)
    assert reasons == {}
    for name in CELLS[:2]:
        assert Path(table.loc[f"{name}/{stem}", "mask"]).parent.name == name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, -1] = (255, 0, 0), (0, 255, 0)
    stored = Image.fromarray(pixels)
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    found = np.asarray(images.open_image(tmp_path / "x.png"))
    turned = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.transpose(1, 0, 2)]
    turned += [np.rot90(pixels, -1), pixels[::-1, ::-1].transpose(1, 0, 2), np.rot90(pixels)]
    np.testing.assert_array_equal(found, turned[orientation - 1])
    assert images.inspect(tmp_path / "x.png")["width"] == found.shape[1]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_any_mode_open_as_rgb(tmp_path, mode):
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / "x.tif")
    found = images.open_image(tmp_path / "x.tif")
    assert found.mode == "RGB" and found.getpixel((2, 2)) == (255, 255, 255)


def test_masks_are_read_as_indices_whatever_the_palette(tmp_path, write_mask):
    indices = np.arange(20).reshape(4, 5) % 5
    assert (np.asarray(images.open_mask(write_mask(tmp_path / "a-d.bmp", indices=indices))) == indices).all()
    Image.fromarray(indices.astype(np.uint8)).save(tmp_path / "grey.png")
    assert (np.asarray(images.open_mask(tmp_path / "grey.png")) == indices).all()


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (20, 20)])
def test_squares_pad_in_the_border_colour_and_never_squash(tmp_path, size):
    """A centred disc stays round: as wide as high, in the scale of the longer side."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    disc = (x - (w - 1) / 2) ** 2 + (y - (h - 1) / 2) ** 2 < 4**2
    picture = np.where(disc[..., None], (250, 10, 10), (159, 151, 172)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    square = images.squares([str(tmp_path / "x.png")], 40)
    assert square.shape == (1, 3, 40, 40) and square.dtype == np.uint8
    red = square[0, 0] > 205
    assert red.any(axis=0).sum() == red.any(axis=1).sum() == pytest.approx(8 * 40 / max(size), abs=1)
    assert np.abs(np.argwhere(red).mean(axis=0) - 19.5).max() < 0.6  # centred
    corners = square[0][:, [0, 0, -1, -1], [0, -1, 0, -1]].T
    assert (corners == (159, 151, 172)).all()


def test_border_colour_is_the_median_of_the_outermost_pixels():
    pixels = np.full((9, 9, 3), 200, dtype=np.uint8)
    pixels[1:-1, 1:-1] = 7
    pixels[0, :5] = 0  # a corner of dirt
    assert images.border_colour(Image.fromarray(pixels)) == (200, 200, 200)


@pytest.mark.parametrize("size", [(37, 11), (14, 51), (33, 33), (130, 77)])
def test_masks_follow_the_geometry_of_their_pictures(tmp_path, size, write_mask):
    w, h = size
    y, x = np.mgrid[:h, :w]
    inside = (np.abs(x - 0.4 * w) < w / 5) & (np.abs(y - 0.6 * h) < h / 5)
    write_mask(tmp_path / "x-d.bmp", indices=np.where(inside, 2, 4))
    Image.fromarray(np.where(inside, 0, 255).astype(np.uint8)).save(tmp_path / "x.png")
    grey = images.squares([str(tmp_path / "x.png")], 64)[0, 0]
    mask = images.square_masks([str(tmp_path / "x-d.bmp")], 64)[0]
    assert set(np.unique(mask)) == {2, 4}  # nearest: no index in between
    assert ((grey < 128) != (mask == 2)).sum() <= 0.02 * 64 * 64  # the rim alone, where one is blurred
    assert ((grey == 0) & (mask == 4)).sum() + ((grey == 255) & (mask == 2)).sum() <= 4


def test_order_of_squares_is_that_of_the_files(tmp_path):
    for k in range(20):
        Image.new("RGB", (9, 9), (k, k, k)).save(tmp_path / f"{k}.png")
    found = images.squares([str(tmp_path / f"{k}.png") for k in range(20)], 32)
    assert (found == np.arange(20)[:, None, None, None]).all()


@pytest.mark.parametrize("task", list(datasets.FOLDERS))
def test_data_root_that_cannot_be_used_says_what_it_should_hold(tmp_path, task, monkeypatch):
    with pytest.raises(datasets.DataError, match=r"DATA=.*CERVIX_DATA"):
        datasets.find("", task)
    with pytest.raises(datasets.DataError, match=rf"nowhere does not exist.*{datasets.FOLDERS[task][0]}"):
        datasets.find(str(tmp_path / "nowhere"), task)
    with pytest.raises(datasets.DataError, match=rf"no folder '{datasets.FOLDERS[task][0]}' \(found: nothing\)"):
        datasets.find(str(tmp_path), task)
    (tmp_path / "holiday").mkdir()
    with pytest.raises(datasets.DataError, match="found: holiday"):
        datasets.find(str(tmp_path), task)
    (tmp_path / datasets.FOLDERS[task][1]).mkdir()
    assert datasets.find(str(tmp_path), task).name == datasets.FOLDERS[task][1]
    monkeypatch.setenv("CERVIX_DATA", str(tmp_path))
    assert datasets.find("", task) == datasets.find(str(tmp_path), task)
    with pytest.raises(datasets.DataError, match="no usable image among 0 files"):
        datasets.load("", task)


def test_masks_alone_are_refused(tmp_path, write_mask):
    write_mask(tmp_path / FRENCH / "1-2-3-d.bmp")
    with pytest.raises(
        datasets.DataError, match=r"no usable image among 1 files.*mask without image.*normal_superficiel"
    ):
        datasets.read_herlev(tmp_path)


def test_a_class_of_which_every_image_is_broken_is_named(herlev):
    root = herlev()
    (root / "light_dysplastic" / f"{NAMES['light_dysplastic']}.BMP").write_bytes(b"")
    with pytest.raises(datasets.DataError, match=r"every image of class 'light_dysplastic' is unusable.*empty file"):
        datasets.read_herlev(root)


def test_unlabelled_photographs_that_are_all_broken_do_not_stop_the_rest(tmp_path, write_image):
    for kind in (1, 2, 3):
        write_image(tmp_path / f"train/Type_{kind}/1.jpg", kind)
    (tmp_path / "test").mkdir()
    (tmp_path / "test/1.jpg").touch()
    table, reasons = read(tmp_path, "colposcopy")
    assert len(table) == 3 and "empty" in reasons["test/1.jpg"]


def test_load_decodes_once_until_a_file_changes(herlev, monkeypatch, tmp_path):
    root = herlev("herlev/{}", masks="herlev/{}")
    decoded = []
    inspect = images.inspect
    monkeypatch.setattr(datasets, "inspect", lambda path: decoded.append(path) or inspect(path))
    first = datasets.load(str(root), "herlev")
    assert len(decoded) == 7
    again = datasets.load(str(root), "herlev")
    assert len(decoded) == 7
    for a, b, c in zip(first, again, datasets.read_herlev(root / "herlev")):
        pd.testing.assert_frame_equal(a, b)
        pd.testing.assert_frame_equal(a, c, check_dtype=False)
    decoded.clear()
    (root / "herlev" / FRENCH / "55-0-001.BMP").touch()
    assert "empty" in " ".join(datasets.load(str(root), "herlev")[1]["reason"])
    assert len(decoded) == 8


@pytest.mark.parametrize("column", ["id", "label", "sha256"])
def test_fingerprint_changes_with_any_id_label_or_pixel(herlev, column):
    table = datasets.read_herlev(herlev())[0]
    other = table.copy()
    other.loc[3, column] += "x"
    assert datasets.fingerprint(table) == datasets.fingerprint(table.assign(path="elsewhere", mask=""))
    assert datasets.fingerprint(table) != datasets.fingerprint(other)


def test_one_changed_pixel_changes_the_digest(tmp_path):
    pixels = np.zeros((9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    pixels[4, 4, 1] = 1
    Image.fromarray(pixels).save(tmp_path / "c.png")
    a, b, c = (images.inspect(tmp_path / name)["sha256"] for name in ("a.png", "b.bmp", "c.png"))
    assert a == b != c


@pytest.mark.parametrize("task", list(datasets.FOLDERS))
def test_the_drawn_data_set_is_read_whole(tiny_demo, task):
    table, reasons = read(tiny_demo / datasets.FOLDERS[task][0], task)
    assert set(table["label"]) - {""} == set(datasets.CLASSES[task])
    assert len(reasons) >= 2
