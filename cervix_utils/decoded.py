"""Decoded pictures on disk: one memory-mapped array for a table and a size, made once, read by every job."""

import contextlib
import hashlib
import os
import shutil
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import __version__ as pillow

from cervix_utils import images, paths


class CacheError(OSError):
    """The decoded pictures cannot be written or were damaged; the message names the folder and the remedy."""


@dataclass(frozen=True)
class Decoded:
    """Squares of every picture of a table. ``pixels``: uint8 (n, size, size, 3), on disk; ``sums``: CRC-32 (n,)."""

    folder: Path
    pixels: np.ndarray
    sums: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (len(rows), 3, size, size), each picture checked; channels last in memory. CacheError if damaged."""
        found = self.pixels[rows]
        wrong = [row for row, picture in zip(rows, found) if zlib.crc32(picture) != self.sums[row]]
        if wrong:
            raise CacheError(
                f"{self.folder} is damaged (picture {wrong[0]}): delete that folder, it will be made again"
            )
        return found.transpose(0, 3, 1, 2)


def open_squares(table: pd.DataFrame, size: int, window: int = 0) -> Decoded:
    """The pictures of ``table`` (path, sha256) as squares of ``size`` pixels (see ``images.frame``), decoded if need be.

    The folder in the cache is named after the content (hashes of the decoded originals, size, window, code), appears in one
    step, and is made by one process while others wait. Raises CacheError where the disk has no room.
    """
    made_of = [size, window, pillow, Path(images.__file__).read_text(), *table["sha256"]]
    name = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    folder = paths.cache_dir() / f"squares-{size}-{name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (found := _read(folder, len(table), size)) is None:
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, list(table["path"]), size, window)
            found = _read(folder, len(table), size)
    return found


def _read(folder: Path, n: int, size: int) -> Decoded | None:
    """What is in ``folder``, None where it is missing or not whole."""
    with contextlib.suppress(OSError, ValueError):
        pixels, sums = np.load(folder / "pixels.npy", mmap_mode="r"), np.load(folder / "sums.npy")
        if pixels.shape == (n, size, size, 3) and sums.shape == (n,):
            return Decoded(folder, pixels, sums)
    return None


def _write(folder: Path, files: list[str], size: int, window: int) -> None:
    """Decode ``files`` on all cores, straight to disk: memory does not grow with their number."""
    needed, free = len(files) * size * size * 3, shutil.disk_usage(folder.parent).free
    place = paths.public(folder.parent)  # this line ends in reports, which name no folder of this machine
    print(f"decoding {len(files)} pictures to {size} x {size}: {needed / 1e6:.0f} MB in {place}", flush=True)
    if needed > 0.95 * free:
        raise CacheError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, the decoded pictures need {needed / 1e9:.1f} GB: "
            "free some room, or name another folder in the environment variable CERVIX_CACHE"
        )
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    part.mkdir()
    try:
        pixels = np.lib.format.open_memmap(part / "pixels.npy", "w+", np.uint8, (len(files), size, size, 3))

        def decode(row: int) -> int:
            pixels[row] = images.square(files[row], size, window)
            return zlib.crc32(pixels[row])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            np.save(part / "sums.npy", np.fromiter(pool.map(decode, range(len(files))), np.uint32, len(files)))
        pixels.flush()
        part.rename(folder)
    except OSError as error:
        raise CacheError(f"{folder} could not be written ({error}): free some room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
