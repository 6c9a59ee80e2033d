"""One picture at a time: decode it, say what is wrong with it, make it and its mask a square."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

# palette indices of Herlev's masks; 1 rim and 0 seams count as unknown
NUCLEUS, CYTOPLASM, BACKGROUND = 2, 3, 4
# Pillow decodes these itself; an EPS, for one, would be run as a program by Ghostscript
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
LARGE = 16_000_000  # pixels; of larger pictures one is in memory at a time


def open_image(path: str | Path, least: int = 0) -> Image.Image:
    """The decoded picture: RGB, EXIF orientation applied. OSError or ValueError if unusable.

    ``least``: the longer side may come smaller, down to twice this: JPEG decodes a half, quarter
    or eighth faster.
    """
    with Image.open(path, formats=FORMATS) as image:
        if least:
            image.draft(None, [2 * least * side // max(image.size) or 1 for side in image.size])
        if image.mode[0] in "IF":  # Pillow would cut them off
            raise ValueError(f"{image.mode} pixels, 8 bits a colour are needed")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image if image.mode == "RGB" else image.convert("RGB")


def each(work: Callable[[int], Any], files: Sequence[str | Path]) -> list:
    """``[work(0), work(1), ...]`` for as many files of pictures, on all cores; large pictures one
    after the other in this thread, so that memory does not grow with the cores."""
    with ThreadPoolExecutor() as pool:
        small = {k: pool.submit(work, k) for k, file in enumerate(files) if not _is_large(file)}
        return [small[k].result() if k in small else work(k) for k in range(len(files))]


def _is_large(file: str | Path) -> bool:
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.width * image.height > LARGE
    except Exception:  # no picture: whoever opens it will say so
        return False


def open_mask(path: str | Path) -> Image.Image:
    """The mask as palette **indices** (mode ``L``: 2 nucleus, 3 cytoplasm, 4 background, else
    unknown). Raises ValueError where it has no palette; see also ``outlined``."""
    if str(path).lower().endswith(".dat"):
        return outlined(Path(path))
    with Image.open(path, formats=FORMATS) as mask:
        if mask.mode not in ("P", "L"):
            raise ValueError(f"{path}: mask is not an 8-bit palette image, but of mode {mask.mode}")
        return Image.fromarray(np.asarray(mask))


def outlined(file: Path) -> Image.Image:
    """The mask (mode ``L``) of a cell outlined in ``NAME_nuc.dat`` and ``NAME_cyt.dat``.

    One line a corner: ``x,y``, pixels of the picture NAME beside them. ValueError where one is
    missing, is no such table, or leaves the picture by more than a pixel.
    """
    name = file.stem[: -len("_nuc")]
    picture = min(other for other in file.parent.iterdir() if other.stem == name)
    mask = Image.new("L", open_image(picture).size, BACKGROUND)
    for part, index in (("cyt", CYTOPLASM), ("nuc", NUCLEUS)):
        outline = file.with_name(f"{name}_{part}{file.suffix}")
        try:
            corners = np.loadtxt(outline, delimiter=",", ndmin=2).reshape(-1, 2)
        except (OSError, ValueError):
            words = f"outline {outline.name} is missing or no lines 'x,y'"
            raise ValueError(f"{file}: {words}") from None
        if len(corners) < 3 or not ((corners >= -1) & (corners <= mask.size)).all():
            size = f"{mask.width}x{mask.height}"
            raise ValueError(f"{file}: outline {outline.name} leaves its {size} picture or is none")
        ImageDraw.Draw(mask).polygon(corners.ravel().tolist(), fill=index)
    return mask


def inspect(path: Path) -> dict:
    """Width, height, SHA-256 of the decoded RGB pixels and 64-bit perceptual hash; or ``reason``
    why it is unusable."""
    try:
        if path.stat().st_size == 0:
            return {"reason": "empty file (0 bytes)"}
        image = open_image(path)
    except UnidentifiedImageError:
        return {"reason": "not an image"}
    except Exception as error:  # whatever a damaged file makes of its decoder
        return {"reason": f"truncated, damaged or too large ({error})"}
    digest, phash = hashlib.sha256(f"{image.size}".encode()), int(str(imagehash.phash(image)), 16)
    for top in range(0, image.height, 256):  # not at once, which takes twice the memory
        strip = image.crop((0, top, image.width, min(top + 256, image.height)))
        digest.update(strip.tobytes())
    values = (*image.size, digest.hexdigest(), phash)
    return dict(zip(("width", "height", "sha256", "phash"), values))


def has_codes(path: Path) -> bool:
    """Whether a file is a mask by its content: a palette or grey picture of mask codes alone."""
    try:
        return open_mask(path).getextrema()[1] <= BACKGROUND
    except Exception:  # no picture, or one with colours
        return False


def mask_problem(mask: Path, size: tuple[int, int]) -> str:
    """Why ``mask`` cannot serve an image of ``size`` (width, height); empty where it can."""
    try:
        opened = open_mask(mask)
    except ValueError as error:
        return str(error).removeprefix(f"{mask}: ")
    except Exception:  # whatever a damaged file makes of its decoder
        return "mask is empty, truncated or not an image"
    if opened.size != size:
        return "mask is {}x{}, its image {}x{}".format(*opened.size, *size)
    return "" if NUCLEUS in np.asarray(opened) else f"mask has no nucleus (code {NUCLEUS})"


def border_colour(image: Image.Image) -> tuple[int, int, int]:
    """Median RGB (0..255) of the outermost pixels: what an image is padded with."""
    w, h = image.size
    sides = [(0, 0, w, 1), (0, h - 1, w, h), (0, 0, 1, h), (w - 1, 0, w, h)]
    edge = np.concatenate([np.asarray(image.crop(side)).reshape(-1, 3) for side in sides])
    return tuple(int(value) for value in np.median(edge, axis=0))


def frame(image: Image.Image, size: int, window: int, fill: int | tuple, how: int) -> np.ndarray:
    """The square a network sees, (size, size[, 3]), never squashed, beyond the image ``fill``;
    ``how``: a method of ``Image.Resampling``.

    ``window`` 0: the whole image. Else the ``window`` x ``window`` original pixels in its middle,
    at the same magnification for every image (0.201 um a pixel in Herlev).
    """
    if window:
        canvas = Image.new(image.mode, (window, window), fill)
        canvas.paste(image, ((window - image.width) // 2, (window - image.height) // 2))
        image = canvas
    return np.asarray(ImageOps.pad(image, (size, size), how, fill))


def square(file: str | Path, size: int, window: int = 0) -> np.ndarray:
    """A picture as a square (see ``frame``), filled with its border colour: uint8 (size, size, 3),
    RGB."""
    image = open_image(file, 0 if window else size)
    return frame(image, size, window, border_colour(image), Image.Resampling.BILINEAR)


def squares(files: Iterable[str], size: int, window: int = 0) -> np.ndarray:
    """A few pictures (see ``square``), all in memory: uint8 (n, 3, size, size). Many:
    ``squares.open_squares``."""
    return np.stack([square(file, size, window) for file in files]).transpose(0, 3, 1, 2)


def square_masks(files: Iterable[str], size: int, window: int = 0) -> np.ndarray:
    """Masks in the geometry of ``squares``: uint8 indices (n, size, size); the filling counts as
    background. All is unknown (0) where ``files`` has no name, but ''."""

    def read(file: str) -> np.ndarray:
        if not file:
            return np.zeros((size, size), np.uint8)
        return frame(open_mask(file), size, window, BACKGROUND, Image.Resampling.NEAREST)

    return np.stack([read(file) for file in files])
