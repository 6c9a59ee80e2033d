"""Decoded pictures on disk: one memory-mapped array for a table and a size, read by every job."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import __version__ as pillow

from cervix_utils import paths
from cervix_utils.data import images

SQUARES_VERSION = 1  # raised by hand when the same pictures shall give other squares


def open_squares(table: pd.DataFrame, size: int, window: int = 0) -> np.ndarray:
    """The pictures of ``table`` (path, sha256) as squares, see ``images.square``: uint8 (n, 3,
    size, size), read-only, on disk. Decoded where the cache does not hold them.

    ``[rows]`` reads some into memory, channels last. Raises CacheError where the disk has no room
    or what the cache holds cannot be read.
    """
    content = (SQUARES_VERSION, pillow, size, window, *table["sha256"])
    files = list(table["path"])
    folder = paths.cached("squares", content, lambda new: _write(new, files, size, window))
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        remedy = "delete that folder, it will be made again"
        raise paths.CacheError(f"{folder} is damaged ({error}): {remedy}") from error
    return np.asarray(pixels).transpose(0, 3, 1, 2)


def _write(folder: Path, files: list[str], size: int, window: int) -> None:
    """Decode ``files`` straight to disk: memory does not grow with their number."""
    needed, free = len(files) * size * size * 3, shutil.disk_usage(folder.parent).free
    # this line ends in reports, which name no folder of this machine
    megabytes = f"{needed / 1e6:.0f} MB in {paths.public(folder.parent)}"
    print(f"decoding {len(files)} pictures to {size} x {size}: {megabytes}", flush=True)
    if needed > 0.95 * free:
        lack = f"has {free / 1e9:.1f} GB free, the decoded pictures need {needed / 1e9:.1f} GB"
        raise paths.CacheError(f"{folder.parent} {lack}: free some, or set CERVIX_CACHE to another")
    shape = (len(files), size, size, 3)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)

    def decode(row: int) -> None:
        pixels[row] = images.square(files[row], size, window)

    images.each(decode, files)
    pixels.flush()
