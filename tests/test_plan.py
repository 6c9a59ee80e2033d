"""The plan of a report: its jobs and their parameters, and everything that is wrong said before."""

import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cervix_utils import config, paths
from workflow import jobs

TASKS = ["herlev", "colposcopy"]


@pytest.fixture
def settings(tiny_demo):
    """Overrides of the demo that need no drawing."""
    return {"data_root": str(tiny_demo)}


# Jobs


def test_one_job_a_notebook_protocol_and_fold_with_its_parameters(settings):
    asked = {"herlev_folds": [0, 2], "colposcopy_protocols": ["grouped", "train_only"]}
    asked |= {"herlev_epochs": 3}
    planned, found = jobs.plan("demo", settings | asked)
    wanted = {"01_data_exploration", "04_explainability", "05_comparison", "06_calibration"}
    wanted |= {jobs.ELSEWHERE}
    wanted |= {f"{jobs.PHOTOGRAPHS}_{name}-0" for name in asked["colposcopy_protocols"]}
    pairs = itertools.product(("paper", "grouped"), (0, 2))
    wanted |= {f"{jobs.CELLS}_{name}-{fold}" for name, fold in pairs}
    assert list(found) == sorted(wanted)
    by_workflow = {key for key, entry in config.schema().items() if "set_by" in entry}
    for page, values in found.items():
        assert list(values) == config.keys_of(jobs.notebook_of(page)), page
        assert all(values[key] == planned[key] for key in set(values) - by_workflow), page
        config.validate(values, page)
    training = found[f"{jobs.CELLS}_grouped-2"]
    assert (training["protocol"], training["fold"], training["herlev_epochs"]) == ("grouped", 2, 3)
    assert {values["report_name"] for values in found.values()} == {"demo"}
    json.dumps(found)  # papermill and Snakemake pass it on


def test_notebook_4_explains_the_first_protocol_and_fold_of_each_task(settings):
    asked = {"herlev_folds": [2, 0], "herlev_protocols": ["grouped", "paper"]}
    asked |= {"colposcopy_protocols": ["train_only"], "colposcopy_pipelines": ["modern", "sgd"]}
    found = jobs.plan("demo", settings | asked)[1][jobs.EXPLAIN]
    assert found["cells_page"] == "herlev-grouped-2"
    pages = ["herlev-grouped-2", "herlev-grouped-0", "herlev-paper-2", "herlev-paper-0"]
    assert found["cells_pages"] == pages
    assert found["photographs_page"] == "colposcopy-train_only-0"
    assert found["photographs_pipeline"] == "sgd"


def test_no_notebook_4_where_nothing_is_to_be_explained(settings):
    asked = {"attribution_images": 0, "herlev_pipelines": ["regression"]}
    assert jobs.EXPLAIN not in jobs.plan("demo", settings | asked)[1]


def test_another_hospital_is_looked_at_where_the_data_root_holds_it(settings, tiny_demo, tmp_path):
    planned, found = jobs.plan("demo", settings)
    assert planned["tasks"] == found["01_data_exploration"]["tasks"] == [*TASKS, "sipakmed"]
    for name in ("herlev", "mobileodt"):
        (tmp_path / name).symlink_to(tiny_demo / name)
    for asked in ({"data_root": str(tmp_path)}, settings | {"elsewhere_task": "none"}):
        planned, found = jobs.plan("demo", asked)
        assert jobs.ELSEWHERE not in found and planned["tasks"] == TASKS
    with pytest.raises(config.ConfigError, match="elsewhere_task: unknown data set 'sipakmd'"):
        jobs.plan("demo", settings | {"elsewhere_task": "sipakmd"})


def test_tables_that_pages_write_and_read(settings):
    asked = {"herlev_folds": [1, 0], "herlev_protocols": ["grouped"]}
    found = jobs.plan("demo", settings | asked)[1]
    tables = {page: jobs.tables_of(page, found) for page in found}
    written = ["colposcopy-grouped-0", "colposcopy-paper-0", "herlev-grouped-0", "herlev-grouped-1"]
    assert tables.pop("01_data_exploration") == []
    for page in ("05_comparison", "06_calibration"):
        assert sorted(tables.pop(page)) == written
    cells = ["herlev-grouped-1", "herlev-grouped-0"]
    assert tables.pop(jobs.EXPLAIN) == [*cells, "colposcopy-paper-0"]
    assert tables.pop(jobs.ELSEWHERE) == ["herlev-grouped-1", "herlev-grouped-0"]
    assert sorted(table for (table,) in tables.values()) == written
    assert tables[f"{jobs.CELLS}_grouped-1"] == ["herlev-grouped-1"]


