"""Cells and cervices drawn as arrays, every pixel from a formula: nothing here was measured on a person.

A distance field says for each pixel how far it lies from a centre, relative to an outline (inside < 1); stains
and colours are laid over the picture by such fields. `rng` is a NumPy Generator: the same state, the same picture.
"""

from collections import namedtuple

import numpy as np
from PIL import Image
from scipy import ndimage

PAD = 6  # pixels drawn round a cell, so that a second photograph can be cropped elsewhere
ANGLES = np.linspace(-np.pi, np.pi, 181)
# Absorption of red, green and blue light
EOSIN, CYAN, BLUE = np.array([[0.06, 0.5, 0.34], [0.52, 0.14, 0.24], [0.44, 0.36, 0.12]])
HAEMATOXYLIN = np.array([1.0, 1.08, 0.62])
# Medians of sqrt(width * height) in pixels and of nucleus / image area; optical density and irregularity
# of the nucleus; corners of the cytoplasm (0: rounded), its short / long axis, how often it takes up eosin.
CellKind = namedtuple("CellKind", "side share density rough corners slim eosin")
CELL_KINDS = {
    "normal_superficiel": CellKind(136, 0.024, 0.68, 0.02, 6, 0.88, 0.6),
    "normal_intermediate": CellKind(122, 0.042, 0.60, 0.02, 5, 0.80, 0.12),
    "normal_columnar": CellKind(59, 0.195, 0.52, 0.03, 0, 0.58, 0),
    "light_dysplastic": CellKind(92, 0.16, 0.58, 0.03, 5, 0.78, 0.12),
    "moderate_dysplastic": CellKind(80, 0.235, 0.65, 0.05, 0, 0.74, 0),
    "severe_dysplastic": CellKind(68, 0.32, 0.72, 0.07, 0, 0.70, 0),
    "carcinoma_in_situ": CellKind(60, 0.42, 0.79, 0.085, 0, 0.76, 0),
}


def _noise(rng, shape: tuple[int, int], grain: float) -> np.ndarray:
    """Soft noise with blobs of about `grain` pixels: float32 (H, W), mean 0, standard deviation 1."""
    coarse = rng.standard_normal([int(n / grain) + 3 for n in shape]).astype(np.float32)
    field = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    return (field - field.mean()) / field.std()


def _outline(rng, rough: float, corners: int = 0) -> np.ndarray:
    """Radius at each of ANGLES, float64 (181,), about 1: a wobbling circle or a polygon with soft corners."""
    radius, waves = np.ones_like(ANGLES), np.arange(2, 9)
    if corners:
        normals = np.linspace(-np.pi, np.pi, corners, endpoint=False) + rng.normal(0, 0.9 / corners, corners)
        facing = np.cos(ANGLES[:, None] - normals) / rng.uniform(0.72, 1.05, corners)
        radius = ndimage.gaussian_filter1d(1 / facing.max(axis=1).clip(0.45), 2.5, mode="wrap")
    heights = rng.normal(0, rough, waves.size) * (2.5 / waves) ** 1.2
    return radius * (1 + np.cos(waves * ANGLES[:, None] + rng.uniform(0, 7, waves.size)) @ heights).clip(0.4)


def _distance(shape, centre, axes, angle: float = 0, outline: np.ndarray | None = None) -> np.ndarray:
    """Distance from `centre` (x, y) over the outline's radius in that direction, float (H, W): inside < 1."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x, y, cos, sin = x - centre[0], y - centre[1], np.cos(angle), np.sin(angle)
    u, v = (x * cos + y * sin) / axes[0], (y * cos - x * sin) / axes[1]
    return np.hypot(u, v) / (1 if outline is None else np.interp(np.arctan2(v, u), ANGLES, outline))


def _cover(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 inside and 0 outside, with a soft step of the given relative width between: float (H, W)."""
    return 1 / (1 + np.exp(((distance - 1) / softness).clip(-30, 30)))


def _line(distance: np.ndarray, at: float, width: float) -> np.ndarray:
    """1 where `distance` is `at`, falling to 0 on both sides: float (H, W)."""
    return np.exp(-(((distance - at) / width) ** 2))


def _stain(image: np.ndarray, density: np.ndarray, absorption: np.ndarray) -> None:
    """Let the light of a float image (H, W, 3) pass through stain of `density` (H, W) >= 0 (Beer-Lambert)."""
    image *= np.exp(-density[..., None] * absorption)


def _blend(image: np.ndarray, colour, weight: np.ndarray) -> None:
    """Paint `colour` (3,) or (H, W, 3) over a float image (H, W, 3) with a weight (H, W) in 0..1."""
    image += (np.asarray(colour) - image) * weight[..., None]


