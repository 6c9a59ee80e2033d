"""An archive of a collection -> its folder under DATA, whole or not at all: ``make data-herlev``.

``make data-<folder> ARCHIVE=file DATA=folder``; MobileODT's comes by the user's own Kaggle client
where no ARCHIVE is given. What is unpacked is read before it gets its place, and counted.
"""

import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

from cervix_utils import paths
from cervix_utils.data import datasets
from cervix_utils.data.datasets import DataError

COMPETITION = "intel-mobileodt-cervical-cancer-screening"
BY_HAND = f"Or accept the rules of kaggle.com/c/{COMPETITION}, download it, and give ARCHIVE=file"
KINDS = [end for _, ends, _ in shutil.get_unpack_formats() for end in ends]  # .zip, .tar.gz, ...
DAMAGED = zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError


def contents(file: Path) -> list[tuple[str, int, bool]]:
    """Name, bytes, and whether it is a plain file or folder, of everything in an archive."""
    if file.suffix != ".zip":
        with tarfile.open(file) as archive:
            return [(m.name, m.size, m.isfile() or m.isdir()) for m in archive]
    with zipfile.ZipFile(file) as archive:
        kinds = [(m, m.external_attr >> 28) for m in archive.infolist()]  # 4 folder, 8 file
    return [(m.filename, m.file_size, k in (0, 4, 8) and m.flag_bits % 2 < 1) for m, k in kinds]


def check(file: Path, target: Path, dataset: datasets.Dataset) -> None:
    """Raise DataError where an archive is none, is damaged, is another collection's, needs more
    disk than is free, or holds what is not to be unpacked; nothing is written."""
    known = file.name.endswith(tuple(KINDS))
    found = contents(file) if known or not file.exists() else [(file.name, 0, True)]
    for name, _, plain in found:
        if not plain or name.startswith("/") or ".." in name:
            raise DataError(f"it holds '{name}', a link, a secret or a path that leads out of it")
    needed, there = sum(size for _, size, _ in found), filter(Path.is_dir, target.parents)
    if needed > (free := shutil.disk_usage(next(there)).free):
        raise DataError(f"it unpacks to {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    names = [Path(name) for name, _, _ in found]
    if missing := {*dataset.originals} - {dataset.place(name.parts[:-1])[1] for name in names}:
        for name in [name for name in names if re.fullmatch(r"\.(7z|rar)", name.suffix.lower())]:
            command = f"7z x '{file}' -o'{target}', and the same for any archive in it"
            raise DataError(f"Python does not unpack {name}. By hand, with 7-Zip: {command}")
        words = f"with files of the class '{min(missing)}', such as {dataset.example}"
        raise DataError(f"it is no {', '.join(KINDS)} {words}: not all of the {dataset.title}")


def download(data: Path) -> Path:
    """MobileODT's archive in ``data``, by the Kaggle client, which goes on where it was stopped."""
    command = ["kaggle", "competitions", "download", "-c", COMPETITION, "-p", str(data)]
    if not shutil.which("kaggle"):
        raise DataError(f"there is no Kaggle client here (the command kaggle). {BY_HAND}")
    if subprocess.run(command, check=False).returncode:
        raise DataError(f"Kaggle's client failed, see above: is its key in ~/.kaggle? {BY_HAND}")
    return data / f"{COMPETITION}.zip"


def fetch(dataset: datasets.Dataset, archive: str, data: Path) -> str:
    """Make the data set's folder in ``data`` from its archive; how many images it has, in words.

    Raises DataError where the folder is there, the archive is not fit, or no table can be read from
    it: then nothing of it is left. What a killed run left is removed by the next one.
    """
    target = data / dataset.folders[0]
    for place in data.iterdir() if data.is_dir() else []:
        if place.name.lower() in dataset.folders:
            raise DataError(f"{place} is there and stays as it is: move it away to unpack again")
    file = Path(archive).expanduser() if archive else download(data)
    check(file, target, dataset)
    data.mkdir(parents=True, exist_ok=True)
    with FileLock(data / f".{target.name}.lock", timeout=0), paths.whole(target) as draft:
        for dead in data.glob(f".{'[0-9a-f]' * 32}.{target.name}"):
            shutil.rmtree(dead)
        options = {} if file.suffix == ".zip" else {"filter": "data"}
        shutil.unpack_archive(file, draft, **options)
        table, left = datasets.read(draft, dataset)
    reasons = left["reason"].str.replace(r"( as |[:(,]).*", "", regex=True).value_counts()
    why = ", ".join(f"{number} {reason.strip()}" for reason, number in reasons.items())
    return f"{target}: {len(table)} {dataset.noun} used, {len(left)} files left out ({why or '-'})"


def main(folder: str, archive: str = "", data: str = "data") -> None:
    """Unpack, and say how many images are used; SystemExit with what is wrong."""
    dataset = next(one for one in datasets.DATASETS.values() if one.folders[0] == folder)
    if not archive and dataset.name != "colposcopy":
        sys.exit(f"give ARCHIVE=/path/to/the archive of the {dataset.title}: see docs/data.md")
    try:
        print(fetch(dataset, archive, paths.resolve(data)))
    except Timeout:
        sys.exit(f"another run is unpacking into {data}/{folder}: wait until it ends, or stop it")
    except (DataError, OSError, *DAMAGED) as error:
        said = re.sub(r"\.[0-9a-f]{32}\.|:?\n.*", "", str(error))  # no draft's name, one line
        sys.exit(f"{archive or COMPETITION}: {said}. Nothing was unpacked; see docs/data.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
