"""Decoded pictures on disk: one memory-mapped array for a table and a size, read by every job."""

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import __version__ as pillow

from cervix_utils import paths
from cervix_utils.data import images
from cervix_utils.paths import CacheError

SQUARES_VERSION = 1  # raised by hand when the same pictures shall give other squares


@dataclass(frozen=True)
class Decoded:
    """Squares of every picture of a table. ``pixels``: uint8 (n, size, size, 3), on disk;
    ``sums``: CRC-32 of each, (n,)."""

    folder: Path
    pixels: np.ndarray
    sums: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 (len(rows), 3, size, size), channels last in memory. Each picture is checked:
        CacheError if damaged."""
        pictures = self.pixels[rows]
        for row, picture in zip(rows, pictures):
            if zlib.crc32(picture) != self.sums[row]:
                raise _damaged(self.folder, f"picture {row}")
        return pictures.transpose(0, 3, 1, 2)


def _damaged(folder: Path, what: object) -> CacheError:
    return CacheError(f"{folder} is damaged ({what}): delete that folder, it will be made again")


def one(file: str | Path, size: int, window: int = 0) -> np.ndarray:
    """A single picture as a square, decoded now: uint8 (3, size, size), see ``images.square``."""
    return images.square(file, size, window).transpose(2, 0, 1)


def open_squares(table: pd.DataFrame, size: int, window: int = 0) -> Decoded:
    """The pictures of ``table`` (path, sha256) as squares of ``size`` pixels (see
    ``images.frame``), decoded where the cache does not hold them.

    Raises CacheError where the disk has no room or what the cache holds is damaged.
    """
    content = (SQUARES_VERSION, pillow, size, window, *table["sha256"])
    files = list(table["path"])
    folder = paths.cached("squares", content, lambda new: _write(new, files, size, window))
    try:
        pixels, sums = np.load(folder / "pixels.npy", mmap_mode="r"), np.load(folder / "sums.npy")
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return Decoded(folder, pixels, sums)


def _write(folder: Path, files: list[str], size: int, window: int) -> None:
    """Decode ``files`` straight to disk: memory does not grow with their number."""
    needed, free = len(files) * size * size * 3, shutil.disk_usage(folder.parent).free
    # this line ends in reports, which name no folder of this machine
    megabytes = f"{needed / 1e6:.0f} MB in {paths.public(folder.parent)}"
    print(f"decoding {len(files)} pictures to {size} x {size}: {megabytes}", flush=True)
    if needed > 0.95 * free:
        lack = f"has {free / 1e9:.1f} GB free, the decoded pictures need {needed / 1e9:.1f} GB"
        raise CacheError(f"{folder.parent} {lack}: free some, or set CERVIX_CACHE to another")
    shape = (len(files), size, size, 3)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)

    def decode(row: int) -> int:
        pixels[row] = images.square(files[row], size, window)
        return zlib.crc32(pixels[row])

    np.save(folder / "sums.npy", np.array(images.each(decode, files), np.uint32))
    pixels.flush()
