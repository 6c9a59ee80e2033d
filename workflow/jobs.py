"""A configuration -> the notebooks to execute, with their parameters; and the steps of the
workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from ipykernel.parentpoller import ParentPollerUnix
from papermill.exceptions import PapermillExecutionError

from cervix_utils import config, paths
from cervix_utils.data import datasets
from cervix_utils.report import pages

PHOTOGRAPHS, CELLS = "02_colposcopy_resnet50", "03_herlev_resnet101"
EXPLAIN, COMPARE, CALIBRATE = "04_explainability", "05_comparison", "06_calibration"
ELSEWHERE = "08_elsewhere"
MIB_A_JOB = 16_000  # of a GPU: a ResNet-101 at 224 px in batches of 32 takes about 10,000
BY_FOLD = {PHOTOGRAPHS: "colposcopy", CELLS: "herlev"}  # notebook -> prefix of its keys


def plan(
    name: str, overrides: Mapping[str, Any], here: bool = True
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings, jobs) of ``config/<name>.yaml`` with ``overrides``; a job is a page and its
    parameters.

    All that can be checked beforehand is checked here, before anything runs: keys and types, folds,
    device (where trainings run ``here``), data folders and weights files. Raises ConfigError with
    every problem found.
    """
    values = config.read(name, overrides)
    by_workflow = [key for key, entry in config.schema().items() if "set_by" in entry]
    problems = [f"key '{key}' is set by the workflow" for key in values if key in by_workflow]
    settings, wrong = config.examine(values)
    problems += dict.fromkeys(wrong + _problems(settings, here))  # each once
    config.refuse(problems, f"{name}.yaml with SET" if overrides else f"{name}.yaml")
    settings["report_name"] = name
    there = [] if _unfound(settings, settings["elsewhere_task"]) else [settings["elsewhere_task"]]
    settings["tasks"] = [*dict.fromkeys([*settings["tasks"], *there])]
    jobs: dict[str, dict[str, Any]] = {"01_data_exploration": {}}
    places = []
    for notebook, prefix in BY_FOLD.items():
        for protocol in settings[f"{prefix}_protocols"]:
            for fold in settings[f"{prefix}_folds"]:
                jobs[f"{notebook}_{protocol}-{fold}"] = {"protocol": protocol, "fold": fold}
                places.append(paths.page_name(settings[f"{prefix}_task"], protocol, fold))
    jobs |= {key: {"page_names": places} for key in (COMPARE, CALIBRATE)}
    cells = [page for page in places if page.startswith(f"{settings['herlev_task']}-")]
    if settings["attribution_images"]:
        jobs[EXPLAIN] = _explained(settings) | {"cells_pages": cells}
    if there:
        jobs[ELSEWHERE] = {"page_names": cells}
    complete = {}
    for page, values in sorted(jobs.items()):
        keys = config.keys_of(notebook_of(page))
        complete[page] = {key: (settings | values)[key] for key in keys}
    return settings, complete


def _unfound(settings: Mapping[str, Any], task: str) -> str:
    """Why a data set cannot be read; empty where it can."""
    try:
        datasets.find(settings["data_root"], task, settings["seed"])
    except (ValueError, OSError) as error:
        return f"data of '{task}': {error}"
    return ""


