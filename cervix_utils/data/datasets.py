"""Folders of images -> a table of the images, and one of the files not used, with reasons.

Every data set is an entry of DATASETS; the facts of those that come along are in datasets.yaml. A
further one is a module that calls ``register``, named in the environment variable CERVIX_PLUGINS
(modules separated by commas): nothing here changes.
"""

import hashlib
import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from cervix_utils import paths
from cervix_utils.data import demo, images

TABLES = ("images.parquet", "exclusions.parquet")
TABLE_VERSION = 2  # raised by hand when the same files shall give another table
COLUMNS = ["id", "source", "label", "original", "severity", "name_group"]
COLUMNS += ["width", "height", "sha256", "phash", "path", "mask"]
TYPES = {"phash": "uint64", "severity": int, "width": int, "height": int, "path": str, "mask": str}
SYSTEM_FILES = re.compile(r"^(\._.*|\.DS_Store|Thumbs\.db|desktop\.ini)$", re.IGNORECASE)
UNREAD = "cannot be read (no permission, a link to nothing, or no file at all)"
# masks by their names, in the copies of Herlev that are about
_WORDS = r"masks?|seg|segmentations?|annotations?|ground[ _-]?truth|gt"
MASK_STEM = re.compile(rf"[ _-](d|nuc|{_WORDS})$", re.IGNORECASE)  # nuc: outlines, NAME_nuc.dat
MASK_FOLDER = re.compile(rf"({_WORDS}|labels|referencia)$", re.IGNORECASE)


