"""The drawn stand-ins: reproducible, whole or absent, and carrying what each class is about."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from cervix_utils.data import datasets, demo, splits

GRADES = dict(zip(demo.CELLS, (1, 1, 1, 2, 3, 4, 5)))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below ``folder``, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def cells(folder: Path, name: str) -> list[tuple[Image.Image, Image.Image]]:
    """Images of one class with their masks, the pairs that fit each other."""
    files = sorted((folder / "herlev" / name).glob("*.BMP"))
    pairs = [(Image.open(path), Image.open(path.with_name(f"{path.stem}-d.bmp"))) for path in files]
    return [(image, mask) for image, mask in pairs if image.size == mask.size]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return demo.write_demo(tmp_path_factory.mktemp("drawn") / "demo", 0, 10, 6)


def test_same_seed_same_bytes_other_seed_other_pictures(tmp_path):
    seeds = (3, 3, 4)
    first, again, other = (
        digests(demo.write_demo(tmp_path / str(k), seed, 2, 3)) for k, seed in enumerate(seeds)
    )
    assert first == again
    assert len(set(first.values()) & set(other.values())) == 2  # the empty JPEG and Thumbs.db


def test_the_classes_are_those_of_the_real_data_set():
    assert tuple(demo.CELLS) == datasets.get("herlev").originals


def test_masks_have_the_five_codes_and_the_size_of_their_image(drawn):
    codes, modes = set(), set()
    for name in GRADES:
        pairs = cells(drawn, name)
        assert len(pairs) == 10
        for image, mask in pairs:
            present = set(np.unique(np.asarray(mask)).tolist())
            assert {2, 3, 4} <= present
            codes |= present
            modes.add((image.mode, mask.mode))
    assert codes == {0, 1, 2, 3, 4}
    assert modes == {("RGB", "P")}


def test_nucleus_fills_more_of_the_image_as_severity_rises(drawn):
    shares = {grade: [] for grade in GRADES.values()}
    for name, grade in GRADES.items():
        shares[grade] += [(np.asarray(mask) == 2).mean() for _, mask in cells(drawn, name)]
    means = [np.mean(shares[grade]) for grade in sorted(shares)]
    assert spearmanr(sorted(shares), means).statistic == pytest.approx(1)
    assert means[-1] > 3 * means[0]


def test_the_nucleus_is_the_darkest_region_and_darker_as_severity_rises(drawn):
    darkness = {}
    for name in GRADES:
        differences = []
        for image, mask in cells(drawn, name):
            grey, codes = np.asarray(image.convert("L")), np.asarray(mask)
            differences.append(grey[codes == 3].mean() - grey[codes == 2].mean())
        assert min(differences) > 15, name
        darkness[name] = np.mean(differences)
    abnormal = list(GRADES)[3:]
    assert sorted(abnormal, key=darkness.get) == abnormal


def test_slides_mix_classes_and_second_photographs_stay_on_their_slide(drawn):
    stems = {
        name: [Path(image.filename).stem for image, _ in cells(drawn, name)] for name in GRADES
    }
    slides = {name: {stem.split("-")[0] for stem in found} for name, found in stems.items()}
    assert all(len(found) >= 4 and all(len(a) == 9 for a in found) for found in slides.values())
    assert len(set.union(*slides.values())) < sum(map(len, slides.values())) / 2
    for names in stems.values():
        second = [stem for stem in names if stem.endswith("-002")]
        assert len(second) == 2
        assert all(stem[:-1] + "1" in names for stem in second)


@pytest.mark.parametrize("task", ["herlev", "colposcopy"])
def test_second_photographs_are_near_duplicates_and_other_pictures_are_not(drawn, task):
    table = datasets.read(drawn / datasets.get(task).folders[0], datasets.get(task))[0]
    pairs = splits.near_duplicates(table["phash"].to_numpy(), 8)
    assert len(pairs) >= (7 if task == "herlev" else 3)
    if task == "herlev":  # A-B: one cell
        cell = table["id"].str.rsplit("-", n=1).str[0].to_numpy()
        again = cell[pairs[:, 0]] == cell[pairs[:, 1]]
        assert again.sum() >= 7 and (~again).sum() <= 3
    labels = table["label"].to_numpy()
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).mean() > 0.8
    assert splits.with_groups(table, 8)["group"].nunique() > 0.1 * len(table)


def test_red_zone_shrinks_from_type_1_to_type_3():
    red = []
    for kind in (1, 2, 3):
        scenes = [demo.draw_cervix(np.random.default_rng(seed), kind) for seed in range(4)]
        zones = [(s[..., 0] > 100) & (s[..., 1] < 0.38 * s[..., 0]) for s in scenes]
        red.append(np.median([zone.mean() for zone in zones]))
    assert red[0] > 2 * red[1] and red[1] > 2 * red[2]


def test_another_hospital_is_another_stain_and_magnification(tmp_path):
    demo._write_herlev(tmp_path / "herlev", 0, 4)
    demo._write_herlev(tmp_path / "other/herlev", 0, 4, tint=(190, 120, 150), scale=0.7)
    sizes, colours = [], []
    for folder in (tmp_path, tmp_path / "other"):
        pictures = [image for name in GRADES for image, _ in cells(folder, name)]
        sizes.append(np.median([image.width * image.height for image in pictures]))
        colours.append(np.mean([np.asarray(image).mean(axis=(0, 1)) for image in pictures], axis=0))
    assert 0.4 < sizes[1] / sizes[0] < 0.75
    assert colours[1][0] > colours[0][0] + 10 and colours[1][1] < colours[0][1] - 10


def test_unusable_files_are_there(drawn):
    photographs = drawn / "mobileodt/additional"
    assert [path.stat().st_size for path in (photographs / "Type_1").iterdir()].count(0) == 1
    broken = 0
    for path in (photographs / "Type_2").iterdir():
        try:
            Image.open(path).load()
        except OSError:
            broken += 1
    assert broken == 1
    masks = {path.stem[:-2] for path in (drawn / "herlev").rglob("*-d.bmp")}
    images = {path.stem for path in (drawn / "herlev").rglob("*.BMP")}
    assert len(masks - images) == 1 and images <= masks
    assert len(images) == 7 * 10 + 1
    assert (drawn / "herlev/normal_superficiel/Thumbs.db").is_file()
    reasons = datasets.read(drawn / "herlev", datasets.get("herlev"))[1]["reason"]
    assert len(reasons) == 3
    assert reasons.str.contains("mask without image").sum() == 1
    assert reasons.str.contains("mask is .*, its image").sum() == 1


@pytest.mark.parametrize(("cells_per_class", "photographs"), [(10, 6), (2, 3)])
def test_sizes_are_honoured(tmp_path, drawn, cells_per_class, photographs):
    folder = drawn
    if photographs == 3:
        folder = demo.write_demo(tmp_path / "demo", 1, cells_per_class, photographs)
    assert {len(cells(folder, name)) for name in GRADES} == {cells_per_class}
    parts = [folder / "mobileodt" / part for part in ("train", "additional")]
    assert sum(len(list(part.rglob("*.jpg"))) for part in parts) == 3 * photographs + 2
    assert len(list((folder / "mobileodt/test").glob("*.jpg"))) == 6


def test_an_interrupted_drawing_leaves_nothing_and_a_finished_one_is_kept(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "_write_herlev", lambda root, *_: root.mkdir(parents=True))
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_write_mobileodt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            datasets.find("demo", "herlev", 5)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setattr(demo, "_write_mobileodt", lambda root, *_: root.mkdir(parents=True))
    folder = datasets.find("demo", "herlev", 5)
    monkeypatch.setattr(demo, "_write_mobileodt", interrupted)  # it is not drawn again
    assert datasets.find("demo", "herlev", 5) == folder
    assert datasets.find("demo", "colposcopy", 5).parent == folder.parent


def test_another_seed_or_version_is_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "write_demo", lambda folder, seed: folder)
    folders = [demo.folder_of(0), demo.folder_of(1)]
    monkeypatch.setattr(demo, "DEMO_VERSION", 0)
    folders.append(demo.folder_of(0))
    assert len(set(folders)) == 3