def _explained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of notebook 4: the first protocol and fold of each task, the last recipe of paper
    C."""
    first = {}
    for name, prefix in (("cells_page", "herlev"), ("photographs_page", "colposcopy")):
        protocol, fold = settings[f"{prefix}_protocols"][0], settings[f"{prefix}_folds"][0]
        first[name] = paths.page_name(settings[f"{prefix}_task"], protocol, fold)
    return first | {"photographs_pipeline": settings["colposcopy_pipelines"][-1]}


def _problems(settings: Mapping[str, Any], here: bool) -> list[str]:
    """What would fail later, one sentence each."""
    tasks = (*settings["tasks"], settings["colposcopy_task"], settings["herlev_task"])
    problems = [text for task in tasks if (text := _unfound(settings, task))]
    if settings["elsewhere_task"] not in ("none", *datasets.DATASETS):
        problems.append(f"elsewhere_task: unknown data set '{settings['elsewhere_task']}'")
    wanted = settings["weights_resnet50"], settings["weights_resnet101"]
    if "grown" in (wanted[0], settings["weights_other"]) or wanted == ("none", "grown"):
        problems.append("grown is for weights_resnet101, from a ResNet-50: give weights_resnet50")
    folds = settings["herlev_n_folds"]
    if wrong := [fold for fold in settings["herlev_folds"] if fold >= folds]:
        problems.append(f"herlev_folds: {wrong} do not exist; herlev_n_folds is {folds}, from 0")
    explained = settings["attribution_pipeline"]
    if settings["attribution_images"] and explained not in settings["herlev_pipelines"]:
        problems.append(f"attribution_pipeline: {explained} is not among herlev_pipelines")
    return problems + _problems_of_trainings(settings, here)


def _problems_of_trainings(settings: Mapping[str, Any], here: bool) -> list[str]:
    """Pipelines, architectures and a device that are not to be had; PyTorch is asked only if need
    be."""
    from cervix_utils.training import recipes  # here: a finished report needs none of it

    problems = []
    for key in ("weights_resnet50", "weights_resnet101", "weights_other"):
        if settings[key] not in ("none", "imagenet", "grown"):
            from cervix_utils.training import networks

            try:
                networks.read_weights(settings[key])
            except (ValueError, OSError) as error:
                problems.append(f"{key}: {error}")
    for prefix in BY_FOLD.values():
        if not (settings["valid_fraction"] or settings[f"{prefix}_candidates"]):
            problems.append(f"valid_fraction 0 calibrates nothing: give {prefix}_candidates")
        for pipeline in settings[f"{prefix}_pipelines"]:
            place = {"protocol": settings[f"{prefix}_protocols"][0], "fold": 0}
            try:
                recipe = recipes.make({**settings, **place}, prefix, pipeline)
                changes = settings.get(f"{prefix}_sgd_changes", [])
                for change in [*settings[f"{prefix}_candidates"], *changes]:
                    recipes.changed(recipe, change)
            except (recipes.RecipeError, datasets.DataError) as error:
                problems.append(f"{prefix}_pipelines: {error}")
    usual = {"resnet18", "resnet50", "resnet101"}
    if others := {settings[f"{prefix}_architecture"] for prefix in BY_FOLD.values()} - usual:
        from torchvision import models

        unknown = sorted(others - set(models.list_models(models)))
        problems += [f"architecture '{name}' is none of torchvision's" for name in unknown]
    if settings["device"] == "cuda" and here:
        from cervix_utils.training import learners

        try:
            learners.pick_device("cuda")
        except learners.DeviceError as error:
            problems.append(str(error))
    return problems


def notebook_of(page: str) -> str:
    """The notebook behind a page: ``03_herlev_resnet101_grouped-0`` -> ``03_herlev_resnet101``."""
    return re.sub(r"_(paper|grouped|train_only)-\d+$", "", page)


def tables_of(page: str, jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the tables of predictions that a page writes (notebooks 2, 3) or reads (4, 5, 6)."""
    values, notebook = jobs[page], notebook_of(page)
    if notebook in BY_FOLD:
        task = values[f"{BY_FOLD[notebook]}_task"]
        return [paths.page_name(task, values["protocol"], values["fold"])]
    if notebook == EXPLAIN:
        return [*values["cells_pages"], values["photographs_page"]]
    return values.get("page_names", [])


