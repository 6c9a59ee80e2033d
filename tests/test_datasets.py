"""Data sets: every layout reads the same, no file is dropped in silence, one more is one entry."""

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import toy_dataset

from cervix_utils import paths
from cervix_utils.data import datasets, images, splits

datasets.DATASETS.pop("toy")  # its import has registered it: no test of another module sees it
HERLEV = datasets.get("herlev")
CELLS = HERLEV.originals
GRADES = (1, 1, 1, 2, 3, 4, 5)
NAMES = {name: f"10-{k}-00{k}" for k, name in enumerate(CELLS)}
FRENCH = "normal_superficiel"


def everything_accounted_for(root: Path, table: pd.DataFrame, exclusions: pd.DataFrame) -> None:
    """Each file is an image, a mask or excluded with a reason: exactly one of the three."""
    used = [*table["path"], *table.loc[table["mask"] != "", "mask"]]
    used += [str(root / file) for file in exclusions["file"]]
    assert sorted(used) == sorted(str(file) for file in root.rglob("*") if file.is_file())
    assert (exclusions["reason"].str.len() > 5).all()


def read(root: Path, task: str = "herlev") -> tuple[pd.DataFrame, dict[str, str]]:
    """Table by id, and reasons by file; every call checks that nothing was dropped."""
    table, exclusions = datasets.read(root, datasets.get(task))
    everything_accounted_for(root, table, exclusions)
    assert table["id"].is_monotonic_increasing and table["id"].is_unique
    return table.set_index("id"), dict(zip(exclusions["file"], exclusions["reason"]))


@pytest.fixture
def herlev(tmp_path, write_image, write_mask):
    """Function that writes one cell a class in a layout: folder pattern, image suffix, mask folder
    and suffix."""

    def write(folder="{}", suffix=".BMP", form="BMP", masks="{}", mask_suffix="-d.bmp") -> Path:
        for number, (name, stem) in enumerate(NAMES.items()):
            write_image(
                tmp_path / folder.format(name, number) / f"{stem}{suffix}", number, form=form
            )
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
    assert by_class["severity"].to_dict() == dict(zip(CELLS, GRADES))
    labels = [HERLEV.classes[grade - 1] for grade in GRADES]
    assert [by_class.loc[name, "label"] for name in CELLS] == labels
    assert set(table["name_group"]) == {"10"}
    assert (table["width"] == 12).all() and (table["height"] == 9).all()
    assert table["sha256"].is_unique
    masks = [Path(mask).stem for mask in table["mask"]]
    expected = [f"{Path(path).stem}-d" for path in table["path"]]
    assert [mask.lower() for mask in masks] == (
        expected if layout.get("masks", "") is not None else [""] * 7
    )


SPELLINGS = ["normal_superficial", "Normal Superficiel", "1_NORMAL-SUPERFICIEL"]


SUFFIXED = ["normal_superficiel_org_74_jpeg", "Normal_Superficial_74", "normal_superficiel_bmp"]


@pytest.mark.parametrize("folder", [*SPELLINGS, " 01. normal_superficiel ", *SUFFIXED])
def test_spellings_of_a_class(folder):
    assert HERLEV.place((folder,)) == ("herlev", FRENCH)


@pytest.mark.parametrize("folder", ["normal", "abnormal_superficiel", "normal_superficiel_old", ""])
def test_what_is_no_class_of_herlev(folder):
    assert HERLEV.place((folder,)) == ("herlev", None)


def test_system_files_are_excluded_and_named(herlev):
    root = herlev()
    places = [f"{FRENCH}/Thumbs.db", f"{FRENCH}/._10-0-000.BMP", ".DS_Store"]
    for place in [*places, f"__MACOSX/{FRENCH}/10-0-000.BMP"]:
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
    "train": ["train/Type_{}", "train/train/Type_{}", "Train/type_{}", "Type_{}_mini"],
    "additional": [
        "additional_Type_{0}_v2/Type_{0}",
        "additional/Type_{}",
        "additional/additional_Type_{0}_v2/Type_{0}",
        "additional/Type_{}_mini",
    ],
}


@pytest.mark.parametrize(("train", "additional"), list(zip(*PATTERNS.values())))
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
    expected = {"test/3": ("test", "")}
    for source, kind, number in itertools.product(PATTERNS, (1, 2, 3), (3, 4)):
        expected[f"{source}/Type_{kind}/{number}"] = (source, f"Type_{kind}")
    assert {name: (row.source, row.label) for name, row in table.iterrows()} == expected
    assert set(table["severity"]) == {0}
    assert set(table["name_group"]) == set(table["mask"]) == {""}


