"""SIPaKMeD: every layout, outlines as masks, clusters as groups, what is wrong said clearly."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cervix_utils.data import datasets, images, splits

CLASSES = datasets.get("sipakmed").classes
FOLDERS = ["Superficial-Intermediate", "Parabasal", "Metaplastic", "Koilocytotic", "Dyskeratotic"]
NUCLEUS = "4,3\n8,3\n8,6\n4,6\n"
CELL = "1.0,1.0\n10.5,1.0\n10.5,7.0\n1.0,7.0\n"


def read(root: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Table by id, and reasons by file; no file is dropped in silence."""
    table, exclusions = datasets.read(root, datasets.get("sipakmed"))
    used = [*table["path"], *table.loc[table["mask"] != "", "mask"]]
    used += [str(root / file) for file in exclusions["file"]]
    assert sorted(used) == sorted(str(file) for file in root.rglob("*") if file.is_file())
    return table.set_index("id"), dict(zip(exclusions["file"], exclusions["reason"]))


@pytest.fixture
def sipakmed(tmp_path, write_image):
    """Function that writes two cells of cluster 001 and one of 002 a class, in a layout."""

    def write(folder="im_{0}/im_{0}/CROPPED", suffix=".bmp") -> Path:
        for number, name in enumerate(FOLDERS):
            for k, stem in enumerate(("001_01", "001_02", "002_01")):
                file = tmp_path / folder.format(name) / f"{stem}{suffix}"
                write_image(file, 10 * number + k)
        return tmp_path

    return write


@pytest.fixture
def outlined(sipakmed):
    """Function that writes outlines of cell 001_01 of the parabasal cells; root and mask file."""

    def write(nucleus=NUCLEUS, cell=CELL, suffix=".bmp") -> tuple[Path, Path]:
        root = sipakmed(suffix=suffix)
        folder = root / "im_Parabasal/im_Parabasal/CROPPED"
        for part, text in (("nuc", nucleus), ("cyt", cell)):
            if text is not None:
                (folder / f"001_01_{part}.dat").write_text(text)
        return root, folder / "001_01_nuc.dat"

    return write