class DataError(ValueError):
    """A data set is unknown or cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Dataset:
    """A data set: where its files lie, which classes it has, how it may be used."""

    name: str  # the key everywhere, the value in column `task`: "herlev"
    title: str  # label for people: "Herlev cells"
    noun: str  # what its images are called, plural: "cells"
    folders: tuple[str, ...]  # names that its folder under the data root may have, lower case
    classes: tuple[str, ...]  # labels, in order
    place: Callable[[tuple[str, ...]], tuple[str, str | None]]  # a file's folders -> source, class
    example: str  # what a file is expected to look like, for messages
    show_key: str  # the parameter that allows its pictures in pages
    citation: str
    terms: str
    ordered: bool = False  # whether classes are grades of severity 1..k, the first one normal
    labels: Mapping[str, str] = field(default_factory=dict)  # class of a folder -> its label
    abnormal: tuple[str, ...] = ()  # classes that are illness; none where that is not asked
    benign: tuple[str, ...] = ()  # neither that nor quite normal: counted both ways
    group: str = "()"  # expression that any file name begins with; its part names the group
    by_class: bool = False  # whether name groups are numbered anew in each class
    stems: str = ".*"  # expression that the names of its images match, without suffix
    masks: bool = False  # whether it has masks: see MASK_STEM
    test_fraction: float | None = None  # of a repeated random split; None: cross-validation
    published: Mapping[str, int] = field(default_factory=dict)  # published number of images
    published_by: str = "original"  # the column that `published` counts by

    @property
    def originals(self) -> tuple[str, ...]:
        """Classes as the folders name them (Herlev's seven), in order."""
        return tuple(self.labels) or self.classes


DATASETS: dict[str, Dataset] = {}


def register(dataset: Dataset) -> None:
    """Add a data set to DATASETS, in the place of one with the same name.

    ``place`` gives the source (the data set's name where there is only one) and the class that a
    file's folders name: "" for an unlabelled image, None (or any other word) where it is unknown.
    """
    if not dataset.name.isidentifier():
        raise DataError(f"data set '{dataset.name}': its name must be of letters, digits and _")
    if strange := set(dataset.labels.values()) - set(dataset.classes):
        raise DataError(f"data set '{dataset.name}': {strange} are labels, but no classes of it")
    DATASETS[dataset.name] = dataset


def get(task: str) -> Dataset:
    """The data set of a task; DataError where there is none of that name.

    ``<name>_abnormal``: the same images, labelled normal or abnormal (grades 1 and 2).
    """
    found, two = DATASETS.get(name := task.removesuffix("_abnormal")), ("normal", "abnormal")
    if found is None or not (name == task or found.abnormal):
        raise DataError(f"unknown data set '{task}': known are {', '.join(DATASETS)}")
    if name == task:
        return found
    words = {"title": f"{found.title}, normal or abnormal", "abnormal": two[1:], "ordered": True}
    labels = {kind: two[found.labels.get(kind, kind) in found.abnormal] for kind in found.originals}
    return replace(found, classes=two, labels=labels, **words)


def _files(root: Path) -> dict[Path, str]:
    """Every file under ``root``, sorted -> why it cannot be looked at (empty where it can).

    Links to folders are followed, after all else; one that leads back is listed, and so is a folder
    that cannot be read.
    """
    found, seen, places = {}, set(root.resolve().parents), [root]

    def unread(error: OSError) -> None:
        found[Path(error.filename)] = UNREAD

    for place in places:  # grows by the links that are met
        for folder, below, names in os.walk(place, onerror=unread):
            if (real := Path(folder).resolve()) in seen:
                found[Path(folder)] = "link to a folder that is read already, or that holds this"
                below.clear()
                continue
            seen.add(real)
            places += filter(Path.is_symlink, (Path(folder, name) for name in sorted(below)))
            found |= {file: _unfit(file) for file in (Path(folder, name) for name in names)}
    return dict(sorted(found.items()))


def _unfit(file: Path) -> str:
    """Why a file cannot be looked at: its name, its kind, its permissions; empty where it can."""
    if _readable(file) != str(file):
        return "its name is not UTF-8: rename it"
    return "" if os.access(file, os.R_OK) and file.is_file() else UNREAD


def read(root: Path, dataset: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every file under ``root`` -> (table of usable images, table of files not used).

    Table: id, source, label (one of the classes; empty: unlabelled), original (class of the
    folder), severity (1..k where classes are ordered, else 0), name_group (what the file name says
    of the group; empty: nothing), width, height (pixels), sha256 (of decoded pixels), phash (64
    bits), path, mask (empty: none). Sorted by id.
    Exclusions: file (relative to ``root``), reason. Raises DataError where no image, or none of a
    class that has files, is usable.
    """
    rows, masks, reasons = _sort_files(root, dataset)
    files = [row["path"] for row in rows]
    contents = images.each(lambda k: images.inspect(files[k]), files)
    rows = [row | content for row, content in zip(rows, contents)]
    _refuse_twins(rows, root, reasons)
    _attach_masks(rows, masks, reasons)
    used = [row for row in rows if row["path"] not in reasons]
    table = pd.DataFrame(used, columns=COLUMNS).sort_values("id", ignore_index=True).astype(TYPES)
    left = [(_readable(file.relative_to(root)), reasons[file]) for file in sorted(reasons)]
    exclusions = pd.DataFrame(left, columns=["file", "reason"], dtype=str)
    seen = {row["original"] for row in rows}
    _refuse_broken(root, dataset, table, exclusions["reason"], seen)
    return table, exclusions


def _sort_files(root: Path, dataset: Dataset) -> tuple[list[dict], dict, dict[Path, str]]:
    """Rows of images; masks by class and stem; reasons of the files that are neither."""
    rows, masks, reasons = [], {}, {}
    grades = {name: grade for grade, name in enumerate(dataset.classes, 1) if dataset.ordered}
    for file, unfit in _files(root).items():
        folders = file.relative_to(root).parts[:-1]
        source, original = dataset.place(folders)
        original = original if original in ("", *dataset.originals) else None
        if unfit:
            reasons[file] = unfit
        elif SYSTEM_FILES.match(file.name) or "__MACOSX" in folders:
            reasons[file] = "system file, not an image"
        elif dataset.masks and _is_mask(file, folders):
            if masks.setdefault((original, MASK_STEM.sub("", file.stem)), file) != file:
                reasons[file] = "second mask of the same image"
        elif original is None:
            reasons[file] = _unknown(folders, dataset)
        elif not re.fullmatch(dataset.stems, file.stem):
            outline = "an outline that is no mask by itself (NAME_nuc.dat and NAME_cyt.dat are)"
            unlike = f"not named like its images: {dataset.example} is expected"
            reasons[file] = outline if file.suffix.lower() == ".dat" else unlike
        else:
            names = ("" if source == dataset.name else source, original, file.stem)
            name = _no_formula("/".join(filter(None, names)))
            label = dataset.labels.get(original, original)
            row = {"id": name, "source": source, "label": label, "original": original, "path": file}
            group = _no_formula(re.match(dataset.group, file.stem)[1] or "")
            group = f"{original}/{group}" if group and dataset.by_class else group
            rows.append(row | {"severity": grades.get(label, 0), "name_group": group})
    rows.sort(key=lambda row: row["source"] != "train")  # the first of two equal pictures is kept
    return rows, masks, reasons


def _unknown(folders: tuple[str, ...], dataset: Dataset) -> str:
    """Why a file is of no class; whether its folders name a class of another collection."""
    names = ", ".join(dataset.originals)
    mixed = [one.title for one in DATASETS.values() if one.place(folders)[1] in one.originals]
    hint = f"; of {mixed[0]}: give each collection a folder of its own" if mixed else ""
    return f"unknown class: no folder of its path names one of {names}{hint}"


def _is_mask(file: Path, folders: tuple[str, ...]) -> bool:
    """Whether a file is a mask, by its name, by one of its folders or by its content."""
    named = MASK_STEM.search(file.stem) or any(map(MASK_FOLDER.match, folders))
    return bool(named) or (file.suffix.lower() != ".dat" and images.has_codes(file))


def _no_formula(text: str) -> str:
    """``text`` as a spreadsheet shows it and does not calculate it (OWASP, CSV injection)."""
    return re.sub(r"^(?=[=+\-@\t\r])", "'", text)


def _readable(path: Path) -> str:
    """A path as text: bytes of a name that are not UTF-8 become ``\\xff``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _refuse_twins(rows: list[dict], root: Path, reasons: dict[Path, str]) -> None:
    """Reasons of the images that do not decode, or whose id or pixels an earlier image has.

    Of equal pixels in two classes it is said that one class is wrong; the first is kept.
    """
    first = {}
    for row in rows:
        name, content = row["id"], row.get("sha256")
        if "reason" in row:
            reasons[row["path"]] = row["reason"]
        elif twin := first.get(name) or first.get(content):
            reason = f"same id or same pixels as {twin['path'].relative_to(root)}"
            contradict = len({twin["original"], row["original"]} - {""}) > 1
            reasons[row["path"]] = reason + ", of another class: one is wrong" * contradict
        else:
            first[name] = first[content] = row


def _attach_masks(rows: list[dict], masks: dict, reasons: dict[Path, str]) -> None:
    """Give each used row its ``mask`` (empty: none that fits); reasons of the other masks.

    A mask lies in a folder of the image's class, or of no class.
    """
    unused = {row["path"].stem for row in rows if row["path"] in reasons}
    for row in rows:
        if row["path"] not in reasons:
            stem = row["path"].stem
            mask = masks.pop((row["original"], stem), None) or masks.pop((None, stem), "")
            problem = images.mask_problem(mask, (row["width"], row["height"])) if mask else ""
            row["mask"] = "" if problem else mask
            if problem:
                reasons[mask] = problem
    for (_, stem), mask in masks.items():
        why = "of an image that is not used" if stem in unused else "without image"
        reasons[mask] = f"mask {why}"


def _refuse_broken(root: Path, dataset: Dataset, table, reasons: pd.Series, seen: set[str]) -> None:
    """Raise DataError where no image is usable, or none of a class ``seen`` in the folders."""
    why = reasons.str.replace(r"[:(].*", "", regex=True).value_counts().to_dict() or ""
    if table.empty:
        count = f"no usable image among {len(reasons)} files {why}"
        raise DataError(f"{root}: {count}; expected files such as {dataset.example} (see README)")
    counted = dataset.published if dataset.published_by == "original" else ()
    for name in sorted({*seen, *counted} - {*table["original"], ""}):
        words = "is unusable" if name in seen else "is missing"
        raise DataError(f"{root}: every image of class '{name}' {words} {why}: unpack again")


def find(data_root: str, task: str, seed: int = 0) -> Path:
    """Folder of a data set. ``data_root``: ``demo`` (drawn), a folder, or '' for CERVIX_DATA.

    Raises DataError where the folder is missing, empty, or holds no such data set.
    """
    dataset, value = get(task), data_root or os.environ.get("CERVIX_DATA", "")
    if not value:
        raise DataError("data_root is empty: give DATA=/path or set the variable CERVIX_DATA")
    root = demo.folder_of(seed) if data_root == "demo" else paths.resolve(value)
    wanted = dataset.folders[0]
    try:
        content = sorted(root.iterdir())
        named = [path for path in content if path.name.lower() in dataset.folders]
        found = [folder for folder in named if folder.is_dir()]
    except (OSError, ValueError) as error:
        words = f"cannot be read ({error}); it should hold {wanted}"
        raise DataError(f"data root {root} {words}") from None
    if len(found) == 1:
        return found[0]
    names = ", ".join(_readable(path.relative_to(root)) for path in (found or content)[:8])
    what = f"{'two folders' if found else 'no folder'} '{wanted}' (found: {names or 'nothing'})"
    raise DataError(f"data root {root} holds {what}; see README, Data, for the layout")


def state(data_root: str, task: str, seed: int = 0) -> str:
    """16 hexadecimal digits that change with the name, size or time of a file of a data set.

    They also change with what its entry in DATASETS says of the files. No file is opened.
    """
    root, dataset = find(data_root, task, seed), get(task)
    entries = [TABLE_VERSION, replace(dataset, place=None)]
    for file, unfit in _files(root).items():
        relative, stat = file.relative_to(root), None if unfit else file.stat()
        place = dataset.place(relative.parts[:-1])
        entries.append((str(relative), stat and (stat.st_size, stat.st_mtime_ns), unfit, place))
    return paths.digest(entries)


def load(data_root: str, task: str, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(table, exclusions) of a data set, see ``read``; kept until its ``state`` changes.

    Raises DataError as ``find`` and ``read`` do, or where the kept table is damaged.
    """
    root, dataset = find(data_root, task, seed), get(task)

    def make(folder: Path) -> None:
        for name, table in zip(TABLES, read(root, dataset)):
            table.to_parquet(folder / name)

    folder = paths.cached("table", (str(root), task, state(data_root, task, seed)), make)
    try:
        return tuple(pd.read_parquet(folder / name) for name in TABLES)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is damaged: delete that folder ({error})") from error


def fingerprint(table: pd.DataFrame) -> str:
    """12 hexadecimal digits that change with any id, label or pixel of the table."""
    text = table[["id", "label", "sha256"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


FACTS = yaml.safe_load(Path(__file__).with_name("datasets.yaml").read_text())


def cell_place(task: str, folders: tuple[str, ...]) -> tuple[str, str | None]:
    """(source, class) of a file: the nearest of its folders that names a class of ``task``.

    Plain, numbered (``1_normal_superficiel``), with a suffix (``normal_superficiel_org_74_jpeg``,
    ``Parabasal_flat``) or ``im_`` before it, in any case, or Herlev's in English spelling.
    """
    known = FACTS[task].get("labels", FACTS[task]["classes"])
    for folder in reversed(folders):
        plain = re.sub(r"^(\d+[\s_.-]*|im_)", "", folder.strip().lower())
        plain = re.sub(r"[\s-]+", "_", plain).replace("normal_superficial", "normal_superficiel")
        plain = re.sub(r"(_flat|(_org)?(_\d+)?(_(jpe?g|png|bmp))?)$", "", plain)
        if plain in known:
            return task, plain
    return task, None


def colposcopy_place(folders: tuple[str, ...]) -> tuple[str, str | None]:
    """(source, type) from folders such as ``train/train/Type_1`` or
    ``additional_Type_2_v2/Type_2`` or ``Type_1_mini``. ``test`` is unlabelled."""
    path = f"/{'/'.join(folders).lower()}/"
    source = next((name for name in ("additional", "test") if f"/{name}" in path), "train")
    types = re.findall(r"/(type_[123])(?=/|_mini/)", path)
    label = types[-1].capitalize() if types else None
    return source, "" if source == "test" else label


for _name, _facts in FACTS.items():
    _facts = {k: tuple(v) if isinstance(v, list) else v for k, v in _facts.items()}
    _place = colposcopy_place if _name == "colposcopy" else partial(cell_place, _name)
    register(Dataset(name=_name, place=_place, **_facts))
for _module in re.findall(r"[\w.]+", os.environ.get("CERVIX_PLUGINS", "")):
    try:
        importlib.import_module(_module)
    except ImportError as error:
        raise DataError(f"CERVIX_PLUGINS names '{_module}', which fails: {error}") from error
