"""Drawn stand-ins for the collections: same folders, names and flaws, every pixel a formula.

Each notebook and test can run on them where the real images may not be shared. They carry the
idea of each class (how large and dark a nucleus is, how far the squamocolumnar junction lies from
the os), nothing measured on a person. ``rng`` is a NumPy Generator: same state, same picture.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.special import expit

from cervix_utils import paths

DEMO_VERSION = 3  # raised by hand when the same seed shall give other pictures
# medians of a class of cells: side of the image in pixels, nucleus / image area, darkness and
# irregularity of the nucleus
CELLS = {
    "normal_superficiel": (136, 0.024, 0.75, 0.02),
    "normal_intermediate": (122, 0.042, 0.70, 0.02),
    "normal_columnar": (59, 0.195, 0.62, 0.03),
    "light_dysplastic": (92, 0.16, 0.62, 0.03),
    "moderate_dysplastic": (80, 0.235, 0.72, 0.05),
    "severe_dysplastic": (68, 0.32, 0.82, 0.07),
    "carcinoma_in_situ": (60, 0.42, 0.92, 0.085),
}
# the other hospital's folders, whose cells look like those of CELLS but the first and the last
FOLDERS = "Superficial-Intermediate", "Parabasal", "Metaplastic", "Koilocytotic", "Dyskeratotic"
# 0 seam, 1 other, 2 nucleus, 3 cytoplasm, 4 background
MASK_PALETTE = bytes.fromhex("000000 808080 0000ff 000080 ff0000").ljust(768, b"\0")
JUNCTIONS = {1: (0.42, 0.65), 2: (0.2, 0.32), 3: (0.05, 0.08)}  # by type, over the cervix's radius


def _noise(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> np.ndarray:
    """Soft noise with blobs of about ``grain`` pixels: (h, w), mean 0, standard deviation 1."""
    coarse = rng.standard_normal([int(side / grain) + 3 for side in shape]).astype(np.float32)
    field = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    return (field - field.mean()) / field.std()


def _distance(rng, shape: tuple[int, int], centre, axes, rough: float = 0.05) -> np.ndarray:
    """Distance from ``centre`` (x, y) over the radius of a wobbling ellipse: (h, w), inside < 1."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    wobble = 1 + rough * _noise(rng, shape, max(axes))
    return np.hypot((x - centre[0]) / axes[0], (y - centre[1]) / axes[1]) * wobble


def _paint(image: np.ndarray, colour, distance: np.ndarray, weight: float | np.ndarray = 1) -> None:
    """Lay a colour over a float image (h, w, 3) inside a soft outline (``distance`` < 1)."""
    image += (np.asarray(colour) - image) * (weight * expit((1 - distance) / 0.04))[..., None]


