"""The drawn stand-ins: reproducible, whole or absent, and carrying what each class is about."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from cervix_utils import drawing, synthetic

SEVERITY = dict(zip(drawing.CELL_KINDS, (1, 1, 1, 2, 3, 4, 5)))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cells(folder: Path, name: str) -> list[tuple[Image.Image, Image.Image]]:
    """Images of one class with their masks, the pairs that fit each other."""
    images = sorted((folder / "herlev" / name).glob("*.BMP"))
    pairs = [(Image.open(path), Image.open(path.with_name(f"{path.stem}-d.bmp"))) for path in images]
    return [(image, mask) for image, mask in pairs if image.size == mask.size]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return synthetic.write_demo(tmp_path_factory.mktemp("drawn") / "demo", 0, 10, 4)


def test_same_seed_same_bytes_other_seed_other_pictures(tmp_path):
    first, again, other = (synthetic.write_demo(tmp_path / str(k), seed, 2, 3) for k, seed in enumerate((3, 3, 4)))
    assert digests(first) == digests(again)
    shared = set(digests(first).values()) & set(digests(other).values())
    assert len(shared) <= 2  # the empty JPEG and Thumbs.db


def test_a_change_to_either_module_changes_the_digest(tmp_path, monkeypatch):
    before = synthetic.source_digest()
    assert re.fullmatch("[0-9a-f]{8}", before) and before == synthetic.source_digest()
    (tmp_path / "edited.py").write_bytes(Path(drawing.__file__).read_bytes() + b"#")
    found = {before}
    for module in (synthetic, drawing):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(tmp_path / "edited.py"))
            found.add(synthetic.source_digest())
    assert len(found) == 3


def test_masks_have_the_five_codes_and_the_size_of_their_image(demo):
    codes, modes = set(), set()
    for name in SEVERITY:
        pairs = cells(demo, name)
        assert len(pairs) == 10
        for image, mask in pairs:
            found = set(np.unique(np.asarray(mask)).tolist())
            assert {2, 3, 4} <= found
            codes |= found
            modes.add((image.mode, mask.mode))
    assert codes == {0, 1, 2, 3, 4}
    assert modes == {("RGB", "P")}


def test_nucleus_fills_more_of_the_image_as_severity_rises(demo):
    shares = {rank: [] for rank in SEVERITY.values()}
    for name, rank in SEVERITY.items():
        shares[rank] += [(np.asarray(mask) == 2).mean() for _, mask in cells(demo, name)]
    means = [np.mean(shares[rank]) for rank in sorted(shares)]
    assert spearmanr(sorted(shares), means).statistic == pytest.approx(1)
    assert means[-1] > 3 * means[0]


def test_nucleus_code_marks_the_darkest_region(demo):
    for image, mask in (pair for name in SEVERITY for pair in cells(demo, name)):
        grey, codes = np.asarray(image.convert("L")), np.asarray(mask)
        assert grey[codes == 2].mean() < grey[codes == 3].mean() - 15


def test_slides_mix_classes_and_second_photographs_stay_on_their_slide(demo):
    stems = {name: [Path(image.filename).stem for image, _ in cells(demo, name)] for name in SEVERITY}
    slides = {name: {stem.split("-")[0] for stem in found} for name, found in stems.items()}
    assert all(len(found) >= 4 and all(len(a) == 9 for a in found) for found in slides.values())
    assert len(set.union(*slides.values())) < sum(map(len, slides.values())) / 2
    for found in stems.values():
        second = [stem for stem in found if stem.endswith("-002")]
        assert len(second) == 2
        assert all(stem[:-1] + "1" in found for stem in second)


def test_red_zone_shrinks_from_type_1_to_type_3():
    red = []
    for kind in (1, 2, 3):
        tissue = np.full((200, 200, 3), (218.0, 136.0, 150.0))
        drawing.draw_junction(np.random.default_rng(5), tissue, kind, np.array([100, 100]), 100, 0)
        red.append(((tissue[..., 0] > 120) & (tissue[..., 1] < 100)).mean())
    assert red[0] > 3 * red[1] > 3 * red[2]


def test_unusable_files_are_there(demo):
    photographs = demo / "mobileodt/additional"
    assert [path.stat().st_size for path in (photographs / "Type_1").iterdir()].count(0) == 1
    broken = 0
    for path in (photographs / "Type_2").iterdir():
        try:
            Image.open(path).load()
        except OSError:
            broken += 1
    assert broken == 1
    masks = {path.stem[:-2] for path in (demo / "herlev").rglob("*-d.bmp")}
    images = {path.stem for path in (demo / "herlev").rglob("*.BMP")}
    assert len(masks - images) == 1 and images <= masks
    assert len(images) == 7 * 10 + 1
    assert (demo / "herlev/normal_superficiel/Thumbs.db").is_file()


@pytest.mark.parametrize(("cells_per_class", "photographs"), [(10, 4), (2, 3)])
def test_sizes_are_honoured(tmp_path, demo, cells_per_class, photographs):
    folder = demo if photographs == 4 else synthetic.write_demo(tmp_path / "demo", 1, cells_per_class, photographs)
    assert {len(cells(folder, name)) for name in SEVERITY} == {cells_per_class}
    parts = [folder / "mobileodt" / part for part in ("train", "additional")]
    assert sum(len(list(part.rglob("*.jpg"))) for part in parts) == 3 * photographs + 2
    assert len(list((folder / "mobileodt/test").glob("*.jpg"))) == synthetic.TEST_PHOTOGRAPHS


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_mobileodt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_demo(tmp_path / "demo", 0, 2, 3)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_processes_keeps_the_faster_ones_copy(tmp_path, monkeypatch):
    folder = tmp_path / "demo"

    def overtaken(*_):
        monkeypatch.setattr(synthetic, "_write_mobileodt", lambda root, *_: root.mkdir())
        synthetic.write_demo(folder, 0, 2, 3)
        (folder / "first").touch()

    monkeypatch.setattr(synthetic, "_write_mobileodt", overtaken)
    assert synthetic.write_demo(folder, 0, 2, 3) == folder
    assert (folder / "first").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    recipe = {"version": synthetic.VERSION, "seed": 0, "cells": 2, "photographs": 3}
    (tmp_path / "demo.json").write_text(json.dumps(recipe))
    assert synthetic.write_demo(tmp_path, 0, 2, 3) == tmp_path
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError, match="other than this demo"):
        synthetic.write_demo(tmp_path, 1, 2, 3)