def test_tables_are_called_by_their_data_set(tiny_demo, settings):
    asked = {"colposcopy_task": "herlev", "colposcopy_protocols": ["paper"], "herlev_folds": [1]}
    found = jobs.plan("demo", settings | asked)[1]
    assert jobs.tables_of(f"{jobs.PHOTOGRAPHS}_paper-0", found) == ["herlev-paper-0"]


@pytest.mark.parametrize(
    ("page", "notebook"),
    [
        ("03_herlev_resnet101_grouped-0", "03_herlev_resnet101"),
        ("02_colposcopy_resnet50_train_only-12", "02_colposcopy_resnet50"),
        ("05_comparison", "05_comparison"),
        ("06_calibration", "06_calibration"),
    ],
)
def test_pages_lead_back_to_their_notebook(page, notebook):
    assert jobs.notebook_of(page) == notebook
    assert (paths.NOTEBOOKS / f"{notebook}.ipynb").is_file()


# What is wrong


NO_FILE = "/no/such/weights.pth"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"data_root": "/no/such/folder"}, ["/no/such/folder", "No such file", "herlev"]),
        ({"data_root": ""}, ["DATA=", "CERVIX_DATA"]),
        ({"weights_resnet50": NO_FILE}, ["weights_resnet50", NO_FILE, "'imagenet'", "'none'"]),
        ({"weights_resnet101": NO_FILE}, ["weights_resnet101", NO_FILE]),
        ({"weights_resnet101": "grown"}, ["weights_resnet50"]),
        ({"weights_resnet50": "grown"}, ["weights_resnet50"]),
        ({"weights_other": "grown"}, ["weights_resnet50"]),
        ({"weights_other": NO_FILE}, ["weights_other", NO_FILE]),
        ({"herlev_folds": [0, 4]}, ["herlev_folds", "[4]", "herlev_n_folds is 4"]),
        ({"herlev_folds": [3], "herlev_n_folds": 3}, ["herlev_folds", "[3]"]),
        ({"colposcopy_folds": [3]}, ["colposcopy_folds"]),
        ({"attribution_pipeline": "regression", "herlev_pipelines": ["combined"]},
         ["attribution_pipeline", "regression"]),
        ({"herlev_lr": "1e-3"}, ["herlev_lr", "1.0e-3"]),
        ({"herlev_pipelines": ["combined", "combinde"]}, ["'combinde'", "known are", "combined"]),
        ({"herlev_pipelines": ["combined", "combined_sx"]}, ["unknown pipeline 'combined_sx'"]),
        ({"herlev_pipelines": ["combined", "combined_permuted"]}, ["is a control"]),
        ({"colposcopy_pipelines": ["combined"]}, ["colposcopy_pipelines", "needs grades"]),
        ({"herlev_task": "lungs"}, ["unknown data set 'lungs'", "herlev, colposcopy"]),
        ({"tasks": ["herlev", "lungs"]}, ["unknown data set 'lungs'"]),
        ({"herlev_architecture": "resnet_18"}, ["'resnet_18' is none of torchvision's"]),
        ({"fold": 2}, ["'fold' is set by the workflow"]),
        ({"protocol": "grouped"}, ["'protocol' is set by the workflow"]),
        ({"sead": 7}, ["unknown key 'sead'", "'seed'"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_plan_stops_before_anything_runs(settings, asked, words):
    with pytest.raises(config.ConfigError) as error:
        jobs.plan("demo", settings | asked)
    message = str(error.value)
    assert message.startswith("demo.yaml with SET: ")
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["../config/demo", "config/demo.yaml", "none", "schema"])
def test_a_configuration_that_is_no_name_of_a_file_in_config_is_refused(settings, name):
    with pytest.raises(config.ConfigError, match=r"no configuration .*config/ holds cpu, demo"):
        jobs.plan(name, settings)


def test_all_that_is_wrong_is_named_together(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = {"device": "cuda", "n_boot": 10**9, "herlev_epochs": int(1e9), "sead": 1, "fold": 2}
    asked |= {"weights_resnet50": NO_FILE, "herlev_folds": [7], "data_root": "/no/such/folder"}
    with pytest.raises(config.ConfigError) as error:
        jobs.plan("demo", settings | asked)
    message = str(error.value)
    wanted = [
        "PyTorch sees no CUDA GPU",
        "key 'n_boot'",
        "key 'herlev_epochs'",
        "unknown key 'sead'",
    ]
    wanted += ["'fold' is set by", NO_FILE, "herlev_folds: [7]", "/no/such/folder"]
    assert [word for word in wanted if word not in message] == []
    assert len(set(message.splitlines())) == len(message.splitlines())


def test_a_gpu_is_looked_for_where_trainings_run(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(config.ConfigError, match="PyTorch sees no CUDA GPU"):
        jobs.plan("demo", settings | {"device": "cuda"})
    planned, _ = jobs.plan("demo", settings | {"device": "cuda"}, here=False)
    assert planned["device"] == "cuda"


def test_a_key_of_the_workflow_is_refused_in_a_file_too(settings, tmp_path, monkeypatch):
    config.schema()
    monkeypatch.setattr(paths, "CONFIG", tmp_path)
    (tmp_path / "mine.yaml").write_text("fold: 2\n")
    with pytest.raises(config.ConfigError, match=r"mine\.yaml with SET: key 'fold' is set by"):
        jobs.plan("mine", settings)


def test_a_data_root_with_one_data_set_names_the_other(tmp_path):
    (tmp_path / "herlev").mkdir()
    with pytest.raises(config.ConfigError, match=r"no folder 'mobileodt' \(found: herlev\)"):
        jobs.plan("demo", {"data_root": str(tmp_path)})


@pytest.mark.parametrize(("memory", "jobs_at_once"), [(81559, 4), (40960, 2), (8192, 1)])
def test_a_gpu_is_shared_by_as_many_jobs_as_its_memory_holds(
    tmp_path, monkeypatch, memory, jobs_at_once
):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {memory}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs.sharing_a_gpu({"device": "auto"}) == jobs_at_once
    assert jobs.sharing_a_gpu({"device": "cpu"}) == 0


def test_a_report_without_a_gpu_shares_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs.sharing_a_gpu({"device": "auto"}) == 0


def test_jobs_of_an_earlier_run_are_cancelled_and_waited_for(tmp_path, monkeypatch, capfd):
    record, said = tmp_path / ".demo.slurm", tmp_path / "said"
    asked = f'echo "$0 $@" >> {said}; test $(grep -c squeue {said}) -ge 2 || echo 7'
    for name, words in (("scancel", f'echo "$0 $@" >> {said}'), ("squeue", asked)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    jobs.end_jobs(record)
    assert not said.exists()  # there was no run
    record.write_text("run-1")
    jobs.end_jobs(record)
    words = [line.split("/")[-1] for line in said.read_text().splitlines()]
    assert words == ["scancel --name=run-1", "squeue -h --name=run-1", "squeue -h --name=run-1"]
    assert not record.exists() and "squeue --name=run-1" in capfd.readouterr().out
    record.write_text("run-2")
    (tmp_path / "scancel").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        jobs.end_jobs(record)
    assert record.exists()  # until they can be ended


# Executing a notebook


def written(file: Path, *sources: str) -> Path:
    """A notebook with a parameters cell and these cells."""
    cells = [new_code_cell("x = 1", metadata={"tags": ["parameters"]}), new_markdown_cell("text")]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": spec})
    notebook.cells += [new_code_cell(source) for source in sources]
    nbformat.write(notebook, file)
    return file


def test_a_notebook_gets_its_parameters_and_appears_when_every_cell_ran(tmp_path, capfd):
    notebook = written(tmp_path / "a.ipynb", "print('x is', x)")
    jobs.execute(notebook, tmp_path / "out" / "page.ipynb", {"x": 5})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.ipynb"]
    printed = capfd.readouterr().out
    assert re.search(r"--- page starts\n.*x is 5\n.*--- page done\n", printed, re.DOTALL)


def test_a_notebook_that_fails_says_where_and_leaves_no_page(tmp_path):
    notebook = written(tmp_path / "a.ipynb", "y = x", "z = 1 / (y - x)", "print('never')")
    with pytest.raises(SystemExit) as error:
        jobs.execute(notebook, tmp_path / "out" / "page.ipynb", {"x": 5})
    message = str(error.value)
    partial = tmp_path / "out" / ".page.partial.ipynb"
    assert "--- page FAILED in cell 5 (In [4]):\n\nz = 1 / (y - x)\n\n" in message
    assert "ZeroDivisionError: division by zero" in message and str(partial) in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == [partial.name]


def test_a_kernel_that_dies_leaves_no_page(tmp_path):
    notebook = written(tmp_path / "a.ipynb", "import os; os.kill(os.getpid(), 9)")
    words = r"page FAILED in cell 3: Kernel died.*memory.*CORES=1"
    with pytest.raises(SystemExit, match=words):
        jobs.execute(notebook, tmp_path / "out" / "page.ipynb", {})
    assert not (tmp_path / "out" / "page.ipynb").exists()