@pytest.mark.parametrize("suffix", [".bmp", ".BMP", ".jpg"])
@pytest.mark.parametrize("folder", ["im_{0}/im_{0}/CROPPED", "{0}_flat", "{0}", "x/im_{0}"])
def test_every_layout_reads_the_same(sipakmed, folder, suffix):
    table, reasons = read(sipakmed(folder, suffix))
    assert reasons == {}
    assert table["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, 3)
    assert (table["severity"] == 0).all() and (table["mask"] == "").all()
    groups = table["name_group"]
    assert groups["parabasal/001_01"] == groups["parabasal/001_02"] == "parabasal/001"
    assert groups.nunique() == 10  # cluster 001 of one class is not that of another


def test_two_clusters_with_the_same_cell_are_one_group(sipakmed, write_image):
    root = sipakmed()
    folder = root / "im_Dyskeratotic/im_Dyskeratotic/CROPPED"
    picture = images.open_image(folder / "001_01.bmp")
    picture.putpixel((0, 0), (0, 0, 0))  # not the same pixels, but the same hash
    picture.save(folder / "007_03.bmp")
    table = datasets.read(root, datasets.get("sipakmed"))[0]
    group = splits.with_groups(table, 2).set_index("id")["group"]
    assert group["dyskeratotic/007_03"] == group["dyskeratotic/001_02"] == "dyskeratotic/001"
    assert group["dyskeratotic/002_01"] != group["dyskeratotic/001_01"]


def test_outlines_are_masks(outlined):
    root, file = outlined()
    table, reasons = read(root)
    assert (table["mask"] != "").sum() == 1
    assert table.loc["parabasal/001_01", "mask"] == str(file)
    codes = np.asarray(images.open_mask(file))
    assert codes.shape == (9, 12)
    assert codes[4, 6] == images.NUCLEUS and codes[2, 2] == images.CYTOPLASM
    assert codes[8, 11] == codes[0, 0] == images.BACKGROUND
    assert (codes == images.NUCLEUS).sum() == 20  # corners belong to it: 5 x 4
    assert list(reasons.values()) == [
        "an outline that is no mask by itself (NAME_nuc.dat and NAME_cyt.dat are)"
    ]
    assert images.square_masks([file], 24).shape == (1, 24, 24)


@pytest.mark.parametrize(
    ("outlines", "words"),
    [
        ({"nucleus": "4,3\n80,3\n8,6\n"}, "001_01_nuc.dat leaves its 12x9 picture"),
        ({"cell": "-5,3\n8,3\n8,6\n"}, "001_01_cyt.dat leaves its 12x9 picture"),
        ({"cell": "1,3\n8,3\n8,60\n"}, "001_01_cyt.dat leaves its 12x9 picture"),
        ({"cell": None}, "001_01_cyt.dat is missing"),
        ({"nucleus": "4,3\n8,3\n"}, "or is none"),
        ({"nucleus": "4;3\n8;3\n"}, "001_01_nuc.dat is missing or no lines 'x,y'"),
        ({"nucleus": "1,2,3\n4,5,6\n7,8,9\n"}, "no lines 'x,y'"),
        ({"nucleus": "nan,3\n8,3\n8,6\n"}, "001_01_nuc.dat leaves its 12x9 picture"),
    ],
)
def test_outlines_that_make_no_mask_are_left_out_and_say_why(outlined, outlines, words):
    root, file = outlined(**outlines)
    table, reasons = read(root)
    assert (table["mask"] == "").all() and len(table) == 15
    assert words in reasons[str(file.relative_to(root))]


def test_an_outline_may_end_on_the_border_of_its_picture(outlined):
    root, file = outlined(cell="-0.5,0\n12,0\n12,9\n0,9\n")
    assert (read(root)[0]["mask"] != "").sum() == 1
    assert not (np.asarray(images.open_mask(file)) == images.BACKGROUND).any()


def test_pictures_of_whole_clusters_and_their_outlines_are_left_out(sipakmed, write_image):
    root = sipakmed()
    cluster = root / "im_Metaplastic/im_Metaplastic/001.bmp"
    write_image(cluster, 99)
    cluster.with_name("001_nuc01.dat").write_text(NUCLEUS)
    table, reasons = read(root)
    assert len(table) == 15 and len(reasons) == 2
    words = "not named like its images: im_Parabasal/im_Parabasal/CROPPED/001_02.bmp is expected"
    assert reasons[str(cluster.relative_to(root))] == words


def test_cells_without_cluster_numbers_are_refused(sipakmed):
    root = sipakmed()
    for k, file in enumerate(sorted(root.rglob("*.bmp"))):
        file.rename(file.with_name(f"cell{k}.bmp"))
    with pytest.raises(
        datasets.DataError, match=r"no usable image.*not named like.*CROPPED/001_02"
    ):
        read(root)


def test_a_class_without_numbers_or_without_a_folder_is_named(sipakmed):
    root = sipakmed()
    folder = root / "im_Koilocytotic"
    for k, file in enumerate(sorted(folder.rglob("*.bmp"))):
        file.rename(file.with_name(f"cell{k}.bmp"))
    with pytest.raises(datasets.DataError, match=r"class 'koilocytotic' is missing.*not named"):
        read(root)
    shutil.rmtree(folder)
    with pytest.raises(datasets.DataError, match="class 'koilocytotic' is missing"):
        read(root)


@pytest.mark.parametrize(
    ("task", "number", "other"), [("sipakmed", 7, "Herlev cells"), ("herlev", 15, "SIPaKMeD cells")]
)
def test_two_collections_in_one_folder_are_told_apart(sipakmed, write_image, task, number, other):
    root = sipakmed()
    for seed, name in enumerate(datasets.get("herlev").originals):
        write_image(root / name / f"1-1-00{seed}.BMP", 500 + seed)
    table, exclusions = datasets.read(root, datasets.get(task))
    assert len(table) == 22 - number and len(exclusions) == number
    words = f"unknown class.*of {other}: give each collection a folder of its own"
    assert exclusions["reason"].str.contains(words).all()


def test_the_same_images_as_normal_or_abnormal(tiny_demo):
    kinds = datasets.load(str(tiny_demo), "sipakmed")[0].set_index("id")
    both = datasets.load(str(tiny_demo), "sipakmed_abnormal")[0].set_index("id")
    assert list(kinds.index) == list(both.index) and (kinds["sha256"] == both["sha256"]).all()
    seen = dict(zip(kinds["label"], both["label"]))
    assert [seen[name] for name in CLASSES] == ["normal"] * 3 + ["abnormal"] * 2
    assert dict(zip(both["label"], both["severity"])) == {"normal": 1, "abnormal": 2}
    cells = datasets.load(str(tiny_demo), "herlev_abnormal")[0]
    assert (cells.groupby("original")["label"].first() == "normal").sum() == 3
    for task in ("colposcopy_abnormal", "toy_abnormal", "_abnormal"):
        with pytest.raises(datasets.DataError, match=f"unknown data set '{task}'"):
            datasets.get(task)


def test_a_data_root_without_it_says_what_is_missing(tmp_path, tiny_demo):
    assert datasets.find(str(tiny_demo), "sipakmed").name == "sipakmed"
    with pytest.raises(datasets.DataError, match="no folder 'sipakmed'"):
        datasets.find(str(tmp_path), "sipakmed")
