"""Folders of images -> one table a task, and a second table of every file that is not used, with the reason."""

import contextlib
import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from cervix_utils import images, paths, synthetic
from cervix_utils.images import inspect, mask_problem

SEVERITY = {  # Herlev's folders (its own spelling) -> severity 1..5 (paper H section 3.1)
    "normal_superficiel": 1,
    "normal_intermediate": 1,
    "normal_columnar": 1,
    "light_dysplastic": 2,
    "moderate_dysplastic": 3,
    "severe_dysplastic": 4,
    "carcinoma_in_situ": 5,
}
HERLEV_CLASSES = [
    "normal",
    "light_dysplastic",
    "moderate_dysplastic",
    "severe_dysplastic",
    "carcinoma_in_situ",
]
COLPOSCOPY_CLASSES = ["Type_1", "Type_2", "Type_3"]
CLASSES = {"herlev": HERLEV_CLASSES, "colposcopy": COLPOSCOPY_CLASSES}
PUBLISHED_COUNTS = {  # Jantzen et al. 2005; the competition's data page
    "herlev": dict(zip(SEVERITY, (74, 70, 98, 182, 146, 197, 150))),
    "colposcopy": {"train": 1481, "additional": 6734, "test": 512},
}
FOLDERS = {
    "herlev": ("herlev", "smear2005"),
    "colposcopy": ("mobileodt", "intel-mobileodt-cervical-cancer-screening"),
}

_SYSTEM_FILES = re.compile(r"^(\._.*|\.DS_Store|Thumbs\.db|desktop\.ini)$", re.IGNORECASE)
_COLUMNS = [
    "id",
    "source",
    "label",
    "original",
    "severity",
    "name_group",
    "width",
    "height",
    "sha256",
    "phash",
]


class DataError(ValueError):
    """The data root or a data set in it cannot be used; the message says what is wrong and what to do."""


def herlev_class(folder: str) -> str | None:
    """Herlev's class for a folder name: plain, numbered (``1_normal_superficiel``), any case, or English spelling."""
    plain = re.sub(r"^\d+[\s_.-]*", "", folder.strip().lower())
    plain = re.sub(r"[\s-]+", "_", plain).replace("superficial", "superficiel")
    return plain if plain in SEVERITY else None


def herlev_place(parts: tuple[str, ...]) -> tuple[str, str | None]:
    """(source, class) of a file from its folders: the nearest folder that names a class."""
    return "herlev", next((name for name in map(herlev_class, reversed(parts)) if name), None)


def colposcopy_place(parts: tuple[str, ...]) -> tuple[str, str | None]:
    """(source, type) from folders such as ``train/train/Type_1`` or ``additional_Type_2_v2/Type_2``.

    ``test`` is unlabelled: its class is the empty string.
    """
    lower = [part.lower() for part in parts]
    source = next(
        (name for name in ("additional", "test", "train") if any(part.startswith(name) for part in lower)), ""
    )
    label = next((part.capitalize() for part in reversed(lower) if re.fullmatch(r"type_[123]", part)), None)
    return source or "train", "" if source == "test" else label