def sharing_a_gpu(settings: Mapping[str, Any]) -> int:
    """How many jobs share the GPU, 1 to 4 by its memory; 0 without one. PyTorch is not imported."""
    if settings["device"] == "cpu" or shutil.which("nvidia-smi") is None:
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return min(4, max(1, int(answer[0]) // MIB_A_JOB)) if answer else 0


def end_jobs(record: Path) -> None:
    """Cancel the jobs on Slurm that a killed run has left, and wait until they have ended.

    ``record`` holds their common name. Two jobs must not write the same page.
    """
    if not record.is_file():
        return
    name = f"--name={record.read_text()}"
    print(f"jobs of an earlier run on Slurm are ended first: squeue {name}", flush=True)
    subprocess.run(["scancel", name], check=True)
    while subprocess.run(["squeue", "-h", name], check=True, capture_output=True).stdout:
        time.sleep(1)
    record.unlink()


def execute(notebook: Path, output: Path, values: Mapping[str, Any]) -> None:
    """Run a notebook by papermill, its prints going to the terminal; ``output`` only when every
    cell ran.

    papermill leaves cells marked completed after a dead kernel or an interrupt: only an exit
    without an exception counts. A failed notebook stays beside its place as
    ``.<name>.partial.ipynb``.
    """
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    print(f"--- {output.stem} starts", flush=True)
    options = {"progress_bar": False, "stdout_file": sys.stdout, "stderr_file": sys.stderr}
    kernel = {"cwd": Path.cwd(), "extra_arguments": ["--IPKernelApp.log_level=50"]}
    try:
        papermill.execute_notebook(notebook, partial, dict(values), **options, **kernel)
    except PapermillExecutionError as error:
        line = next((line for line in reversed(error.traceback) if line.strip()), "")
        where = f"cell {error.cell_index + 1} (In [{error.exec_count}])"
        sys.exit(
            f"\n--- {output.stem} FAILED in {where}:\n\n{error.source}\n\n"
            f"{error.ename}: {error.evalue or line}\n\nThe notebook as far as it came: {partial}"
        )
    except RuntimeError as error:  # nbclient's, for a kernel that is gone
        marks = [cell.metadata.get("papermill", {}) for cell in pages.read(partial).cells]
        ran = [n for n, mark in enumerate(marks, 1) if mark.get("start_time")]
        sys.exit(
            f"\n--- {output.stem} FAILED in cell {max(ran, default=1)}: {error}. Most often memory "
            "ran out: take fewer jobs at a time (CORES=1), a smaller batch or smaller images"
        )
    partial.replace(output)
    print(f"--- {output.stem} done", flush=True)


def index(name: str, settings: Mapping[str, Any], stems: list[str]) -> None:
    """Write run.json, the model cards and index.html of ``reports/<name>``; remove other pages."""
    out, fingerprints = paths.reports_dir(name), {}
    for key in ("herlev_task", "colposcopy_task"):
        table, _ = datasets.load(settings["data_root"], settings[key], settings["seed"])
        fingerprints[settings[key]] = datasets.fingerprint(table)
    pages.write_run_json(out, settings, fingerprints, stems)
    pages.write_index(out, name, stems)
    from cervix_utils.explanation import own  # here: PyTorch, which no other step of this needs

    for folder in [place for task in fingerprints for place in pages.run_folders(out, task)]:
        if (folder / own.runs.FILES[0]).is_file():
            own.contract(own.runs.read(folder))


def case(run: str, asked: str, data_root: str) -> None:
    """Notebook 7 on one's own images: a page and own_images.csv in ``reports/case``."""
    out, name = paths.reports_dir("case"), "07_own_images"
    values = {"own_run": run, "own_images": asked, "data_root": data_root, "report_name": out.name}
    shown = {dataset.show_key: bool(asked) for dataset in datasets.DATASETS.values()}
    execute(paths.NOTEBOOKS / f"{name}.ipynb", out / f"{name}.ipynb", values | shown)
    print(pages.to_html(out / f"{name}.ipynb", out / f"{name}.html"))


if __name__ == "__main__":
    parent = int(os.environ.get("CERVIX_PARENT", os.getppid()))
    ParentPollerUnix(parent).start()  # a workflow that is killed takes its steps with it
    step, *arguments = sys.argv[1:]
    try:
        if step == "execute":
            execute(Path(arguments[0]), Path(arguments[1]), json.loads(arguments[2]))
        elif step == "page":
            pages.to_html(Path(arguments[0]), Path(arguments[1]), json.loads(arguments[2]))
        elif step == "case":
            case(*arguments)
        else:
            index(arguments[0], *map(json.loads, arguments[1:]))
    except OSError as error:  # a full disk
        sys.exit(f"--- {arguments[0]} FAILED ({error}): is there room in {paths.reports_dir('')}?")
