"""Every path of the project, and the only path arithmetic in it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
NOTEBOOKS = ROOT / "notebooks"


def cache_dir() -> Path:
    """Folder of everything that can be made again (demo pictures, tables of images): CERVIX_CACHE or .cache/."""
    return Path(os.environ.get("CERVIX_CACHE", ROOT / ".cache"))


def reports_dir(name: str) -> Path:
    """Folder of one report, ``reports/<name>``; CERVIX_REPORTS moves ``reports`` elsewhere."""
    return Path(os.environ.get("CERVIX_REPORTS", ROOT / "reports")) / name


def resolve(path: str | Path) -> Path:
    """Absolute path of ``path``: as it is, else seen from the working directory, else from the repository root.

    Notebooks run in ``notebooks/`` under JupyterLab and nbval, and in the caller's folder under papermill.
    """
    path = Path(path).expanduser()
    return path if path.is_absolute() else (path if path.exists() else ROOT / path).resolve()


def run_dir(runs: str | Path, task: str, pipeline: str, protocol: str, fold: int) -> Path:
    """Folder of one trained network: ``<runs>/<task>/<pipeline>/<protocol>-<fold>``."""
    return Path(runs) / task / pipeline / f"{protocol}-{fold}"


def references_dir(report_dir: str | Path, task: str) -> Path:
    """Folder of the predictions that a network's are read against: ``<report_dir>/references/<task>``."""
    return Path(report_dir) / "references" / task


def reference_file(report_dir: str | Path, task: str, name: str, protocol: str, fold: int) -> Path:
    """One of them: ``<report_dir>/references/<task>/<name>/<protocol>-<fold>.csv``."""
    return references_dir(report_dir, task) / name / f"{protocol}-{fold}.csv"


def public(value: Any) -> Any:
    """``value`` fit to be mailed: in strings, at any depth, an absolute path is cut down to its last part."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str | Path):
        return value
    if re.match(r"[/~]|\.\.[\\/]|[A-Za-z]:[\\/]|\\\\", text := str(value)):
        name = PureWindowsPath(text).name  # knows both kinds of slash
        return "folder" if name in {os.environ.get(key) for key in ("USER", "LOGNAME", "USERNAME")} else name
    return re.sub(r"(?<![\w.:/\\<])(?:~?/|[A-Za-z]:[\\/])[^\s\"'<>]*[/\\]([^\s\"'<>/\\]+)", r"\1", text)