def draw_cell(rng, name: str, tint: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """One cell of class `name` (a key of CELL_KINDS) with PAD pixels round it.

    `tint`: colour of the empty slide, float (3,) in 0..255. `strength`: of the stain, about 1.
    Returns (image, mask): RGB float64 (H, W, 3), about 0..255 but not clipped; uint8 (H, W) with 0 seam, 1 other,
    2 nucleus, 3 cytoplasm, 4 background. H and W are 40..164 without the margins.
    """
    kind, angle = CELL_KINDS[name], rng.uniform(-np.pi, np.pi)
    side, slim = kind.side * np.exp(rng.normal(0, 0.13)), np.clip(kind.slim + rng.normal(0, 0.1), 0.45, 1)
    outline, (cos, sin) = _outline(rng, 0.045, kind.corners), (np.cos(angle), np.sin(angle))
    ring = np.array([[cos, -sin], [sin, cos]]) @ (outline * [np.cos(ANGLES), slim * np.sin(ANGLES)])
    scale = side / np.sqrt(np.ptp(ring, axis=1).prod())
    size = np.clip(np.ptp(ring, axis=1) * scale * 1.06, 40, 164)  # the image is cut close round the cell
    shape = tuple(np.ceil(size[::-1]).astype(int) + 2 * PAD)
    centre = PAD + size / 2 - scale * (ring.min(axis=1) + ring.max(axis=1)) / 2
    cell = _distance(shape, centre, (scale, scale * slim), angle, outline)

    axis = np.sqrt(np.clip(kind.share * np.exp(rng.normal(0, 0.2)), 0.008, 0.54) * size.prod() / np.pi)
    oval = np.sqrt(np.clip(slim + rng.normal(0.06, 0.08), 0.5, 1.1))
    rough = kind.rough * rng.uniform(0.5, 1.6)
    room = max(0, scale - axis / oval) * rng.uniform(-1, 1) * (0.75 if name == "normal_columnar" else 0.4)
    axes, turn = (axis / oval, axis * oval), angle + rng.normal(0, 0.15)
    nucleus = _distance(shape, centre + room * np.array([cos, sin]), axes, turn, _outline(rng, rough))
    rim = 1 + 0.12 * (_noise(rng, shape, 25) - 0.3)  # cytoplasm too thin to outline, on some sides only
    mask = np.select([(nucleus < 1) & (cell < 1), cell < 1, cell < rim], [2, 3, 1], 4).astype(np.uint8)
    mask[(mask == 1) & (rim > 1.08) & ndimage.binary_dilation(mask == 3)] = 0

    eosin = rng.random() < kind.eosin
    dye = EOSIN if eosin else BLUE + (CYAN - BLUE) * rng.uniform(0, 1 if kind.corners else 0.5)
    image = tint * (1 + 0.02 * _noise(rng, shape, 12)[..., None])
    for k in range(rng.integers(3, 8)):  # three neighbouring cells, then debris
        way, (near, far, out) = rng.uniform(-np.pi, np.pi), (0.25, 0.6, 0.8) if k < 3 else (0.015, 0.05, 0.6)
        spot = centre + size * rng.uniform(0.5, out) * [np.cos(way), np.sin(way)]
        other = _distance(shape, spot, side * rng.uniform(near, far, 2), way, _outline(rng, 0.06, 5))
        _stain(image, _cover(other, 0.08) * rng.uniform(0.2, 0.7), dye if k < 3 else HAEMATOXYLIN)
    grain = (0.8 if eosin else 0.45) * (1 + 0.16 * _noise(rng, shape, 14) + 0.08 * _noise(rng, shape, 2.5))
    grain += 0.2 * _line(_noise(rng, shape, side / 3), 0, 0.12) * (kind.corners > 0)  # folds
    body, grain = _cover(cell, 0.04), grain + 0.35 * _line(cell, 0.97, 0.04)
    _stain(image, body * grain.clip(0) * strength, dye)
    clumps = sum(_noise(rng, shape, max(axis, 3) / n) * (0.06 + 1.4 * rough) for n in (2, 5))
    chromatin = (0.9 + clumps + (0.15 + 2 * rough) * _line(nucleus, 0.93, 0.07)).clip(0.25)
    density = (kind.density + rng.normal(0, 0.07)) * strength
    _stain(image, _cover(nucleus, 0.05) * body * chromatin * density, HAEMATOXYLIN)
    return image, mask


def draw_junction(rng, tissue: np.ndarray, kind: int, os_at: np.ndarray, reach: float, tilt: float) -> None:
    """Os and columnar epithelium, drawn in place: how far the junction lies outside the os makes the type.

    `tissue`: RGB float64 (H, W, 3) in 0..255, changed. `kind`: transformation zone of type 1, 2 or 3. `os_at`:
    (x, y) of the os, `reach`: radius of the cervix, both in pixels. `tilt`: radians.
    """
    shape, slit = tissue.shape[:2], rng.choice([rng.uniform(0.22, 0.5), rng.uniform(0.75, 1)])
    width = reach * rng.uniform(0.1, 0.22)
    villi = 1 + 0.1 * _noise(rng, shape, 3) + 0.1 * _noise(rng, shape, 9)
    red = (np.array([186, 52, 62]) + rng.normal(0, 10, 3)) * villi[..., None]
    radius = reach * rng.uniform(0.38, 0.68) * _outline(rng, 0.06)  # type 1: all of it on the ectocervix
    if kind == 2:  # a crescent on one lip, the rest inside the canal
        lip = (0.5 + 0.5 * np.cos(ANGLES - rng.uniform(-np.pi, np.pi))) ** 1.5 * rng.uniform(0.12, 0.28)
        radius = (0.8 * width + reach * lip) * _outline(rng, 0.06)
    if kind < 3:
        junction = _distance(shape, os_at, (1, rng.uniform(0.8, 1)), tilt, radius)
        _blend(tissue, red, _cover(junction, 0.06) * rng.uniform(0.65, 0.95))
        _blend(tissue, (240, 200, 204), 0.5 * _line(junction, 1.08, 0.06))
    opening = _distance(shape, os_at, (width, width * slit), tilt + rng.normal(0, 0.2), _outline(rng, 0.06))
    _blend(tissue, red * 0.85, 0.5 * _cover(opening / 1.35, 0.12))
    _blend(tissue, (62, 12, 18), _cover(opening, 0.1) * 0.95)


def _draw_speculum(rng, image: np.ndarray, middle: np.ndarray, reach: float, tilt: float) -> None:
    """A plastic ring in a dark tube (0) or before the skin (1), metal blades (2), or shadow (3)."""
    shape, style, way = image.shape[:2], rng.integers(4), rng.uniform(-np.pi, np.pi)
    metal = (np.array([165, 172, 182]) + rng.normal(0, 12, 3)) * (0.75 + 0.13 * _noise(rng, shape, 90))[..., None]
    if style < 2:
        axes = (reach * 1.25, reach * rng.uniform(1.25, 1.5))
        ring = _distance(shape, middle, axes, tilt, _outline(rng, 0.02))
        _blend(image, (122, 80, 68) if style else (16, 11, 13), 0.9 * (1 - _cover(ring / 1.2, 0.05)))
        _blend(image, metal, 0.55 * _line(ring, 1.1, 0.1))
        _blend(image, (240, 245, 250), 0.6 * _line(ring, 1.03, 0.015) * (_noise(rng, shape, 40) > 0))
    for turn in (tilt + np.pi / 2, tilt - np.pi / 2) if style == 2 else (way,):
        away = middle + reach * rng.uniform(1.8, 2.2) * np.array([np.cos(turn), np.sin(turn)])
        blade = _distance(shape, away, (reach, reach * 2.1), turn, _outline(rng, 0.02))
        _blend(image, metal if style == 2 else (28, 12, 16), _cover(blade, 0.03 if style == 2 else 0.12))
        _blend(image, (245, 248, 250), 0.5 * _line(blade, 0.93, 0.03) * (style == 2))


def draw_cervix(rng, kind: int) -> np.ndarray:
    """One cervix with a transformation zone of type `kind` (1, 2 or 3), seen through a speculum.

    Returns RGB float64 (380, 300, 3), about 0..255 but not clipped, with some margin round a view of (320, 240).
    """
    shape, tilt, reach = (380, 300), rng.normal(0, 0.25), rng.uniform(72, 120)
    middle, light = np.array([150, 190]) + rng.normal(0, (16, 24)), rng.normal(0, 0.35, 2)
    lit = _distance(shape, middle + reach * light, (reach * 1.5, reach * 1.7), tilt)
    dome = _distance(shape, middle, (reach, reach * rng.uniform(0.85, 1.15)), tilt, _outline(rng, 0.03))
    folds = 1 + 0.12 * np.sin(dome * rng.uniform(9, 16) + 1.5 * _noise(rng, shape, 60))
    image = np.array([168, 84, 96]) * (folds * (np.exp(-0.5 * lit**2) + 0.1))[..., None]
    tissue = 1 + 0.05 * _noise(rng, shape, 30) + 0.025 * _noise(rng, shape, 5)
    tissue = (np.array([218, 136, 150]) + rng.normal(0, 9, 3)) * tissue[..., None]
    vessels = _line(_noise(rng, shape, 20), 0, 0.05) * (_noise(rng, shape, 50) > 0.5)
    _blend(tissue, (176, 62, 78), 0.4 * vessels)
    draw_junction(rng, tissue, kind, middle + reach * rng.normal(0, 0.14, 2), reach, tilt)
    tissue *= (1.1 - 0.3 * dome**2 - 0.12 * lit**2).clip(0.2)[..., None]
    _blend(image, (44, 14, 22), 0.75 * _line(dome, 1.05, 0.1))
    _blend(image, tissue, _cover(dome, 0.03))
    _draw_speculum(rng, image, middle, reach, tilt)
    glints = (_noise(rng, shape, 4) + _noise(rng, shape, 26) - 2.3 - 1.5 * lit) * (dome < 1)
    _blend(image, (255, 250, 250), ndimage.gaussian_filter(glints.clip(0, 0.5) * 2, 0.8))
    return image * rng.normal(1, (0.04, 0.04, 0.07)) * rng.uniform(0.9, 1.12)
