"""A third data set: two unordered classes, folders of PNGs. Use: CERVIX_PLUGINS=toy_dataset."""

from pathlib import Path

import numpy as np
from PIL import Image

from cervix_utils.data import datasets

TOY = datasets.Dataset(
    name="toy",
    title="Toy squares",
    noun="squares",
    folders=("toy",),
    classes=("dark", "light"),
    ordered=False,
    place=lambda folders: ("toy", folders[-1] if folders else None),
    example="dark/N.png",
    show_key="show_cells",
    citation="drawn by the tests",
    terms="free",
)
datasets.register(TOY)


def draw(data_root: Path, number: int = 40) -> None:
    """Write ``number`` PNGs a class under ``data_root/toy``."""
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 80)):
        (data_root / "toy" / name).mkdir(parents=True)
        for k in range(number):
            pixels = rng.integers(low, low + 160, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((24, 24)).save(data_root / f"toy/{name}/{k}.png")