def flawed(root: Path, flaw: str, write_image, write_mask) -> tuple[str, str]:
    """Add one flaw to a folder of good cells: the file that must be excluded, words of its
    reason."""
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
        data[18:26] = (2**20).to_bytes(4, "little") * 2  # width and height of a BMP
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
FLAWS += ["absurd size"]


@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw_is_excluded_with_its_reason_and_harms_nothing_else(
    herlev, flaw, write_image, write_mask
):
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


@pytest.mark.parametrize("masks", ["masks/{}", "masks"])
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


@pytest.mark.parametrize("task", list(datasets.DATASETS))
def test_data_root_that_cannot_be_used_says_what_it_should_hold(tmp_path, task, monkeypatch):
    first, second = datasets.get(task).folders
    monkeypatch.delenv("CERVIX_DATA", raising=False)
    with pytest.raises(datasets.DataError, match=r"DATA=.*CERVIX_DATA"):
        datasets.find("", task)
    with pytest.raises(datasets.DataError, match=rf"nowhere cannot be read.*No such file.*{first}"):
        datasets.find(str(tmp_path / "nowhere"), task)
    with pytest.raises(datasets.DataError, match=rf"no folder '{first}' \(found: nothing\)"):
        datasets.find(str(tmp_path), task)
    (tmp_path / "holiday").mkdir()
    with pytest.raises(datasets.DataError, match="found: holiday"):
        datasets.find(str(tmp_path), task)
    (tmp_path / second.upper()).mkdir()
    assert datasets.find(str(tmp_path), task).name == second.upper()
    monkeypatch.setenv("CERVIX_DATA", str(tmp_path))
    assert datasets.find("", task) == datasets.find(str(tmp_path), task)
    with pytest.raises(datasets.DataError, match="no usable image among 0 files"):
        datasets.load("", task)


@pytest.mark.parametrize("call", [datasets.find, datasets.load, datasets.state])
def test_an_unknown_data_set_is_refused_with_the_known_ones(call):
    with pytest.raises(datasets.DataError, match="'cervix': known are herlev, colposcopy"):
        call("demo", "cervix")


def test_masks_alone_are_refused(tmp_path, write_mask):
    write_mask(tmp_path / FRENCH / "1-2-3-d.bmp")
    words = r"no usable image among 1 files.*mask without image.*normal_superficiel"
    with pytest.raises(datasets.DataError, match=words):
        datasets.read(tmp_path, HERLEV)


def test_a_class_of_which_every_image_is_broken_is_named(herlev):
    root = herlev()
    (root / "light_dysplastic" / f"{NAMES['light_dysplastic']}.BMP").write_bytes(b"")
    words = r"every image of class 'light_dysplastic' is unusable.*empty file"
    with pytest.raises(datasets.DataError, match=words):
        datasets.read(root, HERLEV)


def test_unlabelled_photographs_that_are_all_broken_do_not_stop_the_rest(tmp_path, write_image):
    for kind in (1, 2, 3):
        write_image(tmp_path / f"train/Type_{kind}/1.jpg", kind)
    (tmp_path / "test").mkdir()
    (tmp_path / "test/1.jpg").touch()
    table, reasons = read(tmp_path, "colposcopy")
    assert len(table) == 3 and "empty" in reasons["test/1.jpg"]


def test_load_decodes_once_until_a_file_changes(herlev, monkeypatch):
    root = herlev("herlev/{}", masks="herlev/{}")
    decoded = []
    inspect = images.inspect
    monkeypatch.setattr(images, "inspect", lambda path: decoded.append(path) or inspect(path))
    first = datasets.load(str(root), "herlev")
    assert len(decoded) == 7
    again = datasets.load(str(root), "herlev")
    assert len(decoded) == 7
    for a, b, c in zip(first, again, datasets.read(root / "herlev", HERLEV)):
        pd.testing.assert_frame_equal(a, b)
        pd.testing.assert_frame_equal(a, c, check_dtype=False)
    decoded.clear()
    (root / "herlev" / FRENCH / "55-0-001.BMP").touch()
    assert "empty" in " ".join(datasets.load(str(root), "herlev")[1]["reason"])
    assert len(decoded) == 8


@pytest.mark.parametrize("damage", ["half", "missing"])
def test_a_kept_table_that_is_damaged_is_named_with_the_remedy(
    herlev, monkeypatch, tmp_path_factory, damage
):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CERVIX_CACHE", str(cache))
    root = str(herlev("herlev/{}", masks="herlev/{}"))
    first = datasets.load(root, "herlev")[0]
    (kept,) = cache.glob("table-*/images.parquet")
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    if damage == "missing":
        kept.unlink()
    with pytest.raises(datasets.DataError, match=rf"{kept.parent.name} is damaged: delete"):
        datasets.load(root, "herlev")
    shutil.rmtree(kept.parent)
    pd.testing.assert_frame_equal(datasets.load(root, "herlev")[0], first)