def draw_cell(rng, name: str, tint: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """One cell of class ``name``.

    ``tint``: colour of the empty slide (3,), 0..255. ``scale``: magnification. Returns (image,
    mask): RGB float (h, w, 3), about 0..255 but not clipped; uint8 (h, w), codes of MASK_PALETTE.
    """
    side, share, darkness, rough = CELLS[name]
    size = (side * scale * rng.lognormal(0, 0.13, 2)).clip(40, 164 * scale)
    shape, place = tuple(size[::-1].astype(int)), size * rng.normal(0.5, 0.07, 2)
    cell = _distance(rng, shape, size / 2, 0.46 * size)
    axes = size * np.sqrt(share / np.pi) * rng.lognormal(0, 0.07, 2)
    nucleus = np.maximum(_distance(rng, shape, place, axes, rough), cell)
    regions = [nucleus < 1, cell < 1, cell < 1.03, cell < 1.08]
    mask = np.select(regions, [2, 3, 0, 1], 4).astype(np.uint8)
    image, dye = tint * np.ones((*shape, 1)), tint * (0.7, 0.85, 0.9)
    for _ in range(5):  # neighbouring cells, which tell one picture from another
        spot, reach = rng.uniform(0, 1, 2) * shape[::-1], rng.uniform(0.15, 0.45, 2) * size
        _paint(image, dye, _distance(rng, shape, spot, reach), rng.uniform(0.2, 0.7))
    _paint(image, dye, cell, 0.7 + 0.2 * _noise(rng, shape, side / 4))
    _paint(image, (45, 40, 85), nucleus, darkness * (1 + rough * _noise(rng, shape, 4)))
    return image, mask


def draw_cervix(rng: np.random.Generator, kind: int) -> np.ndarray:
    """One cervix with a transformation zone of type ``kind`` (1, 2 or 3), seen through a speculum.

    How far the red columnar epithelium reaches from the os makes the type. Returns RGB float (380,
    300, 3), about 0..255 but not clipped, with some margin round a view of (320, 240).
    """
    shape, reach = (380, 300), rng.uniform(72, 120)
    middle = np.array([150, 190]) + rng.normal(0, (16, 24))
    dome = _distance(rng, shape, middle, reach * rng.uniform(0.85, 1.15, 2))
    opening = middle + reach * rng.normal(0, 0.14, 2)
    zone = np.full(2, reach * rng.uniform(*JUNCTIONS[kind]))
    slit = reach * rng.uniform(0.1, 0.2) * np.array([1, rng.uniform(0.25, 1)])
    image = np.array([168, 84, 96]) + 12 * _noise(rng, shape, 60)[..., None]
    _paint(image, np.array([218, 136, 150]) + rng.normal(0, 7, 3), dome)
    _paint(image, (186, 52, 62), _distance(rng, shape, opening, zone), 0.9)
    _paint(image, (62, 12, 18), _distance(rng, shape, opening, slit))
    image *= (1.2 + 0.15 * _noise(rng, shape, 60) - 0.3 * dome).clip(0.2)[..., None]
    for colour in ((165, 172, 182), (28, 12, 16)):  # a blade of the speculum, and a shadow
        way = rng.uniform(-np.pi, np.pi)
        away = middle + 2 * reach * np.array([np.cos(way), np.sin(way)])
        _paint(image, colour, _distance(rng, shape, away, reach * rng.uniform(0.9, 1.5, 2)), 0.9)
    return image


def _photograph(rng: np.random.Generator, scene: np.ndarray) -> Image.Image:
    """A drawn scene with exposure and sensor noise, which differ each time."""
    shot = scene * rng.uniform(0.93, 1.07) + rng.normal(0, 2.3, scene.shape)
    return Image.fromarray(shot.clip(0, 255).astype(np.uint8))


def _write_cell(rng, image: np.ndarray, mask: np.ndarray, file: Path, cut: int = 0) -> None:
    """Photograph a drawn cell and write its mask, by ``cut`` pixels too narrow."""
    _photograph(rng, image).save(file)
    labels = Image.fromarray(mask[:, cut:])
    labels.putpalette(MASK_PALETTE)
    labels.save(file.with_name(f"{file.stem}-d.bmp"))


def _write_herlev(root: Path, seed: int, number: int, tint=(159, 151, 172), scale=1.0) -> None:
    """Seven folders of ``number`` cells, each spread over slides A that they share; then the flaws.

    Another ``tint`` and ``scale`` are another hospital: stain and magnification.
    """
    rng = np.random.default_rng([seed, 0])
    again = round(0.15 * number)  # cells that are photographed twice
    slides = max(4, round(1.3 * (number - again)))
    tints = tint + rng.normal(0, 9, (slides, 1)) + rng.normal(0, 5, (slides, 3))
    for kind, name in enumerate(CELLS):
        (root / name).mkdir(parents=True)
        for k, slide in enumerate(rng.permutation(slides)[: number - again]):
            drawn = draw_cell(rng, name, tints[slide], scale)
            for shot in range(1 + (k < again)):
                stem = f"{148_000_000 + slide}-{kind}-{shot + 1:03d}"
                _write_cell(rng, *drawn, root / name / f"{stem}.BMP")
    for stem, cut in (("1-1-001", 0), ("1-2-001", 3)):  # a mask alone, a mask of another size
        _write_cell(rng, *drawn, root / name / f"{stem}.BMP", cut)
    (root / name / "1-1-001.BMP").unlink()
    (root / "normal_superficiel/Thumbs.db").write_bytes(b"not an image")


def _write_sipakmed(root: Path, seed: int, number: int) -> None:
    """Five folders of ``number`` cells of another hospital, with another stain and magnification.

    Three are cut from one cluster; the last is the first again, from another cluster. Beside them
    a picture of a whole cluster, which is no cell.
    """
    rng = np.random.default_rng([seed, 2])
    for name, like in zip(FOLDERS, list(CELLS)[1:-1]):
        folder = root / f"im_{name}/im_{name}/CROPPED"
        folder.mkdir(parents=True)
        tints = rng.normal((206, 182, 158), 7, (number, 3))
        drawn = [draw_cell(rng, like, tint, 1.6)[0] for tint in tints[1:]]
        for k, image in enumerate([*drawn, drawn[0]]):
            _photograph(rng, image).save(folder / f"{k // 3 + 1:03d}_{k % 3 + 1:02d}.bmp")
        _photograph(rng, image).save(folder.with_name("001.bmp"))


def _write_cervix(rng, scene: np.ndarray, file: Path, moved: bool = False) -> None:
    """Photograph a drawn cervix as a JPEG of 240 x 320; ``moved``: from elsewhere, so that it is
    no near-duplicate."""
    turn, shift, cut = (9, 12, 0.15) if moved else (0.7, 1, 0.07)
    angle, away = rng.normal(0, turn), tuple(rng.normal(0, shift, 2))
    picture = _photograph(rng, scene).rotate(angle, Image.Resampling.BILINEAR, translate=away)
    file.parent.mkdir(parents=True, exist_ok=True)
    ImageOps.fit(picture, (240, 320), bleed=cut).save(file, quality=88)


def _write_mobileodt(root: Path, seed: int, photographs: int) -> None:
    """``train``: one photograph a woman; ``additional``: more of them; ``test``; the flaws.

    Numbers of ``train`` come again in ``additional``, for other photographs.
    """
    rng, total = np.random.default_rng([seed, 1]), 3 * photographs
    counts = {1: round(0.17 * total), 3: round(0.3 * total)}  # as in the real collection
    for kind, count in (counts | {2: total - counts[1] - counts[3]}).items():
        women = [draw_cervix(rng, kind) for _ in range((count + 1) // 2)]
        for number, woman in enumerate(women):
            _write_cervix(rng, woman, root / f"train/Type_{kind}/{number}.jpg")
        for number in range(count - len(women)):
            file = root / f"additional/Type_{kind}/{number}.jpg"
            _write_cervix(rng, women[rng.integers(len(women))], file, rng.random() < 0.2)
    for number in range(6):
        _write_cervix(rng, draw_cervix(rng, 1 + number % 3), root / f"test/{number}.jpg")
    half = file.read_bytes()[: file.stat().st_size // 2]
    (root / "additional/Type_1/empty.jpg").touch()
    (root / "additional/Type_2/half.jpg").write_bytes(half)


def write_demo(folder: Path, seed: int = 0, cells: int = 14, photographs: int = 24) -> Path:
    """Write ``folder/herlev``, ``mobileodt`` and ``sipakmed``, laid out as the real collections.

    The same arguments give the same bytes. herlev/<class>/A-B-NNN.BMP: 24-bit RGB, about 40 to 165
    px a side, beside ``A-B-NNN-d.bmp``, a palette mask (codes: MASK_PALETTE). ``cells``: pictures
    a class; about 15 % of them (NNN = 002) are second photographs of a cell; a slide A holds cells
    of several classes. mobileodt/{train,additional}/Type_k/N.jpg and test/N.jpg: RGB, 240 x 320;
    ``photographs`` is the mean over types of train and additional.
    sipakmed/im_<Class>/im_<Class>/CROPPED/CLUSTER_CELL.bmp: ``cells`` a class, no masks.

    Unusable on purpose, beyond those counts: a JPEG of 0 bytes (additional/Type_1), one cut in
    half (Type_2); in carcinoma_in_situ a mask without image and an image whose mask has another
    size; one ``Thumbs.db``. At least 2 cells and 3 photographs. FileExistsError where one of the
    three is there. Returns ``folder``.
    """
    _write_herlev(folder / "herlev", seed, cells)
    _write_mobileodt(folder / "mobileodt", seed, photographs)
    _write_sipakmed(folder / "sipakmed", seed, cells)
    return folder


def folder_of(seed: int) -> Path:
    """The data root with the demo of a seed, in the cache, drawn on first use."""
    return paths.cached("demo", (DEMO_VERSION, seed), lambda folder: write_demo(folder, seed))
