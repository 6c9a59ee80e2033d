"""The real images, where they lie beside the project: tables, groups and leakage as published or
measured."""

import os
import shutil
from pathlib import Path

import pytest

from cervix_utils import paths
from cervix_utils.data import datasets, images, splits
from tools import fetch

DATA = Path(os.environ.get("CERVIX_DATA", paths.ROOT.parent / "shared" / "data"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not DATA.is_dir(),
        reason="no real images: set CERVIX_DATA to a folder with herlev/ and mobileodt/",
    ),
]


@pytest.fixture(scope="module")
def cells():
    return datasets.load(str(DATA), "herlev")[0]


def test_all_917_cells_and_masks_are_read(cells):
    assert cells["original"].value_counts().to_dict() == datasets.get("herlev").published
    assert (cells["mask"] != "").all() and cells["name_group"].nunique() == 323


def test_an_archive_of_the_real_cells_becomes_the_folder_with_all_of_them(tmp_path, capsys):
    made = shutil.make_archive(str(tmp_path / "smear2005"), "zip", DATA, "herlev")
    fetch.main("herlev", made, str(tmp_path / "data"))
    assert "917 cells used, 0 files left out (-)" in capsys.readouterr().out


def test_masks_hold_the_five_codes_of_the_palette(cells):
    sample = cells.groupby("original").head(3)
    found = set(images.square_masks(sample["mask"], 96).ravel().tolist())
    assert {images.NUCLEUS, images.CYTOPLASM, images.BACKGROUND} <= found <= {0, 1, 2, 3, 4}


def test_most_cells_of_a_random_test_part_leak_and_none_of_a_grouped_one(cells):
    """Images of the group in train or valid: the four figures behind "75 to 87 %"."""
    grouped, shares = splits.with_groups(cells, 8), {}
    for protocol in ("paper", "grouped"):
        parts = [splits.assign_parts(grouped, "herlev", protocol, fold) for fold in range(4)]
        audits = [splits.audit(split, 8).set_index("match") for split in parts]
        shares[protocol] = [round(audit.at["same group", "share"], 3) for audit in audits]
    assert shares == {"paper": [0.839, 0.799, 0.751, 0.869], "grouped": [0.0] * 4}


def test_photographs_are_read_with_their_published_counts():
    photographs, left_out = datasets.load(str(DATA), "colposcopy")
    train = photographs[photographs["source"] == "train"]
    assert len(train) + left_out["file"].str.contains("train").sum() == 1481
    assert train["label"].value_counts().to_dict() == {"Type_2": 781, "Type_3": 450, "Type_1": 250}


@pytest.fixture(scope="module")
def elsewhere():
    try:
        return datasets.load(str(DATA), "sipakmed")[0]
    except datasets.DataError as error:
        pytest.skip(f"no real SIPaKMeD: {error}")


def test_all_4049_cells_of_sipakmed_are_read_in_966_clusters(elsewhere):
    assert elsewhere["original"].value_counts().to_dict() == datasets.get("sipakmed").published
    assert elsewhere["name_group"].nunique() == 966


def test_cluster_numbers_of_sipakmed_leak(elsewhere):
    """303 near-duplicate pairs, none within a cluster, 11 between classes; 834 groups are left."""
    pairs = splits.near_duplicates(elsewhere["phash"].to_numpy(), 8).T
    names, labels = (elsewhere[column].to_numpy()[pairs] for column in ("name_group", "label"))
    assert (names[0] != names[1]).sum() == pairs.shape[1] == 303
    assert (labels[0] != labels[1]).sum() == 11
    grouped = splits.with_groups(elsewhere, 8)
    assert grouped["group"].nunique() == 834
    parts = {p: splits.assign_parts(grouped, "sipakmed", p, 0, 5) for p in ("paper", "grouped")}
    leaks = {p: splits.audit(part, 8).set_index("match")["share"] for p, part in parts.items()}
    assert leaks["paper"]["same group"] == pytest.approx(0.935, abs=5e-4)
    assert leaks["grouped"]["same group"] == 0
