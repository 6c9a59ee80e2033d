"""Drawn stand-ins for the two image collections: same folders, names and flaws, photographs of drawn scenes.

Each notebook and test can run on them where the real images may not be shared. They carry the idea of each
class (how large and dark a nucleus is, where the squamocolumnar junction lies), nothing measured on a person.
"""

import hashlib
import io
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from cervix_utils import drawing

# 0 seam, 1 other, 2 nucleus, 3 cytoplasm, 4 background
MASK_PALETTE = bytes.fromhex("000000 808080 0000ff 000080 ff0000").ljust(768, b"\0")
TYPE_SHARES = {1: 0.17, 2: 0.53, 3: 0.30}  # as in the real `train` and `additional` together
REPHOTOGRAPHED, TEST_PHOTOGRAPHS, VERSION = 0.15, 6, 1


def _shoot_cell(rng, image: np.ndarray, mask: np.ndarray) -> tuple[Image.Image, Image.Image]:
    """Photograph a drawn cell: crop, focus, exposure and sensor noise differ each time."""
    left, top, right, bottom = rng.integers(drawing.PAD - 2, drawing.PAD + 2, 4)
    view = np.s_[top : image.shape[0] - bottom, left : image.shape[1] - right]
    shot = ndimage.gaussian_filter(image[view], (*[rng.uniform(0.3, 0.9)] * 2, 0)) * rng.uniform(0.92, 1.08)
    picture = Image.fromarray((shot + rng.normal(0, 2.2, shot.shape)).clip(0, 255).astype(np.uint8))
    labels = Image.fromarray(np.ascontiguousarray(mask[view]))
    labels.putpalette(MASK_PALETTE)
    return picture, labels


def _write_herlev(root: Path, seed: int, cells_per_class: int) -> None:
    """Seven folders of cells, each spread over slides A that they share; then the flaws."""
    again, rng = round(REPHOTOGRAPHED * cells_per_class), np.random.default_rng([seed, 0])
    count = max(4, round(1.3 * (cells_per_class - again)))
    slides = rng.choice(np.arange(148_000_000, 210_000_000, 1000), count, replace=False).tolist()
    tints = np.array([159, 151, 172]) + rng.normal(0, 12, (count, 1)) + rng.normal(0, 7, (count, 3))
    strengths = rng.uniform(0.8, 1.15, count)
    for number, name in enumerate(drawing.CELL_KINDS):
        (root / name).mkdir(parents=True)
        for k, slide in enumerate(rng.permutation(count)[: cells_per_class - again]):
            draw, a = np.random.default_rng([seed, 1, number, k]), slides[slide]
            drawn = drawing.draw_cell(draw, name, tints[slide], strengths[slide])
            for shot in range(1 + (k < again)):
                picture, labels = _shoot_cell(draw, *drawn)
                stem = f"{a}-{a + 11 + 10 * number}-{shot + 1:03d}"
                picture.save(root / name / f"{stem}.BMP")
                labels.save(root / name / f"{stem}-d.bmp")
    labels.save(root / name / f"{a}-{a + 1}-001-d.bmp")
    picture, labels = _shoot_cell(draw, *drawn)
    picture.save(root / name / f"{a}-{a + 2}-001.BMP")
    labels.crop((0, 0, labels.width - 3, labels.height)).save(root / name / f"{a}-{a + 2}-001-d.bmp")
    (root / "normal_superficiel/Thumbs.db").write_bytes(b"not an image")


