"""Every path of the project, the only path arithmetic in it, and how files are written whole or not
at all."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
NOTEBOOKS = ROOT / "notebooks"


class CacheError(OSError):
    """The cache cannot be written or is damaged; the message names the folder and the remedy."""


def cache_dir() -> Path:
    """Folder of everything that can be made again (demo, tables, squares): CERVIX_CACHE (a path
    from the repository root on) or .cache/."""
    return ROOT / os.environ.get("CERVIX_CACHE", ".cache")


def in_jupyterlab() -> bool:
    """Whether somebody sits before a notebook: not under papermill or nbval."""
    return "JPY_SESSION_NAME" in os.environ


def reports_dir(name: str) -> Path:
    """Folder of one report, ``reports/<name>``; CERVIX_REPORTS moves ``reports`` elsewhere."""
    return ROOT / os.environ.get("CERVIX_REPORTS", "reports") / name


def resolve(path: str | Path) -> Path:
    """Absolute ``path``: as it is, else from the working directory, else from the repository root.

    Notebooks run in ``notebooks/`` under JupyterLab and nbval, in the caller's folder under
    papermill.
    """
    path = Path(path).expanduser()
    if path.is_absolute():
        return path
    return (path if path.exists() else ROOT / path).resolve()


def page_name(task: str, protocol: str, fold: int) -> str:
    """``herlev-paper-0``: how the tables of one task, protocol and fold are called."""
    return f"{task}-{protocol}-{fold}"


def predictions_file(report_dir: str | Path, task: str, protocol: str, fold: int) -> Path:
    """All predictions of one task, protocol and fold:
    ``<report_dir>/predictions/herlev-paper-0.csv``."""
    return Path(report_dir) / "predictions" / f"{page_name(task, protocol, fold)}.csv"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft (file or folder) beside ``path`` that takes its place in one step when the block
    ends.

    Nothing is left where the block fails. A folder never replaces another: of two writers the first
    wins.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        for file in filter(Path.is_file, [draft, *draft.rglob("*")]):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # so that a power cut leaves none that is empty
        if not (draft.is_dir() and path.exists()):
            draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True) if draft.is_file() else None


def digest(*content: Any) -> str:
    """16 hexadecimal digits that change with the ``repr`` of any ``content``."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def cached(kind: str, content: Any, make: Callable[[Path], None]) -> Path:
    """The folder of the cache that ``make(folder)`` fills, made once for each ``content``.

    One process makes it while the others wait; it appears whole or not at all. Raises CacheError
    where the disk is full or not ours to write on.
    """
    folder = cache_dir() / f"{kind}-{digest(content)}"
    if folder.is_dir():
        return folder  # perhaps another user's: no lock of theirs is needed to read it
    try:
        with FileLock(folder.with_suffix(".lock"), mode=0o666):
            if not folder.is_dir():
                with whole(folder) as draft:
                    draft.mkdir()
                    make(draft)
    except OSError as error:
        remedy = "free some room, or set CERVIX_CACHE to another folder"
        raise CacheError(f"{folder} could not be made ({error}): {remedy}") from error
    return folder


def public(value: Any) -> Any:
    """``value`` fit to be mailed: in strings, at any depth, an absolute path is cut to its last
    part."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str | Path):
        return value
    if re.match(r"[/~]|\.\.[\\/]|[A-Za-z]:[\\/]|\\\\", text := str(value)):
        name = PureWindowsPath(text).name  # knows both kinds of slash
        users = {os.environ.get(key) for key in ("USER", "LOGNAME", "USERNAME")}
        return "folder" if name in users else name
    inside = r"(?<![\w.:/\\<])(?:~?/|[A-Za-z]:[\\/])[^\s\"'<>]*[/\\]([^\s\"'<>/\\]+)"
    return re.sub(inside, r"\1", text)