def read_herlev(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Herlev cells in any of its layouts -> (table, exclusions), see ``read``. A mask's stem ends in ``-d``."""
    return read(root, "herlev", herlev_place, lambda stem: stem.split("-")[0] if stem.count("-") >= 2 else "")


def read_colposcopy(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """MobileODT / Intel cervix photographs in any of the archive's layouts -> (table, exclusions), see ``read``."""
    return read(root, "colposcopy", colposcopy_place, lambda stem: "")


def read(root: Path, task: str, place: Callable, name_group: Callable[[str], str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every file under ``root`` -> (table of usable images, table of files not used).

    Table: id, source, label (one of ``CLASSES[task]``; empty where unlabelled), original (Herlev's seven classes),
    severity (1..5, Herlev only, else 0), name_group (what the file name says of relatives; empty: nothing), width,
    height (pixels), sha256 (of decoded pixels), phash (64 bits), path, mask (empty: none). Sorted by id.
    Exclusions: file (relative to ``root``), reason. Raises DataError where nothing or a whole class is unusable.
    """
    files = sorted(file for file in root.rglob("*") if file.is_file())
    rows, masks, reasons = [], defaultdict(dict), {}
    for file in files:
        relative = file.relative_to(root)
        source, original = place(relative.parts[:-1])
        if _SYSTEM_FILES.match(file.name) or "__MACOSX" in relative.parts:
            reasons[file] = "system file, not an image"
        elif task == "herlev" and file.stem.lower().endswith("-d"):
            if masks[file.stem[:-2]].setdefault(original, file) != file:
                reasons[file] = "second mask of the same image"
        elif original is None:
            reasons[file] = f"unknown class: no folder of its path names one of {', '.join(CLASSES[task])}"
        else:
            name = f"{source}/{original}/{file.stem}" if task == "colposcopy" else f"{original}/{file.stem}"
            rows.append({"id": name.replace("//", "/"), "source": source, "original": original, "path": file})
    rows.sort(key=lambda row: row["source"] != "train")  # of two equal photographs the one in `train` is kept
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, found in zip(rows, pool.map(inspect, [row["path"] for row in rows])):
            row.update(found)
    used = []
    first_with = {"id": {}, "sha256": {}}
    for row in rows:
        twin = next((first_with[key].get(row.get(key)) for key in first_with if row.get(key) in first_with[key]), None)
        if "reason" in row or twin is not None:
            reasons[row["path"]] = row.get("reason") or f"same id or same pixels as {twin.relative_to(root)}"
            continue
        for key, seen in first_with.items():
            seen[row[key]] = row["path"]
        found = masks.get(row["path"].stem, {})
        place_of_mask = next((key for key in (row["original"], None) if key in found), "")
        row["mask"] = found.pop(place_of_mask) if place_of_mask != "" else ""
        if row["mask"] and (problem := mask_problem(row["mask"], (row["width"], row["height"]))):
            reasons[row["mask"]], row["mask"] = problem, ""
        row["severity"] = SEVERITY.get(row["original"], 0)
        row["label"] = HERLEV_CLASSES[row["severity"] - 1] if row["severity"] else row["original"]
        row["name_group"] = name_group(row["path"].stem)
        used.append(row)
    unused = {row["path"].stem for row in rows if row["path"] in reasons}
    for stem, found in masks.items():
        why = "mask of an image that is not used" if stem in unused else "mask without image"
        reasons |= dict.fromkeys(found.values(), why)
    exclusions = pd.DataFrame(
        {
            "file": [str(file.relative_to(root)) for file in sorted(reasons)],
            "reason": [reasons[f] for f in sorted(reasons)],
        },
        columns=["file", "reason"],
        dtype=str,
    )
    table = pd.DataFrame(used, columns=[*_COLUMNS, "path", "mask"]).sort_values("id", ignore_index=True)
    table = table.astype({"phash": "uint64", "severity": int, "width": int, "height": int, "path": str, "mask": str})
    _refuse_broken(table, exclusions, task, root, {row["original"] for row in rows})
    return table, exclusions


def _refuse_broken(table: pd.DataFrame, exclusions: pd.DataFrame, task: str, root: Path, seen: Iterable[str]) -> None:
    """Raise DataError where no image is usable, or none of a class that has files."""
    why = exclusions["reason"].str.replace(r"[:(].*", "", regex=True).value_counts().to_dict()
    if table.empty:
        raise DataError(
            f"{root}: no usable image among {len(exclusions)} files {why or ''}; expected folders such as "
            f"{'normal_superficiel/NAME.BMP' if task == 'herlev' else 'train/Type_1/N.jpg'} (see README, Data)"
        )
    for name in sorted(set(seen) - set(table["original"]) - {""}):
        raise DataError(f"{root}: every image of class '{name}' is unusable {why}; replace the files or unpack again")


def find(data_root: str, task: str, seed: int = 0) -> Path:
    """Folder of one data set. ``data_root``: ``demo`` (drawn on first use), a folder, or '' for CERVIX_DATA.

    Raises DataError where the folder is missing, empty, or holds no such data set.
    """
    if data_root == "demo":
        folder = paths.cache_dir() / f"demo-{seed}-{synthetic.source_digest()}"
        return synthetic.write_demo(folder, seed) / FOLDERS[task][0]
    if not (value := data_root or os.environ.get("CERVIX_DATA", "")):
        raise DataError("data_root is empty: give DATA=/path/to/data, or set the environment variable CERVIX_DATA")
    root = paths.resolve(value)
    if not root.is_dir():
        raise DataError(
            f"data root {root} does not exist; it should hold {' and '.join(FOLDERS[t][0] for t in FOLDERS)}"
        )
    found = [folder for folder in root.iterdir() if folder.is_dir() and folder.name.lower() in FOLDERS[task]]
    if not found:
        raise DataError(
            f"data root {root} holds no folder '{FOLDERS[task][0]}' (found: "
            f"{', '.join(sorted(f.name for f in root.iterdir())[:8]) or 'nothing'}); see README, Data, for the layout"
        )
    return found[0]


def load(data_root: str, task: str, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(table, exclusions) of ``herlev`` or ``colposcopy``, see ``read``; kept until a file under the root changes."""
    root = find(data_root, task, seed)
    reader = read_herlev if task == "herlev" else read_colposcopy
    state = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(root.rglob("*")) if f.is_file()]
    code = b"".join(Path(module.__file__).read_bytes() for module in (sys.modules[__name__], images))
    kept = (
        paths.cache_dir() / f"table-{task}-{hashlib.sha256(code + repr((str(root), state)).encode()).hexdigest()[:16]}"
    )
    if not kept.exists():
        tables = reader(root)
        part = kept.with_name(f"{kept.name}.{os.getpid()}")
        part.mkdir(parents=True)
        for table, name in zip(tables, ("images", "exclusions")):
            table.to_parquet(part / f"{name}.parquet")
        with contextlib.suppress(OSError):  # another process was first
            part.rename(kept)
    return pd.read_parquet(kept / "images.parquet"), pd.read_parquet(kept / "exclusions.parquet")


def fingerprint(table: pd.DataFrame) -> str:
    """12 hexadecimal digits that change with any id, label or pixel of the table."""
    return hashlib.sha256(table[["id", "label", "sha256"]].to_csv(index=False).encode()).hexdigest()[:12]
