"""Where the numbers come from, the record of a run, and the overview page of a report folder."""

import base64
import json
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any
from urllib.parse import quote

import pandas as pd

from cervix_utils import paths

PACKAGES = ("torch", "torchvision", "fastai", "captum", "papermill", "cervix-notebooks")
DOCUMENTS = {  # what `documents` writes beside the notebooks' pages
    "model_card_herlev.html": "Model card: severity of single cells",
    "model_card_colposcopy.html": "Model card: cervix types",
    "checklist.html": "Answers for CLAIM 2024, TRIPOD+AI and STARD-AI",
    "checklist.csv": "The same answers as a table (CSV)",
    "flow_herlev.svg": "Flow diagram: single cells",
    "flow_colposcopy.svg": "Flow diagram: cervix photographs",
}
BEST = "Best baseline without a network"
_QUIET: dict[str, Any] = {"text": True, "stderr": subprocess.DEVNULL, "timeout": 20}


def notebook_seconds(report_dir: Path) -> dict[str, float]:
    """Stem of each executed notebook in ``report_dir`` -> seconds that papermill took for it."""
    import nbformat  # here, and `rendering` below: notebooks that only state their provenance start without

    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in sorted(report_dir.glob("*.ipynb"))}
    seconds = {stem: book.metadata.get("papermill", {}).get("duration") for stem, book in notebooks.items()}
    return {stem: value for stem, value in seconds.items() if value is not None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about numbers; nothing is imported."""
    found = {package: metadata.version(package) for package in PACKAGES if any(metadata.distributions(name=package))}
    return {"python": python_version(), **dict.fromkeys(PACKAGES, "not installed"), **found}


def commit() -> str:
    """Commit of this project's checkout, `` + uncommitted changes`` where there are any; else ``unknown``."""
    git = ["git", "--no-optional-locks", "-C", str(paths.ROOT)]
    try:
        known = subprocess.check_output([*git, "rev-parse", "--show-toplevel", "HEAD"], **_QUIET)
        dirty = subprocess.check_output([*git, "status", "--porcelain"], **_QUIET)
        top, head = known.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"
    if Path(top).resolve() != paths.ROOT:  # another project's checkout, with this package installed inside
        return "unknown"
    return head[:12] + " + uncommitted changes" * bool(dirty)


class Provenance(pd.Series):
    """One fact a row; shows itself in full as a table."""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.to_frame().to_html(header=False)


def provenance(
    settings: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    initialisation: str | Mapping[str, str],
    device: str,
) -> Provenance:
    """Where a notebook's numbers come from, without user names or absolute paths.

    ``settings``: data_root, seed, precision and report_name are used. ``fingerprints``: data set -> hash.
    ``initialisation``: initial weights, of all or per network. ``device``: in words.
    """
    root = settings.get("data_root") or os.environ.get("CERVIX_DATA", "")
    start = initialisation if isinstance(initialisation, Mapping) else {"": initialisation}
    facts = {"configuration": settings.get("report_name", "unknown")}
    folder = paths.public(Path(root).absolute()) if root else "not given"
    facts["data"] = "demo (drawn pictures)" if root == "demo" else folder
    facts |= {f"data fingerprint, {name}": value[:16] for name, value in fingerprints.items()}
    facts |= {f"initialisation, {name}".rstrip(", "): paths.public(value) for name, value in start.items()}
    facts["device"] = device
    facts |= {key: settings[key] for key in ("precision", "seed") if key in settings}
    facts |= {"commit": commit(), **versions(), "date (UTC)": datetime.now(UTC).strftime("%Y-%m-%d %H:%M")}
    return Provenance({name: str(value) for name, value in facts.items()}, name="value", dtype=object)


def write_run_json(
    path: Path, settings: Mapping[str, Any], fingerprints: Mapping[str, str], seconds: Mapping[str, float]
) -> Path:
    """Write the record of a run: versions, commit, configuration, seconds per notebook, data fingerprints."""
    from cervix_utils import rendering

    record = {
        "name": path.parent.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "configuration": paths.public(settings),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "data_fingerprint": dict(fingerprints),
    }
    return rendering.write(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_results(report_dir: Path) -> pd.DataFrame:
    """results.csv of a report folder; no rows where there is none."""
    from cervix_utils import metrics  # here and below: notebooks that only state their provenance start without

    file = report_dir / "results.csv"
    return pd.read_csv(file, dtype={"fold": str}) if file.exists() else pd.DataFrame(columns=metrics.COLUMNS)


def published(results: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """results.csv -> (task, pipeline, metric) -> the paper's number, where it has one."""
    return results.dropna(subset="paper").groupby(["task", "pipeline", "metric"])["paper"].first().to_dict()


def headline(results: pd.DataFrame) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """results.csv -> (task, pipeline, metric, protocol) -> value, low, high, folds, sizes (of a test part).

    Networks, and as pipeline ``BEST`` the best baseline without one. Several folds: their mean and its interval.
    """
    from cervix_utils import comparison

    found, table, keys = {}, comparison.summary(results), ["task", "pipeline", "metric", "protocol"]
    single = results[~results["fold"].isin(["mean", "pooled"])].groupby(keys)["n_test"]
    sizes = {key: sorted({int(size) for size in own.dropna()}) for key, own in single}
    for row in table[~comparison.is_reference(table["pipeline"])].to_dict("records"):
        key = tuple(row[name] for name in keys)
        found[key] = {name: row[name] for name in ("value", "low", "high", "folds")} | {"sizes": sizes[key]}
        best = comparison.best_baseline(table, row["task"], row["metric"], row["protocol"])
        if best is not None:
            found[row["task"], BEST, row["metric"], row["protocol"]] = {**best, "sizes": []}
    return found


def _cards(report_dir: Path) -> list[dict[str, Any]]:
    """One entry a notebook; its pages are the protocols and folds it was run for."""
    import nbformat

    from cervix_utils import rendering

    cards: dict[str, dict[str, Any]] = {}
    for html in sorted(report_dir.glob("[0-9][0-9]_*.html")):
        if not (path := html.with_suffix(".ipynb")).exists():
            continue
        notebook = nbformat.read(path, as_version=4)
        stem, suffix = re.fullmatch(r"(.+?)(?:_((?:train_)?[^_]+-\d+))?", html.stem).groups()
        card = cards.setdefault(stem, {"title": rendering.title(notebook, stem), "pages": [], "thumbnail": ""})
        label = re.sub(r"-(\d+)$", r", fold \1", suffix).replace("_", " ") if suffix else "Open the report"
        seconds = notebook.metadata.get("papermill", {}).get("duration")
        card["pages"].append({"href": quote(html.name), "label": label, "seconds": seconds})
        cells = [cell for cell in notebook.cells if "thumbnail" in cell.metadata.get("tags", [])]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            if not card["thumbnail"] and (svg := output.get("data", {}).get("image/svg+xml")):
                card["thumbnail"] = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return list(cards.values())


def write_index(report_dir: Path, name: str) -> Path:
    """Write ``report_dir/index.html`` from its results.csv, run.json, executed notebooks and documents."""
    from cervix_utils import rendering

    run, table = report_dir / "run.json", read_results(report_dir)
    html = rendering.fill(
        "overview.html.j2",
        page=rendering.page(f"Cervical screening images: report “{name}”"),
        name=name,
        numbers=headline(table),
        published=published(table),
        cards=_cards(report_dir),
        documents={href: label for href, label in DOCUMENTS.items() if (report_dir / href).exists()},
        run=json.loads(run.read_text("utf-8")) if run.exists() else {},
        took=rendering.took,
    )
    return rendering.write(report_dir / "index.html", html)
