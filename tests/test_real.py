"""The real images, where they lie beside the project: readers, groups and leakage as they were published or measured."""

import os
from pathlib import Path

import pytest

from cervix_utils import datasets, images, paths, splits

DATA = Path(os.environ.get("CERVIX_DATA", paths.ROOT.parent / "shared" / "data"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not DATA.is_dir(), reason="no real images: set CERVIX_DATA to a folder with herlev/ and mobileodt/"
    ),
]


@pytest.fixture(scope="module")
def cells():
    return datasets.load(str(DATA), "herlev")[0]


def test_all_917_cells_and_masks_are_read(cells):
    assert cells["original"].value_counts().to_dict() == datasets.PUBLISHED_COUNTS["herlev"]
    assert (cells["mask"] != "").all() and cells["name_group"].nunique() == 323


def test_masks_hold_the_five_codes_of_the_palette(cells):
    sample = cells.groupby("original").head(3)
    found = set(images.square_masks(sample["mask"], 96).ravel().tolist())
    assert {images.NUCLEUS, images.CYTOPLASM, images.BACKGROUND} <= found <= {0, 1, 2, 3, 4}


def test_most_cells_of_a_random_test_part_have_a_relative_in_training_and_none_when_grouped(cells):
    grouped = splits.with_groups(cells, 8)
    shares = {}
    for protocol in ("paper", "grouped"):
        split = splits.assign_parts(grouped, "herlev", protocol, 0)
        shares[protocol] = splits.audit(split, 8).set_index("relative").at["same group", "share"]
    assert 0.7 < shares["paper"] < 0.95 and shares["grouped"] == 0


def test_photographs_are_read_with_their_published_counts():
    photographs, left_out = datasets.load(str(DATA), "colposcopy")
    train = photographs[photographs["source"] == "train"]
    assert len(train) + left_out["file"].str.contains("train").sum() == 1481
    assert train["label"].value_counts().to_dict() == {"Type_2": 781, "Type_3": 450, "Type_1": 250}
