"""A configuration -> the notebooks to execute, with their parameters; and the steps that the workflow runs."""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill

from cervix_utils import config, datasets, paths, rendering, reporting

COLPOSCOPY, HERLEV, EXPLAIN = "02_colposcopy_resnet50", "03_herlev_resnet101", "04_explainability"


def plan(name: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings, jobs) of ``config/<name>.yaml`` with ``overrides``; a job is a report's stem and its parameters.

    Everything that can be known beforehand is checked here, before anything runs: keys and types, folds, the data
    folders and the weights files. Raises a ValueError that names the thing and the remedy.
    """
    for key in overrides:
        if config.schema().get(key, {}).get("set_by") == "workflow":
            raise config.ConfigError(
                f"key '{key}' is set by the workflow: use herlev_folds, herlev_protocols and the like"
            )
    settings = config.load(paths.CONFIG / f"{name}.yaml", overrides) | {"report_name": name}
    for task in datasets.FOLDERS:
        datasets.find(settings["data_root"], task, settings["seed"])
    if settings["weights_resnet50"] == "grown" or (
        settings["weights_resnet101"] == "grown" and settings["weights_resnet50"] == "none"
    ):
        raise ValueError("weights_resnet101=grown grows from a ResNet-50: give weights_resnet50 as imagenet or a path")
    for key in ("weights_resnet50", "weights_resnet101"):
        if settings[key] not in ("none", "imagenet", "grown") and not paths.resolve(settings[key]).is_file():
            raise ValueError(
                f"{key}: there is no file {paths.resolve(settings[key])}; give a path, 'imagenet' or 'none'"
            )
    if wrong := [fold for fold in settings["herlev_folds"] if fold >= settings["herlev_n_folds"]]:
        raise ValueError(
            f"herlev_folds: {wrong} do not exist; with herlev_n_folds {settings['herlev_n_folds']} they start at 0"
        )
    parts = {"01_data_exploration": {}, "05_comparison": {}, "06_calibration": {}}
    if settings["attribution_images"]:
        if settings["attribution_pipeline"] not in settings["herlev_pipelines"]:
            raise ValueError(f"attribution_pipeline: {settings['attribution_pipeline']} is not among herlev_pipelines")
        parts[EXPLAIN] = {"protocol": settings["herlev_protocols"][0], "fold": settings["herlev_folds"][0]}
        seen = [settings[f"colposcopy_{key}"] for key in ("recipes", "protocols", "folds")]
        parts[EXPLAIN]["photographs_run"] = f"{seen[0][-1]}/{seen[1][0]}-{seen[2][0]}"
    for stem, task in ((COLPOSCOPY, "colposcopy"), (HERLEV, "herlev")):
        for protocol in settings[f"{task}_protocols"]:
            parts |= {f"{stem}_{protocol}-{f}": {"protocol": protocol, "fold": f} for f in settings[f"{task}_folds"]}
    jobs = {}
    for stem, own in sorted(parts.items()):
        values = settings | own
        jobs[stem] = {key: values[key] for key in config.keys_of(notebook_of(stem))}
    return settings, jobs


def notebook_of(stem: str) -> str:
    """The notebook behind a report: ``03_herlev_resnet101_grouped-0`` -> ``03_herlev_resnet101``."""
    return re.sub(r"_(paper|grouped|train_only)-\d+$", "", stem)


def needs(stem: str, jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Reports whose runs another one reads: notebook 4 explains one network of each task, notebooks 5 and 6 read all."""
    if stem == EXPLAIN:
        photographs = jobs[stem]["photographs_run"].partition("/")[2]
        return [f"{HERLEV}_{jobs[stem]['protocol']}-{jobs[stem]['fold']}", f"{COLPOSCOPY}_{photographs}"]
    return [other for other in jobs if other[:2] in ("02", "03")] if stem[:2] in ("05", "06") else []


def uses_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether training jobs will share a GPU and must wait for each other (known without importing PyTorch)."""
    return settings["device"] != "cpu" and shutil.which("nvidia-smi") is not None


def execute(notebook: Path, output: Path, values: Mapping[str, Any]) -> None:
    """Run a notebook by papermill, its prints going to the terminal; ``output`` appears only when every cell ran.

    papermill leaves cells marked completed after a dead kernel or an interrupt: only an exit without an exception
    counts. A failed notebook stays beside its place as ``.<name>.partial.ipynb``; the terminal names the cell.
    """
    part = output.with_name(f".{output.stem}.partial.ipynb")
    part.parent.mkdir(parents=True, exist_ok=True)
    print(f"--- {output.stem} starts", flush=True)
    try:
        papermill.execute_notebook(
            notebook,
            part,
            dict(values),
            progress_bar=False,
            stdout_file=sys.stdout,
            cwd=Path.cwd(),
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    except papermill.PapermillExecutionError as error:
        line = next((line for line in reversed(error.traceback) if line.strip()), "")
        print(
            f"\n--- {output.stem} FAILED in cell {error.cell_index + 1} (In [{error.exec_count}]):\n\n{error.source}\n\n"
            f"{error.ename}: {error.evalue or line}\n\nThe notebook as far as it came: {part}",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1) from None
    part.replace(output)
    print(f"--- {output.stem} done", flush=True)


def index(name: str, settings: Mapping[str, Any]) -> None:
    """Write run.json, the documents and index.html of ``reports/<name>``."""
    from cervix_utils import documents  # here: planning and executing start without scikit-learn

    out = paths.reports_dir(name)
    tables = {task: datasets.load(settings["data_root"], task, settings["seed"]) for task in datasets.FOLDERS}
    fingerprints = {task: datasets.fingerprint(table) for task, (table, _) in tables.items()}
    reporting.write_run_json(out / "run.json", settings, fingerprints, reporting.notebook_seconds(out))
    documents.write(out, settings, tables)
    reporting.write_index(out, name)


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    if step == "execute":
        execute(Path(arguments[0]), Path(arguments[1]), json.loads(arguments[2]))
    elif step == "page":
        rendering.to_html(Path(arguments[0]), Path(arguments[1]))
    else:
        index(arguments[0], json.loads(arguments[1]))