def _shoot_woman(rng, scene: np.ndarray, moved: bool = False) -> bytes:
    """Photograph a drawn cervix as a 240 x 320 JPEG; `moved`: from elsewhere, no near-duplicate."""
    turn, zoom = rng.normal(0, 0.16 if moved else 0.012), rng.normal(0.78 if moved else 1, 0.008)
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    x, y = np.array([150, 190]) + rng.normal(0, 14 if moved else 1.2, 2)
    matrix = (cos, -sin, x - 120 * cos + 160 * sin, sin, cos, y - 120 * sin - 160 * cos)
    shot = scene * rng.uniform(0.94, 1.06) + rng.normal(0, 2.5, scene.shape)
    picture, stream = Image.fromarray(shot.clip(0, 255).astype(np.uint8)), io.BytesIO()
    picture = picture.transform((240, 320), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    picture.save(stream, format="JPEG", quality=88)
    return stream.getvalue()


def _write_mobileodt(root: Path, seed: int, photographs_per_type: int) -> None:
    """`train`: one photograph a woman; `additional`: more of them, unrelated numbers; `test`; the flaws."""
    rng, total = np.random.default_rng([seed, 2]), 3 * photographs_per_type
    numbers = {part: iter(rng.permutation(2 * total).tolist()) for part in ("train", "additional")}
    for kind, share in TYPE_SHARES.items():
        pictures = total - sum(round(TYPE_SHARES[k] * total) for k in (1, 3)) if kind == 2 else round(share * total)
        women = (pictures + 1) // 2
        extra = np.bincount(rng.integers(women, size=pictures - women), minlength=women)
        for part in numbers:
            (root / part / f"Type_{kind}").mkdir(parents=True)
        for woman in range(women):
            draw = np.random.default_rng([seed, 3, kind, woman])
            scene = drawing.draw_cervix(draw, kind)
            for shot in range(1 + extra[woman]):
                part = "additional" if shot else "train"
                data = _shoot_woman(draw, scene, moved=shot > 0 and draw.random() < 0.2)
                (root / part / f"Type_{kind}" / f"{next(numbers[part])}.jpg").write_bytes(data)
        if kind < 3:  # 0 bytes for type 1, half a file for type 2
            flaw = root / f"additional/Type_{kind}" / f"{next(numbers['additional'])}.jpg"
            flaw.write_bytes(data[: len(data) // 2 * (kind - 1)])
    (root / "test").mkdir()
    for k in range(TEST_PHOTOGRAPHS):
        draw = np.random.default_rng([seed, 4, k])
        (root / "test" / f"{k}.jpg").write_bytes(_shoot_woman(draw, drawing.draw_cervix(draw, 1 + k % 3)))


def source_digest() -> str:
    """8 hex digits over the source of this module and of `drawing`: another drawing, another name for its folder."""
    sources = [Path(module).read_bytes() for module in (__file__, drawing.__file__)]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:8]


def _is_complete(folder: Path, recipe: dict) -> bool:
    """Whether `folder` holds this very demo; FileExistsError if it holds anything else."""
    note = folder / "demo.json"
    if note.is_file() and json.loads(note.read_text()) == recipe:
        return True
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds something other than this demo: remove it, or name another")
    return False


def write_demo(folder: Path, seed: int = 0, cells_per_class: int = 14, photographs_per_type: int = 24) -> Path:
    """Write `folder/herlev` and `folder/mobileodt`, laid out as the real collections, wholly or not at all.

    The same arguments give the same bytes. Where `folder` already holds this demo nothing is done; of two
    processes writing at once the later one discards its copy. Returns `folder`.

    herlev/<class>/A-B-NNN.BMP: 24-bit RGB, about 40 to 165 px a side, beside `A-B-NNN-d.bmp`, a palette mask
    (codes: MASK_PALETTE). `cells_per_class` pictures a class; about 15 % of them (NNN = 002) are second
    photographs of a cell; a slide A holds cells of several classes. mobileodt/{train,additional}/Type_k/N.jpg
    and test/N.jpg: RGB, 240 x 320; `photographs_per_type` is the mean over types of train and additional.

    Unusable on purpose, beyond those counts: a JPEG of 0 bytes (additional/Type_1), one cut in half (Type_2);
    in carcinoma_in_situ a mask without image and an image whose mask has another size; one `Thumbs.db`.

    Raises ValueError for too few pictures, FileExistsError if `folder` holds other files.
    """
    if cells_per_class < 2 or photographs_per_type < 3:
        raise ValueError("a demo needs at least 2 cells a class and 3 photographs a type")
    folder = Path(folder)
    recipe = {"version": VERSION, "seed": seed, "cells": cells_per_class, "photographs": photographs_per_type}
    if _is_complete(folder, recipe):
        return folder
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        _write_herlev(draft / "herlev", seed, cells_per_class)
        _write_mobileodt(draft / "mobileodt", seed, photographs_per_type)
        (draft / "demo.json").write_text(json.dumps(recipe))
        draft.rename(folder)
    except OSError:
        if not _is_complete(folder, recipe):  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