def test_state_changes_with_names_sizes_times_and_what_the_entry_says(herlev, monkeypatch):
    root = herlev("herlev/{}", masks=None)
    state = lambda: datasets.state(str(root), "herlev")  # noqa: E731
    file = root / "herlev" / FRENCH / f"{NAMES[FRENCH]}.BMP"
    states = [state()]
    assert state() == states[0]
    os.utime(file, ns=(1, 1))
    states.append(state())
    file.rename(file.with_name("other.BMP"))
    states.append(state())
    with file.with_name("other.BMP").open("ab") as opened:
        opened.write(b"x")
    os.utime(file.with_name("other.BMP"), ns=(1, 1))
    states.append(state())
    for change in (
        {"group": "(.)"},
        {"masks": False},
        {"labels": {**HERLEV.labels, "x": "normal"}},
    ):
        monkeypatch.setitem(datasets.DATASETS, "herlev", dataclasses.replace(HERLEV, **change))
        states.append(state())
    assert len(set(states)) == 7


@pytest.mark.parametrize("column", ["id", "label", "sha256"])
def test_fingerprint_changes_with_any_id_label_or_pixel(herlev, column):
    table = datasets.read(herlev(), HERLEV)[0]
    other = table.copy()
    other.loc[3, column] += "x"
    elsewhere = table.assign(path="elsewhere", mask="")
    assert datasets.fingerprint(table) == datasets.fingerprint(elsewhere)
    assert datasets.fingerprint(table) != datasets.fingerprint(other)


@pytest.mark.parametrize("task", ["herlev", "colposcopy", "sipakmed"])
def test_the_drawn_data_set_is_read_whole(tiny_demo, task):
    dataset = datasets.get(task)
    table, reasons = read(tiny_demo / dataset.folders[0], task)
    assert set(table["label"]) - {""} == set(dataset.classes)
    assert len(reasons) >= 2


# Registered data sets


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """Data root of the toy data set, registered for this test alone."""
    monkeypatch.setitem(datasets.DATASETS, "toy", toy_dataset.TOY)
    toy_dataset.draw(tmp_path, 30)
    return tmp_path


@pytest.mark.parametrize("fraction", [None, 0.25])
@pytest.mark.parametrize("protocol", ["paper", "grouped"])
def test_a_third_data_set_is_read_and_split(toy, monkeypatch, fraction, protocol):
    other = dataclasses.replace(toy_dataset.TOY, test_fraction=fraction)
    monkeypatch.setitem(datasets.DATASETS, "toy", other)
    (toy / "toy/light/1-d.png").write_bytes((toy / "toy/light/1.png").read_bytes())
    (toy / "toy/lihgt").mkdir()
    (toy / "toy/lihgt/1.png").touch()
    table, left_out = datasets.load(str(toy), "toy")
    assert table["label"].value_counts().to_dict() == {"dark": 30, "light": 30}
    assert set(table["severity"]) == {0} and table["id"][0] == "dark/0"
    reasons = dict(zip(left_out["file"], left_out["reason"]))
    assert "light/1-d.png" in reasons["light/1.png"]  # no masks here: an image, seen twice
    assert "no folder of its path names one of dark, light" in reasons["lihgt/1.png"]
    split = splits.assign_parts(splits.with_groups(table, 8), "toy", protocol, 1, 4)
    shares = split["part"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.25, abs=0.05)
    assert (split.groupby("part")["label"].nunique() == 2).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "my-cells"}, "'my-cells': its name must be"),
        ({"labels": {"a": "dark", "b": "blakc"}}, "'blakc'.*are labels, but no classes"),
    ],
)
def test_an_entry_that_cannot_work_is_refused(change, words):
    with pytest.raises(datasets.DataError, match=words):
        datasets.register(dataclasses.replace(toy_dataset.TOY, **change))


def known(plugins: str) -> subprocess.CompletedProcess:
    """The known data sets, printed by a new process with CERVIX_PLUGINS."""
    code = "from cervix_utils.data import datasets; print(*datasets.DATASETS)"
    folders = [str(paths.ROOT), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "CERVIX_PLUGINS": plugins}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_plugins_are_named_in_the_environment():
    assert known("toy_dataset").stdout.split() == ["herlev", "colposcopy", "sipakmed", "toy"]
    assert "CERVIX_PLUGINS names 'no_such_module'" in known("toy_dataset, no_such_module").stderr
